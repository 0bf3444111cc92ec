"""BYOL and DINO: their losses, the teacher that follows the trained weights as a moving average, and both methods."""

import copy
import math
from typing import TypeVar

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import linear, log_softmax, normalize, softmax
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lejepa_med.config import ResolvedModel
from lejepa_med.distributed import all_reduce_sum
from lejepa_med.methods.base import AddedTerms, Method, Projector, StepOutput, added_terms, project, projector
from lejepa_med.models.encoder import Encoder
from lejepa_med.research.contrast.method import ViewLoss
from lejepa_med.research.teachers import BYOLSettings, DINOSettings

STUDENT_TEMPERATURE = 0.1
TEACHER_TEMPERATURE = (0.04, 0.07)  # rises over the first 30 % of training (DINO, section 3.2: 30 epochs, of 100)
WARM_UP = 0.3
CENTRE_MOMENTUM = 0.9


def byol_loss(predicted: Tensor, target: Tensor) -> ViewLoss:
    """BYOL (arXiv 2006.07733), Equation 2 symmetrised: squared distance of unit vectors, 2 - 2 cosine.

    A view's prediction is compared with every target but its own. For two views this is the paper's sum of both
    directions; for more, twice the mean over the pairs.

    Args:
        predicted: (views, batch, dim), the online predictor's outputs, global views first.
        target: (global views, batch, dim), the target network's projections, without gradient.
    """
    predicted, target = (normalize(_exact(x), dim=2) for x in (predicted, target))
    pairs = teacher_pairs(len(predicted), len(target))
    distance = torch.stack([2 - 2 * (target[t] * predicted[s]).sum(1) for t, s in pairs])
    loss = 2 * _mean(distance)
    return ViewLoss(loss, {"prediction": loss.detach()})


class DINOLoss(nn.Module):
    """Cross-entropy of student and teacher over the prototypes (arXiv 2104.14294, Equation 3 and Algorithm 1).

    The teacher's scores are centred by their moving mean (Equation 4) and sharpened by a low temperature; the two
    together keep it from collapsing. `centre` and `progress` are buffers, so that a resumed run is the same run.

    Args:
        prototypes: number of outputs of the heads.
    """

    centre: Tensor
    progress: Tensor

    def __init__(self, prototypes: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(prototypes))
        self.register_buffer("progress", torch.zeros(()))

    def forward(self, student: Tensor, teacher: Tensor) -> ViewLoss:
        """Loss of one batch; in training it moves the centre afterwards.

        Args:
            student: (views, batch, prototypes), global views first.
            teacher: (global views, batch, prototypes), without gradient.
        """
        student, teacher = _exact(student), _exact(teacher.detach())
        cold, warm = TEACHER_TEMPERATURE
        temperature = cold + (warm - cold) * (self.progress / WARM_UP).clamp(max=1)
        probabilities = softmax((teacher - self.centre) / temperature, dim=2)
        scores = log_softmax(student / STUDENT_TEMPERATURE, dim=2)
        pairs = teacher_pairs(len(student), len(teacher))
        loss = _mean(torch.stack([-(probabilities[t] * scores[s]).sum(1) for t, s in pairs]))
        entropy = _mean(torch.special.entr(probabilities).sum(2))
        if self.training:
            with torch.no_grad():
                rows = teacher.flatten(0, 1)
                total = all_reduce_sum(torch.cat([rows.sum(0), rows.new_full((1,), len(rows))]))
                self.centre.lerp_((total[:-1] / total[-1]).to(self.centre.dtype), 1 - CENTRE_MOMENTUM)
        return ViewLoss(loss, {"cross_entropy": loss.detach(), "teacher_entropy": entropy.detach()})


def _mean(x: Tensor) -> Tensor:
    """Mean over all elements of all ranks, with its gradient."""
    total = all_reduce_sum(torch.stack([x.sum(), x.new_full((), x.numel())]))
    return total[0] / total[1]


def _exact(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def teacher_pairs(n_views: int, n_global: int) -> list[tuple[int, int]]:
    """Ordered pairs (teacher view, student view): teachers are global, none teaches itself (DINO, Equation 3)."""
    return [(t, s) for t in range(n_global) for s in range(n_views) if s != t]


Net = TypeVar("Net", bound=nn.Module)


def make_teacher(student: Net) -> Net:
    """A copy without gradients and without stochastic depth and dropout, as in both papers' code.

    It stays in training mode: its batch normalisations use the batch, and keep running statistics of their own.
    """
    teacher = copy.deepcopy(student).requires_grad_(False)
    for module in teacher.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
    return teacher


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, *, momentum: float) -> None:
    """Teacher = momentum * teacher + (1 - momentum) * student, for parameters; running statistics are its own."""
    average = get_ema_multi_avg_fn(momentum)
    average(_own(teacher), _own(student), None)


def _own(net: nn.Module) -> list[Tensor]:
    """This process's part of each parameter: the whole, or its shard (FSDP2), which is cut alike in both nets."""
    return [p.to_local() if isinstance(p, DTensor) else p.detach() for p in net.parameters()]


def momentum_at(step: int, *, steps: int, base: float) -> float:
    """From `base` to 1 along a cosine (BYOL, section 3.3: 1 - (1 - base) (cos(pi k / K) + 1) / 2; DINO likewise)."""
    return 1 - (1 - base) * (math.cos(math.pi * step / steps) + 1) / 2


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


def build_byol(settings: BYOLSettings, encoder: Encoder, model: ResolvedModel) -> BYOLMethod:
    """The method of these settings around an encoder."""
    head, dim = projector(model, encoder.dim), model.projector_dim
    return BYOLMethod(
        encoder,
        head,
        Projector(dim, hidden=model.projector_hidden, depth=2, out_dim=dim),
        momentum=settings.teacher_momentum,
        added=added_terms(settings),
    )


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


def build_dino(settings: DINOSettings, encoder: Encoder, model: ResolvedModel) -> DINOMethod:
    """The method of these settings around an encoder."""
    head = DINOHead(
        encoder.dim,
        hidden=model.projector_hidden,
        depth=model.projector_depth,
        bottleneck=model.projector_dim,
        prototypes=settings.prototypes,
    )
    return DINOMethod(encoder, head, momentum=settings.teacher_momentum, added=added_terms(settings))
