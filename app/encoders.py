"""The few encoders that stay in memory, each behind a worker; the least recently used makes room."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from app import metrics
from app.inference import Batcher, Embedder, Worker

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
