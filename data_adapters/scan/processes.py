"""Processes that read files and may die or hang: that costs the file they were at work on, never the scan.

By default they are new Python processes, not forks: no thread, lock or CUDA state of the caller comes along, and a
script that calls a scan needs no `if __name__ == "__main__"`. A service starts them in its own way (`Start`).
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from data_adapters.errors import MissingExtraError, UserError
from data_adapters.scan.pool import Lost, Task
from data_adapters.scan.words import MAX_BYTES, Missing, NoWordError, Ready, unpack
from data_adapters.scan.worker import BEAT_BYTES, Setup

BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[3]); "
    "from data_adapters.scan.worker import main; main(int(sys.argv[1]), int(sys.argv[2]))"
)
MAX_FAILED_STARTS = 3
FILE_SECONDS = 300.0  # large slides and volumes on slow network drives take one or two minutes
CRASHED = "The program that decodes it ended abnormally. Copy the file again; if memory was short, use fewer --workers."
SLOW = "See whether another program opens it. If it is only large, or on a slow drive, give a larger --file-seconds."


class Started(Protocol):
    """A process of its own that runs `data_adapters.scan.worker.main`."""

    def kill(self) -> None:
        """End it at once."""

    def wait(self, timeout: float) -> int:
        """Exit status, negative for a signal, of a process that is about to end.

        Raises:
            subprocess.TimeoutExpired: it has not ended after `timeout` seconds.
        """


Start = Callable[[int, int], Started]
"""Starts one; gets the handles of its pipe and of the file of its beat, which the caller closes afterwards."""


def new_process(pipe: int, beat: int) -> "subprocess.Popen[bytes]":
    """A new Python process with this one's environment."""
    return subprocess.Popen(
        [sys.executable, "-c", BOOT, str(pipe), str(beat), json.dumps(sys.path)],
        pass_fds=(pipe, beat),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,  # a library that prints must not write into the command's output
    )


@dataclass
class _Part:
    """What is sent to a process: some units of a task. `deaths` of processes at work on it."""

    task: Task
    places: list[int]
    deaths: int = 0


class _Worker:
    def __init__(self, setup: Setup, start: Start) -> None:
        self.pipe: Connection[Any, Any]
        self.pipe, theirs = Pipe()
        # The worker counts in this file the units it begins. Unlike a word over the pipe this costs a microsecond, and
        # it can be read while the worker hangs.
        self.beat = tempfile.TemporaryFile(buffering=0)
        self.beat.write(bytes(BEAT_BYTES))
        try:
            with theirs:
                self.process = start(theirs.fileno(), self.beat.fileno())
        except BaseException:
            self.pipe.close()
            self.beat.close()
            raise
        self.pipe.send(setup)
        self.ready = False
        self.part: _Part | None = None
        self.finished = 0  # units of the parts before this one
        self.begun = 0  # units, when last looked at
        self.seconds = 0.0  # for which that has not changed

    def place(self) -> int:
        """Which unit of its part it is at work on; negative: none yet."""
        return self.begun - self.finished - 1

    def age(self, seconds: float) -> float:
        """How long it has been at work on one unit, `seconds` after the last question."""
        begun = int.from_bytes(os.pread(self.beat.fileno(), BEAT_BYTES, 0), "little")
        self.seconds = self.seconds + seconds if begun == self.begun else 0.0
        self.begun = begun
        return self.seconds if self.part is not None and self.place() >= 0 else 0.0

    def end(self) -> int:
        """Exit status, after making sure that there is one."""
        self.pipe.close()
        self.beat.close()
        try:
            return self.process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self.process.kill()
        try:
            return self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:  # the kernel waits for a dead drive; the process ends when the wait does
            return -signal.SIGKILL


class Processes:
    """A fixed number of workers, started at the first task; one that dies or hangs is replaced."""

    def __init__(
        self,
        workers: int,
        setup: Setup,
        *,
        file_seconds: float = FILE_SECONDS,
        start: Start = new_process,
    ) -> None:
        self.workers, self.setup, self.file_seconds, self._start = workers, setup, file_seconds, start
        self._queue: deque[_Part] = deque()
        self._alive: list[_Worker] = []
        self._failed_starts = 0
        self._pause = min(1.0, file_seconds / 4)  # seconds between two looks at the clock
        self._watched = time.monotonic()

    def submit(self, task: Task) -> None:
        """Queue a task."""
        task.results, task.left = [None] * len(task.units), len(task.units)
        self._queue.append(_Part(task, list(range(len(task.units)))))
        self.step(block=False)

    def step(self, *, block: bool) -> None:
        """Pass tasks to idle workers and take results; with `block`, wait at most a second for a worker's word.

        Raises:
            MissingExtraError: a library that reads these files is not installed.
            UserError: no worker can be started.
        """
        while self._queue and len(self._alive) < self.workers:
            self._alive.append(_Worker(self.setup, self._start))
        self._hand_out()
        if block and not self._queue and not any(worker.part for worker in self._alive):
            return
        pipes = {worker.pipe: worker for worker in self._alive}
        for pipe in wait(list(pipes), timeout=self._pause if block else 0):
            self._listen(pipes[pipe])  # type: ignore[index]
        self._watch()
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
        part = worker.part
        try:
            said = unpack(worker.pipe.recv_bytes(MAX_BYTES), results=len(part.places) if part is not None else 0)
        except (EOFError, OSError, NoWordError):  # it has died, or been taken over by what it reads
            worker.process.kill()
            self._bury(worker)
            return
        if isinstance(said, Missing):
            raise MissingExtraError(said.cause, remedy=said.remedy)
        if isinstance(said, Ready):
            worker.ready, self._failed_starts = True, 0
            return
        if part is None:  # it speaks without having been asked
            worker.process.kill()
            self._bury(worker)
            return
        worker.part = None
        worker.finished += len(part.places)
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
                    remedy="Read the messages above, or scan in one process: lejepa-med scan ARCHIVE --workers 0",
                )
        elif part is not None and len(part.places) == 1 and part.deaths:
            self._lose(part, part.places[0], Lost(f"crashes its reader ({_name(status)})", CRASHED, lasting=True))
        elif part is not None:
            self._queue.extendleft(_Part(part.task, [place], part.deaths + 1) for place in reversed(part.places))

    def _watch(self) -> None:
        """Kill workers that are at work on one file for too long, and give that file up."""
        now = time.monotonic()
        passed = now - self._watched
        if passed < self._pause:
            return
        self._watched = now
        # At most two pauses: when all processes were stopped meanwhile (Ctrl-Z, a suspended job), no file is at fault.
        passed = min(passed, 2 * self._pause)
        for worker in [w for w in self._alive if w.age(passed) > self.file_seconds]:
            part = worker.part
            assert part is not None  # an idle worker does not age
            self._alive.remove(worker)
            worker.process.kill()
            worker.end()
            slow = part.places.pop(worker.place())
            # not lasting: the drive may have been at fault
            self._lose(part, slow, Lost(f"takes longer than {self.file_seconds:g} s to read", SLOW, lasting=False))
            if part.places:
                self._queue.appendleft(part)

    def _lose(self, part: _Part, place: int, lost: Lost) -> None:
        part.task.results[place] = lost
        part.task.left -= 1

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
