"""The contract between a method and the training loop, and the heads and terms that methods share."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lejepa_med.config import ResolvedModel
from lejepa_med.methods.settings import MethodSettings, RegularisedSettings
from lejepa_med.models.encoder import Encoder
from lejepa_med.objective.normality import make_test
from lejepa_med.objective.regularizers import SpectralEntropy, VISReg, variance_hinge


class Projector(nn.Module):
    """MLP: (Linear, BatchNorm, ReLU) x (depth - 1), then a plain Linear.

    Three layers with batch normalisation are the paper's choice (arXiv 2511.08544, Table 4: accuracy grows with the
    depth), 64 outputs its best width (Table 1d). The last layer is plain: SIGReg itself sets mean and scale.

    Args:
        in_dim: width of the encoder's embedding.
        hidden: width of the hidden layers; 512 to 1024 for archives below about 5000 images.
        depth: number of linear layers, >= 1.
        out_dim: width of the output, the K of the objective.

    Raises:
        ValueError: a width or depth below 1.
    """

    def __init__(self, in_dim: int, hidden: int = 2048, depth: int = 3, out_dim: int = 64) -> None:
        super().__init__()
        if min(in_dim, hidden, depth, out_dim) < 1:
            raise ValueError(
                "Projector widths and depth must be at least 1, got "
                f"in_dim={in_dim}, hidden={hidden}, depth={depth}, out_dim={out_dim}."
            )
        self.in_dim = in_dim
        self.out_dim = out_dim
        layers: list[nn.Module] = []
        width = in_dim
        for _ in range(depth - 1):
            # No bias before batch normalisation: its mean subtraction would cancel it.
            layers += [nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)]
            width = hidden
        self.layers = nn.Sequential(*layers, nn.Linear(width, out_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Project embeddings.

        Args:
            x: (views * batch, in_dim). All views go through in one call, so that batch normalisation sees them all:
                one call per view would let it shift each view by itself.

        Returns:
            (views * batch, out_dim).

        Raises:
            ValueError: x is not (rows, in_dim).
        """
        if x.ndim != 2 or x.shape[1] != self.in_dim:
            raise ValueError(
                f"Projector expects (views * batch, {self.in_dim}), got {tuple(x.shape)}; flatten views into rows."
            )
        z: Tensor = self.layers(x)
        return z


class StepOutput(NamedTuple):
    """What one forward pass of a method gives.

    Attributes:
        loss: scalar to call backward on.
        terms: its parts by name, detached scalars, written to metrics.jsonl.
        features: (B, dim), the encoder's embeddings of the first global view, detached.
        z: (B, K), the projector's output for the same view, detached.
        z_views: (V, B, K), the projector's output for all views, detached; None where a method has no such output.
    """

    loss: Tensor
    terms: Mapping[str, Tensor]
    features: Tensor
    z: Tensor
    z_views: Tensor | None = None


class AddedTerms(nn.Module):
    """Terms that can be added to the loss of any method.

    loss + sigreg_weight * SIGReg(z) + hinge_weight * hinge(z), per view on the projector's output.

    Args:
        sigreg: the regulariser; None without it.
        sigreg_weight: its weight.
        hinge_weight: weight of `variance_hinge`; 0 without it.
    """

    def __init__(self, sigreg: nn.Module | None, *, sigreg_weight: float, hinge_weight: float) -> None:
        super().__init__()
        self.sigreg = sigreg
        self.sigreg_weight = sigreg_weight
        self.hinge_weight = hinge_weight

    def forward(
        self, loss: Tensor, terms: Mapping[str, Tensor], z: Tensor, *, seed: int, step: int
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The whole loss, and the terms with `sigreg` and `variance_hinge` where they are on.

        Args:
            loss: of the method.
            terms: its parts.
            z: (views, batch, K).
            seed: as in `Method.forward`.
            step: as in `Method.forward`.
        """
        found = dict(terms)
        if self.sigreg is not None:
            value = self.sigreg(z, seed=seed, step=step)
            loss, found["sigreg"] = loss + self.sigreg_weight * value, value.detach()
        if self.hinge_weight > 0:
            value = variance_hinge(z)
            loss, found["variance_hinge"] = loss + self.hinge_weight * value, value.detach()
        return loss, found


class Method(nn.Module):
    """An encoder, its heads and a loss. The encoder is what a run saves; the rest lives in checkpoints only.

    Derive, build heads in `__init__`, and write `forward`. All randomness comes from torch's global generator, which
    the loop seeds from (seed, step, rank) before every step, or from the `seed` and `step` passed in.
    """

    def __init__(self, encoder: Encoder, *, added: AddedTerms | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.added = added

    def embed_views(self, global_views: Tensor, local_views: Tensor | None) -> Tensor:
        """Embeddings of all views, global ones first.

        Global and local views go through the encoder as two batches, since their sizes differ.

        Args:
            global_views: (Vg, B, C, H, W), or (Vg, B, C, D, H, W) of volumes.
            local_views: (Vl, B, C, h, w) or (Vl, B, C, d, h, w), or None.

        Returns:
            (Vg + Vl, B, dim).
        """
        embeddings = self.encoder(global_views.flatten(0, 1))
        if local_views is not None:
            embeddings = torch.cat([embeddings, self.encoder(local_views.flatten(0, 1))])
        return embeddings.unflatten(0, (-1, global_views.shape[1]))  # type: ignore[no-any-return]

    def finish(
        self, loss: Tensor, terms: Mapping[str, Tensor], *, embeddings: Tensor, z: Tensor, seed: int, step: int
    ) -> StepOutput:
        """Add the terms that were asked for, and detach what the log looks at.

        Args:
            loss: the method's own loss.
            terms: its parts.
            embeddings: (views, B, dim), the first global view first.
            z: (views, B, K), the projector's outputs, on which added terms act.
            seed: as in `forward`.
            step: as in `forward`.
        """
        if self.added is not None:
            loss, terms = self.added(loss, terms, z, seed=seed, step=step)
        return StepOutput(loss=loss, terms=terms, features=embeddings[0].detach(), z=z[0].detach(), z_views=z.detach())

    def forward(self, global_views: Tensor, local_views: Tensor | None, *, seed: int, step: int) -> StepOutput:
        """Loss of one batch; `seed` and `step` are equal on all ranks."""
        raise NotImplementedError(f"{type(self).__name__} must define forward()")

    def after_step(self, *, step: int, steps: int) -> None:
        """Called after optimiser step `step` (from 0) of `steps`; for what follows the weights, such as a teacher."""


def project(head: nn.Module, embeddings: Tensor) -> Tensor:
    """(V, B, dim) -> (V, B, K). A head's batch norm sees all views in one pass."""
    z: Tensor = head(embeddings.flatten(0, 1)).unflatten(0, embeddings.shape[:2])
    return z


def projector(model: ResolvedModel, in_dim: int) -> Projector:
    """The projector of these settings."""
    return Projector(in_dim, hidden=model.projector_hidden, depth=model.projector_depth, out_dim=model.projector_dim)


def regularizer(settings: RegularisedSettings) -> nn.Module:
    """What keeps the embeddings from collapsing."""
    if settings.regularizer == "visreg":
        return VISReg(slices=settings.slices)
    if settings.regularizer == "spectral_entropy":
        return SpectralEntropy()
    return sigreg(settings)


def sigreg(settings: MethodSettings) -> nn.Module:
    """SIGReg with the chosen statistical test."""
    return make_test(settings.test, slices=settings.slices, knots=settings.knots, t_max=settings.t_max)


def added_terms(settings: MethodSettings) -> AddedTerms | None:
    """Terms on top of the method's loss; None without any."""
    if settings.sigreg_weight == 0 and settings.variance_hinge == 0:
        return None
    return AddedTerms(
        sigreg(settings) if settings.sigreg_weight else None,
        sigreg_weight=settings.sigreg_weight,
        hinge_weight=settings.variance_hinge,
    )
