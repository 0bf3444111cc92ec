"""Backup of a data directory while the service runs, and its restore: all or nothing, whenever it is killed.

A backup is a tar of the database and files; manifest.json, their SHA-256 sums, is its last member. It holds a state
that a kill of the service could have left, and from such a state every start goes on.
"""

import hashlib
import json
import os
import shutil
import sqlite3
import tarfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from app.core.datadir import ProcessLock, temporary
from data_adapters.atomic import new_file, sync
from data_adapters.errors import UserError
from lejepa_med import __version__

FORMAT = 1
MANIFEST = "manifest.json"
STORE = "service.sqlite"
TABLES = ("jobs", "probes", "archives", "uploads", "predictions")  # each row's files lie in <table>/<id>/
LEFT_OUT = ("tmp", "workers", "search")  # of living processes; copies of embedding tables, which searches make again
TRIES = 20
RESTORING = ".restore"  # folder of a restore that has not ended; the service refuses a data directory that has one
PIECE = 1 << 20


class Summary(NamedTuple):
    """What a backup holds."""

    files: int
    bytes: int


def backup(out: Path, *, data: Path) -> Summary:
    """Write a backup of `data` to the new file `out`; the service may run meanwhile.

    Raises:
        UserError: `out` exists or lies in `data`; `data` has no SQLite store; it cannot be read or written.
    """
    if out.exists():
        raise UserError(f"{out} exists.", remedy="Give another file, or move that one away.")
    if out.resolve().is_relative_to(data.resolve()):
        raise UserError("The backup would lie in the data directory itself.", remedy="Give a file outside of it.")
    if os.environ.get("LEJEPA_DATABASE_URL") or not (data / STORE).is_file():
        raise UserError(
            f"{data} holds no {STORE}: no service has run on it, or its metadata is in PostgreSQL.",
            remedy="Give the service's --data-dir. With PostgreSQL, run pg_dump and then copy the data directory, as "
            "docs/operations.md has it.",
        )
    try:
        with _frozen(data) as frozen, new_file(out) as draft, draft.open("xb") as stream:
            os.fchmod(stream.fileno(), 0o600)  # it holds uploads of waiting jobs
            summary = _pack(frozen, stream)
    except (OSError, sqlite3.Error) as error:
        raise UserError(
            f"The backup was not written ({error}).", remedy="Check space and permissions, and repeat it."
        ) from error
    return summary


@contextmanager
def _frozen(data: Path) -> Iterator[Path]:
    """A folder with copies of the databases and links to all files, in `data`/tmp; if killed, services remove it."""
    lock = ProcessLock(data)
    lock.acquire()
    try:
        yield from _tries(data)
    finally:
        lock.release()


def _tries(data: Path) -> Iterator[Path]:
    for number in range(TRIES):
        folder = temporary(data, f"backup-{number}")
        folder.mkdir(mode=0o700, parents=True)
        try:
            _copy_database(data / STORE, folder / STORE)
            _link(data, folder)
            # Files go only after their row has changed, so what the copy names was whole while it was linked.
            if _named(folder / STORE) <= _named(data / STORE):
                yield folder
                return
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05 * number)
    raise UserError("Jobs end faster than they can be saved.", remedy="Repeat the backup when there is less to do.")


def _copy_database(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(f"{source.resolve().as_uri()}?mode=rw", uri=True, timeout=30)) as live:
        with closing(sqlite3.connect(target)) as copy:
            live.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it


def _link(data: Path, folder: Path) -> None:
    # os.walk passes over folders that vanish meanwhile
    for source in [Path(parent, name) for parent, _, names in os.walk(data) for name in names]:
        name = source.relative_to(data)
        is_passing = name.parts[0] in LEFT_OUT or name.suffix in (".lock", ".migrate") or ".sqlite" in name.name
        if is_passing or source.is_symlink() or not source.is_file():
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except FileNotFoundError:
            continue  # its job ended just now
        except OSError:  # a file system without hard links
            shutil.copyfile(source, target)


def _named(database: Path) -> set[tuple[str, str]]:
    """Table and id of each row that has files."""
    with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=rw", uri=True, timeout=30)) as store:
        known = {name for (name,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        found: set[tuple[str, str]] = set()
        for table in TABLES:
            if table in known:
                only = " WHERE state IN ('queued', 'running')" if table == "jobs" else ""
                found.update((table, row) for (row,) in store.execute(f"SELECT id FROM {table}{only}"))
        return found


def _pack(folder: Path, stream: IO[bytes]) -> Summary:
    files: dict[str, dict[str, Any]] = {}
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = path.relative_to(folder).as_posix()
            with path.open("rb") as content:
                size = os.fstat(content.fileno()).st_size
                counted = Counted(content)
                tar.addfile(_member(name, size), counted)  # type: ignore[arg-type]
                files[name] = {"bytes": size, "sha256": counted.sha256.hexdigest()}
        made = datetime.now(UTC).isoformat(timespec="seconds")
        text = json.dumps({"format": FORMAT, "version": __version__, "created": made, "files": files}).encode()
        tar.addfile(_member(MANIFEST, len(text)), BytesIO(text))
    return Summary(len(files), sum(entry["bytes"] for entry in files.values()))


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, 0o600, int(time.time())
    return member


class Counted:
    """A file whose bytes are hashed as they are read."""

    def __init__(self, content: IO[bytes]) -> None:
        self._content, self.sha256 = content, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        piece = self._content.read(size)
        self.sha256.update(piece)
        return piece


# --- restore ----------------------------------------------------------------------------------------------------------


def restore(backup: Path, *, data: Path) -> Summary:
    """Fill the new or empty folder `data` from a backup. Nothing of it is usable before every sum has been checked.

    Raises:
        UserError: `data` is not empty; the backup is cut off, changed, or not one; a file cannot be written.
    """
    if data.exists() and (not data.is_dir() or any(data.iterdir())):
        raise UserError(
            f"{data} is not empty.", remedy="Give a new folder, or empty this one; nothing is ever restored over."
        )
    draft = data / RESTORING
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        data.chmod(0o700)
        draft.mkdir()
        try:
            summary = _unpack(backup, draft)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        for folder in (path for path in draft.rglob("*") if path.is_dir()):
            sync(folder)
        # From here on a failure leaves the mark, and with it a folder that the service refuses.
        for entry in sorted(draft.iterdir()):
            os.rename(entry, data / entry.name)
        sync(data)
        draft.rmdir()
        sync(data)
    except (OSError, tarfile.TarError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{backup} was not restored ({type(error).__name__}: {error}).", remedy="Check the file, or take another."
        ) from error
    return summary


def _unpack(backup: Path, folder: Path) -> Summary:
    seen: dict[str, dict[str, Any]] = {}
    manifest: dict[str, Any] | None = None
    with tarfile.open(backup, mode="r:") as tar:
        for member in tar:
            if manifest is not None or member.name in seen:
                raise _damaged()
            if not member.isreg() or member.issparse():
                raise UserError("The backup holds something that is no plain file.", remedy="Take another one.")
            content = tar.extractfile(member)
            assert content is not None
            if member.name == MANIFEST:
                manifest = json.load(content)
            else:
                seen[member.name] = _extract(content, _inside(folder, member.name))
    if manifest is None:
        raise UserError("The backup is cut off: it has no manifest.", remedy="Copy it again from its source.")
    if manifest["format"] != FORMAT:
        raise UserError("The backup has another format.", remedy=f"Restore it with lejepa-med {manifest['version']}.")
    if manifest["files"] != seen or STORE not in seen:
        raise _damaged()
    return Summary(len(seen), sum(entry["bytes"] for entry in seen.values()))


def _inside(folder: Path, name: str) -> Path:
    pure = PurePosixPath(name)
    if pure.is_absolute() or not pure.parts or any(part in ("..", RESTORING) for part in pure.parts) or "\\" in name:
        raise UserError("The backup names a place outside of the data directory.", remedy="Take another one.")
    return folder / pure


def _extract(content: IO[bytes], target: Path) -> dict[str, Any]:
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    counted, size = Counted(content), 0
    with target.open("xb") as stream:
        os.fchmod(stream.fileno(), 0o600)
        while piece := counted.read(PIECE):
            size += stream.write(piece)
        stream.flush()
        os.fsync(stream.fileno())
    return {"bytes": size, "sha256": counted.sha256.hexdigest()}


def _damaged() -> UserError:
    return UserError("The backup is damaged: its files are not those of its manifest.", remedy="Take another copy.")
