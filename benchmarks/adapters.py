"""Milliseconds per sample and core, read and eight views (2 x 224, 6 x 96), of each modality against three libraries.

    python -m benchmarks.adapters --out benchmarks/results/adapters.md
    python -m benchmarks.adapters --files --out benchmarks/results/adapters-files.md

With `--files`: each modality's recipe as it is built in against the same recipe read from a pipeline file, which
albumentations or MONAI runs.

Every side reads the same files and runs in one process with one thread, in turns, so that a busy moment of the machine
hits all. CPU time is what counts; wall time is beside it. `--data galaxy=/data/galaxies` takes a real set in place of
the made one.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import nibabel
import numpy as np
import torch
from PIL import Image

import data_adapters
from benchmarks import recipes
from benchmarks.hardware import cpu_name
from data_adapters.base import Adapter, BaseAdapter, Record
from data_adapters.pipeline_file import recipe_text
from examples.demo.archives import make

Side = Callable[[int], Any]
SIDES = ("ours", "torchvision", "MONAI", "albumentations")
FACTORIES = {"torchvision": recipes.torchvision, "MONAI": recipes.monai, "albumentations": recipes.albumentations}
OPTIONS: dict[str, dict[str, Any]] = {"images": {"recipe": "natural"}}
PAGE = """# Adapters: read and eight views, one core

{date}. {cpu}, one thread, torch {torch}. Milliseconds of CPU time per sample (median of {repeats}, quartiles in
brackets), wall time beside it; ratio: CPU time of the library over ours, median of the paired samples. All sides in
turns in one process; load average at the end {load:.1f} on {cores} cores: where other work shared the machine, ratios
say more than milliseconds. Data: {data}.

| modality | side | CPU ms | wall ms | ratio | lacks |
|---|---|---:|---:|---:|---|
{rows}

How each side reads: images, one .npy of 512 x 512 RGB; galaxy, the other sides take astropy's array; histology, they
read 392 px through openslide at level 0 with a handle kept open; mri, they take a slice of the decoded volume in
memory, as MONAI's CacheDataset holds it, and ours reads its cache on disk. Drawing every view anew from a seed of its
own, so that workers and restarts repeat it, is part of ours alone.

Again with: `python -m benchmarks.adapters --out benchmarks/results/adapters.md`
"""


FILES_PAGE = """# The built-in recipe against the same recipe in a pipeline file

{date}. {cpu}, one thread, torch {torch}. Milliseconds of CPU time (median of {repeats}, quartiles in brackets): read
and eight views of one sample, 2 x 224 and 6 x 96 pixels ({cube} voxels of `mri3d`). Ratio: file over built-in, median
of the paired samples with quartiles, both sides in turns on the same sample and seed. Both sides give equal views. Load
average at the end {load:.1f} on {cores} cores. Data: {data}.

| modality | built-in, ms | file, ms | ratio |
|---|---:|---:|---:|
{rows}

Again with: `python -m benchmarks.adapters --files --out benchmarks/results/adapters-files.md`
"""
CUBES = {"global_size": 96, "local_size": 48}


def made(modality: str, folder: Path) -> Path:
    """A small archive in the real format."""
    if modality == "mri3d":
        return make("mri", folder, n=6).images
    if modality != "images":
        return make(modality, folder, n=2 if modality == "histology" else 6).images
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(4):
        coarse = rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)
        np.save(folder / f"{number}.npy", cv2.resize(coarse, (512, 512), interpolation=cv2.INTER_CUBIC))
    return folder


def plain_reader(modality: str, records: list[Record]) -> Callable[[int], np.ndarray]:
    """How the other sides read sample `k`: (H, W, C), as their tutorials do."""
    paths = [Path(record.uri) for record in records]
    if modality == "histology" and paths[0].suffix.lower() in (".tif", ".tiff", ".svs", ".ndpi", ".mrxs"):
        from openslide import OpenSlide

        slides = [OpenSlide(str(path)) for path in paths]
        rng = np.random.default_rng(0)

        def region(k: int) -> np.ndarray:
            slide = slides[k % len(slides)]
            x, y = (int(rng.integers(max(1, extent - 392))) for extent in slide.dimensions)
            return np.asarray(slide.read_region((x, y), 0, (392, 392)).convert("RGB"))

        return region
    if modality == "mri" and paths[0].name.endswith((".nii", ".nii.gz")):
        volumes = []
        for path in paths:
            volume = nibabel.as_closest_canonical(nibabel.load(path)).get_fdata(dtype=np.float32)
            volumes.append(np.clip(volume / np.percentile(volume, 99.5), 0, 1))

        def middle(k: int) -> np.ndarray:
            volume = volumes[k % len(volumes)]
            return np.ascontiguousarray(volume[:, :, volume.shape[2] // 2, None])

        return middle
    if paths[0].suffix == ".fits":
        from astropy.io import fits

        def cut_out(k: int) -> np.ndarray:
            cube = fits.getdata(paths[k % len(paths)], memmap=False).astype(np.float32)
            return np.ascontiguousarray(np.moveaxis(cube, 0, -1))

        return cut_out
    if paths[0].suffix == ".npy":
        return lambda k: np.load(paths[k % len(paths)], allow_pickle=False)
    return lambda k: np.asarray(Image.open(paths[k % len(paths)]).convert("RGB"))


def sides_of(modality: str, root: Path) -> dict[str, Side]:
    """Sample number -> eight views, for ours and each library."""
    adapter = data_adapters.create(modality, **OPTIONS.get(modality, {}))
    records = [found for found in adapter.scan(root) if isinstance(found, Record)][:16]
    adapter = adapter.fit(records)
    read = plain_reader(modality, records)

    def ours(k: int) -> Any:
        rng = np.random.default_rng((0, k))
        return adapter.views(adapter.read(records[k % len(records)], rng), rng)

    def theirs(factory: Callable[[str], recipes.Views]) -> Side:
        views = factory(modality)
        return lambda k: views(read(k))

    return {"ours": ours, **{name: theirs(factory) for name, factory in FACTORIES.items()}}


def recipe_sides(modality: str, root: Path, folder: Path) -> dict[str, Side]:
    """Sample number -> eight views, by the built-in recipe and by the same one from a file."""
    options = {**OPTIONS.get(modality, {}), **(CUBES if modality == "mri3d" else {})}
    if modality == "galaxy":
        options["kind"] = "flux"
    own = data_adapters.create(modality, **options)
    assert isinstance(own, BaseAdapter)
    records = [found for found in own.scan(root) if isinstance(found, Record)][:16]
    file = folder / f"{modality}.yaml"
    file.write_text(recipe_text(own.shown_operations(), volumes=own.dims == 3, command=""))
    options.pop("recipe", None)
    sides = {"ours": own.fit(records), "file": data_adapters.create(modality, **options, augment=file).fit(records)}

    def side(adapter: Adapter) -> Side:
        def views(k: int) -> Any:
            rng = np.random.default_rng((0, k))
            return adapter.views(adapter.read(records[k % len(records)], rng), rng)

        return views

    found = {name: side(adapter) for name, adapter in sides.items()}
    assert all(torch.equal(a, b) for a, b in zip(found["ours"](1), found["file"](1), strict=True))
    return found


def recipe_row(modality: str, taken: dict[str, tuple[list[float], list[float]]]) -> str:
    """The row of one modality: built-in, file and their ratio."""
    ratios = [b / a for a, b in zip(taken["ours"][0], taken["file"][0], strict=True)]
    cells = []
    for values, digits in ((taken["ours"][0], 1), (taken["file"][0], 1), (ratios, 2)):
        low, mid, high = (f"{one:.{digits}f}" for one in statistics.quantiles(values, n=4))
        cells.append(f"{mid} ({low} to {high})")
    row = f"| {modality} | {' | '.join(cells)} |"
    print(row, flush=True)
    return row


def measure(sides: dict[str, Side], repeats: int) -> dict[str, tuple[list[float], list[float]]]:
    """CPU and wall milliseconds of every sample, the sides in turns; a few samples warm caches and handles first."""
    taken: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in sides}
    for k in range(-6, repeats):
        for name, side in sides.items():
            cpu, wall = time.process_time(), time.perf_counter()
            views = side(abs(k))
            spent = 1000 * (time.process_time() - cpu), 1000 * (time.perf_counter() - wall)
            assert len(views) == 8
            if k >= 0:
                taken[name][0].append(spent[0])
                taken[name][1].append(spent[1])
    return taken


def rows_of(modality: str, taken: dict[str, tuple[list[float], list[float]]]) -> list[str]:
    """The table's rows of one modality."""
    rows = []
    for name in SIDES:
        cpu, wall = taken[name]
        low, mid, high = statistics.quantiles(cpu, n=4)
        ratio = statistics.median(a / b for a, b in zip(cpu, taken["ours"][0], strict=True))
        lacks = "" if name == "ours" else recipes.LACKS[modality, name]
        shown = f"{mid:.1f} ({low:.1f} to {high:.1f}) | {statistics.median(wall):.1f} | {ratio:.1f}"
        rows.append(f"| {modality} | {name} | {shown} | {lacks} |")
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Read the arguments, measure, print and save."""
    parser = argparse.ArgumentParser(description="Read and eight views per sample, against three libraries.")
    parser.add_argument("--repeats", type=int, default=60, help="timed samples of each side")
    parser.add_argument("--modality", action="append", choices=[*recipes.AREA, "mri3d"], help="default: all")
    parser.add_argument("--files", action="store_true", help="each recipe against the same one from a pipeline file")
    parser.add_argument("--data", action="append", default=[], metavar="MODALITY=FOLDER", help="a real set")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    args = parser.parse_args()
    real = {name: Path(folder) for name, _, folder in (entry.partition("=") for entry in args.data)}
    torch.set_num_threads(1)
    cv2.setNumThreads(1)  # after torch: OpenCV reads no OMP_NUM_THREADS
    rows: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["LEJEPA_CACHE"] = str(Path(temporary) / "cache")
        for modality in args.modality or [*recipes.AREA, *(["mri3d"] if args.files else [])]:
            root = real.get(modality) or made(modality, Path(temporary) / modality)
            if args.files:
                sides = recipe_sides(modality, root, Path(temporary))
                rows.append(recipe_row(modality, measure(sides, args.repeats)))
            else:
                rows += rows_of(modality, measure(sides_of(modality, root), args.repeats))
    page = (FILES_PAGE if args.files else PAGE).format(
        cube=" and ".join(f"{n} of {CUBES[key]}^3" for n, key in ((2, "global_size"), (6, "local_size"))),
        date=date.today().isoformat(),
        cpu=cpu_name(),
        torch=torch.__version__,
        repeats=args.repeats,
        load=os.getloadavg()[0],
        cores=os.cpu_count(),
        data=", ".join(f"{name}: a real set" for name in real) or "made by examples/demo, galaxy FITS of three bands",
        rows="\n".join(rows),
    )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(page)


if __name__ == "__main__":
    main()
