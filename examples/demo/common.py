"""What the three generators share: one seed per item, a process pool, and the table of labels."""

import csv
import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from data_adapters.machine import usable_cores

Job = TypeVar("Job")
Result = TypeVar("Result")
Progress = Callable[[int, int], None]

LABELS = "labels.csv"
SLIDES = "slides.csv"  # catalogue of the slides, where labels belong to tiles cut from them
VAL_FRACTION = 0.25


@dataclass(frozen=True, kw_only=True)
class Label:
    """One row of labels.csv. `path` is relative to the table's own folder; `extra` holds further columns."""

    path: str
    label: str
    group: str
    split: str
    extra: tuple[tuple[str, str], ...] = ()


def write_labels(folder: Path, rows: Iterable[Label], *, name: str = LABELS) -> Path:
    """Write `folder`/`name`, which is also a catalogue that `lejepa-med scan` understands.

    labels.csv is written last and moved into place, so an archive that has one is complete.
    """
    rows = sorted(rows, key=lambda row: row.path)
    further = [name for name, _ in rows[0].extra]
    part = folder / f".{name}.part"
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "group", "split", *further])
        writer.writerows([r.path, r.label, r.group, r.split, *(value for _, value in r.extra)] for r in rows)
    return part.replace(folder / name)


def read_labels(file: Path) -> list[dict[str, str]]:
    """The rows of a labels.csv as dictionaries."""
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def split_of(index: int, total: int) -> str:
    """The split of group `index` of `total`: the last quarter (at least one) validates, the rest trains."""
    return "val" if index >= total - max(1, round(VAL_FRACTION * total)) else "train"


def generators(seed: int, n: int) -> list[np.random.Generator]:
    """One independent generator per item, so that an item does not depend on its neighbours or on the worker count."""
    return [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(n)]


def parallel(
    function: Callable[[Job], Result], jobs: Sequence[Job], *, workers: int | None, progress: Progress | None
) -> list[Result]:
    """`function` of every job, in order, on `workers` processes (None: all cores); `progress` hears (done, total)."""
    workers = min(workers or usable_cores(), len(jobs))
    results: list[Result] = []

    def collect(stream: Iterable[Result]) -> list[Result]:
        for result in stream:
            results.append(result)
            if progress is not None:
                progress(len(results), len(jobs))
        return results

    if workers <= 1:
        return collect(map(function, jobs))
    # spawn: a forked child of a process that holds OpenCV's or torch's threads can hang.
    with multiprocessing.get_context("spawn").Pool(workers, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        return collect(pool.imap(function, jobs, chunksize=max(1, min(16, len(jobs) // (4 * workers)))))


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], *, cell: float) -> np.ndarray:
    """A smooth random field with zero mean and unit spread, (H, W) float32; `cell` is its grain in pixels."""
    coarse = rng.standard_normal([max(4, int(np.ceil(side / cell)) + 3) for side in shape]).astype(np.float32)
    fine = cv2.resize(coarse, None, fx=cell, fy=cell, interpolation=cv2.INTER_CUBIC)
    if fine.shape[0] < shape[0] or fine.shape[1] < shape[1]:
        fine = cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
    field = fine[: shape[0], : shape[1]]
    normal: np.ndarray = (field - field.mean()) / (field.std() + 1e-6)
    return normal
