"""Tests of the first moments: cheap and smooth, but blind to every law that shares those moments with N(0, 1)."""

import math

import torch
from torch import Tensor

from lejepa_med.research.normality.base import SlicedTest

VARIANCE_GUARD = 1e-4
"""Variances below this are not divided by: scale-free shapes of a batch with a standard deviation under .01 are mostly
rounding, and their gradient grows with 1 / standard deviation without bound."""


def location_and_scale(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return N mean^2 + N (variance - 1)^2 / 2, the deviations (..., n) and the variance (...) of x: (..., n).

    To first order it is the score test of N(0, 1) against all N(mu, sigma^2). The variance is the biased one about the
    sample mean. Nothing is divided, so it and its gradient are bounded at collapse.
    """
    n = x.shape[-1]
    mean = x.mean(-1)
    deviation = x - mean.unsqueeze(-1)
    variance = deviation.square().mean(-1)
    return n * (mean.square() + (variance - 1).square() / 2), deviation, variance


def standardised(deviation: Tensor, variance: Tensor) -> Tensor:
    """Divide the deviations (..., n) by the standard deviation, or by .01 where that is less."""
    return deviation * variance.clamp(min=VARIANCE_GUARD).rsqrt().unsqueeze(-1)


def location_and_scale_floor(n: int) -> float:
    """Expected `location_and_scale` of n draws from N(0, 1): 1 for the mean, (2 n - 1) / (2 n) for the variance."""
    return 2 - 1 / (2 * n)


class VCReg(SlicedTest):
    """Mean and variance along every direction, that is: centre 0 and covariance I. The idea of VICReg, sliced.

        N mean^2 + N (variance - 1)^2 / 2

    No power at all against other laws of unit variance: it stops at decorrelated embeddings of any shape. LeJEPA
    (arXiv 2511.08544, section 4.2) writes N mean^2 / variance; we do not divide, for that is unbounded at collapse.
    """

    def statistic(self, x: Tensor) -> Tensor:
        """Compute the statistic of each sample: x: (..., n) -> (...)."""
        return location_and_scale(x)[0]

    def _floor_of(self, n: int) -> float:
        return location_and_scale_floor(n)


class JarqueBera(SlicedTest):
    """The extended Jarque-Bera test of LeJEPA (arXiv 2511.08544, section 4.2): mean, variance, skewness, kurtosis.

        N mean^2 + N (variance - 1)^2 / 2 + N / 6 skewness^2 + N / 24 (kurtosis - 3)^2

    Asymptotically chi-squared with 4 degrees of freedom. The last two terms are those of Jarque and Bera (1980), as in
    `scipy.stats.jarque_bera`; the mean is not divided by the variance (see `VCReg`). Skewness and kurtosis are
    scale-free: their gradient grows as the batch shrinks, down to a standard deviation of .01 (`VARIANCE_GUARD`).
    """

    def statistic(self, x: Tensor) -> Tensor:
        """Compute the statistic of each sample: x: (..., n) -> (...)."""
        value, deviation, variance = location_and_scale(x)
        y = standardised(deviation, variance)
        skewness, kurtosis = y.pow(3).mean(-1), y.pow(4).mean(-1)
        return value + x.shape[-1] * (skewness.square() / 6 + (kurtosis - 3).square() / 24)

    def _floor_of(self, n: int) -> float:
        # Fisher's exact moments of the sample skewness and kurtosis of a normal sample.
        skewness = 6 * (n - 2) / ((n + 1) * (n + 3))
        kurtosis = 24 * n * (n - 2) * (n - 3) / ((n + 1) ** 2 * (n + 3) * (n + 5)) + (6 / (n + 1)) ** 2
        return location_and_scale_floor(n) + n * (skewness / 6 + kurtosis / 24)


class Moments(SlicedTest):
    """Neyman's smooth test: the first moments in the basis in which they are independent under N(0, 1).

        sum over k = 1 .. order of  N (mean of He_k(x))^2 / k!      (He_k: Hermite polynomials, E He_k^2 = k!)

    Asymptotically chi-squared with `order` degrees of freedom, and with expectation `order` for every N. The statistic
    grows with the (2 order)-th power of an outlier: the gradient explodes far from N(0, 1).

    Args:
        slices: number of random directions.
        order: highest moment, 2 to 4; the square of a higher one overflows float32 at embeddings of 10^4.

    Raises:
        ValueError: slices < 1 or order outside 2 to 4.
    """

    def __init__(self, slices: int = 1024, order: int = 4) -> None:
        super().__init__(slices)
        if not 2 <= order <= 4:
            raise ValueError(f"Moments needs an order from 2 (no scale below) to 4 (overflow above), got {order}.")
        self.order = order

    @property
    def floor(self) -> float:
        """Expected value for perfect N(0, I) batches of any size."""
        return float(self.order)

    def extra_repr(self) -> str:
        """Show the settings in print(model)."""
        return f"slices={self.slices}, order={self.order}"

    def statistic(self, x: Tensor) -> Tensor:
        """Compute the statistic of each sample: x: (..., n) -> (...)."""
        before, hermite = torch.ones_like(x), x
        total = x.mean(-1).square()
        for k in range(2, self.order + 1):
            before, hermite = hermite, x * hermite - (k - 1) * before
            total = total + hermite.mean(-1).square() / math.factorial(k)
        return x.shape[-1] * total
