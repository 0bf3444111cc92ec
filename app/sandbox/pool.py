"""The service's side: a few worker processes that read foreign files, each replaced when it dies or takes too long.

What a worker sends is judged as hostile: frames of bounded length, records by their schema, pixels by the encoder's
shape. A worker costs the item at which it died, never the service and never another item.
"""

import json
import logging
import math
import queue
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from app.errors import CHECK_FILE, ProblemError
from app.inference import busy
from app.sandbox import frames
from app.sandbox.limits import Limits, clean_environment
from app.sandbox.nursery import ANSWER, COMMAND, END, FORK
from app.settings import Settings
from data_adapters.base import Adapter, BaseAdapter, Record, Rejected
from data_adapters.errors import BadFileError, MissingExtraError, UserError

log = logging.getLogger("lejepa_med.app")
RECORD, REJECTED = TypeAdapter(Record), TypeAdapter(Rejected)
BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[3]); "
    "from app.sandbox.nursery import main; main(int(sys.argv[1]), sys.argv[2])"
)
START_SECONDS = 120.0  # importing all readers takes some 4 s, and far longer from a cold network drive
BUFFER = 1 << 20  # bytes in flight: the pixels of one image cross in one go
DTYPES = ("uint8", "float32")
MAX_SAID = 256 << 20  # bytes of one answer's headers
MAX_TEXT = 500  # characters of a cause or remedy


class Sandbox:
    """`threads` workers, forked on demand from one nursery. Its methods block; call them on threads."""

    def __init__(self, settings: Settings) -> None:
        self._limits = Limits(**{name: getattr(settings, name) for name in Limits.__dataclass_fields__})
        self._seconds = settings.decode_seconds
        self._nursery: _Nursery | None = None
        self._lock = threading.Lock()
        self._closed = False
        # the last used one first: under a light load few of them are touched
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(settings.threads):
            self._idle.put(None)
        self._size = settings.threads

    def warm(self) -> None:
        """Start every worker that is not there yet; returns when all can work.

        Raises:
            ProblemError: 503, the processes cannot be started.
        """
        taken = [self._idle.get() for _ in range(self._size)]
        try:
            for place, worker in enumerate(taken):
                taken[place] = worker or self._start()
        finally:
            for worker in reversed(taken):
                self._idle.put(worker)

    def close(self) -> None:
        """End all processes. What they are at work on fails with 503, as does what comes later."""
        with self._lock:
            self._closed = True
            if self._nursery is not None:
                self._nursery.close()

    def scan(self, adapter: Adapter, root: Path) -> list[Record | Rejected]:
        """`adapter.scan(root)` in a worker, after every file was screened; one that the screen refuses is removed.

        Raises:
            BadFileError: the file `root` is refused, or its reader died.
            UserError: the adapter cannot work here.
        """
        refused = self.screen(root)
        with self._worker() as worker:
            said, _ = worker.ask({"do": "scan", "adapter": _described(adapter), "path": str(root)})
        return [*refused, *(_found(header) for header in said)]

    def screen(self, root: Path) -> list[Rejected]:
        """The files below the folder `root` that no reader may see; they are removed.

        Raises:
            BadFileError: `root` is itself such a file.
        """
        with self._worker() as worker:
            _, last = worker.ask({"do": "screen", "path": str(root)})
        rows = last.header.get("refused")
        refused = [_found({"rejected": row}) for row in (rows if isinstance(rows, list) else [])]
        if refused and root.is_file():
            raise BadFileError(refused[0].reason, remedy=refused[0].remedy)
        for found in refused:
            if Path(found.uri).parent.resolve().is_relative_to(root.resolve()):
                Path(found.uri).unlink(missing_ok=True)
        return refused

    def prepare(self, adapter: Adapter, record: Record) -> Tensor:
        """`adapter.prepare(record)` in a worker: (n, C, H, W) or (n, C, D, H, W), uint8 or float32.

        Raises:
            BadFileError: the pixels cannot be read within the limits.
            UserError: the adapter cannot work here.
        """
        request = {"do": "prepare", "adapter": _described(adapter), "record": _plain(record)}
        with self._worker() as worker:
            _, last = worker.ask(request, max_body=self._limits.max_decode_bytes)
            return _pixels(last, adapter, self._limits)

    @contextmanager
    def _worker(self) -> Iterator["_Worker"]:
        """A worker for one question."""
        worker = self._idle.get()
        try:
            if worker is None or worker.has_died():
                worker = self._start(instead_of=worker)
            yield worker
        except _LostError as lost:
            if self._closed:
                raise busy() from None
            raise self._blame(lost) from None
        finally:
            if worker is not None and not worker.is_fit:
                self._end(worker)
                worker = None
            self._idle.put(worker)

    def _blame(self, lost: "_LostError") -> BadFileError:
        log.warning("a reader's process was lost (%s)", lost.kind)
        most = self._limits.max_decode_bytes >> 20
        if lost.kind == "time":
            return BadFileError(
                f"The file takes longer than {self._seconds:g} s to read.",
                remedy="Send a smaller part of it; the operator sets the limit (LEJEPA_DECODE_SECONDS).",
            )
        memory = "needs more memory than its size allows" if lost.kind == "memory" else "crashes its reader"
        return BadFileError(
            f"The file {memory} (at most {most} MiB).",
            remedy=f"{CHECK_FILE} If it is only large, send a smaller part; the operator sets the limit "
            "(LEJEPA_MAX_DECODE_BYTES).",
        )

    def _start(self, *, instead_of: "_Worker | None" = None) -> "_Worker":
        if instead_of is not None:
            self._end(instead_of)
        with self._lock:
            for _ in range(2):  # the second time with a new nursery: the kernel may have ended the first
                if self._closed:
                    raise busy()
                try:
                    if self._nursery is None:
                        self._nursery = _Nursery(self._limits)
                    return self._nursery.fork(self._seconds)
                except (OSError, EOFError):
                    if self._nursery is not None:
                        self._nursery.close()
                    self._nursery = None
        raise ProblemError(
            503,
            "no-reader",
            "The processes that read files cannot be started.",
            remedy="The operator looks for the cause: short memory, or a damaged installation (lejepa-med doctor).",
        )

    def _end(self, worker: "_Worker") -> None:
        worker.sock.close()
        with self._lock, suppress(OSError, EOFError):
            if self._nursery is worker.nursery:
                self._nursery.end(worker.pid)


class _LostError(Exception):
    """A worker can do no more: "time", "memory" or "died"."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class _Nursery:
    """The process that forks workers, started by this object; used under the sandbox's lock."""

    def __init__(self, limits: Limits) -> None:
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", BOOT, str(theirs.fileno()), limits.dump(), json.dumps(sys.path)],
                pass_fds=(theirs.fileno(),),
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # libtiff and others print file names
                start_new_session=True,  # Ctrl-C is the service's; the nursery ends when the service has
            )
        self._control.settimeout(START_SECONDS)
        try:
            self._answer()
        except (OSError, EOFError):
            self.close()
            raise

    def fork(self, seconds: float) -> "_Worker":
        """A new worker.

        Raises:
            OSError, EOFError: the nursery has gone.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            for sock in (ours, theirs):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
            socket.send_fds(self._control, [COMMAND.pack(FORK, 0)], [theirs.fileno()])
        return _Worker(ours, self._answer(), self, seconds)

    def end(self, pid: int) -> int:
        """Kill a worker; its exit status."""
        self._control.sendall(COMMAND.pack(END, pid))
        return self._answer()

    def close(self) -> None:
        """End the nursery, and with it all workers."""
        self._control.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self) -> int:
        data = b""
        while len(data) < ANSWER.size:
            piece = self._control.recv(ANSWER.size - len(data))
            if not piece:
                raise EOFError
            data += piece
        (answer,) = ANSWER.unpack(data)
        return int(answer)


class _Worker:
    """One worker process, to be asked one thing at a time."""

    def __init__(self, sock: socket.socket, pid: int, nursery: _Nursery, seconds: float) -> None:
        self.sock, self.pid, self.nursery = sock, pid, nursery
        self._seconds = seconds
        self.is_fit = True  # it waits for the next question

    def has_died(self) -> bool:
        """Whether it ended while it waited (the kernel may need memory): an idle worker says nothing else."""
        readable, _, _ = select.select([self.sock], [], [], 0)
        return bool(readable)

    def ask(self, request: dict[str, Any], *, max_body: int = 0) -> tuple[list[dict[str, Any]], frames.Frame]:
        """What it says to a request, without beats, and its last word.

        Raises:
            UserError: what went wrong, in the adapter's words.
            _LostError: it died, took too long, or did not keep to the protocol.
        """
        self.is_fit = False
        said: list[dict[str, Any]] = []
        left = MAX_SAID
        try:
            self.sock.settimeout(self._seconds)
            frames.send(self.sock, request)
            while left > 0:
                frame = frames.receive(self.sock, max_body=max_body, seconds=self._seconds)
                left -= frame.size
                if frame.header.get("end"):
                    self.is_fit = not frame.header.get("tired")
                    _check(frame.header)
                    return said, frame
                if "beat" not in frame.header:
                    said.append(frame.header)
        except TimeoutError:
            raise _LostError("time") from None
        except (frames.BrokenFrameError, OSError):
            pass
        raise _LostError("died")


def _check(header: dict[str, Any]) -> None:
    """Raise the failure that a worker tells of."""
    kind = header.get("error")
    cause, remedy = (str(header.get(key, ""))[:MAX_TEXT] for key in ("cause", "remedy"))
    match kind:
        case None:
            return
        case "memory":
            raise _LostError("memory")
        case "missing-extra":
            raise MissingExtraError(cause, remedy=remedy)
        case "user":
            raise UserError(cause, remedy=remedy)
        case "foreign":  # foreign readers raise what they like on damaged files; only the type's name is told
            name = cause if cause.isidentifier() else "error"
            raise BadFileError(f"The image cannot be decoded ({name}).", remedy=CHECK_FILE)
    raise BadFileError(cause, remedy=remedy or CHECK_FILE)


def _found(header: dict[str, Any]) -> Any:
    try:
        if "found" in header:
            return RECORD.validate_python(header["found"])
        return REJECTED.validate_python(header.get("rejected"))
    except ValidationError:
        raise _LostError("died") from None


def _pixels(frame: frames.Frame, adapter: Adapter, limits: Limits) -> Tensor:
    """The tensor in an answer, if it is what the encoder takes."""
    spec = adapter.spec
    dtype, shape = str(frame.header.get("dtype")), frame.header.get("shape")
    sides = [spec.channels, *[spec.global_size] * spec.dims]
    if dtype not in DTYPES or not isinstance(shape, list) or shape[1:] != sides or type(shape[0]) is not int:
        raise _LostError("died")
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if not 0 < shape[0] <= limits.max_tiles or frame.body is None or len(frame.body) != size:
        raise _LostError("died")
    return torch.frombuffer(frame.body, dtype=getattr(torch, dtype)).reshape(shape)


def _described(adapter: Adapter) -> dict[str, Any]:
    """What a worker needs to build an equal adapter."""
    local = adapter.local_options() if isinstance(adapter, BaseAdapter) else {}
    return {"describe": adapter.describe(), "local": {key: _text(value) for key, value in local.items()}}


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _plain(record: Record) -> dict[str, Any]:
    return {**vars(record), "meta": dict(record.meta)}
