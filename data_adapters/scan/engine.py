"""From the walk to the journal: looks and checks go to a pool, or are answered from memory where nothing changed."""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from data_adapters.base import Adapter, BaseAdapter, Record, Rejected, walk
from data_adapters.catalog import Catalog
from data_adapters.errors import UserError
from data_adapters.scan.codec import decoder, encode
from data_adapters.scan.journal import BATCH, Journal
from data_adapters.scan.origin import cores, identity, local_options, rebuildable
from data_adapters.scan.pool import TINY_BYTES, TINY_FILES, Crash, Gentle, InProcess, Pool, Processes, Task
from data_adapters.scan.result import Changes, Scan
from data_adapters.scan.worker import Bench, Checked, Setup, describe, facts, files_of, relative

TASK_UNITS, TASK_BYTES = 64, 4 << 20  # of one task: enough to make its sending cheap, little enough to share out
AHEAD = 8  # tasks a worker that may be under way
ORDERED = 4096  # files that may wait for one before them
CRASHED = "The program that decodes it ended abnormally. Copy the file again; if memory was short, use fewer --workers."
Progress = Callable[[int, int], None]


def scan_archive(
    adapter: Adapter,
    root: Path,
    *,
    catalog: Catalog | None = None,
    verify: bool = True,
    progress: Progress | None = None,
    workers: int | None = None,
    journal: Path | None = None,
    fresh: bool = False,
) -> Scan:
    """Walk `root` and sort its files into readable records and refused files.

    The result depends on the files, the catalogue and the adapter alone: not on `workers`, nor on what was remembered.

    Args:
        adapter: the modality.
        root: the archive's folder, or one file.
        catalog: groups, labels and splits by path.
        verify: decode every record once, so that damage behind a good header is found now and not during training.
        progress: called with (files done, files in all).
        workers: processes that read; None: one a core, and none for a tiny archive; 0: all in this process, where a
            crash of a reader ends the scan.
        journal: folder in which the scan remembers what it read, for the next one; None: nowhere.
        fresh: forget what is remembered, and read everything.

    Raises:
        UserError: `root` does not exist, or another scan uses the journal.
        MissingExtraError: a library that reads these files is not installed.
    """
    root = root.resolve()
    if not root.exists():
        raise UserError(f"The archive {root} does not exist.", remedy="Give the folder that holds the images.")
    base = root if root.is_dir() else root.parent
    memory = Journal(journal, identity=identity(adapter, root), fresh=fresh)
    try:
        return _Scanner(adapter, root, base, memory, verify=verify, progress=progress).run(catalog, workers)
    finally:
        memory.release()


class _Scanner:
    def __init__(
        self, adapter: Adapter, root: Path, base: Path, memory: Journal, *, verify: bool, progress: Progress | None
    ) -> None:
        self.adapter, self.root, self.base, self.memory, self.verify = adapter, root, base, memory, verify
        self.bench = Bench(adapter, base, verify=verify)
        self.progress = progress
        self.total = self.looked = self.checked = 0

    def run(self, catalog: Catalog | None, workers: int | None) -> Scan:
        self._meet()
        self.pool = self._pool(workers)
        uses_each = isinstance(self.adapter, BaseAdapter)
        try:
            if isinstance(self.adapter, BaseAdapter):
                self.adapter.mapper = self.each
            self._check_all(self.adapter.scan(self.root, catalog=catalog))
        finally:
            if uses_each:
                self.adapter.mapper = None  # type: ignore[attr-defined]
            self.pool.close()
        states = dict(
            self.memory.query("SELECT state, COUNT(*) FROM files WHERE run = ? GROUP BY state", self.memory.run)
        )
        changes = Changes(
            new=states.get("new", 0),
            changed=states.get("changed", 0),
            same=states.get("same", 0),
            removed=self.memory.finish(),
        )
        return Scan(
            root=self.base,
            adapter=self.adapter.describe(),
            journal=self.memory,
            changes=changes,
            unused=catalog.unused() if catalog is not None else [],
        )

    def _pool(self, workers: int | None) -> Pool:
        near = InProcess(self.bench)
        if workers == 0 or not rebuildable(self.adapter):
            return near
        description, local = self.adapter.describe(), local_options(self.adapter)
        setup = Setup(adapter=description, local=local, base=self.base, verify=self.verify)
        far = Processes(workers or cores(), setup)
        count, size = self.memory.unread()
        tiny = workers is None and count <= TINY_FILES and size <= TINY_BYTES
        return Gentle(near, far) if tiny else far

    # --- what is there ----------------------------------------------------------------------------------------------

    def _meet(self) -> None:
        """Note every file with its size and time, and refuse what has no usable name or cannot be listed."""
        companions = self.adapter.companions if isinstance(self.adapter, BaseAdapter) else lambda path: ()
        met: list[tuple[str, str, int]] = []
        for path in walk(self.root, closed=self._closed):
            self.total += 1
            name = relative(str(path), self.base)
            if not _storable(name):
                continue
            size, stamp = _stamp(path)
            met.append((name, " ".join([stamp, *(_stamp(other)[1] for other in companions(path))]), size))
            if len(met) == BATCH:
                self.memory.meet(met)
                met.clear()
        self.memory.meet(met)

    def _closed(self, folder: Path) -> None:
        found = Rejected(uri=str(folder), reason="folder that may not be read", remedy="Give yourself the right to.")
        self._refuse(found)

    # --- looks ------------------------------------------------------------------------------------------------------

    def each(self, look: Callable[..., Any], paths: Iterable[Path], *arguments: Any) -> Iterator[Any]:
        """`BaseAdapter.each` with memory and processes: results in the order of `paths`."""
        method = look.__name__
        asked = json.dumps([str(argument) for argument in arguments])
        decode = decoder(look)
        pending: deque[_Look] = deque()
        tasks = 0  # submitted, and not yet taken
        task = Task("look", (method, arguments))

        def taken() -> Any:
            nonlocal tasks, task
            slot = pending[0]
            if slot.task is task and not slot.ready:  # it is not under way yet
                self.pool.submit(task)
                tasks, task = tasks + 1, Task("look", (method, arguments))
            while not slot.ready:
                self.pool.step(block=True)
            pending.popleft()
            if slot.task is not None:
                tasks -= slot.place == len(slot.task.units) - 1
                slot.answer = self._answer(slot.path, slot.task.results[slot.place])
                self.memory.keep_answer(slot.name, method, slot.key, slot.answer)
            self.looked += 1
            self._tell()
            return decode(str(slot.answer))

        for path in paths:
            name = relative(str(path), self.base)
            if not _storable(name):
                yield [Rejected(uri=str(path), reason="file name that is not UTF-8", remedy="Rename the file.")]
                continue
            known, size = self.memory.file(name)
            key = hashlib.blake2b(f"{known}\n{asked}".encode(), digest_size=12).hexdigest()
            slot = _Look(path, name, key, self.memory.answer(name, method, key) if known else None)
            if slot.answer is None:
                slot.task, slot.place = task, len(task.units)
                task.units.append(str(path))
                task.weight += size
                if len(task.units) == TASK_UNITS or task.weight >= TASK_BYTES:
                    self.pool.submit(task)
                    tasks, task = tasks + 1, Task("look", (method, arguments))
            pending.append(slot)
            while pending and (pending[0].ready or tasks > AHEAD * self.pool.workers or len(pending) > ORDERED):
                yield taken()
        while pending:
            yield taken()

    def _answer(self, path: Path, result: Any) -> str:
        return encode([_crashed(str(path), result)]) if isinstance(result, Crash) else str(result)

    # --- checks -----------------------------------------------------------------------------------------------------

    def _check_all(self, found: Iterator[Record | Rejected]) -> None:
        under_way: deque[Task] = deque()
        task = Task("check")
        for one in found:
            if isinstance(one, Rejected):
                self._refuse(one)
            elif not _storable(one.uri):
                reason = "file name that is not UTF-8"
                self._refuse(Rejected(uri=one.uri, reason=reason, remedy="Rename the file."))
            elif not self._known(one):
                task.units.append(one)
                task.weight += self.memory.file(relative(one.uri, self.base))[1]
                if len(task.units) == TASK_UNITS or task.weight >= TASK_BYTES:
                    self.pool.submit(task)
                    under_way.append(task)
                    task = Task("check")
            self._take(under_way, most=AHEAD * self.pool.workers)
        if task.units:
            self.pool.submit(task)
            under_way.append(task)
        self._take(under_way, most=0)

    def _take(self, under_way: deque[Task], *, most: int) -> None:
        """Enter finished checks into the journal; wait while more than `most` are under way."""
        while under_way and (under_way[0].done or len(under_way) > most):
            if not under_way[0].done:
                self.pool.step(block=True)
                continue
            task = under_way.popleft()
            for record, result in zip(task.units, task.results, strict=True):
                self._enter(record, _crashed(record.uri, result) if isinstance(result, Crash) else result)

    def _enter(self, record: Record, result: Checked | Rejected) -> None:
        if isinstance(result, Checked):
            self.memory.keep_row(result.row, facts=result.facts, verified=self.verify)
            self._count(record)
        else:
            self._refuse(result, record)

    def _known(self, record: Record) -> bool:
        """Whether an earlier scan checked the unchanged record; then its row is entered anew, without reading."""
        before = self.memory.item(relative(record.uri, self.base), record.item)
        if before is None or (self.verify and not before["verified"]):
            return False
        try:
            row = describe(record, self.base)
            now = facts([os.stat(name) for name in files_of(record)], row["meta"])
        except (OSError, TypeError, ValueError):
            return False  # the check will say what is wrong
        if now != before["facts"]:
            return False
        if before["refused"]:
            self._refuse(Rejected(uri=record.uri, reason=before["reason"], remedy=before["remedy"]), record, facts=now)
        else:
            kept = {name: before[name] for name in ("bytes", "mtime_ns", "digest")}
            self.memory.keep_row({**row, **kept}, facts=now, verified=bool(before["verified"]))
            self._count(record)
        return True

    def _refuse(self, found: Rejected, record: Record | None = None, *, facts: str | None = None) -> None:
        """Enter a refusal; of a `record` that was refused for its pixels, with the facts to know it by."""
        if record is not None and facts is None:
            facts = self._facts(record)
        path = relative(found.uri, self.base).encode("utf-8", "backslashreplace").decode()
        self.memory.keep_refusal(
            path, record.item if record is not None else "", reason=found.reason, remedy=found.remedy, facts=facts or ""
        )
        self.checked += 1
        self._tell()

    def _facts(self, record: Record) -> str:
        try:
            return facts([os.stat(name) for name in files_of(record)], describe(record, self.base)["meta"])
        except (OSError, TypeError, ValueError):
            return ""

    # --- progress ---------------------------------------------------------------------------------------------------

    def _count(self, record: Record) -> None:
        self.checked += len(record.meta.get("files", (record.uri,)))
        self._tell()

    def _tell(self) -> None:
        if self.progress is not None:  # a look and a check of each file; many items of one file count once
            self.progress(
                min(self.total, (min(self.looked, self.total) + min(self.checked, self.total)) // 2), self.total
            )


class _Look:
    """One file's place in the order of looks: its answer, or where the answer will be."""

    __slots__ = ("answer", "key", "name", "path", "place", "task")

    def __init__(self, path: Path, name: str, key: str, answer: str | None) -> None:
        self.path, self.name, self.key, self.answer = path, name, key, answer
        self.task: Task | None = None
        self.place = 0

    @property
    def ready(self) -> bool:
        return self.answer is not None or (self.task is not None and self.task.done)


def _stamp(path: Path) -> tuple[int, str]:
    try:
        stat = os.stat(path)
    except OSError:
        return 0, "-"
    return stat.st_size, f"{stat.st_size}:{stat.st_mtime_ns}"


def _storable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _crashed(uri: str, crash: Crash) -> Rejected:
    return Rejected(uri=uri, reason=f"crashes its reader ({crash.signal})", remedy=CRASHED)
