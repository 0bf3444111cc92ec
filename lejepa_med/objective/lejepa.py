"""The LeJEPA loss: predict the centre of the global views, keep the embeddings isotropic Gaussian."""

from typing import Literal, NamedTuple, Protocol, cast, get_args

import torch
from torch import Tensor, nn

from lejepa_med.distributed import all_reduce_sum
from lejepa_med.objective.sigreg import SIGReg

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


Pool = Literal["per_view", "pooled"]
Weighting = Literal["convex", "additive"]


class Regularizer(Protocol):
    """What keeps embeddings from collapsing: SIGReg, another normality test, VISReg or SpectralEntropy."""

    def __call__(self, z: Tensor, *, seed: int, step: int) -> Tensor:
        """Scalar for z (views, batch, dim), equal on all ranks."""


class LeJEPALoss(NamedTuple):
    """Scalars of one step, equal on all ranks.

    Attributes:
        loss: what to call backward on.
        invariance: mean squared distance of the views to their target, detached.
        regularizer: SIGReg (or what was chosen instead of it) averaged over the views, detached. SIGReg is about
            `FLOOR` at convergence, never 0.
    """

    loss: Tensor
    invariance: Tensor
    regularizer: Tensor


class LeJEPA(nn.Module):
    """Equations 5-7 and Algorithm 2 of LeJEPA (arXiv 2511.08544).

        mu_n = mean of z_nv over the global views
        loss = (1 - lambda) * mean over v, n, k of (mu_nk - z_nvk)^2  +  lambda * mean over v of SIGReg(z_v)

    Both terms run over all views, the global ones included. No stop-gradient, no predictor, no teacher.

    Args:
        lamb: lambda in (0, 1). The best value grows with the number of views (the paper's Table 7: .01 / .02 / .05 for
            2 / 4 / 8 views at batches of 256 to 512), and SIGReg's gradient grows with the global batch.
        regularizer: 1024 slices and 17 knots of SIGReg on [0, 3] by default.
        target: what the views are pulled to, see `invariance`.
        pool: "pooled" regularises the views as one sample of V * N, which multiplies SIGReg and its gradient by V
            (as stable-pretraining does); `per_view` is Algorithm 2.
        weighting: "additive" is invariance + lambda * regulariser (as stable-pretraining does), for any lambda > 0.

    Raises:
        ValueError: lamb outside (0, 1), or not positive where it is additive.
    """

    def __init__(
        self,
        lamb: float,
        regularizer: nn.Module | None = None,
        *,
        target: Target = "global_mean",
        pool: Pool = "per_view",
        weighting: Weighting = "convex",
    ) -> None:
        super().__init__()
        self.weigh = Weights(lamb, weighting)
        self.lamb = lamb
        if pool not in get_args(Pool):
            raise ValueError(f"pool must be one of {', '.join(get_args(Pool))}, got {pool!r}.")
        self.regularizer = SIGReg() if regularizer is None else regularizer
        self.target = target
        self.pool = pool

    def extra_repr(self) -> str:
        """Show the settings in print(model)."""
        return f"lamb={self.lamb}, target={self.target}, pool={self.pool}, weighting={self.weigh.kind}"

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
        distance = invariance(z, n_global=len(global_z), target=self.target)
        regularizer = cast(Regularizer, self.regularizer)(pooled(z, self.pool), seed=seed, step=step)
        return LeJEPALoss(self.weigh(distance, regularizer), distance.detach(), regularizer.detach())


class Weights:
    """The one trade-off: lambda between a prediction term and a regulariser.

    Raises:
        ValueError: lamb outside (0, 1), or not positive where it is additive.
    """

    def __init__(self, lamb: float, kind: Weighting = "convex") -> None:
        if kind not in get_args(Weighting):
            raise ValueError(f"weighting must be one of {', '.join(get_args(Weighting))}, got {kind!r}.")
        if not 0 < lamb < (1 if kind == "convex" else float("inf")):
            raise ValueError(
                f"lamb weighs SIGReg against invariance and must lie strictly between 0 and 1, got {lamb}; "
                "start from .05 for 8 views, .02 for 4, .01 for 2. With additive weights it may exceed 1."
            )
        self.lamb, self.kind = lamb, kind

    def __call__(self, prediction: Tensor, regularizer: Tensor) -> Tensor:
        """The loss of the two scalars."""
        return (1 - self.lamb if self.kind == "convex" else 1) * prediction + self.lamb * regularizer


def pooled(z: Tensor, pool: Pool) -> Tensor:
    """(views, batch, dim) as it is, or as the one view (1, views * batch, dim)."""
    return z.flatten(0, 1)[None] if pool == "pooled" else z


def _joined(global_z: Tensor, local_z: Tensor) -> Tensor:
    """Stack the views, global ones first; the samples must be the same."""
    if global_z.ndim != 3 or local_z.ndim != 3 or global_z.shape[1:] != local_z.shape[1:] or len(global_z) == 0:
        raise ValueError(
            "global_z and local_z must be (views, batch, dim) with equal batch and dim and at least one global view, "
            f"got {tuple(global_z.shape)} and {tuple(local_z.shape)}."
        )
    return torch.cat([global_z, local_z])
