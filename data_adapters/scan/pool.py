"""Processes that read files and may die of them: a dead one costs the file that killed it, never the scan.

They are new Python processes, not forks: no thread, lock or CUDA state of the caller comes along, and a script that
calls a scan needs no `if __name__ == "__main__"`.
"""

import json
import signal
import subprocess
import sys
from collections import deque
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from data_adapters.errors import MissingExtraError, UserError
from data_adapters.scan.worker import READY, Bench, Missing, Setup

BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from data_adapters.scan.worker import main; main(int(sys.argv[1]))"
)
MAX_FAILED_STARTS = 3


@dataclass
class Task:
    """Units of one kind of work, done one after the other by one process.

    `results` has one entry for each unit when the task is `done`; a `Crash` stands for a unit that killed its process.
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
class Crash:
    """A unit on which a process died twice, the second time alone. `signal`: its name, or the exit code."""

    signal: str


class Pool(Protocol):
    """Who does tasks."""

    workers: int

    def submit(self, task: Task) -> None:
        """Take a task on."""

    def step(self, *, block: bool) -> None:
        """Pass tasks to idle processes and take results; with `block`, wait until something happens."""

    def close(self) -> None:
        """Stop all processes."""


TINY_FILES, TINY_BYTES = 256, 256 << 20  # below this, starting processes costs more than they save


class InProcess:
    """No processes: a reader that dies takes the scan with it, but nothing has to be started."""

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

    def __init__(self, near: InProcess, far: "Processes") -> None:
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


@dataclass
class _Part:
    """What is sent to a process: some units of a task. `deaths` of processes at work on it."""

    task: Task
    places: list[int]
    deaths: int = 0


class _Worker:
    def __init__(self, setup: Setup) -> None:
        self.pipe: Connection[Any, Any]
        self.pipe, theirs = Pipe()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", BOOT, str(theirs.fileno()), json.dumps(sys.path)],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # a library that prints must not write into the command's output
            )
        self.pipe.send(setup)
        self.ready = False
        self.part: _Part | None = None

    def end(self) -> int:
        """Exit status, after making sure that there is one."""
        self.pipe.close()
        if self.process.poll() is None:
            try:
                return self.process.wait(timeout=1)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait()


class Processes:
    """A fixed number of workers, started at the first task; one that dies is replaced."""

    def __init__(self, workers: int, setup: Setup) -> None:
        self.workers, self.setup = workers, setup
        self._queue: deque[_Part] = deque()
        self._alive: list[_Worker] = []
        self._failed_starts = 0

    def submit(self, task: Task) -> None:
        """Queue a task."""
        task.results, task.left = [None] * len(task.units), len(task.units)
        self._queue.append(_Part(task, list(range(len(task.units)))))
        self.step(block=False)

    def step(self, *, block: bool) -> None:
        """Pass tasks to idle workers and take results; with `block`, wait until a worker says something.

        Raises:
            MissingExtraError: a library that reads these files is not installed.
            UserError: no worker can be started.
        """
        while self._queue and len(self._alive) < self.workers:
            self._alive.append(_Worker(self.setup))
        self._hand_out()
        if block and not self._queue and not any(worker.part for worker in self._alive):
            return
        pipes = {worker.pipe: worker for worker in self._alive}
        for pipe in wait(list(pipes), timeout=None if block else 0):
            self._listen(pipes[pipe])  # type: ignore[index]
        self._hand_out()

    def _hand_out(self) -> None:
        # Only to idle workers, which are reading: so neither side can block the other by writing into a full pipe.
        for worker in [w for w in self._alive if w.ready and w.part is None]:
            if not self._queue:
                return
            worker.part = part = self._queue.popleft()
            try:
                worker.pipe.send((part.task.kind, [part.task.units[i] for i in part.places], part.task.common))
            except (BrokenPipeError, ConnectionResetError):
                self._bury(worker)

    def _listen(self, worker: _Worker) -> None:
        try:
            said = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            self._bury(worker)
            return
        if isinstance(said, Missing):
            raise MissingExtraError(said.cause, remedy=said.remedy)
        if said == READY:
            worker.ready, self._failed_starts = True, 0
            return
        part, worker.part = worker.part, None
        assert part is not None  # a worker speaks only when it was asked
        for place, result in zip(part.places, said, strict=True):
            part.task.results[place] = result
        part.task.left -= len(part.places)

    def _bury(self, worker: _Worker) -> None:
        """Give a dead worker's files to others, one by one; the file on which one dies alone is given up."""
        self._alive.remove(worker)
        status = worker.end()
        part = worker.part
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= MAX_FAILED_STARTS:
                raise UserError(
                    f"The processes that scan the archive cannot be started (exit status {status}).",
                    remedy="See the messages above. --workers 0 reads everything in one process.",
                )
        elif part is not None and len(part.places) == 1 and part.deaths:
            part.task.results[part.places[0]] = Crash(_name(status))
            part.task.left -= 1
        elif part is not None:
            self._queue.extendleft(_Part(part.task, [place], part.deaths + 1) for place in reversed(part.places))

    def close(self) -> None:
        """End every worker; one in the middle of a file is killed."""
        for worker in self._alive:
            if worker.part is not None or not worker.ready:
                worker.process.kill()
            worker.end()
        self._alive, self._queue = [], deque()


def _name(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
