"""Baselines without a teacher: encoder, projector, and a loss on the projections of all views."""

from torch import Tensor, nn

from lejepa_med.config import ResolvedModel
from lejepa_med.methods.base import AddedTerms, Method, StepOutput, added_terms, project, projector
from lejepa_med.methods.settings import MethodSettings
from lejepa_med.models.encoder import Encoder


class ContrastMethod(Method):
    """VICReg, Barlow Twins or SimCLR.

    Args:
        encoder: the backbone.
        projector: its head.
        objective: `VICReg`, `BarlowTwins` or `SimCLR` of `lejepa_med.research.contrast.losses`.
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
