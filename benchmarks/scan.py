"""Speed and memory of `scan` on made archives of many tiny pictures.

    python -m benchmarks.scan --sizes 10000 100000 1000000 --out benchmarks/results/scan-2-cores.md

Each size is scanned in a fresh process: everything new, then once more with nothing changed. Seconds of CPU count the
scanning process, its workers and their start, so they say the same on a busy machine; files per second are wall time.

What is measured is the whole of `lejepa-med scan`, with the figures that it prints. Memory is looked at five times a
second from outside, once before the scan begins (imports) and then for its peak: resident pages, and of those the
anonymous ones (RssAnon), which are the process's own; the others are files that the system keeps in memory while it has
room and shares between processes (libraries, the journal, the manifest).
"""

import argparse
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np

from benchmarks.hardware import cpu_name, publish
from benchmarks.made_archive import PER_FOLDER, SIDE, make_archive, make_catalog
from benchmarks.watch import Memory, memory, seconds, watched

PAGE = """# scan on many small files

{date}. {cpu}, {cores} cores, {workers} worker processes, {file_system}. {side} x {side} px RGB PNG of about 3 kB, each
of its own content, {layout}, {catalog}, {verify}. Load average at the start {load:.1f}: where
that is more than the cores, other work shared the machine, and the seconds of CPU say more than the files per second.

| files | files/s | CPU-s per 1,000 files | files/s if {cores} cores were free | again, unchanged: CPU-s per 1,000 \
| manifest MiB | journal MiB | record(i) us |
|---:|---:|---:|---:|---:|---:|---:|---:|
{rows}

Memory in MiB: RssAnon, the pages of the process's own, and in brackets with pages of files.

| files | imports | peak of the scan | over imports | peak of the unchanged scan | largest worker \
| more to read the manifest |
|---:|---:|---:|---:|---:|---:|---:|
{memory}

{ratios}

Again with: `python -m benchmarks.scan {arguments}`
"""


@dataclass(frozen=True)
class Result:
    """One size. Times in seconds, sizes in MiB."""

    files: int
    wall: float
    cpu: float
    again_cpu: float
    imports: Memory
    peak: Memory
    again_peak: Memory
    worker: Memory
    reading: Memory
    manifest: float
    journal: float
    record_us: float


def prepare() -> int:
    """Import what a scan needs; the number of this process."""
    import data_adapters
    import lejepa_med.archive  # noqa: F401

    data_adapters.create("images")
    return os.getpid()


def scan(archive: str, out: str, files: int, workers: int, verify: bool, catalog: str | None) -> tuple[float, float]:
    """What `lejepa-med scan` does; seconds of wall time and of CPU."""
    from rich.console import Console

    import data_adapters
    from lejepa_med.archive import JOURNAL
    from lejepa_med.archive import scan as scan_and_show

    target = Path(out)
    wall, cpu = time.perf_counter(), seconds(resource.RUSAGE_SELF) + seconds(resource.RUSAGE_CHILDREN)
    with open(os.devnull, "w") as nowhere:
        found = scan_and_show(
            data_adapters.create("images"),
            Path(archive),
            catalog=Path(catalog) if catalog else None,
            workers=workers,
            verify=verify,
            journal=target / JOURNAL,
            console=Console(file=nowhere),
        )
    found.write(target)
    spent = seconds(resource.RUSAGE_SELF) + seconds(resource.RUSAGE_CHILDREN) - cpu
    if len(found) != files or found.unused_rows:
        raise SystemExit(f"{len(found)} of {files} files were readable: {found.reasons()[:3]}")
    return time.perf_counter() - wall, spent


def read(out: str, files: int) -> tuple[Memory, float]:
    """Memory that the manifest takes, and microseconds of CPU for one of its records."""
    from data_adapters.manifest import Manifest

    before = memory("self")
    manifest = Manifest.read(Path(out) / "manifest.parquet")
    after = memory("self")
    if len(manifest) != files:
        raise SystemExit(f"{len(manifest)} of {files} files are in the manifest")
    rows = np.random.default_rng(0).integers(files, size=2000).tolist()
    start = time.process_time()
    for row in rows:
        manifest.record(row)
    each = 1e6 * (time.process_time() - start) / len(rows)
    return Memory(after.own - before.own, after.resident - before.resident), each


def fresh() -> ProcessPoolExecutor:
    """One new process."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def measure(archive: Path, out: Path, files: int, *, workers: int, verify: bool, catalog: Path | None) -> Result:
    """Scan an archive twice in one fresh process, and read the manifest in another."""
    given = (str(archive), str(out), files, workers, verify, str(catalog) if catalog else None)
    with fresh() as process:
        number = process.submit(prepare).result()
        imports = memory(number)
        first = process.submit(scan, *given)
        peak, worker = watched(first, number)
        again = process.submit(scan, *given)
        again_peak, _ = watched(again, number)
        wall, cpu = first.result()
        _, again_cpu = again.result()
    with fresh() as process:
        process.submit(prepare).result()
        reading, record_us = process.submit(read, str(out), files).result()
    return Result(
        files=files,
        wall=wall,
        cpu=cpu,
        again_cpu=again_cpu,
        imports=imports,
        peak=peak,
        again_peak=again_peak,
        worker=worker,
        reading=reading,
        manifest=(out / "manifest.parquet").stat().st_size / 2**20,
        journal=sum(file.stat().st_size for file in (out / ".scan").iterdir()) / 2**20,
        record_us=record_us,
    )


def file_system(folder: Path) -> str:
    """The type of the file system that holds `folder`."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    inside = [(point, kind) for point, kind in mounts if folder.resolve().is_relative_to(point)]
    return max(inside, key=lambda pair: len(pair[0]))[1]


def run(args: argparse.Namespace, folder: Path) -> list[Result]:
    """Measure every size on an archive of its own."""
    results = []
    for files in args.sizes:
        archive, out = folder / f"archive-{files}", folder / f"out-{files}"
        if not archive.is_dir():
            make_archive(archive, files, flat=args.flat)
        catalog = make_catalog(archive, files, flat=args.flat) if args.catalog else None
        shutil.rmtree(out, ignore_errors=True)
        result = measure(archive, out, files, workers=args.workers, verify=args.verify, catalog=catalog)
        results.append(result)
        print(result, flush=True)
        shutil.rmtree(out)
        if not args.keep:
            shutil.rmtree(archive)
    return results


def page(results: list[Result], args: argparse.Namespace, *, folder: Path, load: float) -> str:
    """The Markdown page."""
    cores = len(os.sched_getaffinity(0))
    rows = [
        f"| {r.files:,} | {r.files / r.wall:,.0f} | {1000 * r.cpu / r.files:.2f} | {r.files * cores / r.cpu:,.0f} "
        f"| {1000 * r.again_cpu / r.files:.2f} | {r.manifest:.1f} | {r.journal:.1f} | {r.record_us:.0f} |"
        for r in results
    ]
    over = [Memory(r.peak.own - r.imports.own, r.peak.resident - r.imports.resident) for r in results]
    memories = [
        f"| {r.files:,} | {r.imports} | {r.peak} | {more} | {r.again_peak} | {r.worker} | {r.reading} |"
        for r, more in zip(results, over, strict=True)
    ]
    first = results[0]
    ratios = [
        f"- {r.files:,} files against {first.files:,}, {r.files / first.files:g} times as many: "
        f"{more.own - over[0].own:+.0f} MiB of its own, "
        f"{r.cpu / r.files / (first.cpu / first.files):.2f} times the CPU a file"
        for r, more in zip(results[1:], over[1:], strict=True)
    ]
    options = [name for name in ("flat", "catalog") if getattr(args, name)] + ([] if args.verify else ["no-verify"])
    sizes = " ".join(str(r.files) for r in results)
    return PAGE.format(
        date=date.today().isoformat(),
        cpu=cpu_name(),
        cores=cores,
        workers=args.workers,
        file_system=file_system(folder),
        side=SIDE,
        layout="all in one folder" if args.flat else f"{PER_FOLDER} to a folder",
        catalog="a catalogue with a row for each" if args.catalog else "no catalogue",
        verify="decoded and hashed" if args.verify else "headers and hash only (--no-verify)",
        load=load,
        rows="\n".join(rows),
        memory="\n".join(memories),
        ratios="\n".join(ratios),
        arguments=" ".join([f"--sizes {sizes} --workers {args.workers}", *(f"--{name}" for name in options)]),
    )


def main() -> None:
    """Read the arguments, measure, print and save."""
    parser = argparse.ArgumentParser(description="Speed and memory of scan on many small files.")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="files in each archive"
    )
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--verify", action=argparse.BooleanOptionalAction, default=True, help="decode every file")
    parser.add_argument("--flat", action="store_true", help="all files in one folder")
    parser.add_argument("--catalog", action="store_true", help="with a catalogue of all files")
    parser.add_argument(
        "--folder", type=Path, help="where archives are made: about 4 kB a file; default: a temporary one"
    )
    parser.add_argument("--keep", action="store_true", help="keep the archives for another run")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    args = parser.parse_args()
    os.environ.setdefault("LEJEPA_SALT", "benchmark")
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        text = page(run(args, folder), args, folder=folder, load=load)
    publish(text, args.out)


if __name__ == "__main__":
    main()
