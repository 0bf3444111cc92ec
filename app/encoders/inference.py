"""Encoders at work: passes on their device, micro-batching before each, and the few that stay in memory.

One worker thread an encoder, no wait when idle, a bounded queue, an error for each item. The least recently used
encoder makes room.
"""

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from app.core import metrics
from app.core.errors import ProblemError
from app.core.settings import Settings
from data_adapters.errors import UserError
from lejepa_med.cpu import Threads
from lejepa_med.models.folder import VOLUMES, LoadedEncoder, embed_parts, exact_float32

Vector = np.ndarray  # float32: (dim,), or (n, dim) where the parts of an item are kept apart
LINGER = 0.004  # seconds that a pass waits, under load only, for the clients whose answers have just left
MEMORY = 0.2  # weight of the latest pass in the pace that Retry-After is reckoned from
LONGEST_RETRY = 300  # seconds


class Embedder(Protocol):
    """What the worker needs from an encoder."""

    @property
    def views(self) -> int:
        """Fixed views whose vectors are averaged: so many passes an image."""

    def embed(self, items: Sequence[Tensor]) -> Sequence[np.ndarray]:
        """(n_i, C, H, W) or (n_i, C, D, H, W) tensors -> one (n_i, dim) float32 array each."""


class RetiredError(Exception):
    """The worker was closed: its encoder made room for another one."""


@dataclass(frozen=True)
class _Work:
    item: Tensor
    pooled: bool
    future: "Future[Vector]" = field(default_factory=Future)
    since: float = field(default_factory=time.perf_counter)


class Worker:
    """Collects the items of concurrent requests into one forward pass.

    A pass takes what waits, so batches grow by themselves while a pass runs. An idle worker starts at once. Only
    directly after a pass of several images, when fewer wait than that pass had, it lingers for up to LINGER: those
    clients are about to send again, and a fuller batch costs less an image.
    """

    def __init__(self, encoder: Embedder, *, queue_items: int, queue_bytes: int, batch_images: int) -> None:
        self._encoder = encoder
        self._queue_items, self._queue_bytes = queue_items, queue_bytes
        # views fill a pass as images do: a batch that ignored them would keep its clients waiting for so many passes
        self._batch_images = max(1, batch_images // encoder.views)
        self._waiting: deque[_Work] = deque()
        self._images = self._bytes = 0  # of what waits
        self._last_images, self._ended = 0, -math.inf  # of the latest pass
        self._pace = 0.0  # seconds an image, over the latest passes
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="encoder", daemon=True)
        self._thread.start()

    def submit(self, item: Tensor, *, pooled: bool = True) -> "Future[Vector]":
        """Queue one prepared item (n, C, H, W) or (n, C, D, H, W); its mean vector, or with pooled=False all n.

        Raises:
            ProblemError: 503 when the queue is full.
            RetiredError: the worker was closed.
        """
        work = _Work(item, pooled)
        with self._changed:
            if self._closed:
                raise RetiredError
            # One item always fits, so that what is larger than the whole queue is not refused for ever.
            if self._waiting and (
                len(self._waiting) >= self._queue_items or self._bytes + item.nbytes > self._queue_bytes
            ):
                raise busy(self._images * self._pace)
            self._waiting.append(work)
            self._count(work, 1)
            metrics.QUEUE_ITEMS.inc()
            self._changed.notify()
        return work.future

    def close(self) -> None:
        """Finish what is queued, then end the worker."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def join(self, timeout: float) -> None:
        """Wait for the worker to end."""
        self._thread.join(timeout)

    def _run(self) -> None:
        while batch := self._take():
            began = time.monotonic()
            self._forward(batch)
            images = sum(len(work.item) for work in batch)
            with self._changed:
                self._last_images, self._ended = images, time.monotonic()
                pace = (self._ended - began) / max(1, images)
                self._pace = pace if not self._pace else (1 - MEMORY) * self._pace + MEMORY * pace

    def _take(self) -> list[_Work]:
        """The next batch, waited for; empty once the worker was closed and nothing waits."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            self._linger()
            batch: list[_Work] = []
            images = 0
            while self._waiting:
                work = self._waiting[0]
                # Kinds are not mixed: one tensor of joined uint8 and float32 pixels would have one scale for both.
                if batch and (images + len(work.item) > self._batch_images or _kind(work.item) != _kind(batch[0].item)):
                    break
                batch.append(self._waiting.popleft())
                self._count(work, -1)
                images += len(work.item)
            return batch

    def _linger(self) -> None:
        now = time.monotonic()
        if self._last_images <= 1 or now - self._ended > LINGER:
            return
        while self._images < min(self._last_images, self._batch_images) and not self._closed:
            left = now + LINGER - time.monotonic()
            if left <= 0:
                return
            self._changed.wait(left)

    def _count(self, work: _Work, sign: int) -> None:
        self._images += sign * len(work.item)
        self._bytes += sign * work.item.nbytes

    def _forward(self, batch: list[_Work]) -> None:
        begun = time.perf_counter()
        metrics.saw_batch(images=sum(len(work.item) for work in batch), waits=[begun - work.since for work in batch])
        alive = [work for work in batch if work.future.set_running_or_notify_cancel()]
        if not alive:
            return
        try:
            found = self._encoder.embed([work.item for work in alive])
        except Exception as error:
            if len(alive) == 1:
                alive[0].future.set_exception(error)
                return
            # One bad item must not spoil its neighbours: each runs alone, so each gets its own error.
            for work in alive:
                self._alone(work)
            return
        for work, vectors in zip(alive, found, strict=True):
            work.future.set_result(_pooled(vectors, work))

    def _alone(self, work: _Work) -> None:
        try:
            work.future.set_result(_pooled(self._encoder.embed([work.item])[0], work))
        except Exception as error:
            work.future.set_exception(error)


class Batcher:
    """One encoder's entrance. Where the encoder made room for another one in between, it is loaded again."""

    def __init__(self, worker: Callable[[], Worker], *, pooled: bool = True) -> None:
        self._worker, self._pooled = worker, pooled

    def submit(self, item: Tensor) -> "Future[Vector]":
        """Queue one prepared item (n, C, H, W) or (n, C, D, H, W). Blocks only while the encoder is loaded again.

        Raises:
            ProblemError: 503 when the queue is full.
        """
        while True:
            try:
                return self._worker().submit(item, pooled=self._pooled)
            except RetiredError:
                continue

    def unpooled(self) -> "Batcher":
        """The same encoder, but an item's result is (n, dim): a vector for each of its slices, tiles or cubes."""
        return Batcher(self._worker, pooled=False)


def _pooled(vectors: np.ndarray, work: _Work) -> Vector:
    return np.asarray(vectors.mean(axis=0) if work.pooled else vectors, np.float32)


def _kind(item: Tensor) -> tuple[object, ...]:
    return (item.dtype, *item.shape[1:])


def busy(seconds: float = 1.0) -> ProblemError:
    """503: the client shall come back when what waits now will have been done, `seconds` from now."""
    return ProblemError(
        503,
        "busy",
        "More items wait for the encoder than the queue holds.",
        remedy="Try again after the seconds in Retry-After.",
        headers={"Retry-After": str(min(LONGEST_RETRY, max(1, math.ceil(seconds))))},
    )


K = TypeVar("K", bound=Hashable)
E = TypeVar("E", bound=Embedder)


class EncoderCache(Generic[K, E]):
    """Encoders by key, loaded on demand. A load keeps nobody waiting but those who want the same encoder."""

    def __init__(self, load: Callable[[K], E], *, capacity: int, **sizes: int) -> None:
        self._load, self._capacity = load, capacity
        self._sizes: dict[str, Any] = sizes  # of the workers' queues and batches
        self._entries: OrderedDict[K, Future[tuple[E, Worker]]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> tuple[E, Batcher]:
        """The encoder and its entrance, loaded now if need be. Blocks: call it on a thread."""
        encoder, _ = self._entry(key)
        return encoder, Batcher(lambda: self._entry(key)[1])

    def close(self) -> None:
        """End all workers."""
        with self._lock:
            entries = list(self._entries.values())
            self._entries.clear()
        for entry in entries:
            entry.add_done_callback(_retire)
        for entry in entries:
            if entry.done() and entry.exception() is None:
                entry.result()[1].join(timeout=10.0)

    def _entry(self, key: K) -> tuple[E, Worker]:
        with self._lock:
            entry = self._entries.get(key)
            mine = entry is None
            if entry is None:
                entry = self._entries[key] = Future()
            self._entries.move_to_end(key)
        if mine:
            self._fill(key, entry)
        return entry.result()

    def _fill(self, key: K, entry: "Future[tuple[E, Worker]]") -> None:
        try:
            encoder = self._load(key)
        except BaseException as error:
            with self._lock:
                if self._entries.get(key) is entry:  # the next request tries again
                    del self._entries[key]
            entry.set_exception(error)
            return
        entry.set_result((encoder, Worker(encoder, **self._sizes)))
        metrics.LOADED_ENCODERS.inc()
        with self._lock:
            # Only now: an encoder that cannot be loaded takes no other's place.
            surplus = max(0, len(self._entries) - self._capacity)
            retired = [self._entries.popitem(last=False)[1] for _ in range(surplus)]
        for old in retired:
            old.add_done_callback(_retire)


def _retire(entry: "Future[tuple[Any, Worker]]") -> None:
    if entry.exception() is None:
        metrics.LOADED_ENCODERS.dec()
        entry.result()[1].close()


WARM_UP = (1, 8, 32)  # images of one pass: a lone request, a small upload, a busy service


def choose_device(wanted: str) -> str:
    """'auto' becomes 'cuda' where there is a GPU, else 'cpu'.

    Raises:
        UserError: a GPU is asked for that is not there.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(wanted)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"LEJEPA_DEVICE is '{wanted}', but PyTorch sees {torch.cuda.device_count()} GPUs here.",
            remedy="Set LEJEPA_DEVICE=auto, or check the driver (nvidia-smi) and the container's access to the GPU.",
        )
    return wanted


class ServedEncoder:
    """A loaded encoder with the threads of its passes. `embed` is called by one thread at a time."""

    def __init__(self, loaded: LoadedEncoder, settings: Settings) -> None:
        self.loaded = loaded
        self.views = loaded.formation.views
        self._batch_images = settings.batch_images
        self._device = torch.device(loaded.device)
        exact_float32()  # once for all threads: `embed_parts` restores what it finds, beside other encoders' passes
        on_cpu = self._device.type == "cpu"
        self._threads = Threads(settings.threads, active=on_cpu, most=settings.cores)

    @torch.inference_mode()
    def embed(self, items: Sequence[Tensor]) -> list[np.ndarray]:
        """(n_i, C, H, W) or (n_i, C, D, H, W) tensors -> one (n_i, dim) float32 array each."""
        self._threads.begin()
        parts = embed_parts(
            self.loaded.module,
            items,
            device=self._device,
            batch_size=self._batch_images,
            precision=self.loaded.precision,
        )
        self._threads.step(sum(map(len, items)))
        return [part.numpy() for part in parts]

    def warm_up_items(self) -> Iterator[Tensor]:
        """Blank items, one of each common batch size; their passes prepare kernels, memory and the queue's pace."""
        spec = self.loaded.adapter.spec
        most = min(self._batch_images, VOLUMES if spec.dims == 3 else self._batch_images)
        most = max(1, most // self.views)
        for images in sorted({min(images, most) for images in WARM_UP}):
            yield torch.zeros(images, spec.channels, *[spec.embed_size] * spec.dims)
