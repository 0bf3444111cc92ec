"""The service's side: a few worker processes that read foreign files, each replaced when it dies or takes too long.

What a worker sends is judged as hostile: frames of bounded length, records by their schema, pixels by the encoder's
shape. A worker costs the item at which it died, never the service and never another item.
"""

import logging
import math
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from app import metrics
from app.errors import CHECK_FILE, ProblemError
from app.inference import busy
from app.sandbox.process import LostError, Nursery, Worker, failure
from app.settings import Settings
from data_adapters.base import Adapter, BaseAdapter, Record, Rejected
from data_adapters.errors import BadFileError, UserError
from data_adapters.readers import frames
from data_adapters.readers.limits import Limits
from data_adapters.readers.screen import is_whole

log = logging.getLogger("lejepa_med.app")
RECORD, REJECTED = TypeAdapter(Record), TypeAdapter(Rejected)
DTYPES = ("uint8", "float32")
T = TypeVar("T")


class Sandbox:
    """`threads` workers, forked on demand from one nursery, and processes of scans beside them.

    Its methods block; call them on threads.
    """

    def __init__(self, settings: Settings) -> None:
        self._limits = Limits(**{name: getattr(settings, name) for name in Limits.__dataclass_fields__})
        self._seconds = settings.decode_seconds
        self._nursery: Nursery | None = None
        self._lock = threading.Lock()
        self._closed = False
        # the last used one first: under a light load few of them are touched
        self._idle: queue.LifoQueue[Worker | None] = queue.LifoQueue()
        for _ in range(settings.cores):
            self._idle.put(None)
        self._size = settings.cores

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
        if root.is_file():
            return self.read(adapter, root, pixels=False)[0]
        refused = self.screen(adapter, root)
        with self._worker() as worker:
            said, _ = worker.ask({"do": "scan", "adapter": _described(adapter), "path": str(root)})
            return [*refused, *(_found(header) for header in said)]

    def read(
        self, adapter: Adapter, path: Path, *, pixels: bool = True
    ) -> tuple[list[Record | Rejected], Tensor | UserError | None]:
        """`scan` of one file and, with `pixels`, `prepare` of a single item in it, in one go.

        A question to a worker and its answer cost about as much as a small picture's decoding.

        Returns:
            The items, and the pixels of the single one or why it has none; None where there are more items or fewer.

        Raises:
            BadFileError: the file is refused, or its reader died.
            UserError: the adapter cannot work here.
        """
        request = {"do": "read", "adapter": _described(adapter), "path": str(path)}
        with self._worker() as worker:
            said, last = worker.ask(
                {**request, "whole": is_whole(adapter), "pixels": pixels},
                max_body=self._limits.max_decode_bytes if pixels else 0,
            )
            found = [_found(header) for header in said]
            if not pixels or len(found) != 1 or not isinstance(found[0], Record):
                return found, None
            if isinstance(failed := last.header.get("failed"), dict):
                error = failure(failed)
                return found, error if isinstance(error, UserError) else self._blame(LostError("memory"))
            return found, _pixels(last, adapter, self._limits)

    def screen(self, adapter: Adapter, root: Path) -> list[Rejected]:
        """The files below the folder `root` that no reader may see; they are removed.

        Raises:
            BadFileError: `root` is itself such a file.
        """
        with self._worker() as worker:
            _, last = worker.ask({"do": "screen", "path": str(root), "whole": is_whole(adapter)})
            rows = last.header.get("refused")
            refused = [_found({"rejected": row}) for row in (rows if isinstance(rows, list) else [])]
        if refused and root.is_file():
            raise BadFileError(refused[0].reason, remedy=refused[0].remedy)
        for found in refused:
            if Path(found.uri).parent.resolve().is_relative_to(root.resolve()):
                Path(found.uri).unlink(missing_ok=True)
        return refused

    def complete(self, adapter: Adapter, record: Record) -> Record:
        """`adapter.complete(record)` in a worker, after its file was screened.

        Raises:
            BadFileError: the file is refused, cannot be read, or its reader died.
            UserError: the adapter cannot work here.
        """
        request = {"do": "complete", "adapter": _described(adapter), "record": _plain(record)}
        with self._worker() as worker:
            _, last = worker.ask({**request, "whole": is_whole(adapter)})
            found = _found(last.header)
            if not isinstance(found, Record):
                raise self._blame(LostError("died"))
            return replace(found, uri=record.uri)

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
    def _worker(self) -> Iterator[Worker]:
        """A worker for one question."""
        worker = self._idle.get()
        try:
            if worker is not None and worker.has_died():
                dead, worker = worker, None
                self._retire(dead)
            if worker is None:
                worker = self._start()
            yield worker
        except LostError as lost:
            if worker is not None and lost.kind != "memory":
                worker.is_fit = False  # it may have lied: nothing that it says later is believed
            if self._closed:
                raise busy(2) from None
            raise self._blame(lost) from None
        finally:
            if worker is not None and not worker.is_fit:
                self._retire(worker)
                worker = None
            self._idle.put(worker)

    def _blame(self, lost: LostError) -> BadFileError:
        log.warning("a reader's process was lost (%s)", lost.kind)
        metrics.WORKER_RESTARTS.labels("decode").inc()
        most = self._limits.max_decode_bytes >> 20
        if lost.kind == "time":
            return BadFileError(
                f"The file takes longer than {self._seconds:g} s to read.",
                remedy="Send a smaller part of it; the operator sets the limit (LEJEPA_DECODE_SECONDS).",
            )
        memory = f"needs more memory than its size allows (at most {most} MiB)"
        return BadFileError(
            f"The file {memory if lost.kind == 'memory' else 'crashes its reader'}.",
            remedy=f"{CHECK_FILE} If it is only large, send a smaller part; the operator sets the limit "
            f"(LEJEPA_MAX_DECODE_BYTES, now {most} MiB).",
        )

    def start_scan(self, pipe: int, beat: int) -> "Scanner":
        """Fork a process of `data_adapters.scan`: its `Start`. It may write no files, as none that reads foreign ones.

        Raises:
            ProblemError: 503, it cannot be started.
        """
        nursery, pid = self._forked(lambda nursery: (nursery, nursery.fork_scan(pipe, beat)))
        return Scanner(lambda: self._end(nursery, pid))

    def _start(self) -> Worker:
        return self._forked(lambda nursery: nursery.fork(self._seconds))

    def _forked(self, fork: Callable[[Nursery], T]) -> T:
        with self._lock:
            for _ in range(2):  # the second time with a new nursery: the kernel may have ended the first
                if self._closed:
                    raise busy(2)
                try:
                    if self._nursery is None:
                        self._nursery = Nursery(self._limits)
                    return fork(self._nursery)
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

    def _retire(self, worker: Worker) -> None:
        worker.sock.close()
        self._end(worker.nursery, worker.pid)

    def _end(self, nursery: Nursery, pid: int) -> int:
        with self._lock, suppress(OSError, EOFError):
            if self._nursery is nursery:
                return nursery.end(pid)
        return -signal.SIGKILL  # with its nursery


class Scanner:
    """A process of a scan, as `data_adapters.scan` wants it."""

    def __init__(self, end: Callable[[], int]) -> None:
        self._end = end
        self._status: int | None = None

    def kill(self) -> None:
        """End it at once."""
        self.wait(0)

    def wait(self, timeout: float) -> int:
        """Its exit status; one that has not ended by itself is killed."""
        if self._status is None:
            self._status = self._end()
        return self._status


def _found(header: dict[str, Any]) -> Any:
    try:
        if "found" in header:
            return RECORD.validate_python(header["found"])
        return REJECTED.validate_python(header.get("rejected"))
    except ValidationError:
        raise LostError("died") from None


def _pixels(frame: frames.Frame, adapter: Adapter, limits: Limits) -> Tensor:
    """The tensor in an answer, if it is what the encoder takes."""
    spec = adapter.spec
    dtype, shape = str(frame.header.get("dtype")), frame.header.get("shape")
    sides = [spec.channels, *[spec.embed_size] * spec.dims]
    if dtype not in DTYPES or not isinstance(shape, list) or shape[1:] != sides or type(shape[0]) is not int:
        raise LostError("died")
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if not 0 < shape[0] <= limits.max_tiles or frame.body is None or len(frame.body) != size:
        raise LostError("died")
    return torch.frombuffer(frame.body, dtype=getattr(torch, dtype)).reshape(shape)


def _described(adapter: Adapter) -> dict[str, Any]:
    """What a worker needs to build an equal adapter."""
    local = adapter.local_options() if isinstance(adapter, BaseAdapter) else {}
    return {"describe": adapter.describe(), "local": {key: _text(value) for key, value in local.items()}}


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _plain(record: Record) -> dict[str, Any]:
    return {**vars(record), "meta": dict(record.meta)}
