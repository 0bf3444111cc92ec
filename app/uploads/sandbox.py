"""The service's use of `data_adapters.readers`: its limits, its words for a lost process, and what it counts.

What a process sends is judged as hostile: records by their schema, pixels by the encoder's shape.
"""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from app.core import metrics
from app.core.errors import CHECK_FILE, ProblemError
from app.core.settings import Settings
from app.encoders.inference import busy
from data_adapters.base import Adapter, Record, Rejected
from data_adapters.errors import BadFileError, UserError
from data_adapters.readers.fork_server import ForkServer
from data_adapters.readers.frames import Frame
from data_adapters.readers.limits import Limits
from data_adapters.readers.process import LostError, Pool, ReaderProcess, StartError, described, failure, plain
from data_adapters.readers.screen import is_whole

log = logging.getLogger("lejepa_med.app")
RECORD, REJECTED = TypeAdapter(Record), TypeAdapter(Rejected)
DTYPES = ("uint8", "float32")


class Sandbox:
    """`threads` processes that read received files, forked on demand, and processes of scans beside them.

    Its methods block; call them on threads.
    """

    def __init__(self, settings: Settings) -> None:
        self._limits = Limits(**{name: getattr(settings, name) for name in Limits.__dataclass_fields__})
        self._seconds = settings.decode_seconds
        self._server = ForkServer(self._limits)
        self._pool = Pool(settings.cores, self._server.fork)

    def warm(self) -> None:
        """Start every process that is not there yet; returns when all can work.

        Raises:
            ProblemError: 503, the processes cannot be started.
        """
        with self._problems():
            self._pool.warm()

    def close(self) -> None:
        """End all processes. What they are at work on fails with 503, as does what comes later."""
        self._server.close()
        self._pool.close()

    def scan(self, adapter: Adapter, root: Path) -> list[Record | Rejected]:
        """`adapter.scan(root)` in a process, after every file was screened; one that the screen refuses is removed.

        Raises:
            BadFileError: the file `root` is refused, or its reader died.
            UserError: the adapter cannot work here.
        """
        if root.is_file():
            return self.read(adapter, root, pixels=False)[0]
        refused = self.screen(adapter, root)
        with self._process() as process:
            *found, _ = self._ask(process, {"do": "scan", "adapter": described(adapter), "path": str(root)})
            return [*refused, *(_found(frame.header) for frame in found)]

    def read(
        self, adapter: Adapter, path: Path, *, pixels: bool = True
    ) -> tuple[list[Record | Rejected], Tensor | UserError | None]:
        """`scan` of one file and, with `pixels`, `prepare` of a single item in it, in one go.

        A question to a process and its answer cost about as much as a small picture's decoding.

        Returns:
            The items, and the pixels of the single one or why it has none; None where there are more items or fewer.

        Raises:
            BadFileError: the file is refused, or its reader died.
            UserError: the adapter cannot work here.
        """
        request = {"do": "read", "adapter": described(adapter), "path": str(path)}
        with self._process() as process:
            *said, last = self._ask(
                process,
                {**request, "whole": is_whole(adapter), "pixels": pixels},
                max_body=self._limits.max_decode_bytes if pixels else 0,
            )
            found = [_found(frame.header) for frame in said]
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
        with self._process() as process:
            *_, last = self._ask(process, {"do": "screen", "path": str(root), "whole": is_whole(adapter)})
            rows = last.header.get("refused")
            refused = [_found({"rejected": row}) for row in (rows if isinstance(rows, list) else [])]
        if refused and root.is_file():
            raise BadFileError(refused[0].reason, remedy=refused[0].remedy)
        for found in refused:
            if Path(found.uri).parent.resolve().is_relative_to(root.resolve()):
                Path(found.uri).unlink(missing_ok=True)
        return refused

    def complete(self, adapter: Adapter, record: Record) -> Record:
        """`adapter.complete(record)` in a process, after its file was screened.

        Raises:
            BadFileError: the file is refused, cannot be read, or its reader died.
            UserError: the adapter cannot work here.
        """
        request = {"do": "complete", "adapter": described(adapter), "record": plain(record)}
        with self._process() as process:
            *_, last = self._ask(process, {**request, "whole": is_whole(adapter)})
            found = _found(last.header)
            if not isinstance(found, Record):
                raise LostError("died")
            return replace(found, uri=record.uri)

    def prepare(self, adapter: Adapter, record: Record) -> Tensor:
        """`adapter.prepare(record)` in a process: (n, C, H, W) or (n, C, D, H, W), uint8 or float32.

        Raises:
            BadFileError: the pixels cannot be read within the limits.
            UserError: the adapter cannot work here.
        """
        request = {"do": "prepare", "adapter": described(adapter), "record": plain(record)}
        with self._process() as process:
            *_, last = self._ask(process, request, max_body=self._limits.max_decode_bytes)
            return _pixels(last, adapter, self._limits)

    def start_scan(self) -> ReaderProcess:
        """Start a process for a scan. It may write no files, as none that reads foreign ones.

        Raises:
            ProblemError: 503, it cannot be started.
        """
        with self._problems():
            return self._server.fork(for_scan=True)

    def _ask(self, process: ReaderProcess, request: dict[str, Any], *, max_body: int = 0) -> list[Frame]:
        return list(process.ask(request, seconds=self._seconds, max_body=max_body))

    @contextmanager
    def _process(self) -> Iterator[ReaderProcess]:
        """A process for one request."""
        try:
            with self._problems(), self._pool.process() as process:
                yield process
        except LostError as lost:
            if self._server.is_closed:
                raise busy(2) from None
            raise self._blame(lost) from None

    @contextmanager
    def _problems(self) -> Iterator[None]:
        """Turns a failed start into what a client is told."""
        try:
            yield
        except StartError:
            if self._server.is_closed:
                raise busy(2) from None
            raise ProblemError(
                503,
                "no-reader",
                "The processes that read files cannot be started.",
                remedy="The operator looks for the cause: short memory, or a damaged installation (lejepa-med doctor).",
            ) from None

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


def _found(header: dict[str, Any]) -> Any:
    try:
        if "found" in header:
            return RECORD.validate_python(header["found"])
        return REJECTED.validate_python(header.get("rejected"))
    except ValidationError:
        raise LostError("died") from None


def _pixels(frame: Frame, adapter: Adapter, limits: Limits) -> Tensor:
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
