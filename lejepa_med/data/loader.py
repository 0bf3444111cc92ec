"""Work that processes do ahead of its use, such as the batches of a run; results come in the order of the tasks.

A result travels through a pipe of its worker, as JSON and the bytes of tensors. torch's DataLoader uses shared memory
instead, and waits for ever where /dev/shm is small (64 MB in a container of Docker) or where a worker dies while it
writes. Measured beside it, the pipe is as fast for a batch of 3 MB and of 120 MB.
"""

import fcntl
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from lejepa_med.data.dataset import Batch, Key, ViewDataset, collate
from lejepa_med.errors import TrainingError, explained

Result = TypeVar("Result")
AHEAD = 2  # tasks that a worker has at a time: it works on one while the result of the other waits
PIPE_BYTES = 1 << 20  # the largest pipe that Linux gives to an ordinary user
ALIVE_SECONDS = 2.0  # between two looks whether a silent worker still lives
END_SECONDS = 5.0
# forks share the manifest's memory; elsewhere than on Linux forking is not safe
CONTEXT: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else None)


@dataclass(frozen=True)
class Parcel:
    """A result that can travel: facts that JSON can hold, and tensors."""

    facts: Any
    tensors: list[Tensor] = field(default_factory=list)


class Ahead(Generic[Result]):
    """Iterates over the results of `work` for each task, in order."""

    def __init__(
        self,
        work: Callable[[Any], Parcel],
        tasks: Iterable[Any],
        *,
        build: Callable[[Parcel], Result],
        workers: int,
        pin: bool = False,
        fewer: str = "--data.workers or a smaller --batch-size",
    ) -> None:
        """Start nothing yet; the first result starts the workers.

        Args:
            work: makes the parcel of a task, in a worker.
            tasks: that JSON can hold. They are taken from here as workers get free, at most 2 a worker ahead.
            build: makes the result of a parcel, in this process.
            workers: processes; 0: the work is done here, when its result is asked for.
            pin: page-lock the tensors, for an asynchronous transfer to the GPU.
            fewer: options that save memory, for the message when a worker is killed.
        """
        self._work, self._tasks, self._build, self._pin = work, iter(tasks), build, pin
        self._workers, self._fewer = workers, fewer
        self._pool: list[_Worker] = []
        self._arrived: Arrived = SimpleQueue()
        self._turns: Iterator[_Worker] = iter(())
        self._asked: deque[_Worker] = deque()
        # also when the caller drops this object, and at the exit of the interpreter, which waits for its children
        self.close = weakref.finalize(self, _end, self._pool, os.getpid())

    def __iter__(self) -> "Ahead[Result]":
        return self

    def __next__(self) -> Result:
        """Wait for the next result.

        Raises:
            UserError: the work of a task raised it, or a worker was killed.
        """
        if self._workers == 0:
            parcel = self._work(next(self._tasks))
            tensors = [tensor.pin_memory() for tensor in parcel.tensors] if self._pin else parcel.tensors
            return self._build(Parcel(parcel.facts, tensors))
        if not self.close.alive:  # after the last result, or an error
            raise StopIteration
        if not self._pool:
            for _ in range(self._workers):
                self._pool.append(_Worker(self._work, self._arrived, pin=self._pin, fewer=self._fewer))
            self._turns = cycle(self._pool)
            self._ask(AHEAD * self._workers)
        if not self._asked:
            self.close()
            raise StopIteration
        try:
            parcel = self._take(self._asked.popleft())
            self._ask(1)
        except BaseException:
            self.close()
            raise
        return self._build(parcel)

    def _take(self, worker: "_Worker") -> Parcel:
        """The next parcel of a worker. A worker that failed is an error at once, also when it is not its turn."""
        while not worker.ready or not self._arrived.empty():
            owner, found = self._arrived.get()
            if isinstance(found, Exception):
                raise found
            owner.ready.append(found)
        return worker.ready.popleft()

    def _ask(self, count: int) -> None:
        for task in islice(self._tasks, count):
            worker = next(self._turns)
            worker.ask(task)
            self._asked.append(worker)


class _Worker:
    """A process that works, and a thread of this one that receives its parcels as soon as they are ready."""

    def __init__(self, work: Callable[[Any], Parcel], arrived: "Arrived", *, pin: bool, fewer: str) -> None:
        self.ready: deque[Parcel] = deque()
        self._arrived, self._pin, self._fewer = arrived, pin, fewer
        self._device = torch.cuda.current_device() if pin else None
        theirs, self._tasks = multiprocessing.Pipe(duplex=False)
        self._results, results = multiprocessing.Pipe(duplex=False)
        with suppress(OSError, AttributeError):  # a smaller pipe is slower and no fault
            fcntl.fcntl(results.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.process = CONTEXT.Process(target=_serve, args=(work, theirs, results), daemon=True)
        try:
            self.process.start()
        finally:
            # ours must be the only open ends: then the death of the worker ends the pipe
            theirs.close()
            results.close()
        threading.Thread(target=self._receive_all, name="loader", daemon=True).start()

    def ask(self, task: Any) -> None:
        """Queue a task; a worker that has died says so when its result is taken."""
        with suppress(BrokenPipeError):
            self._tasks.send_bytes(json.dumps(task).encode())

    def _receive_all(self) -> None:
        try:
            if self._device is not None:  # of this rank; a new thread would pin memory, and make a context, on GPU 0
                torch.cuda.set_device(self._device)
            while True:
                self._arrived.put((self, self._receive()))
        except Exception as error:
            self._arrived.put((self, error))

    def _receive(self) -> Parcel:
        size = bytearray(8)
        self._fill(memoryview(size))
        text = bytearray(int.from_bytes(size))
        self._fill(memoryview(text))
        head = json.loads(text)
        if "error" in head:
            raise TrainingError(head["error"][0], remedy=head["error"][1])
        if "fault" in head:
            raise RuntimeError(f"A loader worker failed:\n{head['fault']}")
        tensors = []
        for dtype, shape in head["tensors"]:
            tensor = torch.empty(shape, dtype=getattr(torch, dtype), pin_memory=self._pin)
            self._fill(_bytes(tensor))
            tensors.append(tensor)
        return Parcel(head["facts"], tensors)

    def _fill(self, left: memoryview) -> None:
        """Fill `left` from the pipe."""
        while left:
            if wait([self._results], ALIVE_SECONDS):
                count = os.readv(self._results.fileno(), [left])
            elif self.process.is_alive():
                continue
            else:  # another child of this process may hold the other end of the pipe open
                count = 0
            if count == 0:
                self.process.join(END_SECONDS)
                raise _death(self.process.exitcode, self.process.pid, self._fewer)
            left = left[count:]

    def kill(self) -> None:
        """End the process at once, whatever it is doing; its thread here ends with it."""
        self.process.kill()
        self._tasks.close()


Arrived = SimpleQueue[tuple[_Worker, Parcel | Exception]]


def _end(pool: list[_Worker], owner: int) -> None:
    if os.getpid() != owner:  # a copy of this object in a forked process
        return
    for worker in pool:
        worker.kill()
    until = time.monotonic() + END_SECONDS  # not longer: the kernel may wait for a dead drive
    for worker in pool:
        worker.process.join(max(0.0, until - time.monotonic()))
    pool.clear()


def _death(status: int | None, process: int | None, fewer: str) -> TrainingError:
    """The error for a worker that ended by itself."""
    if status == -signal.SIGKILL:
        return TrainingError(
            f"A loader worker (process {process}) was ended by signal 9 (SIGKILL), usually because memory ran out.",
            remedy=f"Use fewer {fewer}, or give the machine or container more memory; then repeat the command "
            "(pretrain: with --resume). What was saved is kept.",
        )
    how = f"exit status {status}" if status is None or status >= 0 else f"signal {-status} ({_name(-status)})"
    return TrainingError(
        f"A loader worker (process {process}) crashed with {how} while it read the archive.",
        remedy="Find the file with: lejepa-med scan ARCHIVE --modality ... --out FOLDER, which reads every file in a "
        "process of its own and lists those that crash it in rejected.csv.",
    )


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _serve(work: Callable[[Any], Parcel], tasks: "Connection[Any, Any]", results: "Connection[Any, Any]") -> None:
    """Be a worker: a task in, its parcel or an error out, until the pipe of tasks is closed.

    A worker ignores Ctrl-C and SIGTERM, which reach the whole process group: the main process answers them after its
    step, and needs its workers for that. It kills them afterwards; where it was killed itself, they end by themselves.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)  # the workers are the parallelism
    with suppress(EOFError, BrokenPipeError):
        while True:
            task = json.loads(tasks.recv_bytes())
            tensors: list[Tensor] = []
            head: dict[str, Any]
            try:
                parcel = work(task)
                tensors = [tensor.contiguous() for tensor in parcel.tensors]
                kinds = [[str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for tensor in tensors]
                head = {"facts": parcel.facts, "tensors": kinds}
            except Exception as error:
                known = explained(error)
                if known is None:
                    head = {"fault": traceback.format_exc()}
                else:
                    head = {"error": [known.cause, known.remedy]}
            text = json.dumps(head).encode()
            _write(results, memoryview(len(text).to_bytes(8) + text))
            for tensor in tensors:
                _write(results, _bytes(tensor))


def _end_with_parent() -> None:
    parent, born = multiprocessing.parent_process(), os.getppid()
    assert parent is not None
    while parent.is_alive() and os.getppid() == born:  # the second where a sibling holds the parent's pipe open
        parent.join(1.0)
    os._exit(1)


def _write(pipe: "Connection[Any, Any]", data: memoryview) -> None:
    while data:
        data = data[os.write(pipe.fileno(), data) :]


def make_loader(dataset: ViewDataset, batches: Iterable[list[Key]], *, workers: int, pin: bool = False) -> Ahead[Batch]:
    """One loader for all remaining epochs, so that workers never pause or restart between epochs."""
    return Ahead(
        partial(_batch, dataset),
        batches,
        build=lambda parcel: Batch.unpack(parcel.facts, parcel.tensors),
        workers=workers,
        pin=pin,
    )


def _batch(dataset: ViewDataset, keys: list[Key]) -> Parcel:
    samples = [dataset[(epoch, row, sample)] for epoch, row, sample in keys]
    return Parcel(*collate(samples, n_global=dataset.adapter.spec.n_global).pack())


class TimedBatches:
    """Iterates a loader and adds up the seconds that training waited for it."""

    def __init__(
        self,
        loader: Ahead[Batch],
        attempt: Callable[[Callable[[], Batch | None], None], Batch | None] = lambda action, _: action(),
    ) -> None:
        """`attempt`: waits for the next batch, or returns None, which ends the iteration."""
        self._loader, self._attempt = loader, attempt
        self.waited = 0.0

    def __iter__(self) -> Iterator[Batch]:
        while True:
            start = time.perf_counter()
            batch = self._attempt(lambda: next(self._loader, None), None)
            self.waited += time.perf_counter() - start
            if batch is None:
                self._loader.close()
                return
            yield batch
