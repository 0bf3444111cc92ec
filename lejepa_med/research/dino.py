"""DINO: the student matches its moving average's soft assignment to prototypes, across views."""

import torch
from torch import Tensor

from lejepa_med.methods.added import AddedTerms
from lejepa_med.methods.base import Method, StepOutput
from lejepa_med.models.encoder import Encoder
from lejepa_med.models.projector import DINOHead
from lejepa_med.research.distillation import DINOLoss
from lejepa_med.research.teacher import follow, make_teacher, momentum_at

HELD = 0.01  # share of the training in which the prototypes stand still: 1 epoch of 100 in the authors' code


class DINOMethod(Method):
    """Student and teacher, each an encoder and a head (arXiv 2104.14294).

    The teacher sees the global views only, the student all. The student's encoder is what a run saves; the teacher,
    whose momentum has reached 1 by then, is in the checkpoint, as are its centre and the schedules' state.

    Args:
        encoder: the backbone.
        head: its head.
        momentum: of the teacher at the first step.
        added: further terms, on the student's bottleneck before it is brought to unit length.
    """

    def __init__(
        self, encoder: Encoder, head: DINOHead, *, momentum: float = 0.996, added: AddedTerms | None = None
    ) -> None:
        super().__init__(encoder, added=added)
        self.head = head
        self.objective = DINOLoss(len(head.prototypes))
        self.teacher_encoder = make_teacher(encoder)
        self.teacher_head = make_teacher(head)
        self.momentum = momentum

    def forward(self, global_views: Tensor, local_views: Tensor | None, *, seed: int, step: int) -> StepOutput:
        """Loss of one batch, with the terms cross_entropy and teacher_entropy (0 or log K say that it collapsed)."""
        embeddings = self.embed_views(global_views, local_views)
        shape = embeddings.shape[:2]
        z, scores = self.head(embeddings.flatten(0, 1), train_prototypes=self.objective.progress >= HELD)
        with torch.no_grad():
            seen = self.teacher_encoder(global_views.flatten(0, 1))
            _, taught = self.teacher_head(seen, train_prototypes=self.objective.progress)
        loss, terms = self.objective(scores.unflatten(0, shape), taught.unflatten(0, global_views.shape[:2]))
        return self.finish(loss, terms, embeddings=embeddings, z=z.unflatten(0, shape), seed=seed, step=step)

    def after_step(self, *, step: int, steps: int) -> None:
        """Move the teacher, and the schedules of temperature and prototypes."""
        momentum = momentum_at(step, steps=steps, base=self.momentum)
        follow(self.teacher_encoder, self.encoder, momentum=momentum)
        follow(self.teacher_head, self.head, momentum=momentum)
        self.objective.progress.fill_((step + 1) / steps)
