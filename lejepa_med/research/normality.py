"""Further tests of N(0, I), found by name through `lejepa_med.objective.normality.make_test`.

Watson's of the distribution function; of the first moments (cheap and smooth, but blind to every law that shares those
moments with N(0, 1)); Shapiro and Wilk's, of the straightness of the quantile plot; of information (the likelihood of
the sorted batch, the entropy of its spacings); and multivariate ones in closed form, of the characteristic function in
all directions and at all knots at once.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor
from torch.autograd.function import once_differentiable

from lejepa_med.distributed import all_reduce_sum
from lejepa_med.objective.normality import (
    NormalityTest,
    SlicedTest,
    bernoulli_divergence,
    check_sizes,
    cramer_von_mises,
    ordered,
)


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
        return cramer_von_mises(u) - x.shape[-1] * (u.mean(-1) - 0.5).square()


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
