"""What a process and its children use, seen from outside (Linux)."""

import resource
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Memory:
    """MiB: pages of the process's own, and all resident pages."""

    own: float
    resident: float

    def __str__(self) -> str:
        return f"{self.own:.0f} ({self.resident:.0f})"

    def peak(self, other: "Memory") -> "Memory":
        """The larger of each."""
        return Memory(max(self.own, other.own), max(self.resident, other.resident))


NOTHING = Memory(0, 0)


def seconds(who: int) -> float:
    """User and system seconds of this process or of its ended children."""
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def memory(process: int | str) -> Memory:
    """What a process has now; nothing where it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return NOTHING
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "VmRSS:"))}
    return Memory(kib.get("RssAnon", 0) / 1024, kib.get("VmRSS", 0) / 1024)


def children(process: int) -> list[str]:
    """Numbers of the processes that `process` started."""
    try:
        return " ".join(file.read_text() for file in Path(f"/proc/{process}/task").glob("*/children")).split()
    except (FileNotFoundError, ProcessLookupError):  # a thread ended meanwhile
        return []


def watched(done: Future[Any], process: int) -> tuple[Memory, Memory]:
    """Peaks of a process and of its largest child until the work is done."""
    peak, worker = memory(process), NOTHING
    while not done.done():
        peak = peak.peak(memory(process))
        for child in children(process):
            worker = worker.peak(memory(child))
        wait([done], timeout=0.2)
    return peak.peak(memory(process)), worker  # what was taken last is mostly still there
