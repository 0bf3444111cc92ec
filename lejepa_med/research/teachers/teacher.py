"""Teachers: copies that follow the trained weights as a moving average (BYOL, DINO)."""

import copy
import math
from typing import TypeVar

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

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
