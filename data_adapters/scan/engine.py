"""The order of a scan: meet the files, read their headers, check the records, count what changed."""

import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from data_adapters.base import Adapter, BaseAdapter, Files, walk
from data_adapters.catalog import Catalog
from data_adapters.errors import UserError
from data_adapters.machine import usable_cores
from data_adapters.readers.process import ReaderProcess, new_process
from data_adapters.readers.records import relative
from data_adapters.registry import load_class
from data_adapters.scan.batches import FILE_SECONDS, TINY_BYTES, TINY_FILES, Readers
from data_adapters.scan.journal import BATCH, Journal, fingerprint
from data_adapters.scan.reading import Checks, FileCount, Headers, Progress, storable
from data_adapters.scan.result import Changes, Scan


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
    file_seconds: float = FILE_SECONDS,
    memory_bytes: int | None = None,
    inside: Path | None = None,
    origins: Mapping[Path, Path] | None = None,
    start: Callable[[], ReaderProcess] = new_process,
) -> Scan:
    """Walk `root` and sort its files into readable records and refused files.

    The result depends on the files, the catalogue and the adapter alone: not on `workers`, nor on what was remembered.

    Args:
        adapter: the modality.
        root: the archive's folder, or one file.
        catalog: groups, labels and splits by path.
        verify: decode every record once, so that damage behind a good header is found now and not during training.
        progress: called with (files done, files in all).
        workers: processes that read; None: one a core, and none for a tiny archive; 0: all in this process, where
            a reader that crashes or hangs ends or holds the scan.
        journal: folder in which the scan remembers what it read, for the next one; None: nowhere.
        fresh: forget what is remembered, and read everything.
        file_seconds: how long a worker process may be at work on one file before it is killed and the file refused;
            the next scan tries such a file again. Without effect on what is read in this process.
        memory_bytes: what reading may add to a worker's address space, on Linux; a file that needs more is refused.
        inside: folder that no link may lead out of, links in its own path resolved; a link that does is refused.
        origins: for files that were copied under other names, where below `root` they lay at first and what they
            were called; groups follow that.
        start: starts a worker process.

    Raises:
        UserError: `root` does not exist, or another scan uses the journal.
        MissingExtraError: a library that reads these files is not installed.
    """
    root = root.resolve()
    if not root.exists():
        raise UserError(f"The archive {root} does not exist.", remedy="Give the folder that holds the images.")
    base = root if root.is_dir() else root.parent
    known = Journal(journal, identity=fingerprint(adapter, root), fresh=fresh)
    try:
        count = FileCount(progress)
        checks = Checks(adapter, known, base, count, verify=verify)
        passed = _meet(adapter, root, base, known, count, checks, inside=inside)
        readers = Readers(
            adapter,
            processes=workers or usable_cores(),
            **_share_of_this_process(adapter, known, workers=workers),
            file_seconds=file_seconds,
            memory=memory_bytes,
            start=start,
        )
        try:
            if isinstance(adapter, BaseAdapter):
                headers = Headers(adapter, known, base, readers, count)
                files = Files(root, inside=inside, originals=origins, each=headers.each)
                checks.run(adapter.scan_files(files, catalog=catalog), readers)
            else:
                checks.run(adapter.scan(root, catalog=catalog), readers)
        finally:
            readers.close()
        changes = Changes(**known.states(), removed=known.finish())
    finally:
        known.release()
    originals = {relative(str(copy), base): relative(str(first), base) for copy, first in (origins or {}).items()}
    return Scan(
        root=base,
        adapter=adapter.describe(),
        journal=known,
        changes=changes,
        passed=passed,
        catalog=catalog,
        origins=originals,
    )


def _meet(
    adapter: Adapter, root: Path, base: Path, known: Journal, count: FileCount, checks: Checks, *, inside: Path | None
) -> Counter[str]:
    """Note every file with its size and time, refuse what the walk leaves out, and count what it passes over."""
    passed: Counter[str] = Counter()
    companions = adapter.companions if isinstance(adapter, BaseAdapter) else lambda path: ()
    met: list[tuple[str, str, int]] = []
    for path in walk(root, inside=inside, left_out=checks.refuse, passed=passed):
        count.total += 1
        name = relative(str(path), base)
        if not storable(name):
            continue
        size, stamp = _stamp(path)
        met.append((name, " ".join([stamp, *(_stamp(other)[1] for other in companions(path))]), size))
        if len(met) == BATCH:
            known.meet(met)
            met.clear()
    known.meet(met)
    return passed


def _stamp(path: Path) -> tuple[int, str]:
    try:
        stat = os.stat(path)
    except OSError:
        return 0, "-"
    return stat.st_size, f"{stat.st_size}:{stat.st_mtime_ns}"


def _share_of_this_process(adapter: Adapter, known: Journal, *, workers: int | None) -> dict[str, Any]:
    """How many files, and bytes of them, are read in this process before others are started."""
    if workers == 0 or not _can_be_rebuilt(adapter):
        return {"files_here": float("inf"), "bytes_here": float("inf")}
    count, size = known.unread()
    is_tiny = workers is None and count <= TINY_FILES and size <= TINY_BYTES
    if is_tiny and not known.any_lost():  # a file that hung would hang this process, too
        return {"files_here": TINY_FILES, "bytes_here": TINY_BYTES}
    return {}


def _can_be_rebuilt(adapter: Adapter) -> bool:
    """Whether a new process can build the adapter from its description; a class inside a function, say, cannot."""
    reference = str(adapter.describe().get("adapter", ""))
    if ".py:" in reference:
        return Path(reference.rpartition(":")[0]).is_file()
    try:
        return load_class(reference) is type(adapter)
    except UserError:
        return False
