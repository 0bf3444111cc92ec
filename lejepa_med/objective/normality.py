"""Tests of N(0, I) for SIGReg: all measure how far a batch of embeddings is from it, and are called alike.

`make_test(name)` builds one: epps_pulley (SIGReg itself, the paper's choice), cramer_von_mises, anderson_darling, or
one of lejepa_med.research. All are modules without parameters, called as `test(z, seed=..., step=...)` with z: (views,
batch, dim), and all are equal over ranks. `docs/method.md` compares them, `benchmarks/normality.py` measures them.

The tests of the distribution function here sort the batch, which is differentiable almost everywhere. Equal values keep
their order in the batch, so even an exactly collapsed batch is pulled apart, which tests of characteristic functions or
moments cannot do.
"""

import math
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lejepa_med.distributed import all_gather_rows, all_reduce_sum, rank, world_size
from lejepa_med.objective.sigreg import SIGReg, directions

RESEARCH = "lejepa_med.research"  # by its name: nothing else of lejepa_med imports it
# The simulated floors: at most this many numbers are drawn, in at most this many samples.
_FLOOR_DRAWS = 2**22
_FLOOR_SAMPLES = 4096


class NormalityTest(nn.Module):
    """A test of the fully specified hypothesis that the rows of a view are independent draws from N(0, I).

    Location and scale belong to the hypothesis, so every statistic here penalises them. It is the mean over views of
    the statistic of the global batch, computed in float32 (float64 for float64 input) whatever autocast says. There are
    no parameters and no buffers, so nothing is added to a checkpoint.
    """

    @property
    def floor(self) -> float | None:
        """Expected value for perfect N(0, I) where it depends on nothing, else None: see `floor_for`."""
        return None

    def floor_for(self, *, n: int, dim: int) -> float:
        """Expected value for `n` perfect samples in `dim` dimensions; subtract it before comparing or plotting.

        Raises:
            ValueError: fewer than two samples, or no dimension.
        """
        raise NotImplementedError

    def forward(self, z: Tensor, *, seed: int, step: int) -> Tensor:
        """Average the statistic over views.

        Under DDP every rank passes its own samples (any number, at least one). All ranks return the value of the joined
        batch, and DDP's mean over ranks turns their gradients into exactly the gradient of that value.

        Args:
            z: (views, batch, dim), any floating-point type.
            seed: the run's seed, equal on all ranks.
            step: the optimiser step, equal on all ranks; it chooses the directions.

        Returns:
            A scalar, equal on all ranks, in float64 or float32.

        Raises:
            ValueError: z is not three-dimensional or is empty.
        """
        if z.ndim != 3 or z.numel() == 0:
            name = type(self).__name__
            raise ValueError(f"{name} expects a non-empty z of shape (views, batch, dim), got {tuple(z.shape)}.")
        z = z if z.dtype == torch.float64 else z.float()
        with torch.autocast(z.device.type, enabled=False):
            return self._mean_over_views(z, all_gather_rows(z, dim=1), seed=seed, step=step)

    def _mean_over_views(self, own: Tensor, joined: Tensor, *, seed: int, step: int) -> Tensor:
        """Return the mean statistic; own: (views, this rank's batch, dim), joined: (views, global batch, dim)."""
        raise NotImplementedError


class SlicedTest(NormalityTest):
    """A univariate test of N(0, 1), averaged over random directions (the Cramer-Wold device, as in SIGReg).

    The embeddings, not the projections, are gathered from the ranks, and each rank tests its share of the directions on
    the global batch: less to send where slices > dim, and the sorting is divided among the ranks. Memory grows with
    views x slices x batch; a few tensors of that size are kept for the backward pass.

    Args:
        slices: number M of random directions, drawn anew at each step.

    Raises:
        ValueError: slices < 1.
    """

    def __init__(self, slices: int = 1024) -> None:
        super().__init__()
        if slices < 1:
            raise ValueError(f"{type(self).__name__} needs at least one slice, got slices={slices}.")
        self.slices = slices

    def extra_repr(self) -> str:
        """Show the settings in print(model)."""
        return f"slices={self.slices}"

    def statistic(self, x: Tensor) -> Tensor:
        """Compute the statistic of each sample: x: (..., n) -> (...), float32 or float64."""
        raise NotImplementedError

    def floor_for(self, *, n: int, dim: int) -> float:
        """Expected value for `n` perfect samples; the same in every dimension, for projections of N(0, I) are N(0, 1).

        Raises:
            ValueError: fewer than two samples, or no dimension.
        """
        check_sizes(n, dim)
        return self._floor_of(n) if self.floor is None else self.floor

    def _floor_of(self, n: int) -> float:
        """Expected value for n samples; by simulation with a fixed seed unless the test knows its closed form."""
        return _simulated(self, n)

    def _mean_over_views(self, own: Tensor, joined: Tensor, *, seed: int, step: int) -> Tensor:
        columns = directions(
            joined.shape[2], self.slices, seed=seed, step=step, device=joined.device, dtype=joined.dtype
        )[:, rank() :: world_size()]
        values = self.statistic(columns.mT @ joined.mT)  # (views, this rank's slices)
        return all_reduce_sum(values.sum()) / (len(joined) * self.slices)


def check_sizes(n: int, dim: int) -> None:
    """Refuse sizes for which no floor is defined."""
    if n < 2 or dim < 1:
        raise ValueError(f"A floor needs at least two samples and one dimension, got n={n} and dim={dim}.")


@lru_cache(maxsize=64)
def _simulated(test: SlicedTest, n: int) -> float:
    samples = max(1, min(_FLOOR_SAMPLES, _FLOOR_DRAWS // n))
    drawn = np.random.default_rng(0).standard_normal((samples, n))
    with torch.no_grad():
        return float(test.statistic(torch.from_numpy(drawn)).mean())


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
        return cramer_von_mises(torch.special.ndtr(ordered(x)))


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


def cramer_von_mises(u: Tensor) -> Tensor:
    """Return W^2 of sorted probabilities u: (..., n)."""
    n = u.shape[-1]
    centre = (torch.arange(n, dtype=u.dtype, device=u.device) + 0.5) / n
    return 1 / (12 * n) + (u - centre).square().sum(-1)


_BUILT_IN: dict[str, type[SlicedTest]] = {"cramer_von_mises": CramerVonMises, "anderson_darling": AndersonDarling}


def known_tests() -> list[str]:
    """Names of all tests, the default first."""
    return ["epps_pulley", *_BUILT_IN, *import_module(RESEARCH).TESTS]


def make_test(name: str, *, slices: int = 1024, knots: int = 17, t_max: float = 3.0) -> SIGReg | NormalityTest:
    """Build the regulariser of this name.

    Args:
        name: one of `known_tests`.
        slices: number of random directions; the multivariate tests have none.
        knots: quadrature of epps_pulley; the others have none.
        t_max: end of the integration interval of epps_pulley; the others have none.

    Raises:
        ValueError: an unknown name, or settings that the test refuses.
    """
    if name == "epps_pulley":
        return SIGReg(slices=slices, knots=knots, t_max=t_max)
    if name not in known_tests():
        raise ValueError(f"There is no test named {name!r}; choose one of {', '.join(known_tests())}.")
    kind: type[NormalityTest] = _BUILT_IN.get(name) or _of_research(name)
    return kind(slices) if issubclass(kind, SlicedTest) else kind()


def _of_research(name: str) -> Any:
    module, _, kind = import_module(RESEARCH).TESTS[name].rpartition(":")
    return getattr(import_module(module), kind)


def floor_for(test: SIGReg | NormalityTest, *, n: int, dim: int) -> float:
    """Expected value of `test` for `n` perfect draws (over all ranks) from N(0, I) in `dim` dimensions.

    Exact, but for shapiro_wilk and entropy, which are simulated with a fixed seed; their standard errors are .03 and
    .07 at n = 256, .06 and .5 at n = 4096.

    Raises:
        ValueError: fewer than two samples, or no dimension.
    """
    return test.floor if isinstance(test, SIGReg) else test.floor_for(n=n, dim=dim)
