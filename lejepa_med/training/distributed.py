"""The few collective operations of the method, as identities in a single process."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of training processes; 1 without an initialised process group.

    Asked at every call, never remembered: an objective is often built before the process group exists.
    """
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Index of this process in [0, world_size)."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum `x` (any shape, the same on all ranks) over the ranks, out of place, with the gradient that belongs to it.

    `torch.distributed.all_reduce` works in place and is invisible to autograd, so the gradient would miss what the
    other ranks' losses owe to this rank's input. Here forward and backward are both sums: a statistic that every rank
    computes from the sum gets world_size times its gradient, and the mean over ranks that DDP takes brings back exactly
    the gradient of one process on the joined batch.
    """
    if world_size() == 1:
        return x
    reduced: Tensor = _AllReduceSum.apply(x)
    return reduced


class _AllReduceSum(torch.autograd.Function):
    """SUM forward, SUM backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _reduced(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _reduced(grad)


def _reduced(x: Tensor) -> Tensor:
    total = x.detach().clone(memory_format=torch.contiguous_format)  # backends refuse strided tensors
    dist.all_reduce(total)
    return total
