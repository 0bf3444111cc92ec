import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from app.core.errors import ProblemError
from app.encoders.inference import Batcher, RetiredError, Worker

ROOMY = {"queue_items": 100, "queue_bytes": 1 << 20, "batch_images": 8}


class Slow:
    """An encoder whose passes wait for `gate` and are recorded; images with a negative pixel fail."""

    views = 1

    def __init__(self) -> None:
        self.gate, self.began = threading.Event(), threading.Event()
        self.batches: list[list[int]] = []

    def embed(self, items: Sequence[Tensor]) -> list[np.ndarray]:
        self.began.set()
        assert self.gate.wait(10)
        self.batches.append([len(item) for item in items])
        if any((item < 0).any() for item in items):
            raise ValueError("negative")
        return [item.double().mean(dim=(2, 3)).numpy() for item in items]


def item(*values: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.stack([torch.full((3, 4, 4), value) for value in values]).to(dtype)


def test_items_that_wait_share_a_pass_and_keep_their_order() -> None:
    encoder = Slow()
    worker = Worker(encoder, **ROOMY)
    first = worker.submit(item(0))
    assert encoder.began.wait(10)  # alone and at once: nothing is waited for when idle
    futures = [worker.submit(item(n, n)) for n in range(1, 6)]
    other = worker.submit(item(7, dtype=torch.float64))
    encoder.gate.set()
    assert [float(future.result(10)[0]) for future in (first, *futures, other)] == [0, 1, 2, 3, 4, 5, 7]
    # At most 8 images; kinds are never joined.
    assert encoder.batches == [[1], [2, 2, 2, 2], [2], [1]]
    worker.close()
    worker.join(10)


def test_views_fill_a_pass_as_images_do() -> None:
    encoder = Slow()
    encoder.views = 4
    worker = Worker(encoder, **ROOMY)
    first = worker.submit(item(0))
    assert encoder.began.wait(10)
    futures = [worker.submit(item(n)) for n in range(1, 6)]
    encoder.gate.set()
    assert [float(future.result(10)[0]) for future in (first, *futures)] == [0, 1, 2, 3, 4, 5]
    assert encoder.batches == [[1], [1, 1], [1, 1], [1]]  # 8 passes at a time
    worker.close()
    worker.join(10)


def test_an_item_is_pooled_or_keeps_its_parts() -> None:
    encoder = Slow()
    encoder.gate.set()
    worker = Worker(encoder, **ROOMY)
    batcher = Batcher(lambda: worker)
    pooled, apart = batcher.submit(item(1, 3)).result(10), batcher.unpooled().submit(item(1, 3)).result(10)
    assert pooled.dtype == apart.dtype == np.float32
    assert pooled.tolist() == [2, 2, 2]
    assert apart.tolist() == [[1, 1, 1], [3, 3, 3]]
    worker.close()


def test_after_a_shared_pass_the_worker_lingers_for_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.encoders.inference.LINGER", 5.0)
    encoder = Slow()
    worker = Worker(encoder, **ROOMY)
    worker.submit(item(0))
    assert encoder.began.wait(10)
    shared = [worker.submit(item(n)) for n in (1, 2, 3)]
    encoder.gate.set()
    for future in shared:
        future.result(10)
    again = [worker.submit(item(n)) for n in (4, 5)]
    time.sleep(0.1)
    assert not again[0].done()
    again.append(worker.submit(item(6)))  # as many as before: nothing more is waited for
    assert [float(future.result(2)[0]) for future in again] == [4, 5, 6]
    assert encoder.batches == [[1], [1, 1, 1], [1, 1, 1]]
    worker.close()


def test_one_bad_item_does_not_spoil_its_batch() -> None:
    encoder = Slow()
    worker = Worker(encoder, **ROOMY)
    head = worker.submit(item(0))
    assert encoder.began.wait(10)
    good, bad, fine = worker.submit(item(1)), worker.submit(item(-1)), worker.submit(item(2))
    encoder.gate.set()
    assert [float(future.result(10)[0]) for future in (head, good, fine)] == [0, 1, 2]
    with pytest.raises(ValueError):
        bad.result(10)
    worker.close()


def test_a_full_queue_refuses_and_close_finishes_what_waits() -> None:
    encoder = Slow()
    worker = Worker(encoder, queue_items=2, queue_bytes=1 << 20, batch_images=8)
    futures = [worker.submit(item(0))]
    assert encoder.began.wait(10)
    futures += [worker.submit(item(n)) for n in (1, 2)]
    with pytest.raises(ProblemError) as caught:
        worker.submit(item(3))
    assert (caught.value.problem.status, caught.value.headers["Retry-After"]) == (503, "1")
    encoder.gate.set()
    assert len([future.result(10) for future in futures]) == 3
    worker.close()
    worker.join(10)
    with pytest.raises(RetiredError):
        worker.submit(item(4))


def test_a_queue_is_bounded_in_bytes_but_takes_one_item_of_any_size() -> None:
    encoder = Slow()
    worker = Worker(encoder, queue_items=100, queue_bytes=item(0).nbytes, batch_images=8)
    worker.submit(item(0))
    assert encoder.began.wait(10)
    large = worker.submit(item(1, 1, 1))
    with pytest.raises(ProblemError):
        worker.submit(item(2))
    encoder.gate.set()
    assert large.result(10).tolist() == [1, 1, 1]
    worker.close()


def test_retry_after_follows_the_real_pace() -> None:
    encoder = Slow()
    worker = Worker(encoder, queue_items=2, queue_bytes=1 << 20, batch_images=8)
    pace = worker.submit(item(0))
    assert encoder.began.wait(10)
    time.sleep(1.1)  # a second an image
    encoder.gate.set()
    pace.result(10)
    time.sleep(0.1)  # until the pass is booked
    encoder.gate.clear()
    encoder.began.clear()
    worker.submit(item(0))
    assert encoder.began.wait(10)
    for _ in range(2):
        worker.submit(item(0, 0))
    with pytest.raises(ProblemError) as caught:
        worker.submit(item(0))
    assert 4 <= int(caught.value.headers["Retry-After"]) <= 8  # four images wait
    encoder.gate.set()
    worker.close()
