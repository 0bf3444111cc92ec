"""First and second moments of the batch over all ranks, and the two penalties on them that never go flat."""

import torch
from torch import Tensor

from lejepa_med.distributed import all_reduce_sum

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
