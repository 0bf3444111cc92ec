"""The DataLoader around dataset and sampler, and the time spent waiting for it."""

import signal
import time
from collections.abc import Iterator
from functools import partial
from typing import cast

import torch
from torch.utils.data import DataLoader, Dataset

from lejepa_med.data.dataset import Batch, ViewDataset, collate
from lejepa_med.data.sampler import EpochBatches


def make_loader(dataset: ViewDataset, batches: EpochBatches, *, workers: int, pin: bool = False) -> DataLoader[Batch]:
    """One loader for all remaining epochs, so that workers never pause or restart between epochs."""
    return DataLoader(
        cast("Dataset[Batch]", dataset),  # samples become batches in collate
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=partial(collate, n_global=dataset.adapter.spec.n_global),
        worker_init_fn=quiet_worker if workers else None,
        prefetch_factor=2 if workers else None,
        pin_memory=pin,
    )


def quiet_worker(_worker: int) -> None:
    """Prepare a loader worker: one thread, and deaf to Ctrl-C and SIGTERM, which reach the whole process group.

    The main process answers the signals after its step; it needs its workers for that.
    """
    torch.set_num_threads(1)  # the workers are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class TimedBatches:
    """Iterates a loader and adds up the seconds that training waited for it."""

    def __init__(self, loader: DataLoader[Batch]) -> None:
        self._loader = loader
        self.waited = 0.0

    def __iter__(self) -> Iterator[Batch]:
        iterator = iter(self._loader)
        while True:
            start = time.perf_counter()
            batch = next(iterator, None)
            self.waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch
