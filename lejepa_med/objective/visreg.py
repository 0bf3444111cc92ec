"""VISReg (arXiv 2606.02572): mean, scale and shape of the batch as three terms, each with a gradient of its own."""

import torch
from torch import Tensor, nn

from lejepa_med.distributed import all_gather_rows
from lejepa_med.objective.moments import scale_penalty
from lejepa_med.objective.sigreg import directions

_EPS = 1e-4  # bounds the gradient of the shape term where the batch has almost no spread


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
            scaled = rest / (std.detach()[:, None] + _EPS)
            columns = directions(z.shape[2], self.slices, seed=seed, step=step, device=z.device, dtype=z.dtype)
            positions = torch.arange(1, z.shape[1] + 1, dtype=z.dtype, device=z.device) / (z.shape[1] + 1)
            quantiles = torch.special.ndtri(positions)[:, None]
            shape = ((scaled @ columns).sort(dim=1).values - quantiles).square().mean()
            total: Tensor = mean.square().mean() + scale_penalty(std) + shape
            return total
