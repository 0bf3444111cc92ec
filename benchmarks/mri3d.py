"""CPU time of 3-D training samples, 2 x 96^3 + 6 x 48^3 from cached heads, against the same recipe in MONAI.

    python -m benchmarks.mri3d --out benchmarks/results/mri3d-cpu.md
    python -m benchmarks.mri3d --data ARCHIVE --out ...    (also the volumes of an archive)

CPU time of one thread, so other work on the machine matters less than for wall time; all sides in turns. The MONAI
side gets the decoded volume in memory as float32, reseeds its transforms for each view (as reproducible views need),
and has no restriction of a crop's area and aspect. Every figure of docs/mri3d.md comes from here.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import cv2
import monai
import nibabel as nib
import numpy as np
import torch
from monai.transforms import (
    Compose,
    OneOf,
    RandAdjustContrast,
    RandAffine,
    RandBiasField,
    RandFlip,
    RandGaussianSmooth,
    RandGibbsNoise,
    RandRicianNoise,
    RandScaleIntensity,
    RandSimulateLowResolution,
    RandSpatialCrop,
    Resize,
)

from benchmarks.hardware import cpu_name
from data_adapters import create
from data_adapters.augment import mr_volumes
from data_adapters.base import Adapter, Record
from lejepa_med.models.encoder import create_encoder

SIZE = (176, 208, 176)  # voxels of 1 mm, a head with some air
CUBE = 96  # voxels, for single operations
SEQUENCES = ("T1w", "T2w", "FLAIR")
BACKBONES = ("monai:resnet10", "monai:resnet18")
Times = dict[str, list[float]]
PAGE = """# 3-D training samples on the CPU

{date}. {cpu}, one thread, torch {torch}, MONAI {monai}. CPU milliseconds, median (quartiles), all sides of a table in
turns; load average at the end {load:.1f} on {cores} cores: where other work shared the machine, ratios say more.

## A sample: 2 views of 96^3 and 6 of 48^3

One made head; {repeats} samples. Foreground {shape} voxels of 1 mm, {megabytes:.0f} MB in the cache.

| | ms per sample |
|---|---:|
{samples}

MONAI / ours: {ratio:.1f}.

## Single operations on {cube}^3

| | ours | MONAI |
|---|---:|---:|
{operations}

## A step: forward and backward of the encoder, two views of 48^3

| | contiguous | channels_last_3d |
|---|---:|---:|
{steps}
{real}
Again with: `python -m benchmarks.mri3d{arguments} --out benchmarks/results/mri3d-cpu.md`
"""
REAL = """
## Volumes of an archive

{n} volumes; first use is decoding, resampling and writing the cache.

| spacing_mm | foreground, voxels | MB in the cache | first use, ms | read, ms | views, ms |
|---|---|---:|---:|---:|---:|
{rows}
"""


def head(file: Path, *, seed: int = 0) -> None:
    """Write an ellipsoid with a smooth inside and noise."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in SIZE), indexing="ij", sparse=True)
    inside = (x / 0.85) ** 2 + (y / 0.9) ** 2 + (z / 0.95) ** 2 < 1
    field = inside * (600 + 150 * np.sin(9 * x) * np.cos(11 * y) + 100 * np.sin(7 * z))
    nib.save(nib.Nifti1Image((field + np.abs(rng.normal(0, 15, SIZE))).astype(np.int16), np.eye(4)), file)


def monai_view(kind: str, size: int, shape: tuple[int, ...]) -> Compose:
    """The recipe of `data_adapters.mri.cube_views` in MONAI's transforms."""
    low, high = ((0.5, 0.69, 0.69), (1.0, 1.0, 1.0)) if kind == "global" else ((0.2, 0.4, 0.4), (0.5, 0.69, 0.69))
    bounds = [[round(share * n) for share, n in zip(shares, shape, strict=True)] for shares in (low, high)]
    artefacts = [
        RandGaussianSmooth((0.25, 1), (0.25, 1), (0.25, 1), prob=0.3),
        RandSimulateLowResolution(prob=0.3, zoom_range=(0.5, 1)),
        RandGibbsNoise(prob=0.3, alpha=(0.2, 0.6)),
        RandRicianNoise(prob=0.3, std=0.02),
    ]
    return Compose(
        [
            RandSpatialCrop(bounds[0], max_roi_size=bounds[1], random_size=True),
            Resize((size,) * 3, mode="trilinear"),
            RandAffine(prob=0.3, rotate_range=(0.17, 0, 0), padding_mode="zeros", spatial_size=(size,) * 3),
            RandFlip(prob=0.5, spatial_axis=2),
            RandBiasField(prob=0.3, coeff_range=(-0.1, 0.1)),
            RandAdjustContrast(prob=0.5, gamma=(0.7, 1.5)),
            RandScaleIntensity(factors=0.25, prob=0.3),
            OneOf(artefacts),
        ]
    )


def in_turns(sides: dict[str, Callable[[int], object]], repeats: int) -> Times:
    """CPU milliseconds of each side, called with 0, 1, 2 ...; the first call is a warm-up."""
    times: Times = {name: [] for name in sides}
    for seed in range(repeats + 1):
        for name, run in sides.items():
            start = time.process_time()
            run(seed)
            times[name].append(1000 * (time.process_time() - start))
    return {name: values[1:] for name, values in times.items()}


def samples(folder: Path, repeats: int) -> tuple[Times, np.ndarray]:
    """Read and views of a made head, its like in MONAI, and of three sequences; and the head's cube."""
    for seed, name in enumerate(SEQUENCES):
        head(folder / f"sub-1_{name}.nii", seed=seed)
    adapter = create("mri3d")
    coarse = create("mri3d", spacing_mm=2.0)
    channels = create("mri3d", sequences=SEQUENCES)
    (record,) = records_of(adapter, folder / "sub-1_T1w.nii")
    (session,) = records_of(channels, folder)
    source = adapter.read(record, np.random.default_rng(0))
    volume = torch.from_numpy(source.voxels.astype(np.float32) / 65535)[None]
    plan = [monai_view("global", 96, source.voxels.shape)] * 2 + [monai_view("local", 48, source.voxels.shape)] * 6

    def views_of(one: Adapter, item: Record) -> Callable[[int], object]:
        kept = one.read(item, np.random.default_rng(0))
        return lambda seed: one.views(kept, np.random.default_rng(seed))

    def theirs(seed: int) -> None:
        for view, transform in enumerate(plan):
            transform.set_random_state(seed=8 * seed + view)
            transform(volume)

    sides: dict[str, Callable[[int], object]] = {
        "ours, read from a warm cache": lambda seed: adapter.read(record, np.random.default_rng(seed)),
        "ours, views": views_of(adapter, record),
        "ours, views, spacing_mm 2": views_of(coarse, record),
        "ours, views of three sequences as channels": views_of(channels, session),
        "MONAI, views of a volume in memory": theirs,
    }
    return in_turns(sides, repeats), source.voxels


def operations(repeats: int) -> list[str]:
    """Rows for gamma, blur and Gibbs ringing, ours against MONAI's random transforms, reseeded."""
    image = np.random.default_rng(0).random((CUBE,) * 3, dtype=np.float32)
    tensor = torch.from_numpy(image)[None]
    theirs = {
        "gamma": RandAdjustContrast(prob=1, gamma=(0.7, 1.5)),
        "blur": RandGaussianSmooth((0.25, 1), (0.25, 1), (0.25, 1), prob=1),
        "gibbs": RandGibbsNoise(prob=1, alpha=(0.2, 0.6)),
    }
    rows = []
    for name, transform in theirs.items():
        ours = getattr(mr_volumes, name)
        times = in_turns(
            {
                "ours": lambda seed, f=ours: f(image.copy(), rng=np.random.default_rng(seed)),
                "theirs": lambda seed, t=transform: t.set_random_state(seed=seed)(tensor),
            },
            repeats,
        )
        rows.append(f"| {name} | {_spread(times['ours'])} | {_spread(times['theirs'])} |")
    return rows


def steps(repeats: int) -> list[str]:
    """Rows for a step of the smaller ResNets in both memory formats."""
    rows = []
    views = torch.rand(2, 1, 48, 48, 48)
    for backbone in BACKBONES:
        encoder = create_encoder(backbone, create("mri3d").spec)
        formats = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last_3d}
        times: Times = {name: [] for name in formats}
        for number in range(repeats + 1):
            for name, memory in formats.items():
                encoder.backbone.to(memory_format=memory)
                batch = views.to(memory_format=memory)
                start = time.process_time()
                encoder(batch).sum().backward()
                if number:  # the first is a warm-up
                    times[name].append(1000 * (time.process_time() - start))
        rows.append(f"| {backbone} | {' | '.join(map(_spread, times.values()))} |")
    return rows


def archive(root: Path, repeats: int, *, most: int = 8) -> str:
    """The table of a real archive's volumes."""
    rows = []
    for spacing in (1.0, 2.0):
        adapter = create("mri3d", spacing_mm=spacing)
        records = records_of(adapter, root)[:most]
        first, cubes = [], []
        for record in records:
            start = time.process_time()
            cubes.append(adapter.read(record, np.random.default_rng(0)).voxels)
            first.append(1000 * (time.process_time() - start))
        sources = [adapter.read(record, np.random.default_rng(0)) for record in records]
        times = in_turns(
            {
                "read": lambda k, a=adapter, r=records: a.read(r[k % len(r)], np.random.default_rng(k)),
                "views": lambda k, a=adapter, s=sources: a.views(s[k % len(s)], np.random.default_rng(k)),
            },
            repeats,
        )
        sides = [statistics.median(cube.shape[axis] for cube in cubes) for axis in range(3)]
        megabytes = statistics.median(cube.nbytes / 1e6 for cube in cubes)
        shown = f"{_spread(first)} | {_spread(times['read'])} | {_spread(times['views'])}"
        rows.append(f"| {spacing:g} | {' x '.join(f'{n:.0f}' for n in sides)} | {megabytes:.0f} | {shown} |")
    return REAL.format(n=len(records), rows="\n".join(rows))


def records_of(adapter: Adapter, root: Path) -> list[Record]:
    """What scan accepts."""
    return [found for found in adapter.scan(root) if isinstance(found, Record)]


def measure(repeats: int, real: Path | None) -> str:
    """The page."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LEJEPA_CACHE"] = f"{folder}/cache"
        times, cube = samples(Path(folder), repeats)
        page = archive(real, repeats) if real else ""
    ours, theirs = times["ours, views"], times["MONAI, views of a volume in memory"]
    return PAGE.format(
        date=date.today(),
        cpu=cpu_name(),
        torch=torch.__version__,
        monai=monai.__version__,
        repeats=repeats,
        shape=" x ".join(map(str, cube.shape)),
        megabytes=cube.nbytes / 1e6,
        samples="\n".join(f"| {name} | {_spread(values)} |" for name, values in times.items()),
        ratio=statistics.median(a / b for a, b in zip(theirs, ours, strict=True)),
        cube=CUBE,
        operations="\n".join(operations(repeats)),
        steps="\n".join(steps(max(repeats // 4, 2))),
        real=page,
        arguments=" --data ARCHIVE" if real else "",
        load=os.getloadavg()[0],
        cores=os.cpu_count(),
    )


def _spread(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.1f} ({low:.1f} to {high:.1f})"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=16)
    parser.add_argument("--data", type=Path, help="an archive of real volumes to measure too")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)  # after torch: OpenCV reads no OMP_NUM_THREADS
    page = measure(options.repeats, options.data)
    print(page)
    if options.out:
        options.out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
