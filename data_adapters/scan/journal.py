"""What a scan remembers: SQLite, so that it survives kill -9, needs no memory, and gives rows back in sorted order.

`files` holds what is there, `answers` what was found in each file's headers, `items` the rows and refusals, `lost` the
files that took too long. Entries not met again in a later scan are dropped at its end. The whole may be deleted at any
time; the next scan then reads everything.
"""

import fcntl
import hashlib
import importlib.metadata
import json
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_adapters.base import Adapter
from data_adapters.errors import UserError, naming
from data_adapters.identity import pseudonym
from data_adapters.readers.process import described

VERSION = 2  # of the tables
FORMAT = 1  # of what is in them
FILE, LOCK = "journal.sqlite", "lock"
COMMIT_SECONDS = 3.0  # what a kill costs at most
BATCH = 4096
CACHE_KIB = 8192  # files are met, read and written in the order of their paths: a larger cache finds nothing more
TABLES = """
CREATE TABLE IF NOT EXISTS identity (value TEXT, run INTEGER);
CREATE TABLE IF NOT EXISTS files (
  path TEXT PRIMARY KEY, facts TEXT, bytes INTEGER, run INTEGER, state TEXT, known INTEGER
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS answers (
  path TEXT, method TEXT, key TEXT, answer TEXT, PRIMARY KEY (path, method)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lost (path TEXT PRIMARY KEY, run INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS items (
  path TEXT, item TEXT, refused INTEGER, run INTEGER, facts TEXT, verified INTEGER,
  bytes INTEGER, mtime_ns INTEGER, digest TEXT, id TEXT, "group" TEXT, label TEXT, split TEXT, samples INTEGER,
  meta TEXT, grouped_by TEXT, reason TEXT, remedy TEXT, PRIMARY KEY (path, item, refused)
) WITHOUT ROWID;
"""
# A file whose headers were lost to an interruption counts as new.
MEET = """
INSERT INTO files (path, facts, bytes, run, state, known) VALUES (?, ?, ?, ?, 'new', 0)
ON CONFLICT (path) DO UPDATE SET
  run = excluded.run, bytes = excluded.bytes,
  state = CASE WHEN NOT known THEN 'new' WHEN facts = excluded.facts THEN 'same' ELSE 'changed' END,
  known = CASE WHEN facts = excluded.facts THEN known ELSE 0 END,
  facts = excluded.facts
"""
ROW = ("path", "item", "bytes", "mtime_ns", "digest", "id", "group", "label", "split", "samples", "meta", "grouped_by")
COLUMNS = (*ROW, "refused", "run", "facts", "verified", "reason", "remedy")
PUT = (
    "INSERT OR REPLACE INTO items ("
    + ", ".join(f'"{name}"' for name in COLUMNS)
    + ") VALUES ("
    + ", ".join(f":{name}" for name in COLUMNS)
    + ")"
)


class _Database(sqlite3.Connection):
    """A connection whose errors for a full or read-only disk name the folder."""

    place: Path

    def execute(self, *given: Any) -> sqlite3.Cursor:
        with naming(self.place):
            return super().execute(*given)

    def executemany(self, *given: Any) -> sqlite3.Cursor:
        with naming(self.place):
            return super().executemany(*given)

    def commit(self) -> None:
        with naming(self.place):
            super().commit()


class Journal:
    """One scan's memory, in `folder`, or in nameless temporary files where `folder` is None."""

    def __init__(self, folder: Path | None, *, identity: str, fresh: bool = False) -> None:
        """Open it; what another adapter, root, salt or release wrote is dropped, and everything where `fresh`.

        Raises:
            UserError: another scan writes here, or the folder cannot be written.
        """
        self._lock: int | None = None
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                folder.chmod(0o700)  # it knows the archive's file names
                self._lock = _lock(folder / LOCK)
            except OSError as error:
                raise UserError(
                    f"{folder} cannot be written: {error.strerror}.",
                    remedy="Give another --out, or make that folder writable.",
                ) from error
        self._sql = _open(folder / FILE if folder is not None else None)
        known, before = self._sql.execute("SELECT value, run FROM identity").fetchone() or ("", 0)
        self.run = before + 1  # never used again, so that the answer of one scan cannot be taken for another's
        for table in ("files", "answers", "lost", "items") if fresh or known != identity else ():
            self._sql.execute(f"DELETE FROM {table}")
        self._sql.execute("DELETE FROM identity")
        self._sql.execute("INSERT INTO identity VALUES (?, ?)", (identity, self.run))
        self._sql.commit()
        self._committed = time.monotonic()

    # --- while scanning ---------------------------------------------------------------------------------------------

    def meet(self, files: Iterable[tuple[str, str, int]]) -> None:
        """Note the files that are there: (path, facts, bytes). A changed one loses its answer."""
        self._sql.executemany(MEET, ((path, facts, size, self.run) for path, facts, size in files))
        self._tick()

    def unread(self) -> tuple[int, int]:
        """Number and bytes of the files that must be read."""
        found: tuple[int, int] = self._sql.execute(
            "SELECT COUNT(*), COALESCE(SUM(bytes), 0) FROM files WHERE run = ? AND NOT known", (self.run,)
        ).fetchone()
        return found

    def states(self) -> dict[str, int]:
        """Files met by this scan: new, changed and the same as before."""
        found = self._sql.execute("SELECT state, COUNT(*) FROM files WHERE run = ? GROUP BY state", (self.run,))
        return {"new": 0, "changed": 0, "same": 0, **dict(found)}

    def file(self, path: str) -> tuple[str, int]:
        """Facts and bytes of a file; empty for one that came after the files were met."""
        row = self._sql.execute("SELECT facts, bytes FROM files WHERE path = ?", (path,)).fetchone()
        return row or ("", 0)

    def answer(self, path: str, method: str, key: str) -> str | None:
        """What was found in the file when the same was asked about the same content, or None."""
        row = self._sql.execute(
            "SELECT answer FROM answers WHERE path = ? AND method = ? AND key = ?", (path, method, key)
        ).fetchone()
        return row[0] if row is not None else None

    def keep_answer(self, path: str, method: str, key: str, answer: str) -> None:
        """Remember what was found in a file."""
        self._sql.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", (path, method, key, answer))
        self._sql.execute("UPDATE files SET known = 1 WHERE path = ?", (path,))
        self._tick()

    def keep_lost(self, path: str) -> None:
        """Note a file that took too long: the next scan asks for it again, and not in its own process."""
        self._sql.execute("INSERT OR REPLACE INTO lost VALUES (?, ?)", (path, self.run))
        self._tick()

    def any_lost(self) -> bool:
        """Whether a file took too long in the last finished scan, or in one that was interrupted since."""
        return self._sql.execute("SELECT 1 FROM lost LIMIT 1").fetchone() is not None

    def item(self, path: str, item: str) -> dict[str, Any] | None:
        """The entry of a record from an earlier scan, accepted or refused."""
        cursor = self._sql.execute("SELECT * FROM items WHERE path = ? AND item = ? AND facts != ''", (path, item))
        row = cursor.fetchone()
        return None if row is None else dict(zip((c[0] for c in cursor.description), row, strict=True))

    def keep_row(self, row: Mapping[str, Any], *, facts: str, verified: bool) -> None:
        """Enter a readable record."""
        self._put({**row, "refused": 0, "facts": facts, "verified": int(verified), "reason": None, "remedy": None})

    def keep_refusal(self, path: str, item: str, *, reason: str, remedy: str, facts: str = "") -> None:
        """Enter a refused file; `facts` where it was refused for its pixels, which a later scan need not decode."""
        told = {"path": path, "item": item, "facts": facts, "reason": reason, "remedy": remedy}
        self._put({**dict.fromkeys(ROW), **told, "refused": 1, "verified": 1})

    def _put(self, entry: Mapping[str, Any]) -> None:
        # A record that was refused and is good now (or the reverse) has the other entry from before.
        other = (entry["path"], entry["item"], 1 - entry["refused"], self.run)
        self._sql.execute("DELETE FROM items WHERE path = ? AND item = ? AND refused = ? AND run != ?", other)
        self._sql.execute(PUT, {**entry, "run": self.run})
        self._tick()

    def finish(self) -> int:
        """Drop what this scan did not meet; the number of vanished files."""
        removed = self._sql.execute("DELETE FROM files WHERE run != ?", (self.run,)).rowcount
        for table in ("items", "lost"):
            self._sql.execute(f"DELETE FROM {table} WHERE run != ?", (self.run,))
        self._sql.execute("DELETE FROM answers WHERE path NOT IN (SELECT path FROM files)")
        # Adapters that do not use `Files.each` leave no answers; their files are known all the same.
        self._sql.execute("UPDATE files SET known = 1 WHERE NOT known")
        self._sql.commit()
        return removed

    def _tick(self) -> None:
        now = time.monotonic()
        if now - self._committed > COMMIT_SECONDS:
            self._sql.commit()
            self._committed = now

    def release(self) -> None:
        """Commit, and let another scan write here; what was found can still be read."""
        self._sql.commit()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # --- afterwards -------------------------------------------------------------------------------------------------

    def define(self, name: str, function: Callable[[str], str]) -> None:
        """Let queries call a function of one text."""
        self._sql.create_function(name, 1, function, deterministic=True)

    def query(self, sql: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Rows of a query, one by one.

        Raises:
            UserError: a later scan has written here.
        """
        if self._sql.execute("SELECT run FROM identity").fetchone() != (self.run,):
            raise UserError("A later scan has replaced what this one found.", remedy="Read its manifest.parquet.")
        return iter(self._sql.execute(sql, values))


def _lock(file: Path) -> int:
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise UserError(
            "Another scan is writing into this folder.", remedy="Wait for its end, or give another --out."
        ) from error
    return handle


def _open(file: Path | None) -> sqlite3.Connection:
    if file is not None:
        file.touch(mode=0o600)
    try:
        return _connect(file)
    except sqlite3.DatabaseError:  # cut off by a full disk, say: it only saves time
        if file is None:
            raise
        for part in file.parent.glob(f"{file.name}*"):
            part.unlink()
        file.touch(mode=0o600)
        return _connect(file)


def _connect(file: Path | None) -> sqlite3.Connection:
    # "": a private database that spills into temporary files
    sql = sqlite3.connect(file or "", factory=_Database)
    sql.place = file.parent if file is not None else Path(os.environ.get("SQLITE_TMPDIR") or tempfile.gettempdir())
    # a plain rollback journal also works on network drives; a commit is durable enough without waiting for the disk
    sql.execute(f"PRAGMA journal_mode = {'TRUNCATE' if file is not None else 'OFF'}")
    sql.execute("PRAGMA synchronous = OFF" if file is None else "PRAGMA synchronous = NORMAL")
    sql.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    sql.create_function("first_parts", 2, lambda path, number: "/".join(path.split("/")[:number]), deterministic=True)
    with naming(sql.place):
        if sql.execute("PRAGMA user_version").fetchone() != (VERSION,):  # new, or of a release with other tables
            for table in ("identity", "files", "answers", "lost", "items"):
                sql.execute(f"DROP TABLE IF EXISTS {table}")
            sql.execute(f"PRAGMA user_version = {VERSION}")
        sql.executescript(TABLES)
    return sql


def fingerprint(adapter: Adapter, root: Path) -> str:
    """A hash of all that decides about a scan's results: description and code of the adapter, root, salt, release."""
    try:
        release = importlib.metadata.version("lejepa-med")
    except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
        release = ""
    parts = [FORMAT, release, described(adapter), str(root), pseudonym("journal", ""), _code(type(adapter))]
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def _code(kind: type) -> str:
    """A hash of the Python files that decide about a file: the adapter's and those beside it, and our own."""
    own = Path(__file__).parent.parent
    files = {*own.glob("*.py"), *own.glob("readers/*.py"), *own.glob("scan/*.py")}
    source = getattr(sys.modules.get(kind.__module__), "__file__", None)
    if source is not None:
        inside = Path(source).with_name("__init__.py").is_file()
        files |= set(Path(source).parent.glob("*.py")) if inside else {Path(source)}
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()
