"""Micro-batching before encoders: a worker thread each, no wait when idle, a bounded queue, an LRU of encoders."""

import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np
from torch import Tensor

from app import metrics
from app.errors import ProblemError

Vector = np.ndarray  # (dim,) float32


class Embedder(Protocol):
    """What the worker needs from an encoder."""

    def embed(self, items: Sequence[Tensor]) -> np.ndarray:
        """(n_i, C, H, W) or (n_i, C, D, H, W) tensors -> (len(items), dim) float32."""


@dataclass(frozen=True)
class _Work:
    item: Tensor
    future: "Future[Vector]" = field(default_factory=Future)
    since: float = field(default_factory=time.perf_counter)


class Batcher:
    """Collects the items of concurrent requests into one forward pass.

    The worker takes what waits and runs at once: an idle service answers without delay, and under load the queue fills
    while a batch runs, so batches grow by themselves.
    """

    def __init__(self, encoder: Embedder, *, queue_items: int, batch_images: int) -> None:
        self._encoder = encoder
        self._batch_images = batch_images
        self._queue: queue.Queue[_Work | None] = queue.Queue(maxsize=queue_items)
        self._closed = False
        self._gate = threading.Lock()  # no item may enter behind the closing mark
        self._thread = threading.Thread(target=self._run, name="encoder", daemon=True)
        self._thread.start()

    def submit(self, item: Tensor) -> "Future[Vector]":
        """Queue one prepared item (n, C, H, W) or (n, C, D, H, W).

        Raises:
            ProblemError: 503 when the queue is full, or the encoder was put away for another one.
        """
        work = _Work(item)
        with self._gate:
            if self._closed:
                raise busy()
            try:
                self._queue.put_nowait(work)
            except queue.Full:
                raise busy() from None
            metrics.QUEUE_ITEMS.inc()
        return work.future

    def close(self) -> None:
        """Finish what is queued, then end the worker."""
        with self._gate:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)

    def join(self, timeout: float) -> None:
        """Wait for the worker to end."""
        self._thread.join(timeout)

    def _run(self) -> None:
        held: _Work | None = None
        while True:
            first = held or self._queue.get()
            held = None
            if first is None:
                return
            batch, images, ending = [first], len(first.item), False
            while images < self._batch_images:
                try:
                    work = self._queue.get_nowait()
                except queue.Empty:
                    break
                if work is None:
                    ending = True
                    break
                # Kinds are not mixed: one tensor of joined uint8 and float32 pixels would have one scale for both.
                if images + len(work.item) > self._batch_images or _kind(work.item) != _kind(first.item):
                    held = work
                    break
                batch.append(work)
                images += len(work.item)
            self._forward(batch)
            if ending:
                return

    def _forward(self, batch: list[_Work]) -> None:
        begun = time.perf_counter()
        metrics.saw_batch(images=sum(len(work.item) for work in batch), waits=[begun - work.since for work in batch])
        alive = [work for work in batch if work.future.set_running_or_notify_cancel()]
        if not alive:
            return
        try:
            vectors = self._encoder.embed([work.item for work in alive])
        except Exception as error:
            if len(alive) == 1:
                alive[0].future.set_exception(error)
                return
            # One bad item must not spoil its neighbours: each runs alone, so each gets its own error.
            for work in alive:
                self._alone(work)
            return
        for work, vector in zip(alive, vectors, strict=True):
            work.future.set_result(vector)

    def _alone(self, work: _Work) -> None:
        try:
            work.future.set_result(self._encoder.embed([work.item])[0])
        except Exception as error:
            work.future.set_exception(error)


def _kind(item: Tensor) -> tuple[object, ...]:
    return (item.dtype, *item.shape[1:])


def busy() -> ProblemError:
    """503: the client shall come back."""
    return ProblemError(
        503,
        "busy",
        "More items wait for the encoder than the queue holds.",
        remedy="Try again after the seconds in Retry-After.",
        headers={"Retry-After": "2"},
    )


K = TypeVar("K", bound=Hashable)
E = TypeVar("E", bound=Embedder)


class EncoderCache(Generic[K, E]):
    """The few encoders that stay in memory, each with its batcher; the least recently used goes first."""

    def __init__(self, load: Callable[[K], E], *, capacity: int, queue_items: int, batch_images: int) -> None:
        self._load = load
        self._capacity = capacity
        self._sizes = {"queue_items": queue_items, "batch_images": batch_images}
        self._entries: OrderedDict[K, tuple[E, Batcher]] = OrderedDict()
        self._lock = threading.Lock()  # held while loading, so that two requests do not load one encoder twice

    def get(self, key: K) -> tuple[E, Batcher]:
        """The encoder and its batcher, loaded now if need be. Blocks: call it on a thread."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key]
            encoder = self._load(key)
            self._entries[key] = (encoder, Batcher(encoder, **self._sizes))
            while len(self._entries) > self._capacity:
                _, (_, old) = self._entries.popitem(last=False)
                old.close()
            metrics.LOADED_ENCODERS.set(len(self._entries))
            return self._entries[key]

    def close(self) -> None:
        """End all workers."""
        with self._lock:
            for _, batcher in self._entries.values():
                batcher.close()
            for _, batcher in self._entries.values():
                batcher.join(timeout=10.0)
            self._entries.clear()
            metrics.LOADED_ENCODERS.set(0)
