"""Processes that read foreign files, seen from the process that asks them: start, ask, replace.

What a process sends is judged as hostile, since the files that it reads may have taken it over: frames of bounded
length, and for each caller to check, JSON of a known shape. A process that was lost costs the file at which it was at
work, never the caller and never another file.
"""

import json
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from data_adapters.base import Adapter, BaseAdapter, Record
from data_adapters.errors import CHECK_FILE, BadFileError, MissingExtraError, UserError
from data_adapters.readers.frames import BrokenFrameError, Channel, Frame

BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from data_adapters.readers.worker import main; main(int(sys.argv[1]))"
)
START_SECONDS = 120.0  # importing all readers takes some 4 s, and far longer from a cold network drive
BUFFER = 1 << 20  # bytes in flight: the pixels of one image cross in one go
MAX_SAID = 256 << 20  # bytes of one answer's headers
MAX_TEXT = 500  # characters of a cause or remedy
MAX_FAILED_STARTS = 3


class LostError(Exception):
    """A process can do no more: "time", "memory" or "died". `status`: its exit status, negative for a signal."""

    def __init__(self, kind: str, *, status: int | None = None) -> None:
        super().__init__(kind)
        self.kind, self.status = kind, status


class StartError(Exception):
    """No process can be started; the text says what the last one did."""


class Handle(Protocol):
    """What ends a started process, as `subprocess.Popen` does."""

    def kill(self) -> None:
        """End it at once."""

    def wait(self, timeout: float) -> int:
        """Exit status, negative for a signal, of a process that is about to end.

        Raises:
            subprocess.TimeoutExpired: it has not ended after `timeout` seconds.
        """


class ReaderProcess:
    """One process that reads files, to be asked one thing at a time."""

    def __init__(self, sock: socket.socket, handle: Handle) -> None:
        self.handle = handle
        self._channel = Channel(sock)
        self._status: int | None = None
        self.is_fit = True  # it waits for the next request

    def has_died(self) -> bool:
        """Whether it ended while it waited (the kernel may need memory): an idle process says nothing else."""
        return self._channel.has_input()

    def ask(
        self, request: dict[str, Any], body: bytes | None = None, *, seconds: float, max_body: int = 0
    ) -> Iterator[Frame]:
        """Yield the frames of an answer as they come; the last one has "end" in its header.

        Args:
            request: see `data_adapters.readers.worker`.
            body: what belongs to it.
            seconds: how long the process may be silent.
            max_body: bytes that the body of a frame may have.

        Raises:
            UserError: what went wrong, in the adapter's words.
            LostError: it died, took too long or too much memory, or did not keep to the protocol.
        """
        self.is_fit = False
        left = MAX_SAID
        try:
            self._channel.send(request, body, seconds=seconds)
            while left > 0:
                frame = self._channel.receive(max_body=max_body, seconds=seconds)
                left -= frame.size
                if frame.header.get("end"):
                    self.is_fit = not frame.header.get("retires")
                    if (error := failure(frame.header)) is not None:
                        raise error
                    yield frame
                    return
                if "beat" not in frame.header:
                    yield frame
        except TimeoutError:
            raise LostError("time") from None
        except (BrokenFrameError, OSError):
            pass
        raise LostError("died")

    def end(self, *, at_once: bool = True) -> int:
        """End it and return its exit status; without `at_once`, one that is ending by itself is given a second."""
        self._channel.close()
        if self._status is None:
            self._status = self._wait(at_once=at_once)
        return self._status

    def _wait(self, *, at_once: bool) -> int:
        try:
            if not at_once:
                return self.handle.wait(timeout=1)
        except subprocess.TimeoutExpired:
            pass
        self.handle.kill()
        try:
            return self.handle.wait(timeout=5)
        except subprocess.TimeoutExpired:  # the kernel waits for a dead drive; the process ends when the wait does
            return -signal.SIGKILL


def new_process() -> ReaderProcess:
    """Start a new Python process with this one's environment.

    It is no fork: no thread, lock or CUDA state of the caller comes along, and a script that calls a scan needs no
    `if __name__ == "__main__"`.

    Raises:
        OSError: the system starts none.
    """
    ours, theirs = socket_pair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", BOOT, str(theirs.fileno()), json.dumps(sys.path)],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # a library that prints must not write into the command's output
        )
    return ReaderProcess(ours, process)


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets that take an image at once."""
    pair = socket.socketpair()
    for sock in pair:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
    return pair


def failure(header: dict[str, Any]) -> Exception | None:
    """The failure that a process reports: a UserError in the adapter's words, or LostError("memory")."""
    kind = header.get("error")
    cause, remedy = (str(header.get(key, ""))[:MAX_TEXT] for key in ("cause", "remedy"))
    match kind:
        case None:
            return None
        case "memory":
            return LostError("memory")
        case "missing-extra":
            return MissingExtraError(cause, remedy=remedy)
        case "user":
            return UserError(cause, remedy=remedy)
        case "foreign":  # foreign readers raise what they like on damaged files; only the type's name is told
            name = cause if cause.isidentifier() else "error"
            return BadFileError(f"The image cannot be decoded ({name}).", remedy=CHECK_FILE)
    return BadFileError(cause, remedy=remedy or CHECK_FILE)


class Pool:
    """A fixed number of processes, started when needed; one that is lost is replaced. Any thread may use it."""

    def __init__(self, size: int, start: Callable[[], ReaderProcess], *, first: dict[str, Any] | None = None) -> None:
        """Start nothing yet; `first` is what each process is asked before anything else, such as to build an adapter.

        A process that is lost by its first request counts as not started.
        """
        self.size, self._start_one, self._first = size, start, first
        # the last used one first: under a light load few of them are touched
        self._idle: queue.LifoQueue[ReaderProcess | None] = queue.LifoQueue()
        for _ in range(size):
            self._idle.put(None)
        self._alive: set[ReaderProcess] = set()
        self._lock = threading.Lock()
        self._closed = False

    @contextmanager
    def process(self) -> Iterator[ReaderProcess]:
        """A process for one request; waits until one is idle.

        A LostError of what is done with it ends it, and gets its exit status.

        Raises:
            StartError: none can be started, or the pool is closed.
        """
        process = self._idle.get()
        try:
            if process is not None and process.has_died():
                self._retire(process)
                process = None
            process = process or self._start()
            yield process
        except LostError as lost:
            if process is not None and lost.kind != "memory":
                # It may have lied: nothing that it says later is believed.
                lost.status = process.end(at_once=lost.kind == "time")
                process.is_fit = False
            raise
        finally:
            if process is not None and (self._closed or not process.is_fit):
                self._retire(process)
                process = None
            self._idle.put(process)

    def warm(self) -> None:
        """Start every process that is not there yet.

        Raises:
            StartError: one cannot be started.
        """
        taken = [self._idle.get() for _ in range(self.size)]
        try:
            for place, process in enumerate(taken):
                taken[place] = process or self._start()
        finally:
            for process in reversed(taken):
                self._idle.put(process)

    def close(self) -> None:
        """Kill all processes. What they are at work on is lost; who asked ends them."""
        with self._lock:
            self._closed = True
            alive = list(self._alive)
        for process in alive:
            process.handle.kill()
        with suppress(queue.Empty):
            while True:
                if (idle := self._idle.get_nowait()) is not None:
                    self._retire(idle)
        for _ in range(self.size):  # whoever still waits shall hear that it is closed
            self._idle.put(None)

    def _start(self) -> ReaderProcess:
        reason = ""
        for _ in range(0 if self._closed else MAX_FAILED_STARTS):
            try:
                process = self._start_one()
            except (OSError, StartError) as error:
                reason = str(error)
                continue
            with self._lock:
                self._alive.add(process)
            try:
                if self._closed:
                    break
                for _ in process.ask(self._first, seconds=START_SECONDS) if self._first is not None else ():
                    pass
                return process
            except LostError:
                reason = f"exit status {process.end(at_once=False)}"
            except MissingExtraError:
                raise
            except UserError as error:
                raise StartError(error.cause) from None
            finally:
                if self._closed or not process.is_fit:
                    self._retire(process)
        raise StartError(reason)

    def _retire(self, process: ReaderProcess) -> None:
        process.end()
        with self._lock:
            self._alive.discard(process)


def described(adapter: Adapter) -> dict[str, Any]:
    """What a process needs to build an equal adapter, as JSON."""
    local = adapter.local_options() if isinstance(adapter, BaseAdapter) else {}
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in local.items()}
    return {"describe": adapter.describe(), "local": plain}


def plain(record: Record) -> dict[str, Any]:
    """A record as JSON."""
    return {**vars(record), "meta": dict(record.meta)}
