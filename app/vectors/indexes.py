"""Which index answers a search: the base at once, or an approximate one that is built behind it and measured.

Bases are made at the first search, kept open, and removed when their table is no more.
"""

import errno
import logging
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from sqlalchemy import Engine

from app.core.errors import ProblemError, log_unexpected
from app.core.settings import Settings
from app.encoders.library import Library, Stamp, unusable
from app.vectors.backend import Backend, Query, Report, exact, rank
from app.vectors.lance import Lance
from app.vectors.pgvector import PgVector
from data_adapters.errors import UserError
from lejepa_med.client.wire.common import BackendName
from lejepa_med.search.base import Base, build_base, table_key
from lejepa_med.search.conditions import ConditionError

OPEN = 8  # bases kept open; their pages are the system's
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


class Bases:
    """Folders of bases below `folder`, each named by the key of its table. Methods block; call them on threads."""

    def __init__(self, library: Library, folder: Path) -> None:
        self._library = library
        self._folder = folder
        self._open: dict[Stamp, Base] = {}
        self._keys: dict[Stamp, str] = {}
        self._lock = threading.Lock()  # held while a base is made, so that none is made twice

    def open(self, name: str) -> tuple[Base, bool]:
        """The base of a table, and whether it was made now.

        Raises:
            ProblemError: 404, no such table; 422, it cannot be read; 507, no room for the base.
        """
        stamp = self._library.table_stamp(name)
        if (base := self._open.get(stamp)) is not None:
            return base, False
        with self._lock:
            if (base := self._open.get(stamp)) is not None:
                return base, False
            target = self._folder / self._key(stamp)
            is_new = not target.is_dir()
            base = self._make(stamp.folder, target) if is_new else Base(target)
            while len(self._open) >= OPEN:
                self._open.pop(next(iter(self._open)))
            self._open[stamp] = base
            return base, is_new

    def key(self, name: str) -> str:
        """The key of a table; ProblemError as `open`."""
        return self._key(self._library.table_stamp(name))

    def has(self, key: str) -> bool:
        """Whether the base of the table `key` is there."""
        return (self._folder / key).is_dir()

    def sweep(self) -> frozenset[str]:
        """Remove the bases of tables that are no more, and drafts of killed builds; the keys of the present tables.

        A base that a search reads stays readable until it ends: its file has no name any more, but is still there.
        """
        with self._lock:
            present = {stamp: self._key(stamp) for stamp in self._present()}
            keep = frozenset(present.values())
            for entry in self._folder.iterdir() if self._folder.is_dir() else ():
                if entry.name not in keep:
                    shutil.rmtree(entry, ignore_errors=True)
            # Held open, they would keep the disk's space of what was removed, and a key a table for ever.
            self._open = {stamp: base for stamp, base in self._open.items() if stamp in present}
            self._keys = present
        return keep

    def _present(self) -> Iterator[Stamp]:
        for name in self._library.table_infos():
            try:
                stamp = self._library.table_stamp(name)
            except ProblemError:
                continue  # removed at this moment
            if stamp.size:
                yield stamp

    def _key(self, stamp: Stamp) -> str:
        if stamp not in self._keys:
            try:
                self._keys[stamp] = table_key(stamp.folder)
            except (OSError, UserError) as error:  # removed, or written anew, at this moment
                raise unusable(error) from None
        return self._keys[stamp]

    def _make(self, table: Path, target: Path) -> Base:
        try:
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            build_base(table, target)
            return Base(target)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise unusable(error) from None
            raise ProblemError(
                507,
                "no-room",
                "The service cannot write the file that a search reads.",
                remedy="The operator looks at the disk of the data directory: the file takes 4 bytes for each number "
                "of the embedding table.",
                reference=log_unexpected(error),
            ) from None
        except Exception as error:
            raise unusable(error) from None


log = logging.getLogger("lejepa_med.app")
EXACT_ROWS = 500_000  # vectors that are looked at one by one: benchmarks/results/search-cpu.md
FEW_ROWS = 20_000  # that meet a filter: exact is as quick as an index, and an index finds such rows least well
RETRY_SECONDS = 600.0  # after which a build that failed is tried again: the database may have been away
EXACT: Literal["exact"] = "exact"
State = Literal["absent", "building", "ready", "failed"]


@dataclass(frozen=True)
class IndexState:
    """How a table is searched, or will be."""

    backend: BackendName
    state: State
    report: Report | None = None
    note: str = ""


@dataclass(frozen=True)
class Found:
    """The answer to a Query: rows and cosines, (<= k,) each, for each query, and who found them."""

    backend: BackendName
    recall: float
    note: str
    rows: list[np.ndarray]
    scores: list[np.ndarray]


class Indexes:
    """Bases and indexes of all tables, made when they are first searched. Methods block; call them on threads."""

    def __init__(
        self, settings: Settings, library: Library, *, engine: Engine | None = None, exact_rows: int = EXACT_ROWS
    ) -> None:
        """Args: `engine` of the service's PostgreSQL, or None; `exact_rows`, beyond which `auto` takes an index.

        Raises:
            UserError: the index that the settings demand cannot be had here.
        """
        folder = settings.data / "search"
        self._maps = settings.data / "maps"  # folders named by the keys of tables, too; app/vectors/maps.py
        self._bases = Bases(library, folder / EXACT)
        self._exact_rows = 0 if settings.search_index in ("pgvector", "lancedb") else exact_rows
        self._backend, self._lack = _choose(settings.search_index, folder / "lancedb", engine)
        self._states: dict[str, tuple[IndexState, float]] = {}
        self._lock = threading.Lock()  # of the states
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._busy = self._closed = False
        self._worker = threading.Thread(target=self._run, name="search-index", daemon=True)
        self._worker.start()

    def close(self) -> bool:
        """Begin nothing more; True while an index is being built, which is given up with the process."""
        self._closed = True
        self._work.put(None)
        return self._busy

    def base(self, name: str) -> Base:
        """The base of a table, made now if need be: some seconds for half a million vectors.

        Raises:
            ProblemError: see Bases.open.
        """
        base, is_new = self._bases.open(name)
        if is_new:
            self.tidy()
            if self._note(base.rows):
                log.warning("a table of %d vectors is searched without an index: %s", base.rows, self._note(base.rows))
        return base

    def key(self, name: str) -> str:
        """The key of a table's content; ProblemError as `base`."""
        return self._bases.key(name)

    def tidy(self) -> None:
        """Remove, soon, what was made of tables that are no more; a removed table calls for it."""
        self._work.put(self._sweep)

    def search(self, base: Base, query: Query) -> Found:
        """The nearest rows, by the table's index if it is ready and fit for the query, else exactly.

        Raises:
            ProblemError: 422, a condition does not fit the table.
        """
        if query.conditions:
            query = replace(query, rows=_rows(base, query))
        few = query.rows is not None and len(query.rows) <= FEW_ROWS
        found, note = self._by_index(base, query) if not few else (None, "")
        return found or _found(base, query, exact(base, query), backend=EXACT, recall=1.0, note=note)

    def state(self, name: str, rows: int) -> IndexState:
        """How the table `name` of `rows` vectors is searched; starts nothing."""
        key = self._bases.key(name)
        with self._lock:
            known = self._states.get(key)
        if self._backend is None or rows <= self._exact_rows:
            return IndexState(EXACT, "ready" if self._bases.has(key) else "absent", note=self._note(rows))
        if known is not None:
            return known[0]
        try:
            report = self._backend.find(key)
        except Exception as error:
            return _fallback(error)
        return IndexState(self._backend.name, "absent" if report is None else "ready", report)

    def _by_index(self, base: Base, query: Query) -> tuple[Found | None, str]:
        """The answer of the table's index, or None and why the exact one stands for it."""
        state = self._ready(base)
        if self._backend is None or state.report is None:
            return None, "The index is being built; this answer is exact." if state.state == "building" else state.note
        try:
            given = self._backend.nearest(base, query)
        except Exception as error:
            with self._lock:
                self._states.pop(base.key, None)
            return None, _fallback(error).note
        rows = [rank(base, query, index, found) for index, found in enumerate(given)]
        if any(len(found) < query.k for found in rows):
            # It gives up where few of the nearest meet the conditions; looking at every row does not.
            return None, ""
        return _found(base, query, rows, backend=state.backend, recall=state.report.recall, note=""), ""

    def _ready(self, base: Base) -> IndexState:
        """The state of the table's index; an absent one is begun."""
        if self._backend is None or base.rows <= self._exact_rows:
            return IndexState(EXACT, "ready", note=self._note(base.rows))
        with self._lock:
            state, until = self._states.get(base.key, (None, 0.0))
            if state is not None and (state.state != "failed" or time.monotonic() < until):
                return state
            try:
                report = self._backend.find(base.key)
            except Exception as error:
                return _fallback(error)
            state = IndexState(self._backend.name, "building" if report is None else "ready", report)
            self._states[base.key] = state, 0.0
            if report is None:
                self._work.put(lambda: self._build(base))
            return state

    def _build(self, base: Base) -> None:
        assert self._backend is not None
        name = self._backend.name
        try:
            report = self._backend.build(base)
            log.info("search index %s of %d rows: recall %.3f, %.0f s", name, base.rows, report.recall, report.seconds)
            state = IndexState(name, "ready", report)
        except UserError as error:
            state = IndexState(name, "failed", note=f"{error.cause} {error.remedy} Answers are exact.")
        except Exception as error:  # a full disk, a database that ends: searches go on without
            reference = log_unexpected(error)
            state = IndexState(
                name, "failed", note=f"The index was not built, reference {reference}. Answers are exact."
            )
        with self._lock:
            self._states[base.key] = state, time.monotonic() + RETRY_SECONDS

    def _run(self) -> None:
        while (task := self._work.get()) is not None and not self._closed:
            self._busy = True
            try:
                task()
            except Exception as error:
                log_unexpected(error)
            self._busy = False

    def _sweep(self) -> None:
        """On the worker, behind builds: it would take their drafts for leftovers."""
        keep = self._bases.sweep()
        if self._backend is not None:
            self._backend.drop(keep)
        for entry in self._maps.iterdir() if self._maps.is_dir() else ():
            if entry.name not in keep:
                shutil.rmtree(entry, ignore_errors=True)
        with self._lock:
            self._states = {key: state for key, state in self._states.items() if key in keep}

    def _note(self, rows: int) -> str:
        return self._lack if rows > self._exact_rows else ""


def _choose(wanted: str, folder: Path, engine: Engine | None) -> tuple[Backend | None, str]:
    """The approximate index for large tables, or None and what is lacking for one."""
    if wanted == EXACT:
        return None, ""
    postgres = PgVector(engine) if engine is not None and wanted != "lancedb" else None
    if postgres is not None and postgres.available():
        return postgres, ""
    if wanted == "pgvector":
        raise UserError(
            "LEJEPA_SEARCH_INDEX=pgvector needs a PostgreSQL database with the extension pgvector.",
            remedy="Install pgvector on the database's machine and set LEJEPA_DATABASE_URL, or use auto.",
        )
    if Lance.is_installed():
        return Lance(folder), ""
    if wanted == "lancedb":
        raise UserError(
            "LEJEPA_SEARCH_INDEX=lancedb needs the Python package lancedb.",
            remedy="Install it with: pip install 'lejepa-med[lance]'",
        )
    return None, (
        "The table is larger than what is searched quickly without an index. "
        "The operator sets up PostgreSQL with pgvector, or installs lejepa-med[lance]."
    )


def _rows(base: Base, query: Query) -> np.ndarray:
    """The rows that meet the conditions, ascending."""
    try:
        return np.flatnonzero(base.meets(query.conditions))
    except ConditionError as error:
        code = "unknown-column" if error.is_unknown else "invalid-request"
        raise ProblemError(422, code, error.cause, remedy=error.remedy, index=error.index) from None


def _found(
    base: Base, query: Query, rows: list[np.ndarray], *, backend: BackendName, recall: float, note: str
) -> Found:
    scores = [base.vectors[found] @ vector for found, vector in zip(rows, query.vectors, strict=True)]
    return Found(backend, recall, note, rows, scores)


def _fallback(error: Exception) -> IndexState:
    """Without the index for now: the database is away, say. The base is not."""
    return IndexState(EXACT, "ready", note=f"The index cannot be asked, reference {log_unexpected(error)}.")
