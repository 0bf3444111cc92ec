import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from app.encoders.inference import EncoderCache


class Named:
    """An encoder whose vectors tell which load of which key it is."""

    views = 1

    def __init__(self, number: int) -> None:
        self.number = number

    def embed(self, items: Sequence[Tensor]) -> list[np.ndarray]:
        return [np.full((len(item), 1), self.number, np.float32) for item in items]


class Cache:
    def __init__(self, capacity: int) -> None:
        self.loads: list[str] = []
        self.cache: EncoderCache[str, Named] = EncoderCache(
            self.load, capacity=capacity, queue_items=4, queue_bytes=1 << 20, batch_images=4
        )

    def load(self, key: str) -> Named:
        self.loads.append(key)
        if key == "bad":
            raise OSError("damaged")
        return Named(len(self.loads))


def test_the_least_recently_used_encoder_goes() -> None:
    made = Cache(capacity=2)
    for key in ("a", "b", "a", "c", "a", "b"):
        made.cache.get(key)
    assert made.loads == ["a", "b", "c", "b"]
    made.cache.close()


def test_an_item_that_comes_after_its_encoder_went_has_it_loaded_again() -> None:
    made = Cache(capacity=1)
    _, batcher = made.cache.get("a")
    made.cache.get("b")
    assert batcher.submit(torch.zeros(1, 3, 2, 2)).result(10).tolist() == [3.0]
    assert made.loads == ["a", "b", "a"]
    made.cache.close()


def test_requests_for_one_encoder_load_it_once_and_others_do_not_wait() -> None:
    gate, entered = threading.Event(), threading.Event()
    made = Cache(capacity=3)

    def load(key: str) -> Named:
        if key == "slow":
            entered.set()
            assert gate.wait(10)
        return made.load(key)

    cache: EncoderCache[str, Named] = EncoderCache(load, capacity=3, queue_items=4, queue_bytes=1 << 20, batch_images=4)
    threads = [threading.Thread(target=cache.get, args=("slow",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert entered.wait(10)
    cache.get("fast")
    assert made.loads == ["fast"]
    gate.set()
    for thread in threads:
        thread.join(10)
    assert made.loads == ["fast", "slow"]
    cache.close()


def test_an_encoder_that_does_not_load_takes_no_place_and_is_tried_again() -> None:
    made = Cache(capacity=1)
    made.cache.get("a")
    for _ in range(2):
        with pytest.raises(OSError):
            made.cache.get("bad")
    made.cache.get("a")
    assert made.loads == ["a", "bad", "bad"]
    made.cache.close()
