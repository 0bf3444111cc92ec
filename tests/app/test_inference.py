import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from app.errors import ProblemError
from app.inference import Batcher, EncoderCache


class Slow:
    """An encoder whose passes wait for `gate` and are recorded; images with a negative pixel fail."""

    def __init__(self) -> None:
        self.gate, self.began = threading.Event(), threading.Event()
        self.batches: list[list[int]] = []

    def embed(self, items: Sequence[Tensor]) -> np.ndarray:
        self.began.set()
        assert self.gate.wait(10)
        self.batches.append([len(item) for item in items])
        pixels = torch.cat(list(items))
        if (pixels < 0).any():
            raise ValueError("negative")
        return np.stack([item.mean(dim=(0, 2, 3)).numpy() for item in items])


def item(value: float, *, images: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full((images, 3, 4, 4), value).to(dtype)


def test_items_that_wait_share_a_pass_and_keep_their_order() -> None:
    encoder = Slow()
    batcher = Batcher(encoder, queue_items=100, batch_images=8)
    first = batcher.submit(item(0))
    assert encoder.began.wait(10)  # alone and at once: nothing is waited for when idle
    futures = [batcher.submit(item(n, images=2)) for n in range(1, 6)]
    other = batcher.submit(item(7, dtype=torch.float64))
    encoder.gate.set()
    assert [float(future.result(10)[0]) for future in (first, *futures, other)] == [0, 1, 2, 3, 4, 5, 7]
    # At most 8 images; kinds are never joined.
    assert encoder.batches == [[1], [2, 2, 2, 2], [2], [1]]
    batcher.close()
    batcher.join(10)


def test_one_bad_item_does_not_spoil_its_batch() -> None:
    encoder = Slow()
    batcher = Batcher(encoder, queue_items=100, batch_images=8)
    head = batcher.submit(item(0))
    assert encoder.began.wait(10)
    good, bad, fine = batcher.submit(item(1)), batcher.submit(item(-1)), batcher.submit(item(2))
    encoder.gate.set()
    assert [float(future.result(10)[0]) for future in (head, good, fine)] == [0, 1, 2]
    with pytest.raises(ValueError):
        bad.result(10)
    batcher.close()


def test_a_full_queue_refuses_and_close_finishes_what_waits() -> None:
    encoder = Slow()
    batcher = Batcher(encoder, queue_items=2, batch_images=8)
    futures = [batcher.submit(item(0))]
    assert encoder.began.wait(10)
    futures += [batcher.submit(item(n)) for n in (1, 2)]
    with pytest.raises(ProblemError) as caught:
        batcher.submit(item(3))
    assert (caught.value.problem.status, caught.value.headers["Retry-After"]) == (503, "2")
    encoder.gate.set()
    assert len([future.result(10) for future in futures]) == 3
    batcher.close()
    batcher.join(10)
    with pytest.raises(ProblemError):
        batcher.submit(item(4))


def test_the_least_recently_used_encoder_goes() -> None:
    loads: list[str] = []

    def load(key: str) -> Slow:
        loads.append(key)
        return Slow()

    cache: EncoderCache[str, Slow] = EncoderCache(load, capacity=2, queue_items=4, batch_images=4)
    for key in ("a", "b", "a", "c", "a", "b"):
        cache.get(key)
    assert loads == ["a", "b", "c", "b"]
    cache.close()
