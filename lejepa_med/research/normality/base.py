"""What the tests of N(0, I) have in common: the contract of SIGReg, and the sketch on random directions."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from lejepa_med.objective.sigreg import directions
from lejepa_med.training.distributed import all_gather_rows, all_reduce_sum, rank, world_size

# The simulated floors: at most this many numbers are drawn, in at most this many samples.
_FLOOR_DRAWS = 2**22
_FLOOR_SAMPLES = 4096


class NormalityTest(nn.Module):
    """A test of the fully specified hypothesis that the rows of a view are independent draws from N(0, I).

    Location and scale belong to the hypothesis, so every statistic here penalises them. It is the mean over views of
    the statistic of the global batch, computed in float32 (float64 for float64 input) whatever autocast says. There are
    no parameters and no buffers, so nothing is added to a checkpoint.
    """

    @property
    def floor(self) -> float | None:
        """Expected value for perfect N(0, I) where it depends on nothing, else None: see `floor_for`."""
        return None

    def floor_for(self, *, n: int, dim: int) -> float:
        """Expected value for `n` perfect samples in `dim` dimensions; subtract it before comparing or plotting.

        Raises:
            ValueError: fewer than two samples, or no dimension.
        """
        raise NotImplementedError

    def forward(self, z: Tensor, *, seed: int, step: int) -> Tensor:
        """Average the statistic over views.

        Under DDP every rank passes its own samples (any number, at least one). All ranks return the value of the joined
        batch, and DDP's mean over ranks turns their gradients into exactly the gradient of that value.

        Args:
            z: (views, batch, dim), any floating-point type.
            seed: the run's seed, equal on all ranks.
            step: the optimiser step, equal on all ranks; it chooses the directions.

        Returns:
            A scalar, equal on all ranks, in float64 or float32.

        Raises:
            ValueError: z is not three-dimensional or is empty.
        """
        if z.ndim != 3 or z.numel() == 0:
            name = type(self).__name__
            raise ValueError(f"{name} expects a non-empty z of shape (views, batch, dim), got {tuple(z.shape)}.")
        z = z if z.dtype == torch.float64 else z.float()
        with torch.autocast(z.device.type, enabled=False):
            return self._mean_over_views(z, all_gather_rows(z, dim=1), seed=seed, step=step)

    def _mean_over_views(self, own: Tensor, joined: Tensor, *, seed: int, step: int) -> Tensor:
        """Return the mean statistic; own: (views, this rank's batch, dim), joined: (views, global batch, dim)."""
        raise NotImplementedError


class SlicedTest(NormalityTest):
    """A univariate test of N(0, 1), averaged over random directions (the Cramer-Wold device, as in SIGReg).

    The embeddings, not the projections, are gathered from the ranks, and each rank tests its share of the directions on
    the global batch: less to send where slices > dim, and the sorting is divided among the ranks. Memory grows with
    views x slices x batch; a few tensors of that size are kept for the backward pass.

    Args:
        slices: number M of random directions, drawn anew at each step.

    Raises:
        ValueError: slices < 1.
    """

    def __init__(self, slices: int = 1024) -> None:
        super().__init__()
        if slices < 1:
            raise ValueError(f"{type(self).__name__} needs at least one slice, got slices={slices}.")
        self.slices = slices

    def extra_repr(self) -> str:
        """Show the settings in print(model)."""
        return f"slices={self.slices}"

    def statistic(self, x: Tensor) -> Tensor:
        """Compute the statistic of each sample: x: (..., n) -> (...), float32 or float64."""
        raise NotImplementedError

    def floor_for(self, *, n: int, dim: int) -> float:
        """Expected value for `n` perfect samples; the same in every dimension, for projections of N(0, I) are N(0, 1).

        Raises:
            ValueError: fewer than two samples, or no dimension.
        """
        check_sizes(n, dim)
        return self._floor_of(n) if self.floor is None else self.floor

    def _floor_of(self, n: int) -> float:
        """Expected value for n samples; by simulation with a fixed seed unless the test knows its closed form."""
        return _simulated(self, n)

    def _mean_over_views(self, own: Tensor, joined: Tensor, *, seed: int, step: int) -> Tensor:
        columns = directions(
            joined.shape[2], self.slices, seed=seed, step=step, device=joined.device, dtype=joined.dtype
        )[:, rank() :: world_size()]
        values = self.statistic(columns.mT @ joined.mT)  # (views, this rank's slices)
        return all_reduce_sum(values.sum()) / (len(joined) * self.slices)


def check_sizes(n: int, dim: int) -> None:
    """Refuse sizes for which no floor is defined."""
    if n < 2 or dim < 1:
        raise ValueError(f"A floor needs at least two samples and one dimension, got n={n} and dim={dim}.")


@lru_cache(maxsize=64)
def _simulated(test: SlicedTest, n: int) -> float:
    samples = max(1, min(_FLOOR_SAMPLES, _FLOOR_DRAWS // n))
    drawn = np.random.default_rng(0).standard_normal((samples, n))
    with torch.no_grad():
        return float(test.statistic(torch.from_numpy(drawn)).mean())
