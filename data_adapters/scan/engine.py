"""The order of a scan: meet the files, look at them, check the records, count what changed."""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from data_adapters.base import Adapter, BaseAdapter, Files, walk
from data_adapters.catalog import Catalog
from data_adapters.errors import UserError
from data_adapters.identity import salt
from data_adapters.machine import usable_cores
from data_adapters.scan.checks import Checks
from data_adapters.scan.journal import BATCH, Journal
from data_adapters.scan.looks import Looks, storable
from data_adapters.scan.meter import Meter, Progress
from data_adapters.scan.origin import identity, local_options, rebuildable
from data_adapters.scan.pool import TINY_BYTES, TINY_FILES, Gentle, InProcess, Pool
from data_adapters.scan.processes import FILE_SECONDS, Processes, Start, new_process
from data_adapters.scan.result import Changes, Scan
from data_adapters.scan.worker import Bench, Setup, relative


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
    start: Start = new_process,
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
        start: how a worker process comes to be.

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
        meter = Meter(progress)
        checks = Checks(memory, base, meter, verify=verify)
        passed = _meet(adapter, root, base, memory, meter, checks, inside=inside)
        setup = Setup(
            adapter=adapter.describe(),
            local=local_options(adapter),
            base=base,
            verify=verify,
            memory=memory_bytes,
            salt=salt().decode(),
        )
        far = Processes(workers or usable_cores(), setup, file_seconds=file_seconds, start=start)
        pool = _pool(adapter, setup, memory, far, workers=workers)
        try:
            if isinstance(adapter, BaseAdapter):
                files = Files(root, inside=inside, originals=origins, each=Looks(memory, base, pool, meter).each)
                checks.run(adapter.scan_files(files, catalog=catalog), pool)
            else:
                checks.run(adapter.scan(root, catalog=catalog), pool)
        finally:
            pool.close()
        changes = Changes(**memory.states(), removed=memory.finish())
    finally:
        memory.release()
    told = {relative(str(copy), base): relative(str(first), base) for copy, first in (origins or {}).items()}
    described = adapter.describe()
    return Scan(
        root=base, adapter=described, journal=memory, changes=changes, passed=passed, catalog=catalog, origins=told
    )


def _meet(
    adapter: Adapter, root: Path, base: Path, memory: Journal, meter: Meter, checks: Checks, *, inside: Path | None
) -> Counter[str]:
    """Note every file with its size and time, refuse what the walk leaves out, and count what it passes over."""
    passed: Counter[str] = Counter()
    companions = adapter.companions if isinstance(adapter, BaseAdapter) else lambda path: ()
    met: list[tuple[str, str, int]] = []
    for path in walk(root, inside=inside, left_out=checks.refuse, passed=passed):
        meter.total += 1
        name = relative(str(path), base)
        if not storable(name):
            continue
        size, stamp = _stamp(path)
        met.append((name, " ".join([stamp, *(_stamp(other)[1] for other in companions(path))]), size))
        if len(met) == BATCH:
            memory.meet(met)
            met.clear()
    memory.meet(met)
    return passed


def _stamp(path: Path) -> tuple[int, str]:
    try:
        stat = os.stat(path)
    except OSError:
        return 0, "-"
    return stat.st_size, f"{stat.st_size}:{stat.st_mtime_ns}"


def _pool(adapter: Adapter, setup: Setup, memory: Journal, far: Processes, *, workers: int | None) -> Pool:
    near = InProcess(Bench(adapter, setup.base, verify=setup.verify))
    if workers == 0 or not rebuildable(adapter):
        return near
    count, size = memory.unread()
    tiny = workers is None and count <= TINY_FILES and size <= TINY_BYTES
    return Gentle(near, far) if tiny and not memory.any_lost() else far  # what hung would hang this process, too
