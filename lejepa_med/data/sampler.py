"""Which samples make which batch: a function of (seed, epoch, step), the same for every worker count and restart."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from lejepa_med.data.dataset import Key
from lejepa_med.errors import ConfigError


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
