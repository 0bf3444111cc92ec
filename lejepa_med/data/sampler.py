"""Which samples make which batch: a function of (seed, epoch, step), the same for every worker count and restart."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from lejepa_med.data.dataset import Key
from lejepa_med.errors import ConfigError


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
            raise ConfigError(
                f"The archive gives {len(self.pairs)} samples an epoch, fewer than one batch of {batch_size}.",
                remedy=f"Set --train.batch-size {max(2, len(self.pairs) // 2)} or less, or give a larger archive.",
            )
        if batch_size % world_size:
            raise ConfigError(
                f"The batch of {batch_size} does not divide over {world_size} processes.",
                remedy=f"Set --train.batch-size to a multiple of {world_size}.",
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
