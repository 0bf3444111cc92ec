"""Multivariate tests in closed form: the characteristic function in all directions and at all knots at once."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lejepa_med.research.normality.base import NormalityTest, check_sizes
from lejepa_med.training.distributed import all_reduce_sum

# Distances worked on at a time, a block of rows against the global batch: 16 MiB in float32.
_BLOCK = 2**22


class BHEP(NormalityTest):
    """Baringhaus-Henze-Epps-Pulley test of N(0, I), no directions and no quadrature.

        N * integral over R^K of |ecf(t) - exp(-|t|^2 / 2)|^2 N(t; 0, beta^2 I) dt
          = 1/N sum over j, k of exp(-beta^2 |z_j - z_k|^2 / 2)
            - 2 (1 + beta^2)^(-K/2) sum over j of exp(-beta^2 |z_j|^2 / (2 (1 + beta^2))) + N (1 + 2 beta^2)^(-K/2)

    Epps and Pulley (1983), Baringhaus and Henze (1988), with the hypothesis fully specified: nothing is whitened, so
    location and scale count. In one dimension and with beta = 1 it is SIGReg's integral over the whole line, divided by
    sqrt(2 pi).

    It costs O(N^2 K) per view, and the blocks need 48 MiB in float32 beside a few tensors of the size of z, whatever N.
    Distances are differences, never |a|^2 + |b|^2 - 2ab, which loses neighbours far from 0.

    **For few dimensions only.** Two draws from N(0, I) are sqrt(2 K) apart, so for beta = 1 the kernel between
    different samples is about exp(-K): beyond 16 dimensions the statistic is about 1 whatever the batch does, and the
    gradient is about 0. Samples that lie further than about 6 / beta from all others have no gradient in any dimension.

    Args:
        beta: spread of the frequencies; 1 weighs them as SIGReg does. Smaller values look at coarser features
            (beta -> 0: the mean and the skewness, Henze 1997) and reach further: 1 / sqrt(K) keeps the kernel alive.

    Raises:
        ValueError: beta that is not positive and finite.
    """

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        if not 0 < beta < math.inf:
            raise ValueError(f"BHEP needs a positive, finite beta, got {beta}.")
        self.beta = beta

    def extra_repr(self) -> str:
        """Show the settings in print(model)."""
        return f"beta={self.beta}"

    def bandwidth(self, *, n: int, dim: int) -> float:
        """Return the beta in use for a global batch of `n` samples in `dim` dimensions."""
        del n, dim
        return self.beta

    def floor_for(self, *, n: int, dim: int) -> float:
        """Expected value for `n` perfect samples in `dim` dimensions: 1 - (1 + 2 beta^2)^(-dim/2).

        Raises:
            ValueError: fewer than two samples, or no dimension.
        """
        check_sizes(n, dim)
        return -math.expm1(-dim / 2 * math.log1p(2 * self.bandwidth(n=n, dim=dim) ** 2))

    def statistic(self, z: Tensor) -> Tensor:
        """Compute the statistic of each view: z: (views, n, dim) -> (views,), this process alone."""
        return self._share(z, z) + self._constant(z)

    def _mean_over_views(self, own: Tensor, joined: Tensor, *, seed: int, step: int) -> Tensor:
        return all_reduce_sum(self._share(own, joined).mean()) + self._constant(joined)

    def _share(self, own: Tensor, joined: Tensor) -> Tensor:
        """Return this rank's summands: own (views, rows, dim) against joined (views, n, dim) -> (views,)."""
        _, n, dim = joined.shape
        square = self.bandwidth(n=n, dim=dim) ** 2
        centre = joined.detach().mean(1, keepdim=True)  # differences do not feel it; their rounding does
        pairs: Tensor = _PairSums.apply(own - centre, joined - centre, square)
        points = torch.exp(own.square().sum(-1) * (-square / (2 * (1 + square)))).sum(-1)
        return pairs / n - points * (2 * math.exp(-dim / 2 * math.log1p(square)))

    def _constant(self, joined: Tensor) -> float:
        _, n, dim = joined.shape
        return n * math.exp(-dim / 2 * math.log1p(2 * self.bandwidth(n=n, dim=dim) ** 2))


class HenzeZirkler(BHEP):
    """BHEP with the bandwidth of Henze and Zirkler (1990), beta = ((2 K + 1) N / 4)^(1 / (K + 4)) / sqrt 2.

    That beta is the best window of a kernel density estimate of a normal law. Henze and Zirkler whiten the sample by
    its own covariance first; here the hypothesis is N(0, I) itself and nothing is whitened, or collapse would go
    unseen. In high dimension beta falls to 1 / sqrt 2 only, so this one, too, is for few dimensions.
    """

    def __init__(self) -> None:
        super().__init__()

    def extra_repr(self) -> str:
        """Show nothing: the bandwidth follows the batch."""
        return ""

    def bandwidth(self, *, n: int, dim: int) -> float:
        """Return the beta in use for a global batch of `n` samples in `dim` dimensions."""
        return math.exp(math.log((2 * dim + 1) * n / 4) / (dim + 4)) / math.sqrt(2)


class _PairSums(torch.autograd.Function):
    """Sum of exp(-square |row - other|^2 / 2) over rows and others; each block is computed again backward."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, others: Tensor, square: float) -> Tensor:
        ctx.save_for_backward(rows, others)
        ctx.square = square
        total = rows.new_zeros(len(rows))
        for view, part in _blocks(rows, others):
            total[view] += _kernel(rows[view, part], others[view], square).sum()
        return total

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, others = ctx.saved_tensors
        grad_rows, grad_others = torch.empty_like(rows), torch.zeros_like(others)
        for view, part in _blocks(rows, others):
            row, other = rows[view, part], others[view]
            kernel = _kernel(row, other, ctx.square) * (-ctx.square * grad[view])
            grad_rows[view, part] = row * kernel.sum(1, keepdim=True) - kernel @ other
            grad_others[view] += other * kernel.sum(0).unsqueeze(1) - kernel.mT @ row
        return grad_rows, grad_others, None


def _kernel(rows: Tensor, others: Tensor, square: float) -> Tensor:
    """(r, dim) and (n, dim) -> (r, n), from differences."""
    distance = torch.cdist(rows, others, compute_mode="donot_use_mm_for_euclid_dist")
    return distance.square_().mul_(-square / 2).exp_()


def _blocks(rows: Tensor, others: Tensor) -> Iterator[tuple[int, slice]]:
    """Cut the rows of each view so that a block of distances holds at most `_BLOCK` elements, or one row."""
    step = max(1, _BLOCK // others.shape[1])
    for view in range(len(rows)):
        for start in range(0, rows.shape[1], step):
            yield view, slice(start, start + step)
