"""How far apart the views of one image are: the prediction term of LeJEPA, with three choices of the target."""

from typing import Literal, get_args

import torch
from torch import Tensor

from lejepa_med.distributed import all_reduce_sum

Target = Literal["global_mean", "all_mean", "pairwise"]


def invariance(z: Tensor, *, n_global: int, target: Target = "global_mean") -> Tensor:
    """Mean squared distance of all views to the target, over views, samples and dimensions.

    global_mean: the centre of the global views (Equation 6 and Algorithm 2 of LeJEPA, arXiv 2511.08544).
    all_mean: the centre of all views, as in the authors' minimal script.
    pairwise: each global view by itself (Equation 5). The mean over g of |z_g - z_v|^2 is |mu - z_v|^2 plus the
    variance of the global views, so the difference to global_mean is that this variance counts twice.

    Args:
        z: (views, batch, dim), global views first; this rank's share of the batch.
        n_global: how many views are global.
        target: as above.

    Returns:
        A scalar, equal on all ranks.

    Raises:
        ValueError: an unknown target.
    """
    if target not in get_args(Target):
        raise ValueError(f"There is no target {target!r}; choose one of {', '.join(get_args(Target))}.")
    centre = z[: len(z) if target == "all_mean" else n_global].mean(0)
    squares = (centre - z).square().sum()
    if target == "pairwise":
        squares = squares + (centre - z[:n_global]).square().sum() * (len(z) / n_global)
    total = all_reduce_sum(torch.stack([squares, squares.new_full((), z.numel())]))
    return total[0] / total[1]
