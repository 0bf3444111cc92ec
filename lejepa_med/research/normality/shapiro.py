"""The Shapiro-Wilk test: how straight the normal quantile plot is."""

import math
from functools import lru_cache

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from lejepa_med.research.normality.base import SlicedTest
from lejepa_med.research.normality.distribution import ordered
from lejepa_med.research.normality.moments import location_and_scale, standardised

# Royston (1992), Statistics and Computing 2, 117-119: the two outermost coefficients as polynomials in 1/sqrt(n),
# from the constant term (which is the normal score's share) to the fifth power.
_OUTER = (0.221157, -0.147981, -2.071190, 4.434685, -2.706056)
_SECOND = (0.042981, -0.293762, -1.752461, 5.682633, -3.582633)


class ShapiroWilk(SlicedTest):
    """Shapiro and Wilk (1965), with mean and variance added.

        N (1 - W) + N mean^2 + N (variance - 1)^2 / 2,    W = (sum over i of a_i x_(i))^2 / sum over i of (x_i - mean)^2

    W is the squared correlation of the sorted batch with (about) the expected normal order statistics. By nature it
    sees neither location nor scale, and alone it would allow collapse: the terms of `VCReg` are added for both. W uses
    Royston's coefficients, as `scipy.stats.shapiro`. 1 - W is computed as the residual sum of squares, which float32
    resolves where a difference from 1 would not be. Its gradient grows as the batch shrinks, down to a standard
    deviation of .01, and ends there (`VARIANCE_GUARD`).
    """

    def statistic(self, x: Tensor) -> Tensor:
        """Compute the statistic of each sample: x: (..., n) -> (...)."""
        value, deviation, variance = location_and_scale(x)
        return value + self.shape(standardised(deviation, variance))

    @staticmethod
    def shape(y: Tensor) -> Tensor:
        """Return N (1 - W) of standardised samples y: (..., n) -> (...)."""
        y = ordered(y)
        a = _coefficients(y.shape[-1]).to(y)
        slope = (y * a).sum(-1, keepdim=True)
        return (y - slope * a).square().sum(-1)  # |a| = 1 and |y|^2 = n


@lru_cache(maxsize=64)
def _coefficients(n: int) -> Tensor:
    """Return the n weights a of Royston (1992), of unit length and antisymmetric, in float64.

    The rule was fitted for n up to 2000 and is smooth beyond. Two samples always lie on a line; one has no shape.
    """
    if n == 1:
        return torch.zeros(1, dtype=torch.float64)
    score = ndtri((np.arange(1, n + 1) - 0.375) / (n + 0.25))
    a = score / np.linalg.norm(score)
    if n > 3:
        outer = 1 if n <= 5 else 2
        for i, polynomial in enumerate((_OUTER, _SECOND)[:outer]):
            a[-1 - i] += sum(c / math.sqrt(n) ** power for power, c in enumerate(polynomial, start=1))
            a[i] = -a[-1 - i]
        inner = slice(outer, n - outer)
        ends = 2 * float(np.square(a[-outer:]).sum())
        a[inner] = score[inner] * math.sqrt((1 - ends) / np.square(score[inner]).sum())
    return torch.from_numpy(a)
