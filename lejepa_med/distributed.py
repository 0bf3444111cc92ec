"""The few collective operations of the method, as identities in a single process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_alone = False


@contextmanager
def alone() -> Iterator[None]:
    """A block in which this process computes as if it were the only one, so that it waits for no other rank."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def world_size() -> int:
    """Number of training processes; 1 without an initialised process group, or `alone`.

    Asked at every call, never remembered: an objective is often built before the process group exists.
    """
    return dist.get_world_size() if not _alone and dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Index of this process in [0, world_size)."""
    return dist.get_rank() if not _alone and dist.is_available() and dist.is_initialized() else 0


def ranks_here() -> int:
    """Processes of the run on this machine, as torchrun says; 1 without it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


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


def all_gather_rows(x: Tensor, *, dim: int) -> Tensor:
    """Join the ranks' shares of `x` along `dim`, in rank order, with the gradient that belongs to it.

    For statistics that no sum over samples can express, such as those of the sorted batch. Ranks may hold different
    numbers of rows; the other dimensions must agree. The gradient is the sum over ranks of what each owes to the rows
    of this one, so the same rule as for `all_reduce_sum` holds: a statistic that all ranks compute from the joined rows
    gets world_size times its gradient, which DDP's mean undoes. The sizes are exchanged first, which on a GPU waits for
    the device.
    """
    if world_size() == 1:
        return x
    joined: Tensor = _AllGatherRows.apply(x, dim)
    return joined


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


class _AllGatherRows(torch.autograd.Function):
    """Gather forward; SUM and this rank's rows backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:
        own = torch.tensor([x.shape[dim]], device=x.device)
        counts = [torch.empty_like(own) for _ in range(world_size())]
        dist.all_gather(counts, own)
        sizes = [int(count) for count in counts]
        padded = x.movedim(dim, 0).new_zeros(max(sizes), *x.movedim(dim, 0).shape[1:])  # backends want equal shapes
        padded[: x.shape[dim]] = x.movedim(dim, 0)
        shares = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(shares, padded)
        ctx.dim, ctx.start, ctx.size = dim, sum(sizes[: rank()]), x.shape[dim]
        return torch.cat([share[:size] for share, size in zip(shares, sizes, strict=True)]).movedim(0, dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _reduced(grad).narrow(ctx.dim, ctx.start, ctx.size), None
