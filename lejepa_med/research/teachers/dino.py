"""DINO: the student matches its moving average's soft assignment to prototypes, across views."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from lejepa_med.config import ResolvedModel
from lejepa_med.methods.base import AddedTerms, Method, StepOutput, added_terms
from lejepa_med.models.encoder import Encoder
from lejepa_med.research.teachers import DINOSettings
from lejepa_med.research.teachers.losses import DINOLoss
from lejepa_med.research.teachers.teacher import follow, make_teacher, momentum_at

HELD = 0.01  # share of the training in which the prototypes stand still: 1 epoch of 100 in the authors' code


class DINOHead(nn.Module):
    """DINO's head (arXiv 2104.14294, appendix C): MLP with GELU, unit-length bottleneck, scores against prototypes.

    Prototypes are used at unit length, which is the paper's weight normalisation with its gain held at 1
    (`norm_last_layer`). No batch normalisation, as for the paper's ViTs.

    Args:
        in_dim: width of the encoder's embedding.
        hidden: width of the hidden layers; 2048 in the paper.
        depth: number of linear layers before the prototypes, >= 1; 3 in the paper.
        bottleneck: width that the prototypes are compared in; 256 in the paper.
        prototypes: number of scores; 65536 in the paper, for ImageNet.
    """

    def __init__(self, in_dim: int, *, hidden: int, depth: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = in_dim
        for _ in range(depth - 1):
            layers += [nn.Linear(width, hidden), nn.GELU()]
            width = hidden
        self.layers = nn.Sequential(*layers, nn.Linear(width, bottleneck))
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck))
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        nn.init.trunc_normal_(self.prototypes, std=0.02)

    def forward(self, x: Tensor, *, train_prototypes: Tensor) -> tuple[Tensor, Tensor]:
        """Score embeddings.

        Args:
            x: (views * batch, in_dim).
            train_prototypes: scalar 1, or 0 to hold the prototypes still (their gradient is then 0, not missing, which
                data-parallel training would not forgive).

        Returns:
            The bottleneck (views * batch, bottleneck), not normalised, and the scores (views * batch, prototypes).
        """
        z: Tensor = self.layers(x)
        held = self.prototypes.detach()
        weight = held + train_prototypes * (self.prototypes - held)
        return z, linear(normalize(z, dim=1), normalize(weight, dim=1))


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


def build(settings: DINOSettings, encoder: Encoder, model: ResolvedModel) -> DINOMethod:
    """The method of these settings around an encoder."""
    head = DINOHead(
        encoder.dim,
        hidden=model.projector_hidden,
        depth=model.projector_depth,
        bottleneck=model.projector_dim,
        prototypes=settings.prototypes,
    )
    return DINOMethod(encoder, head, momentum=settings.teacher_momentum, added=added_terms(settings))
