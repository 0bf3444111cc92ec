"""BYOL: an online network predicts the projections of a moving average of itself."""

import torch
from torch import Tensor, nn

from lejepa_med.config import ResolvedModel
from lejepa_med.methods.base import AddedTerms, Method, StepOutput, added_terms, project, projector
from lejepa_med.models.encoder import Encoder
from lejepa_med.models.projector import Projector
from lejepa_med.research.teachers import BYOLSettings
from lejepa_med.research.teachers.losses import byol_loss
from lejepa_med.research.teachers.teacher import follow, make_teacher, momentum_at


class BYOLMethod(Method):
    """Online encoder, projector and predictor; target encoder and projector (arXiv 2006.07733).

    The target sees the global views only, the online network all. The online encoder is what a run saves, as in the
    paper. The target's weights are part of the checkpoint.

    Args:
        encoder: the backbone.
        projector: its head.
        predictor: from the projector's output to the same width.
        momentum: of the target at the first step.
        added: further terms, on the online projections.
    """

    def __init__(
        self,
        encoder: Encoder,
        projector: nn.Module,
        predictor: nn.Module,
        *,
        momentum: float = 0.996,
        added: AddedTerms | None = None,
    ) -> None:
        super().__init__(encoder, added=added)
        self.projector = projector
        self.predictor = predictor
        self.target_encoder = make_teacher(encoder)
        self.target_projector = make_teacher(projector)
        self.momentum = momentum

    def forward(self, global_views: Tensor, local_views: Tensor | None, *, seed: int, step: int) -> StepOutput:
        """Loss of one batch, with the term prediction."""
        embeddings = self.embed_views(global_views, local_views)
        z = project(self.projector, embeddings)
        predicted = project(self.predictor, z)
        with torch.no_grad():
            seen = self.target_encoder(global_views.flatten(0, 1)).unflatten(0, global_views.shape[:2])
            target = project(self.target_projector, seen)
        loss, terms = byol_loss(predicted, target)
        return self.finish(loss, terms, embeddings=embeddings, z=z, seed=seed, step=step)

    def after_step(self, *, step: int, steps: int) -> None:
        """Move the target."""
        momentum = momentum_at(step, steps=steps, base=self.momentum)
        follow(self.target_encoder, self.encoder, momentum=momentum)
        follow(self.target_projector, self.projector, momentum=momentum)


def build(settings: BYOLSettings, encoder: Encoder, model: ResolvedModel) -> BYOLMethod:
    """The method of these settings around an encoder."""
    head, dim = projector(model, encoder.dim), model.projector_dim
    return BYOLMethod(
        encoder,
        head,
        Projector(dim, hidden=model.projector_hidden, depth=2, out_dim=dim),
        momentum=settings.teacher_momentum,
        added=added_terms(settings),
    )
