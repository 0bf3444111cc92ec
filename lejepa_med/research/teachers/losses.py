"""The losses of BYOL and DINO, in which a student predicts what its slowly moving teacher makes of another view."""

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, normalize, softmax

from lejepa_med.distributed import all_reduce_sum
from lejepa_med.research.contrast.losses import ViewLoss

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
