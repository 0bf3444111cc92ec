"""The LeJEPA loss: predict the centre of the global views, keep the embeddings isotropic Gaussian."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lejepa_med.objective.sigreg import SIGReg
from lejepa_med.training.distributed import all_reduce_sum


class LeJEPALoss(NamedTuple):
    """Scalars of one step, equal on all ranks.

    Attributes:
        loss: what to call backward on.
        invariance: mean squared distance to the centre of the global views, detached.
        sigreg: SIGReg averaged over the views, detached; about `FLOOR` at convergence, never 0.
    """

    loss: Tensor
    invariance: Tensor
    sigreg: Tensor


class LeJEPA(nn.Module):
    """Equations 5-7 and Algorithm 2 of LeJEPA (arXiv 2511.08544).

        mu_n = mean of z_nv over the global views
        loss = (1 - lambda) * mean over v, n, k of (mu_nk - z_nvk)^2  +  lambda * mean over v of SIGReg(z_v)

    Both terms run over all views, the global ones included. No stop-gradient, no predictor, no teacher.

    Args:
        lamb: lambda in (0, 1). The best value grows with the number of views (the paper's Table 7: .01 / .02 / .05 for
            2 / 4 / 8 views at batches of 256 to 512), and SIGReg's gradient grows with the global batch.
        sigreg: the regulariser; 1024 slices and 17 knots on [0, 3] by default.

    Raises:
        ValueError: lamb outside (0, 1).
    """

    def __init__(self, lamb: float, sigreg: SIGReg | None = None) -> None:
        super().__init__()
        if not 0 < lamb < 1:
            raise ValueError(
                f"lamb weighs SIGReg against invariance and must lie strictly between 0 and 1, got {lamb}; "
                "start from .05 for 8 views, .02 for 4, .01 for 2."
            )
        self.lamb = lamb
        self.sigreg = SIGReg() if sigreg is None else sigreg

    def extra_repr(self) -> str:
        """Show the settings in print(model)."""
        return f"lamb={self.lamb}"

    def forward(self, global_z: Tensor, local_z: Tensor | None = None, *, seed: int, step: int) -> LeJEPALoss:
        """Compute the loss of one step.

        Under DDP every rank passes its own samples. All ranks return the loss of the joined batch, and DDP's mean over
        ranks turns their gradients into exactly the gradient of that loss.

        Args:
            global_z: (global views, batch, dim), projector outputs.
            local_z: (local views, batch, dim), or None where all views are global (same-size views for CNNs).
            seed: the run's seed, equal on all ranks.
            step: the optimiser step, equal on all ranks; it chooses the directions of SIGReg.

        Raises:
            ValueError: shapes that do not fit, or fewer than two views in all.
        """
        z = global_z if local_z is None else _joined(global_z, local_z)
        if z.ndim != 3 or z.shape[0] < 2 or z.numel() == 0:
            raise ValueError(
                f"LeJEPA compares views: it needs (views, batch, dim) with at least 2 views, got {tuple(z.shape)}."
            )
        z = z if z.dtype == torch.float64 else z.float()
        squares = (z[: global_z.shape[0]].mean(0) - z).square().sum()
        total = all_reduce_sum(torch.stack([squares, squares.new_full((), z.numel())]))
        invariance = total[0] / total[1]
        sigreg = self.sigreg(z, seed=seed, step=step)
        loss = (1 - self.lamb) * invariance + self.lamb * sigreg
        return LeJEPALoss(loss, invariance.detach(), sigreg.detach())


def _joined(global_z: Tensor, local_z: Tensor) -> Tensor:
    """Stack the views, global ones first; the samples must be the same."""
    if global_z.ndim != 3 or local_z.ndim != 3 or global_z.shape[1:] != local_z.shape[1:] or len(global_z) == 0:
        raise ValueError(
            "global_z and local_z must be (views, batch, dim) with equal batch and dim and at least one global view, "
            f"got {tuple(global_z.shape)} and {tuple(local_z.shape)}."
        )
    return torch.cat([global_z, local_z])
