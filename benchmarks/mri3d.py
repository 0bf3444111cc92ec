"""CPU time of one 3-D training sample, 2 x 96^3 + 6 x 48^3 from a cached head, against the same recipe in MONAI.

    python -m benchmarks.mri3d --out benchmarks/results/mri3d-cpu.md

CPU time of one thread, so other work on the machine matters less than for wall time; both sides in turns. The MONAI
side gets the decoded volume in memory as float32, reseeds its transforms for each view (as reproducible views need),
and has no restriction of a crop's area and aspect.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

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

import data_adapters
from benchmarks.sigreg import cpu_name
from data_adapters.base import Record

SIZE = (176, 208, 176)  # voxels of 1 mm, a head with some air
PAGE = """# One 3-D training sample on the CPU

{date}. {cpu}, one thread, torch {torch}, MONAI {monai}. 2 views of 96^3 and 6 of 48^3 from one head, cached at 1 mm
({shape} voxels of foreground). Median CPU milliseconds of {repeats} samples, with quartiles, both sides in turns.

| | ms per sample |
|---|---:|
| ours, read (cache in memory of the system) | {read} |
| ours, views | {ours} |
| MONAI, views of a volume in memory | {theirs} |

MONAI / ours: {ratio:.1f}. Again with: `python -m benchmarks.mri3d --out benchmarks/results/mri3d-cpu.md`
"""


def head(file: Path) -> None:
    """Write an ellipsoid with a smooth inside and noise."""
    rng = np.random.default_rng(0)
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


def measure(repeats: int) -> str:
    """The page."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LEJEPA_CACHE"] = f"{folder}/cache"
        head(Path(folder, "head.nii"))
        adapter = data_adapters.create("mri3d")
        (record,) = adapter.scan(Path(folder, "head.nii"))
        assert isinstance(record, Record)
        source = adapter.read(record, np.random.default_rng(0))
        volume = torch.from_numpy(source.voxels.astype(np.float32) / 65535)[None]
        plan = [monai_view("global", 96, source.voxels.shape)] * 2 + [monai_view("local", 48, source.voxels.shape)] * 6

        def theirs(seed: int) -> None:
            for view, transform in enumerate(plan):
                transform.set_random_state(seed=8 * seed + view)
                transform(volume)

        sides: dict[str, Callable[[int], object]] = {
            "read": lambda seed: adapter.read(record, np.random.default_rng(seed)),
            "ours": lambda seed: adapter.views(source, np.random.default_rng(seed)),
            "theirs": theirs,
        }
        times: dict[str, list[float]] = {name: [] for name in sides}
        for seed in range(repeats + 1):  # the first is a warm-up
            for name, run in sides.items():
                start = time.process_time()
                run(seed)
                times[name].append(1000 * (time.process_time() - start))
        shown = {name: _spread(values[1:]) for name, values in times.items()}
        return PAGE.format(
            date=date.today(),
            cpu=cpu_name(),
            torch=torch.__version__,
            monai=monai.__version__,
            shape=" x ".join(map(str, source.voxels.shape)),
            repeats=repeats,
            ratio=statistics.median(times["theirs"][1:]) / statistics.median(times["ours"][1:]),
            **shown,
        )


def _spread(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.1f} ({low:.1f} to {high:.1f})"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=16)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    page = measure(options.repeats)
    print(page)
    if options.out:
        options.out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
