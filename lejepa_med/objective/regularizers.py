"""Other regularisers than SIGReg: VISReg, the spectral entropy, and the penalties on moments that never go flat."""

import math
import warnings

import torch
from torch import Tensor, nn

from lejepa_med.distributed import all_gather_rows, all_reduce_sum, world_size
from lejepa_med.objective.sigreg import directions

TINY = 1e-12  # a variance below it has no gradient; VICReg's 1e-4 would end the pull at a standard deviation of .01


def centred(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Subtract the mean over the samples of all ranks.

    Args:
        z: (views, batch, dim), this rank's share; float32 or float64.

    Returns:
        z - mean (views, batch, dim), mean (views, dim), and the global batch size as a scalar tensor.
    """
    total = all_reduce_sum(torch.cat([z.sum(1).flatten(), z.new_full((1,), z.shape[1])]))
    mean = total[:-1].view(z.shape[0], z.shape[2]) / total[-1]
    return z - mean[:, None], mean, total[-1]


def deviations(centred_z: Tensor, n: Tensor, *, unbiased: bool = False) -> Tensor:
    """Standard deviation of each dimension, (views, dim), from what `centred` gives."""
    var = all_reduce_sum(centred_z.square().sum(1)) / (n - 1 if unbiased else n)
    return var.clamp_min(TINY).sqrt()


def variance_hinge(z: Tensor) -> Tensor:
    """Mean over views and dimensions of max(0, 1 - std): the hinge of VICReg (arXiv 2105.04906, Equation 1).

    SIGReg's gradient falls with the spread of a collapsing batch; this one keeps its size down to a standard deviation
    of 1e-6. At samples that are exactly equal it is 0 too, as for every statistic of the batch.

    Args:
        z: (views, batch, dim), this rank's share; any floating-point type, computed in float32 or float64.

    Returns:
        A scalar, equal on all ranks; in [0, 1].
    """
    z = z if z.dtype == torch.float64 else z.float()
    rest, _, n = centred(z)
    return (1 - deviations(rest, n, unbiased=True)).clamp_min(0).mean()


def scale_penalty(std: Tensor) -> Tensor:
    """Mean of (1 - std)^2: the scale term of VISReg (arXiv 2606.02572, Equation 1)."""
    return (1 - std).square().mean()


_SPREAD_EPS = 1e-4  # bounds the gradient of the shape term where the batch has almost no spread


class VISReg(nn.Module):
    """Centre, scale and sliced shape of a batch of embeddings, per view; the regulariser of VISReg's Algorithm 1.

        centre = mean of mean(z)^2                         (Equation 6)
        scale  = mean over dimensions of (1 - std)^2       (Equation 1)
        shape  = mean over directions of the squared distance between the sorted projections of (z - mean) / std, with
                 std held constant, and the normal quantiles at i / (N + 1)      (Equations 2 and 5)

    Its size does not grow with the batch, unlike SIGReg's, and its best lambda is far larger: .6 for small archives
    and .9 for ImageNet in the paper, with the convex weights of `LeJEPA`.

    The paper computes it on each device alone. Here the batch of all ranks is gathered, so that the number of
    processes changes nothing.

    Args:
        slices: number of random directions.

    Raises:
        ValueError: slices < 1.
    """

    def __init__(self, slices: int = 1024) -> None:
        super().__init__()
        if slices < 1:
            raise ValueError(f"VISReg needs at least one slice, got slices={slices}.")
        self.slices = slices

    def extra_repr(self) -> str:
        """Show the settings in print(model)."""
        return f"slices={self.slices}"

    def forward(self, z: Tensor, *, seed: int, step: int) -> Tensor:
        """Average the three terms' sum over the views.

        Args:
            z: (views, batch, dim), this rank's share; float64 is computed in float64, all else in float32.
            seed: the run's seed, equal on all ranks.
            step: the optimiser step, equal on all ranks; it chooses the directions.

        Returns:
            A scalar, equal on all ranks.

        Raises:
            ValueError: z is not three-dimensional, or fewer than two samples.
        """
        z = all_gather_rows(z if z.dtype == torch.float64 else z.float(), dim=1)
        if z.ndim != 3 or z.shape[1] < 2:
            raise ValueError(f"VISReg expects (views, batch, dim) with at least 2 samples, got {tuple(z.shape)}.")
        with torch.autocast(z.device.type, enabled=False):
            mean = z.mean(1, keepdim=True)
            rest = z - mean
            std = rest.square().mean(1).clamp_min(1e-12).sqrt()
            scaled = rest / (std.detach()[:, None] + _SPREAD_EPS)
            columns = directions(z.shape[2], self.slices, seed=seed, step=step, device=z.device, dtype=z.dtype)
            positions = torch.arange(1, z.shape[1] + 1, dtype=z.dtype, device=z.device) / (z.shape[1] + 1)
            quantiles = torch.special.ndtri(positions)[:, None]
            shape = ((scaled @ columns).sort(dim=1).values - quantiles).square().mean()
            total: Tensor = mean.square().mean() + scale_penalty(std) + shape
            return total


_EIGEN_EPS = 1e-6  # added to eigenvalues, since the square root has no slope at 0; embeddings have a scale of about 1


class SpectralEntropy(nn.Module):
    """Kullback-Leibler divergence of the normalised singular values to the uniform distribution, plus a scale term.

        p = singular values of the centred batch (N, D), divided by their sum
        log D + sum of p log p  +  mean over dimensions of (1 - std)^2

    The first part alone is blind to scale (z and z / 1000 give the same value), so that a collapse in magnitude would
    be free; the second part, VISReg's scale term, closes that. The singular values come from the covariance (D, D),
    summed over ranks. A batch of N <= D samples has a rank of N - 1 at most, and the value cannot fall below
    log(D / (N - 1)): a warning says so once.
    """

    def __init__(self) -> None:
        super().__init__()
        self._warned = False

    def forward(self, z: Tensor, *, seed: int, step: int) -> Tensor:
        """Average over views. There is no randomness: `seed` and `step` are part of the regularisers' common form.

        Args:
            z: (views, batch, dim), this rank's share; float64 is computed in float64, all else in float32.
            seed: not used.
            step: not used.

        Returns:
            A scalar, equal on all ranks.

        Raises:
            ValueError: z is not three-dimensional or is empty.
        """
        if z.ndim != 3 or z.numel() == 0:
            raise ValueError(f"SpectralEntropy expects a non-empty (views, batch, dim), got {tuple(z.shape)}.")
        self._warn(batch=z.shape[1] * world_size(), dim=z.shape[2])
        z = z if z.dtype == torch.float64 else z.float()
        with torch.autocast(z.device.type, enabled=False):
            rest, _, n = centred(z)
            covariance = all_reduce_sum(rest.mT @ rest) / n
            values = (torch.linalg.eigvalsh(covariance).clamp_min(0) + _EIGEN_EPS).sqrt()
            p = values / values.sum(-1, keepdim=True)
            divergence = math.log(z.shape[2]) + (p * p.log()).sum(-1)
            total: Tensor = divergence.mean() + scale_penalty(deviations(rest, n))
            return total

    def _warn(self, *, batch: int, dim: int) -> None:
        if batch <= dim and not self._warned:
            self._warned = True
            warnings.warn(
                f"A batch of {batch} samples cannot fill {dim} dimensions: the spectral entropy stays above "
                f"{math.log(dim / max(1, batch - 1)):.2f}. Take a batch larger than --model.projector-dim.",
                stacklevel=3,
            )
