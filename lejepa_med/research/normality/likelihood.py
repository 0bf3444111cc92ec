"""Tests of information: the likelihood of the sorted batch, and the entropy of its spacings."""

import math

import torch
from torch import Tensor

from lejepa_med.research.normality.base import SlicedTest
from lejepa_med.research.normality.distribution import bernoulli_divergence, ordered


class NLL(SlicedTest):
    """Negative log-likelihood of the order statistics, each under its own law, averaged; up to a constant of N.

    The k-th smallest of N normal draws has density proportional to Phi^(k-1) (1 - Phi)^(N-k) phi. With
    p_k = (k - 1) / (N - 1), minus the mean log-density is, without its constants,

        1/N sum over k of [(N - 1) KL(Bernoulli(p_k) | Bernoulli(Phi(x_(k)))) + x_(k)^2 / 2]

    never negative. The likelihood of the unsorted batch would be the last term alone, whose best batch is a collapsed
    one; the order statistics forbid that. A close relative of Anderson-Darling; the gradient grows linearly with x.
    """

    def statistic(self, x: Tensor) -> Tensor:
        """Compute the statistic of each sample: x: (..., n) -> (...)."""
        n = x.shape[-1]
        divergence = bernoulli_divergence(_positions(n, x.device), ordered(x))
        return (n - 1) * divergence.mean(-1) + x.square().mean(-1) / 2

    def _floor_of(self, n: int) -> float:
        # E log U and E log(1 - U) of U ~ Beta(k, n - k + 1), the law of Phi(x_(k)).
        k = torch.arange(1, n + 1, dtype=torch.float64)
        p = _positions(n, "cpu")
        mean_log = torch.digamma(k) - torch.digamma(torch.tensor(n + 1.0, dtype=torch.float64))
        entropy = torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)
        divergence = entropy - p * mean_log - (1 - p) * mean_log.flip(0)
        return float((n - 1) * divergence.mean()) + 0.5


class Entropy(SlicedTest):
    """Kullback-Leibler divergence from N(0, 1), with the entropy H estimated from spacings, times N.

        N [mean of x^2 / 2 + log(2 pi) / 2 - H],    H = 1/N sum over i of [log(x_(i+m) - x_(i-m)) - E_i]

    Vasicek (1976), made for tests of normality; indices beyond the ends stand for the ends. E_i is the expectation of
    the logarithm for N uniform samples, digamma(number of gaps) - digamma(N + 1) (Wieczorkowski and Grzegorzewski
    1999): without it H would be about 1 / (4 m) too small. It is a constant, so the gradient is Vasicek's. The
    statistic may be negative: a batch can be more regular than chance.

    Spacings narrower than .01 or 1/N count by the tangent of the logarithm there, so that value and gradient stay
    finite at collapse and equal samples are pulled apart. The gradient is noisy: it is the inverse of spacings.

    Args:
        slices: number of random directions.
        window: m. Small, unlike the sqrt(N) of estimation: a minimiser exploits wide windows, where only the
            outermost samples feel the ends. From about 5 on, free points end with too heavy tails.

    Raises:
        ValueError: slices < 1 or window < 1.
    """

    def __init__(self, slices: int = 1024, window: int = 3) -> None:
        super().__init__(slices)
        if window < 1:
            raise ValueError(f"Entropy needs a window of at least one spacing, got {window}.")
        self.window = window

    def extra_repr(self) -> str:
        """Show the settings in print(model)."""
        return f"slices={self.slices}, window={self.window}"

    def statistic(self, x: Tensor) -> Tensor:
        """Compute the statistic of each sample: x: (..., n) -> (...)."""
        return x.shape[-1] * (x.square().mean(-1) / 2 + math.log(2 * math.pi) / 2 - self.entropy(x))

    def entropy(self, x: Tensor) -> Tensor:
        """Estimate the differential entropy of each sample, in nats: x: (..., n) -> (...)."""
        n = x.shape[-1]
        index = torch.arange(n, device=x.device)
        above, below = (index + self.window).clamp(max=n - 1), (index - self.window).clamp(min=0)
        in_order = ordered(x)
        spacing = in_order[..., above] - in_order[..., below]
        guard = min(1e-2, 1 / n)
        wide = spacing.clamp(min=guard)
        gaps = (above - below).clamp(min=1).double()  # a single sample has none
        expected = (torch.digamma(gaps) - torch.digamma(torch.full_like(gaps, n + 1))).to(x.dtype)
        return (wide.log() + (spacing - wide) / guard - expected).mean(-1)


def _positions(n: int, device: torch.device | str) -> Tensor:
    """Return (k - 1) / (n - 1) for k = 1 .. n, in float64; 0 where n is 1."""
    return torch.arange(n, dtype=torch.float64, device=device) / max(1, n - 1)
