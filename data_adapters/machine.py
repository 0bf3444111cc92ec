"""The processor cores that this process may use, and how many of them others keep busy. Imports nothing heavy.

What the process may use is the least of its CPU affinity and the CPU quotas of its control groups (a container's
limit). What others keep busy is read from the kernel's counters, so it needs Linux; elsewhere it is unknown.
"""

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
BUSY = (0, 1, 2, 5, 6, 7)  # user, nice, system, irq, softirq, steal: columns of /proc/stat; 3 and 4 are idle and iowait
TIMES = 8  # columns that add up to the whole time; those after them are parts of others


@dataclass(frozen=True)
class Reading:
    """Counters at one moment, in ticks of the kernel's clock (usually 1/100 s).

    Attributes:
        busy: of the usable cores together, all processes and the virtual machine's neighbours ("steal").
        elapsed: of one core.
        own: CPU time of this process.
        group: CPU time of the control group whose quota binds, or None without a quota.
    """

    busy: float
    elapsed: float
    own: float
    group: float | None


class Machine:
    """Cores of this process; other paths than those of the running kernel serve the tests.

    Attributes:
        cpus: of the affinity mask.
        quota: limit by control groups, in cores; infinite without one.
    """

    def __init__(self, *, proc: Path = PROC, cgroups: Path = CGROUPS, affinity: set[int] | None = None) -> None:
        self._proc, self._cgroups = proc, cgroups
        if affinity is None and hasattr(os, "sched_getaffinity"):
            affinity = os.sched_getaffinity(0)
        self._affinity = affinity if affinity is not None else set(range(os.cpu_count() or 1))
        self.cpus = len(self._affinity)
        self.quota, self._usage = self._limit()
        self._ticks = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100

    @property
    def cores(self) -> int:
        """Cores that this process may use, at least 1. A part of a core in a quota counts as one: it can be used."""
        return max(1, math.ceil(min(self.cpus, self.quota)))

    def read(self) -> Reading | None:
        """The counters now; None where the kernel does not tell them."""
        try:
            rows = [line.split() for line in (self._proc / "stat").read_text().splitlines() if line.startswith("cpu")]
            ours = [list(map(int, row[1:])) for row in rows if row[0][3:] and int(row[0][3:]) in self._affinity]
            # the name of a process stands in brackets and may hold spaces
            fields = (self._proc / "self" / "stat").read_text().rpartition(")")[2].split()
            return Reading(
                busy=sum(row[i] for row in ours for i in BUSY),
                elapsed=sum(sum(row[:TIMES]) for row in ours) / len(ours),
                own=int(fields[11]) + int(fields[12]),
                group=self._group_ticks(),
            )
        except (OSError, ValueError, IndexError, ZeroDivisionError):
            return None

    def free(self, before: Reading | None, after: Reading | None) -> float | None:
        """Cores that other processes left to this one between two readings, up to all of them; None: unknown.

        What this process used counts as free, what its child processes used does not.
        """
        if before is None or after is None or after.elapsed <= before.elapsed:
            return None
        elapsed, own = after.elapsed - before.elapsed, after.own - before.own
        free = self.cpus - max(0.0, after.busy - before.busy - own) / elapsed
        if before.group is not None and after.group is not None:
            free = min(free, self.quota - max(0.0, after.group - before.group - own) / elapsed)
        return max(0.0, free)

    def _limit(self) -> tuple[float, Path | None]:
        """The smallest quota of the control groups around this process, in cores, and the file of its CPU time."""
        found: tuple[float, Path | None] = (float("inf"), None)
        try:
            lines = (self._proc / "self" / "cgroup").read_text().splitlines()
        except OSError:
            return found
        for line in lines:
            _, names, path = line.split(":", 2)
            if names and "cpu" not in names.split(","):
                continue
            folders = dict.fromkeys([names, "cpu", "cpu,cpuacct"] if names else ["", "unified"])
            # from the outside in; inside a container the outer ones are often hidden
            parts = Path(path).parts[1:]
            for place in (Path(*parts[:depth]) for depth in range(len(parts) + 1)):
                for folder in (self._cgroups / name / place for name in folders):
                    quota = _quota(folder)
                    if quota is not None and quota < found[0]:
                        found = quota, self._usage_file(folder, place)
        return found

    def _usage_file(self, folder: Path, place: Path) -> Path | None:
        """Where the CPU time of a control group is told; version 1 often has it below another folder."""
        files = [folder / "cpu.stat"] if (folder / "cpu.max").is_file() else [folder / "cpuacct.usage"]
        files += [self._cgroups / name / place / "cpuacct.usage" for name in ("cpuacct", "cpu,cpuacct")]
        return next((file for file in files if file.is_file()), None)

    def _group_ticks(self) -> float | None:
        if self._usage is None:
            return None
        text = self._usage.read_text()
        if self._usage.name == "cpuacct.usage":
            return int(text) / 1e9 * self._ticks
        return int(dict(line.split() for line in text.splitlines())["usage_usec"]) / 1e6 * self._ticks


def _quota(folder: Path) -> float | None:
    """The CPU limit of a control group in cores, of version 2 or 1; None where it has none."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return int(quota) / int(period) if quota not in ("max", "-1") else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def usable_cores() -> int:
    """Cores that this process may use: CPU affinity and container limits, at least 1."""
    return Machine().cores


def free_cores(*, seconds: float = 0.2, machine: Machine | None = None) -> int:
    """Whole cores that nobody else uses, at least 1; takes `seconds` to see. All usable ones where that is unknown."""
    machine = machine or Machine()
    before = machine.read()
    if before is not None:
        time.sleep(seconds)
    free = machine.free(before, machine.read())
    return machine.cores if free is None else max(1, min(machine.cores, round(free)))
