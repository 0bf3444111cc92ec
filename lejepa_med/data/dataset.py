"""Training samples, (epoch, row, sample) -> views, and the batches they make: a function of (seed, epoch, step).

The same for every number of workers and after every restart.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from data_adapters.base import Adapter, rejected
from data_adapters.manifest import Manifest
from lejepa_med.errors import BadFileError, ConfigError, TrainingError, is_shortage

Key = tuple[int, int, int]  # epoch, row of the manifest, which of the row's samples
MAX_ATTEMPTS = 16


@dataclass(frozen=True)
class BadRead:
    """A read that failed during training and was replaced by another row."""

    row: int
    reason: str


@dataclass(frozen=True)
class Sample:
    """The views of one source: `n_global` then `n_local` tensors (C, size, size)."""

    views: list[Tensor]
    row: int
    bad: tuple[BadRead, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Views of B samples.

    Attributes:
        global_views: (n_global, B, C, global_size, global_size); of volumes, with one more such axis.
        local_views: (n_local, B, C, local_size, local_size), likewise, or None.
        rows: manifest row of each sample, (B,).
        bad: reads that failed and were replaced.
    """

    global_views: Tensor
    local_views: Tensor | None
    rows: Tensor
    bad: tuple[BadRead, ...]

    def pack(self) -> tuple[list[tuple[int, str]], list[Tensor]]:
        """What travels between processes: the bad reads, and the tensors."""
        tensors = [self.rows, self.global_views, *([] if self.local_views is None else [self.local_views])]
        return [(read.row, read.reason) for read in self.bad], tensors

    @classmethod
    def unpack(cls, bad: Iterable[tuple[int, str]], tensors: Sequence[Tensor]) -> "Batch":
        """The reverse of `pack`."""
        rows, views, *local = tensors
        return cls(views, local[0] if local else None, rows, tuple(BadRead(row, reason) for row, reason in bad))


class ViewDataset(Dataset[Sample]):
    """Reads and augments by key. It keeps no random state, so workers and restarts cannot change a view."""

    def __init__(self, manifest: Manifest, adapter: Adapter, *, seed: int) -> None:
        self.records = manifest.records()
        self.adapter = adapter
        self.seed = seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: Key) -> Sample:
        """The views of `key`; a row that cannot be read is replaced by one drawn from the same key, and reported.

        Raises:
            TrainingError: 16 rows in turn could not be read.
        """
        epoch, row, sample = key
        bad: list[BadRead] = []
        for attempt in range(MAX_ATTEMPTS):
            rng = np.random.default_rng((self.seed, epoch, row, sample, attempt))
            try:
                source = self.adapter.read(self.records[row], rng)
                return Sample(views=self.adapter.views(source, rng), row=row, bad=tuple(bad))
            except BadFileError as error:
                bad.append(BadRead(row, error.cause))
            except (OSError, ValueError, EOFError, RuntimeError) as error:
                if is_shortage(error):
                    raise  # of memory or open files, say, which is no fault of this file
                # foreign readers raise these on damaged files; a programming error (TypeError, KeyError) must surface
                bad.append(BadRead(row, rejected(self.records[row].uri, error).reason))
            row = int(np.random.default_rng((self.seed, *key, attempt, 1)).integers(len(self.records)))
        raise TrainingError(
            f"{MAX_ATTEMPTS} archive items in turn could not be read (the last: {bad[-1].reason}).",
            remedy="Check that the archive is still mounted, then scan it again with: lejepa-med scan ARCHIVE",
        )


def collate(samples: list[Sample], *, n_global: int) -> Batch:
    """Stack views view by view: (V, B, C, H, W)."""

    def stack(views: range) -> Tensor:
        return torch.stack([torch.stack([sample.views[v] for sample in samples]) for v in views])

    n_views = len(samples[0].views)
    return Batch(
        global_views=stack(range(n_global)),
        local_views=stack(range(n_global, n_views)) if n_views > n_global else None,
        rows=torch.tensor([sample.row for sample in samples]),
        bad=tuple(read for sample in samples for read in sample.bad),
    )


def too_few(samples: int, *, batch_size: int, multiple: int) -> ConfigError:
    """The error for an archive of fewer samples than a batch, with the largest batch that it allows.

    Args:
        samples: of an epoch.
        batch_size: what was asked for.
        multiple: a batch must divide by this: processes times parts.
    """
    largest = samples - samples % multiple
    if largest >= 2:
        remedy = f"Set --batch-size {largest}"
        remedy += f" or a smaller multiple of {multiple}." if multiple > 1 else " or less, or give a larger archive."
    elif multiple > 1 and samples >= 2:
        remedy = f"A batch must divide into {multiple} parts: use fewer processes, or a smaller --train.accumulate."
    else:
        remedy = "Training compares images with each other: give an archive with at least 2, better some hundreds."
    unit = "sample" if samples == 1 else "samples"
    return ConfigError(
        f"The archive gives {samples} {unit} an epoch, fewer than one batch of {batch_size}.", remedy=remedy
    )


class EpochBatches(Sampler[list[Key]]):
    """Batches of one rank, from a given step to the end of the last epoch.

    The global batch of a step is cut from the epoch's permutation; rank r of w takes its elements r, r + w, ... An
    incomplete last batch of an epoch is dropped (its samples come in another epoch's order), since the statistic of
    SIGReg depends on the batch size.
    """

    def __init__(
        self,
        samples: Sequence[int],
        *,
        batch_size: int,
        epochs: int,
        seed: int,
        first_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """`samples[row]`: how many samples an epoch draws from that row; `batch_size`: over all ranks.

        Raises:
            ConfigError: the archive is smaller than one batch, or the batch does not divide over the ranks.
        """
        counts = np.asarray(samples, dtype=np.int64)
        first = np.repeat(np.cumsum(counts) - counts, counts)
        self.pairs = np.stack([np.repeat(np.arange(len(counts)), counts), np.arange(counts.sum()) - first], axis=1)
        if len(self.pairs) < batch_size:
            raise too_few(len(self.pairs), batch_size=batch_size, multiple=world_size)
        if batch_size % world_size:
            raise ConfigError(
                f"The batch of {batch_size} does not divide over {world_size} processes.",
                remedy=f"Set --batch-size to a multiple of {world_size}.",
            )
        self.batch_size, self.epochs, self.seed = batch_size, epochs, seed
        self.first_step, self.rank, self.world_size = first_step, rank, world_size
        self.steps_per_epoch = len(self.pairs) // batch_size

    def __len__(self) -> int:
        return self.epochs * self.steps_per_epoch - self.first_step

    def __iter__(self) -> Iterator[list[Key]]:
        for epoch in range(self.first_step // self.steps_per_epoch, self.epochs):
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.pairs))
            first = max(0, self.first_step - epoch * self.steps_per_epoch)
            for step in range(first, self.steps_per_epoch):
                chosen = order[step * self.batch_size : (step + 1) * self.batch_size][self.rank :: self.world_size]
                yield [(epoch, int(row), int(k)) for row, k in self.pairs[chosen]]
