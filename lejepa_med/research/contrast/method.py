"""The losses of VICReg, Barlow Twins and SimCLR: baselines, each from its paper, for two views or more.

With V views, terms on pairs are averaged over the pairs that hold a global view, terms on single views over the views;
for two global views each loss is its paper's. Batch statistics are those of the joined batch of all ranks.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from lejepa_med.config import ResolvedModel
from lejepa_med.distributed import all_gather_rows
from lejepa_med.methods.base import AddedTerms, Method, StepOutput, added_terms, project, projector
from lejepa_med.methods.settings import MethodSettings
from lejepa_med.models.encoder import Encoder


class ViewLoss(NamedTuple):
    """Scalars of one step, equal on all ranks: the loss, and its parts by name, detached."""

    loss: Tensor
    terms: dict[str, Tensor]


class VICReg(nn.Module):
    """VICReg (arXiv 2105.04906), Algorithm 1: 25 invariance + 25 variance + 1 covariance.

    As in the algorithm, the invariance is a mean over dimensions; Equation 5 writes a sum, for which these weights
    would not be the paper's.

    Args:
        weights: of invariance, variance and covariance.
    """

    def __init__(self, weights: tuple[float, float, float] = (25.0, 25.0, 1.0)) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, z: Tensor, *, n_global: int) -> ViewLoss:
        """`z`: (views, batch, dim), global views first; this rank's share."""
        z = joined(z)
        with torch.autocast(z.device.type, enabled=False):
            pairs = view_pairs(len(z), n_global)
            invariance = torch.stack([(z[a] - z[b]).square().mean() for a, b in pairs]).mean()
            variance = (1 - (z.var(1) + 1e-4).sqrt()).clamp_min(0).mean() * 2  # a sum over the paper's two views
            rest = z - z.mean(1, keepdim=True)
            covariance = rest.mT @ rest / (z.shape[1] - 1)
            off = covariance.square().sum((1, 2)) - covariance.diagonal(dim1=1, dim2=2).square().sum(1)
            redundancy = 2 * (off / z.shape[2]).mean()
            parts = (invariance, variance, redundancy)
            loss = sum((w * part for w, part in zip(self.weights, parts, strict=True)), start=z.new_zeros(()))
        return ViewLoss(loss, _detached(("invariance", "variance", "covariance"), parts))


class BarlowTwins(nn.Module):
    """Barlow Twins (arXiv 2103.03230), Equations 1 and 2: the cross-correlation of two views should be the identity.

    Args:
        redundancy_weight: lambda of Equation 1; the paper's best is .005.
    """

    def __init__(self, redundancy_weight: float = 5e-3) -> None:
        super().__init__()
        self.redundancy_weight = redundancy_weight

    def forward(self, z: Tensor, *, n_global: int) -> ViewLoss:
        """`z`: (views, batch, dim), global views first; this rank's share."""
        z = joined(z)
        with torch.autocast(z.device.type, enabled=False):
            unit = normalize(z - z.mean(1, keepdim=True), dim=1)
            pairs = view_pairs(len(z), n_global)
            diagonal, off = [], []
            for a, b in pairs:
                correlation = unit[a].mT @ unit[b]
                own = correlation.diagonal()
                diagonal.append((1 - own).square().sum())
                off.append(correlation.square().sum() - own.square().sum())
            parts = (torch.stack(diagonal).mean(), torch.stack(off).mean())
        return ViewLoss(parts[0] + self.redundancy_weight * parts[1], _detached(("invariance", "redundancy"), parts))


class SimCLR(nn.Module):
    """NT-Xent of SimCLR (arXiv 2002.05709), Equation 1: of 2N - 1 others, find the other view of the same image.

    Args:
        temperature: tau; the paper's best on ImageNet is .1 (Table 5).
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, z: Tensor, *, n_global: int) -> ViewLoss:
        """`z`: (views, batch, dim), global views first; this rank's share."""
        z = joined(z)
        with torch.autocast(z.device.type, enabled=False):
            unit = normalize(z, dim=2)
            n = z.shape[1]
            partner = torch.arange(2 * n, device=z.device).roll(n)
            itself = torch.eye(2 * n, dtype=torch.bool, device=z.device)
            losses = []
            for a, b in view_pairs(len(z), n_global):
                both = torch.cat([unit[a], unit[b]])
                losses.append(
                    cross_entropy((both @ both.mT / self.temperature).masked_fill(itself, -torch.inf), partner)
                )
            loss = torch.stack(losses).mean()
        return ViewLoss(loss, {"contrast": loss.detach()})


def joined(z: Tensor) -> Tensor:
    """All ranks' samples of z (views, batch, dim), in float32 or float64.

    Raises:
        ValueError: not three-dimensional, fewer than two views or fewer than two samples.
    """
    z = all_gather_rows(z if z.dtype == torch.float64 else z.float(), dim=1)
    if z.ndim != 3 or z.shape[0] < 2 or z.shape[1] < 2:
        raise ValueError(f"Expected (views, batch, dim) with at least 2 views and 2 samples, got {tuple(z.shape)}.")
    return z


def _detached(names: tuple[str, ...], parts: tuple[Tensor, ...]) -> dict[str, Tensor]:
    return {name: part.detach() for name, part in zip(names, parts, strict=True)}


def view_pairs(n_views: int, n_global: int) -> list[tuple[int, int]]:
    """Unordered pairs (a, b), a < b, of which at least one is global; for two global views the one pair of the papers.

    Two local views are not compared: they may share no pixel (multi-crop, arXiv 2006.09882).
    """
    return [(a, b) for a in range(n_global) for b in range(a + 1, n_views)]


class ContrastMethod(Method):
    """VICReg, Barlow Twins or SimCLR.

    Args:
        encoder: the backbone.
        projector: its head.
        objective: `VICReg`, `BarlowTwins` or `SimCLR` of `lejepa_med.research.contrast.method`.
        added: further terms.
    """

    def __init__(
        self, encoder: Encoder, projector: nn.Module, objective: nn.Module, *, added: AddedTerms | None = None
    ) -> None:
        super().__init__(encoder, added=added)
        self.projector = projector
        self.objective = objective

    def forward(self, global_views: Tensor, local_views: Tensor | None, *, seed: int, step: int) -> StepOutput:
        """Loss of one batch, with the objective's terms."""
        embeddings = self.embed_views(global_views, local_views)
        z = project(self.projector, embeddings)
        loss, terms = self.objective(z, n_global=len(global_views))
        return self.finish(loss, terms, embeddings=embeddings, z=z, seed=seed, step=step)


def build(settings: MethodSettings, loss: nn.Module, encoder: Encoder, model: ResolvedModel) -> ContrastMethod:
    """The method with this loss around an encoder."""
    return ContrastMethod(encoder, projector(model, encoder.dim), loss, added=added_terms(settings))
