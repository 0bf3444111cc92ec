"""Embedding of received files: decode in the sandbox, batch in front of the encoder, one result an item."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from app.core import metrics
from app.core.errors import ProblemError, describe
from app.core.settings import Settings
from app.encoders.inference import Batcher, Vector
from app.uploads.file_items import RequestItem
from app.uploads.sandbox import Sandbox
from data_adapters.base import Adapter, Record
from data_adapters.errors import BadFileError, UserError
from lejepa_med.client.wire.common import FileKey, Problem
from lejepa_med.models.thumbnails import Thumbnail

WINDOW = 32  # items of one request between decoding and its vector: bounds memory, and fills batches
Decoded = tuple[int, "Future[Vector]", bytes]  # slices or tiles, their vector, the item's thumbnail


@dataclass(frozen=True)
class Result:
    """One item's vector (dim,) float32, or the problem that stands for it.

    `group` is as in `RequestItem`; `name` and `key` are the client's; `thumbnail` is WebP, or empty.
    """

    file_index: int
    items: int = 0
    vector: np.ndarray | None = None
    problem: Problem | None = None
    group: str = ""
    name: str | None = None
    key: FileKey | None = None
    thumbnail: bytes = b""


class Embedding:
    """The way from records to vectors, shared by requests and jobs."""

    def __init__(self, settings: Settings) -> None:
        self.sandbox = Sandbox(settings)
        self._pool = ThreadPoolExecutor(max_workers=settings.cores, thread_name_prefix="decode")

    def close(self) -> None:
        """Stop decoding; what waits is given up."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.sandbox.close()

    def run(
        self,
        adapter: Adapter,
        batcher: Batcher,
        found: Sequence[RequestItem],
        *,
        patient: bool = False,
        thumbnail: Thumbnail | None = None,
    ) -> Iterator[Result]:
        """Results in the order of `found`. Blocks: call it on a thread.

        Args:
            adapter: of the encoder.
            batcher: of the encoder.
            found: the items.
            patient: wait while the encoder's queue is full (jobs) instead of failing (requests).
            thumbnail: makes the results' thumbnails; None: they have none.

        Raises:
            ProblemError: 503, the queue is full.
        """
        waiting: deque[tuple[RequestItem, Future[Decoded] | Decoded | None]] = deque()
        try:
            for source in found:
                waiting.append((source, self._start(adapter, batcher, source, patient, thumbnail)))
                if len(waiting) >= WINDOW:
                    yield _collect(*waiting.popleft())
            while waiting:
                yield _collect(*waiting.popleft())
        finally:
            for _, future in waiting:
                if isinstance(future, Future):
                    future.cancel()

    def _start(
        self, adapter: Adapter, batcher: Batcher, source: RequestItem, patient: bool, thumbnail: Thumbnail | None
    ) -> "Future[Decoded] | Decoded | None":
        if source.pixels is not None:
            return _submitted(batcher, source.pixels, patient, thumbnail)
        if source.record is None:
            return None
        return self._pool.submit(self._decode, adapter, batcher, source.record, patient, thumbnail)

    def _decode(
        self, adapter: Adapter, batcher: Batcher, record: Record, patient: bool, thumbnail: Thumbnail | None
    ) -> Decoded:
        return _submitted(batcher, self.sandbox.prepare(adapter, record), patient, thumbnail)


def _submitted(batcher: Batcher, pixels: Tensor, patient: bool, thumbnail: Thumbnail | None) -> Decoded:
    vector = _submit(batcher.submit, pixels, patient)
    return len(pixels), vector, b"" if thumbnail is None else thumbnail(pixels)


def _submit(submit: "Callable[[Tensor], Future[Vector]]", tensor: Tensor, patient: bool) -> "Future[Vector]":
    while True:
        try:
            return submit(tensor)
        except ProblemError:
            if not patient:
                raise
            time.sleep(0.1)


def _collect(source: RequestItem, future: "Future[Decoded] | Decoded | None") -> Result:
    found = Result(source.file_index, problem=source.problem, name=source.name, key=source.key)
    if future is None:
        return found
    try:
        count, vector, small = future.result() if isinstance(future, Future) else future
        result = replace(found, items=count, vector=_finite(vector.result()), group=source.group, thumbnail=small)
        metrics.EMBEDDED.inc()
        return result
    except UserError as error:
        return replace(found, problem=describe(error))


def _finite(vector: np.ndarray) -> np.ndarray:
    if not np.isfinite(vector).all():
        raise BadFileError(
            "The encoder gives no finite vector for this image.", remedy="Check the image's intensities for extremes."
        )
    return vector
