"""What a service holds while it is under load, seen from outside, and whether it grows (Linux)."""

import csv
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
from scipy import stats

MIB = 2**20
QUEUES = {"waiting items": r"^lejepa_queue_items (\S+)", "jobs": r'^lejepa_jobs\{.*state="(?:queued|running)"\} (\S+)'}


@dataclass(frozen=True)
class Slope:
    """Growth an hour: a straight line's slope, and half of its 95 % interval."""

    hourly: float
    margin: float

    def __str__(self) -> str:
        return f"{self.hourly:+.1f} ± {self.margin:.1f}"

    @property
    def verdict(self) -> str:
        """In words: grows or falls only where the interval leaves zero out."""
        if abs(self.hourly) <= self.margin:
            return "no trend"
        return "grows" if self.hourly > 0 else "falls"


def slope(seconds: Sequence[float], values: Sequence[float]) -> Slope:
    """A line through measurements, and how sure its slope is.

    Neighbouring measurements are alike, so they count for fewer: n (1 - r) / (1 + r), with r the residuals' correlation
    from one to the next (the effective sample size of a first-order autoregression; Santer et al. 2000, J. Geophys.
    Res. 105, 7337-7356).

    Args:
        seconds: when, at least four.
        values: what.
    """
    x, y = np.array(seconds, np.float64) / 3600, np.array(values, np.float64)
    x -= x.mean()
    rate = float((x * y).sum() / (x * x).sum())
    rest = y - y.mean() - rate * x
    total = float((rest * rest).sum())
    if total == 0:
        return Slope(rate, 0.0)
    alike = min(max(float((rest[1:] * rest[:-1]).sum()) / total, 0.0), 0.99)
    free = max(len(x) * (1 - alike) / (1 + alike) - 2, 1.0)
    error = float(np.sqrt(total / free / (x * x).sum()))
    return Slope(rate, float(stats.t.ppf(0.975, free)) * error)


class Watch:
    """Samples on a thread of its own, each a dict with the same keys; `at` are seconds of the run."""

    def __init__(self, pid: int, address: str, key: str, data: Path, *, every: float) -> None:
        self.at: list[float] = []
        self.samples: list[dict[str, float]] = []
        self.missed = 0  # samples that the service did not answer
        self._service, self._data, self._every = psutil.Process(pid), data, every
        self._client = httpx.Client(base_url=address, timeout=60, headers={"Authorization": f"Bearer {key}"})
        self._end, self._zero = threading.Event(), time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def write(self, file: Path) -> None:
        """All samples as CSV."""
        with file.open("w", newline="") as stream:
            table = csv.writer(stream)
            table.writerow(["seconds", *self.samples[0]])
            table.writerows([at, *sample.values()] for at, sample in zip(self.at, self.samples, strict=True))

    def _run(self) -> None:
        while not self._end.wait(self._every):
            at = time.monotonic() - self._zero
            try:
                sample = self.look()
            except httpx.HTTPError:
                self.missed += 1
                continue
            self.at.append(at)
            self.samples.append(sample)

    def look(self) -> dict[str, float]:
        """One sample.

        Of the readers' memory, what they have written: pages shared with the process they were forked from count once,
        in parts, and those of libraries not at all, whose share depends on what else runs on the machine.
        """
        readers, shares, handles = 0, 0, 0
        for child in self._service.children(recursive=True):
            try:
                share, opened = _written(child.pid), child.num_fds()
            except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):  # replaced at this moment, and not reaped yet
                continue
            readers, shares, handles = readers + 1, shares + share, handles + opened
        files = [size for _, size in files_of(self._data)]
        return {
            "memory of the service, MiB": self._service.memory_info().rss / MIB,
            "memory of its readers, MiB": shares / MIB,
            "handles of the service": self._service.num_fds(),
            "handles of its readers": handles,
            "threads of the service": self._service.num_threads(),
            "processes of readers": readers,
            "data directory, MiB": sum(files) / MIB,
            "files in the data directory": len(files),
            **self._queues(),
        }

    def _queues(self) -> dict[str, float]:
        text = self._client.get("/metrics").raise_for_status().text
        return {name: sum(map(float, re.findall(pattern, text, re.MULTILINE))) for name, pattern in QUEUES.items()}


def _written(pid: int) -> int:
    """Bytes of a process's anonymous and shared memory (proc_pid_smaps(5)), shared pages in parts."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))


def files_of(folder: Path) -> Iterator[tuple[Path, int]]:
    """Every file below a folder and its bytes, but for what goes meanwhile."""
    for place, _, names in os.walk(folder):  # which passes over folders that go, as Path.rglob does not
        for name in names:
            with suppress(FileNotFoundError):
                path = Path(place, name)
                yield path, path.stat().st_size


def sizes(folder: Path) -> dict[str, int]:
    """Bytes below each entry of a folder."""
    found: dict[str, int] = {}
    for path, size in files_of(folder):
        name = path.relative_to(folder).parts[0]
        found[name] = found.get(name, 0) + size
    return found
