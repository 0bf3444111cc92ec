"""Speed and memory of `scan` on made archives of many tiny pictures.

    python -m benchmarks.scan --sizes 10000 100000 1000000 --out benchmarks/results/scan-2-cores.md

Each size is scanned in a fresh process: everything new, then once more with nothing changed. Seconds of CPU count the
scanning process, its workers and their start, so they say the same on a busy machine; files per second are wall time.
Memory is the peak resident size of the scanning process, less what it needs before it begins (imports), and that of
the largest worker.
"""

import argparse
import multiprocessing
import os
import platform
import resource
import shutil
import struct
import tempfile
import time
import zlib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np

SIDE = 32  # pixels
PER_FOLDER = 1000
PAGE = """# scan on many small files

{date}. {cpu}, {cores} cores, {workers} worker processes, {file_system}. {side} x {side} px RGB PNG of about 3 kB, each
of its own content, {per_folder} to a folder, {verify}. Load average at the start {load:.1f}: where
that is more than the cores, other work shared the machine, and the seconds of CPU say more than the files per second.

| files | files/s | CPU-s per 1,000 files | files/s if {cores} cores were free | peak MiB over imports \
| largest worker MiB | again, unchanged: CPU-s per 1,000 | manifest MiB | journal MiB | record(i) us |
|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|
{rows}

Against {first:,} files, with everything new:
{ratios}

Again with: `python -m benchmarks.scan {arguments}`
"""


@dataclass(frozen=True)
class Result:
    """One size. Times in seconds, memory and sizes in MiB."""

    files: int
    wall: float
    cpu: float
    peak: float
    worker: float
    again_cpu: float
    manifest: float
    journal: float
    record_us: float


def make_archive(folder: Path, files: int) -> None:
    """Write `files` PNG files with contents of their own: one picture, and its number in a text chunk."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    template = folder / "template.png"
    folder.mkdir(parents=True)
    Image.fromarray(pixels).save(template)
    content = template.read_bytes()
    template.unlink()
    head, tail = content[:33], content[33:]  # signature and IHDR
    for index in range(files):
        if index % PER_FOLDER == 0:
            inside = folder / f"patient-{index // PER_FOLDER:04d}"
            inside.mkdir()
        text = b"tEXtnumber\0%d" % index
        chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
        (inside / f"{index:07d}.png").write_bytes(head + chunk + tail)


def seconds(who: int) -> float:
    """User and system seconds of this process or of its ended children."""
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def resident(field: str) -> float:
    """VmRSS or VmHWM (the peak) of this process, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise SystemExit("This benchmark reads /proc/self/status and needs Linux.")


def measure(archive: str, out: str, files: int, workers: int, verify: bool) -> Result:
    """Scan an archive twice; to be called in a process of its own."""
    import data_adapters
    from data_adapters.manifest import Manifest
    from data_adapters.scan import scan_archive

    adapter = data_adapters.create("images")
    target = Path(out)

    def scan() -> tuple[float, float]:
        wall, cpu = time.perf_counter(), seconds(resource.RUSAGE_SELF) + seconds(resource.RUSAGE_CHILDREN)
        found = scan_archive(adapter, Path(archive), workers=workers, verify=verify, journal=target / ".scan")
        found.write(target)
        spent = seconds(resource.RUSAGE_SELF) + seconds(resource.RUSAGE_CHILDREN) - cpu
        if len(found) != files:
            raise SystemExit(f"{len(found)} of {files} files were readable: {found.reasons()[:3]}")
        return time.perf_counter() - wall, spent

    before = resident("VmRSS")
    wall, cpu = scan()
    peak = resident("VmHWM") - before
    _, again = scan()
    manifest = Manifest.read(target / "manifest.parquet")
    if len(manifest) != files:
        raise SystemExit(f"{len(manifest)} of {files} files are in the manifest")
    rows = np.random.default_rng(0).integers(files, size=2000).tolist()
    start = time.process_time()
    for row in rows:
        manifest.record(row)
    return Result(
        files=files,
        wall=wall,
        cpu=cpu,
        peak=peak,
        worker=resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
        again_cpu=again,
        manifest=(target / "manifest.parquet").stat().st_size / 2**20,
        journal=sum(file.stat().st_size for file in (target / ".scan").iterdir()) / 2**20,
        record_us=1e6 * (time.process_time() - start) / len(rows),
    )


def cpu_name() -> str:
    """The processor's model name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def file_system(folder: Path) -> str:
    """The type of the file system that holds `folder`."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    inside = [(point, kind) for point, kind in mounts if folder.resolve().is_relative_to(point)]
    return max(inside, key=lambda pair: len(pair[0]))[1]


def run(sizes: list[int], *, folder: Path, workers: int, verify: bool, keep: bool) -> list[Result]:
    """Measure every size, each in a fresh process on an archive of its own."""
    results = []
    for files in sizes:
        archive, out = folder / f"archive-{files}", folder / f"out-{files}"
        if not archive.is_dir():
            make_archive(archive, files)
        shutil.rmtree(out, ignore_errors=True)
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            result = pool.submit(measure, str(archive), str(out), files, workers, verify).result()
        results.append(result)
        print(result, flush=True)
        shutil.rmtree(out)
        if not keep:
            shutil.rmtree(archive)
    return results


def page(results: list[Result], *, folder: Path, workers: int, verify: bool, load: float) -> str:
    """The Markdown page."""
    cores = len(os.sched_getaffinity(0))
    rows = [
        f"| {r.files:,} | {r.files / r.wall:,.0f} | {1000 * r.cpu / r.files:.2f} | {r.files * cores / r.cpu:,.0f} "
        f"| {r.peak:.0f} | {r.worker:.0f} | {1000 * r.again_cpu / r.files:.2f} | {r.manifest:.1f} | {r.journal:.1f} "
        f"| {r.record_us:.0f} |"
        for r in results
    ]
    first = results[0]
    ratios = [
        f"- {r.files:,} files, {r.files / first.files:g} times as many: {r.peak / first.peak:.2f} times the memory "
        f"over imports, {r.cpu / r.files / (first.cpu / first.files):.2f} times the CPU a file"
        for r in results[1:]
    ]
    sizes = " ".join(str(r.files) for r in results)
    return PAGE.format(
        date=date.today().isoformat(),
        cpu=cpu_name(),
        cores=cores,
        workers=workers,
        file_system=file_system(folder),
        side=SIDE,
        per_folder=PER_FOLDER,
        verify="decoded and hashed" if verify else "headers and hash only (--no-verify)",
        load=load,
        rows="\n".join(rows),
        first=first.files,
        ratios="\n".join(ratios),
        arguments=f"--sizes {sizes} --workers {workers}{'' if verify else ' --no-verify'}",
    )


def main() -> None:
    """Read the arguments, measure, print and save."""
    parser = argparse.ArgumentParser(description="Speed and memory of scan on many small files.")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="files in each archive"
    )
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--verify", action=argparse.BooleanOptionalAction, default=True, help="decode every file")
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
        given = {"folder": folder, "workers": args.workers, "verify": args.verify}
        text = page(run(args.sizes, keep=args.keep, **given), load=load, **given)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)


if __name__ == "__main__":
    main()
