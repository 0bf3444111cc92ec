"""Who does the work of a scan: this process, other processes, or the one and then the other."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from data_adapters.base import Rejected
from data_adapters.scan.worker import Bench

TINY_FILES, TINY_BYTES = 256, 256 << 20  # below this, starting processes costs more than they save


@dataclass
class Task:
    """Units of one kind of work, done one after the other by one process.

    `results` has one entry for each unit when the task is `done`; a `Lost` stands for a unit that was not finished.
    """

    kind: str
    common: tuple[Any, ...] = ()
    units: list[Any] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    left: int = -1  # units without a result; negative before the task is submitted
    weight: int = 0  # bytes of the files

    @property
    def done(self) -> bool:
        """Whether every unit has its result."""
        return self.left == 0


@dataclass(frozen=True)
class Lost:
    """A unit that no process could finish. `lasting`: a later scan need not try the unchanged file again."""

    reason: str
    remedy: str
    lasting: bool

    def rejected(self, uri: str) -> Rejected:
        """The refusal of the file `uri`."""
        return Rejected(uri=uri, reason=self.reason, remedy=self.remedy)


class Pool(Protocol):
    """Who does tasks."""

    workers: int

    def submit(self, task: Task) -> None:
        """Take a task on."""

    def step(self, *, block: bool) -> None:
        """Pass tasks to idle processes and take results; with `block`, wait a moment for something to happen."""

    def close(self) -> None:
        """Stop all processes."""


class InProcess:
    """No processes: a reader that dies or hangs takes the scan with it, but nothing has to be started."""

    workers = 1

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def submit(self, task: Task) -> None:
        """Do it now."""
        task.results = [self.bench.run(task.kind, unit, *task.common) for unit in task.units]
        task.left = 0

    def step(self, *, block: bool) -> None:
        """Nothing is ever under way."""

    def close(self) -> None:
        """Nothing to stop."""


class Gentle:
    """In this process while the work is tiny, in others from there on."""

    def __init__(self, near: InProcess, far: Pool) -> None:
        self.near, self.far, self.workers = near, far, far.workers
        self._files, self._bytes = TINY_FILES, TINY_BYTES

    def submit(self, task: Task) -> None:
        """Do it now or pass it on."""
        self._files -= len(task.units)
        self._bytes -= task.weight
        (self.near if min(self._files, self._bytes) >= 0 else self.far).submit(task)

    def step(self, *, block: bool) -> None:
        """As the processes do."""
        self.far.step(block=block)

    def close(self) -> None:
        """Stop the processes, if there are any."""
        self.far.close()
