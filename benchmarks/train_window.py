"""What one side of `benchmarks.train` is told, and the clock that all sides are measured with.

A side runs in a process of its own. Its window opens when optimiser step `warmup` ends and closes `steps` optimiser
steps later. The clock hears of optimiser steps through torch's global hook and of waiting for data through torch's
loader iterator and ours, so it is the same for every training loop and changes none.
"""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import dataloader

SPARE_STEPS = 8  # loaders read ahead of the window


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all sides have in common.

    Attributes:
        archive: folder of links to the image files; one pass over it outlasts the window.
        out: scratch folder of one side.
        modality, options: of our adapter.
        backbone: timm name. drop_path: its stochastic depth.
        n_global, n_local, size, local_size: the views; sizes in pixels.
        global_area, local_area: share of the image that a crop shows.
        hidden: width of the projector's two hidden layers; its output has `dim`.
        slices: directions of SIGReg.
        batch: images of a step. workers: loader processes.
        precision: 32-true, bf16-mixed or 16-mixed. accelerator: cpu or cuda.
        lr, weight_decay: of AdamW.
        warmup: steps before the window. steps: of the window.
    """

    archive: str
    out: str
    modality: str
    options: dict[str, Any]
    backbone: str
    drop_path: float
    n_global: int
    n_local: int
    size: int
    local_size: int
    global_area: tuple[float, float]
    local_area: tuple[float, float]
    hidden: int
    dim: int
    slices: int
    batch: int
    workers: int
    precision: str
    accelerator: str
    lr: float
    weight_decay: float
    warmup: int
    steps: int

    @property
    def sizes(self) -> list[tuple[int, tuple[float, float]]]:
        """(side, area) of every view, global ones first."""
        return [(self.size, self.global_area)] * self.n_global + [(self.local_size, self.local_area)] * self.n_local

    @property
    def all_steps(self) -> int:
        """Steps that the archive has images for."""
        return self.warmup + self.steps + SPARE_STEPS

    def write(self, file: Path) -> None:
        """As JSON, for the side's process."""
        file.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, file: Path) -> "Settings":
        """What `write` wrote."""
        values: dict[str, Any] = json.loads(file.read_text())
        areas: dict[str, Any] = {name: tuple(values.pop(name)) for name in ("global_area", "local_area")}
        return cls(**values, **areas)


class Window:
    """Measures `steps` steps after `warmup` and writes the figures to `result`, once."""

    def __init__(self, settings: Settings, result: Path) -> None:
        self.settings, self.result = settings, result
        self.facts: dict[str, Any] = {}  # of the side: versions, and what differs
        self._steps = 0
        self._waited = 0.0
        self._cuda = settings.accelerator == "cuda"

    @contextmanager
    def follow(self) -> Iterator[None]:
        """Inside, count every step of any torch optimiser, and time what loaders keep the training waiting."""
        hook = register_optimizer_step_post_hook(lambda *_: self.tick())
        # the class behind every DataLoader, which has no hook, and that behind our loaders where they are used
        iterators: list[Any] = [dataloader._BaseDataLoaderIter]
        if ours := sys.modules.get("lejepa_med.data.loader"):
            iterators.append(ours.Ahead)
        plain = [iterator.__next__ for iterator in iterators]

        def timed(following: Callable[[Any], Any]) -> Callable[[Any], Any]:
            def wait(loader: Any) -> Any:
                start = time.perf_counter()
                try:
                    return following(loader)
                finally:
                    self._waited += time.perf_counter() - start

            return wait

        for iterator, following in zip(iterators, plain, strict=True):
            iterator.__next__ = timed(following)
        try:
            yield
        finally:
            for iterator, following in zip(iterators, plain, strict=True):
                iterator.__next__ = following
            hook.remove()

    def tick(self) -> None:
        """One step has ended."""
        self._steps += 1
        if self._steps == self.settings.warmup:
            if self._cuda:
                torch.cuda.reset_peak_memory_stats()
                self._sampler = _Utilisation()
            self._open = self._now()
        elif self._steps == self.settings.warmup + self.settings.steps:
            self._write(self._now())

    def _now(self) -> tuple[float, float, float]:
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter(), cpu_seconds(), self._waited

    def _write(self, end: tuple[float, float, float]) -> None:
        wall, cpu, waited = (b - a for a, b in zip(self._open, end, strict=True))
        images = self.settings.batch * self.settings.steps
        figures: dict[str, Any] = {
            "images_per_second": images / wall,
            "cpu_ms_per_image": 1000 * cpu / images,
            "data_wait": waited / wall,
            "seconds": wall,
            "load": os.getloadavg()[0],
        }
        if self._cuda:
            figures["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
            figures["utilisation"] = self._sampler.stop()
        write_result(self.result, {**figures, **self.facts})


def cpu_seconds() -> float:
    """User and system time of this process and its loader workers so far."""
    total = 0.0
    main = psutil.Process()
    for process in (main, *main.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


class _Utilisation:
    """Share of time in which a kernel ran, sampled twice a second by nvidia-smi where that is installed."""

    def __init__(self) -> None:
        uuid = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
        command = ["nvidia-smi", "-i", uuid, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        try:
            self._process: subprocess.Popen[str] | None = subprocess.Popen(
                [*command, "-lms", "500"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        except FileNotFoundError:
            self._process = None

    def stop(self) -> float | None:
        """Mean over the samples, 0 to 1."""
        if self._process is None:
            return None
        self._process.terminate()
        samples = [int(line) for line in self._process.communicate()[0].split() if line.isdigit()]
        return sum(samples) / len(samples) / 100 if samples else None


def write_result(file: Path, figures: dict[str, Any]) -> None:
    """One JSON object, there at once or not at all."""
    draft = file.with_suffix(".draft")
    draft.write_text(json.dumps(figures))
    draft.replace(file)


def run_side(side: Callable[[Settings, Window], None], *, package: str | None = None) -> None:
    """The main of a side's process: read settings, check that its package is there, train until the window is full.

    Args:
        side: trains for more than the window.
        package: distribution that the side needs; its module is that name with underscores.
    """
    settings_file, result = map(Path, sys.argv[1:3])
    settings = Settings.read(settings_file)
    if package is not None and importlib.util.find_spec(package.replace("-", "_")) is None:
        return write_result(result, {"missing": package})
    window = Window(settings, result)
    window.facts["versions"] = versions(["torch", "timm", *([package] if package else [])])
    side(settings, window)
    if not result.exists():
        raise SystemExit("the training ended before its window")
    return None


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Installed versions."""
    return {package: version(package) for package in packages}
