"""Tests of the distribution function: distances between the sorted batch and N(0, 1).

Sorting is differentiable almost everywhere. Equal values keep their order in the batch, so even an exactly collapsed
batch is pulled apart, which tests of characteristic functions or moments cannot do.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lejepa_med.research.normality.base import SlicedTest


class CramerVonMises(SlicedTest):
    """Squared distance of the distribution functions (Cramer 1928, von Mises 1931), as `scipy.stats.cramervonmises`.

        W^2 = 1 / (12 N) + sum over i of (Phi(x_(i)) - (2 i - 1) / (2 N))^2

    The gradient carries the normal density at x, so samples far from 0 are hardly pulled back: 10 standard deviations
    away the gradient is 0 in float32.
    """

    @property
    def floor(self) -> float:
        """Expected value for perfect N(0, I) batches of any size."""
        return 1 / 6

    def statistic(self, x: Tensor) -> Tensor:
        """Compute the statistic of each sample: x: (..., n) -> (...)."""
        return _cramer_von_mises(torch.special.ndtr(ordered(x)))


class Watson(SlicedTest):
    """Watson's U^2 (1961): Cramer-von Mises with the common shift of the probabilities taken out.

        U^2 = W^2 - N (mean of Phi(x) - 1/2)^2

    Zero in the limit only for N(0, 1). Stronger against shapes of mean 0 and variance 1, weaker against a shifted mean;
    at collapse to one point the value does not depend on the point. The gradient fades far from 0, as for
    `CramerVonMises`.
    """

    @property
    def floor(self) -> float:
        """Expected value for perfect N(0, I) batches of any size."""
        return 1 / 12

    def statistic(self, x: Tensor) -> Tensor:
        """Compute the statistic of each sample: x: (..., n) -> (...)."""
        u: Tensor = torch.special.ndtr(ordered(x))
        return _cramer_von_mises(u) - x.shape[-1] * (u.mean(-1) - 0.5).square()


class AndersonDarling(SlicedTest):
    """Cramer-von Mises weighted by 1 / (Phi (1 - Phi)), which lifts the tails (Anderson and Darling 1952).

        A^2 = -N - 1/N sum over i of [(2 i - 1) log Phi(x_(i)) + (2 N + 1 - 2 i) log(1 - Phi(x_(i)))]

    Computed as twice the sum of the divergences of Bernoulli(Phi(x_(i))) from Bernoulli((2 i - 1) / (2 N)), plus a
    constant of N: the plain sum is a difference of numbers N times as large. The gradient grows linearly with x.
    """

    @property
    def floor(self) -> float:
        """Expected value for perfect N(0, I) batches of any size."""
        return 1.0

    def statistic(self, x: Tensor) -> Tensor:
        """Compute the statistic of each sample: x: (..., n) -> (...)."""
        n = x.shape[-1]
        p = (torch.arange(n, dtype=torch.float64, device=x.device) + 0.5) / n
        constant = -n - 2 * (p * p.log() + (1 - p) * (1 - p).log()).sum()
        return constant.to(x.dtype) + 2 * bernoulli_divergence(p, ordered(x)).sum(-1)


def ordered(x: Tensor) -> Tensor:
    """Sort x: (..., n) along its last dimension; equal values stay in order, on every rank alike."""
    return x.sort(dim=-1, stable=True).values


def bernoulli_divergence(p: Tensor, x: Tensor) -> Tensor:
    """Kullback-Leibler divergence of Bernoulli(Phi(x)) from Bernoulli(p).

    Args:
        p: (n,) in [0, 1], float64.
        x: (..., n).

    Returns:
        (..., n), not negative, about x^2 p / 2 for large x; in the type of x.
    """
    negentropy = (torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)).to(x.dtype)
    lower, upper = p.to(x.dtype), (1 - p).to(x.dtype)
    return negentropy - lower * log_ndtr(x) - upper * log_ndtr(-x)


def log_ndtr(x: Tensor) -> Tensor:
    """Logarithm of the normal distribution function, with a gradient that is right in the far tail.

    The gradient of `torch.special.log_ndtr` is the exponential of a difference that float32 cannot hold: wrong by a
    factor of 6 at -10^4.
    """
    value: Tensor = _LogNdtr.apply(x)
    return value


class _LogNdtr(torch.autograd.Function):
    """The derivative is the inverse Mills ratio, sqrt(2 / pi) / erfcx(-x / sqrt 2)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        value: Tensor = torch.special.log_ndtr(x)
        return value

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        inverse_mills: Tensor = math.sqrt(2 / math.pi) / torch.special.erfcx(x * -math.sqrt(0.5))
        return grad * inverse_mills


def _cramer_von_mises(u: Tensor) -> Tensor:
    """W^2 of sorted probabilities u: (..., n)."""
    n = u.shape[-1]
    centre = (torch.arange(n, dtype=u.dtype, device=u.device) + 0.5) / n
    return 1 / (12 * n) + (u - centre).square().sum(-1)
