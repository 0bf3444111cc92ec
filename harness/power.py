"""The power of a statistical test of normality against alternatives to N(0, I).

Power is the share of samples from an alternative that a test rejects at the 5 % level; its critical value is the 95th
percentile of its own values on samples from N(0, I), so floors and asymptotics do not matter. All draws have fixed
seeds.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from lejepa_med.objective.normality import SlicedTest
from lejepa_med.research.normality import BHEP

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]

N = 256
LEVEL = 0.05
ALTERNATIVES: dict[str, Draw] = {
    "N(.3, 1)": lambda rng, shape: rng.normal(0.3, 1, shape),
    "N(0, 1.5^2)": lambda rng, shape: rng.normal(0, 1.5, shape),
    "uniform": lambda rng, shape: rng.uniform(-(3**0.5), 3**0.5, shape),
    "Laplace": lambda rng, shape: rng.laplace(0, 0.5**0.5, shape),
    "bimodal": lambda rng, shape: rng.normal(0, 0.6, shape) + 0.8 * rng.choice([-1.0, 1.0], shape),
    "exponential - 1": lambda rng, shape: rng.exponential(1, shape) - 1,
}
"""Alternatives to N(0, 1); all but the first two have mean 0 and variance 1."""


def values(test: nn.Module, z: Tensor) -> Tensor:
    """Return the statistic of each sample alone; z: (samples, n, dim) -> (samples,)."""
    with torch.no_grad():
        if isinstance(test, SlicedTest) and z.shape[2] == 1:
            return test.statistic(z[..., 0])
        if isinstance(test, BHEP):
            return test.statistic(z)
        return torch.stack([test(view[None], seed=0, step=0) for view in z])


def rejection_rates(
    test: nn.Module,
    alternatives: Mapping[str, Draw],
    *,
    dim: int = 1,
    n: int = N,
    null_reps: int,
    reps: int,
    dtype: torch.dtype = torch.float64,
) -> dict[str, float]:
    """Return the power of `test` at the 5 % level against each alternative."""
    rng = np.random.default_rng(0)
    null = values(test, torch.from_numpy(rng.standard_normal((null_reps, n, dim))).to(dtype))
    critical = torch.quantile(null, 1 - LEVEL)
    rates = {}
    for index, (name, draw) in enumerate(alternatives.items(), start=1):
        z = torch.from_numpy(draw(np.random.default_rng(index), (reps, n, dim))).to(dtype)
        rates[name] = float((values(test, z) > critical).double().mean())
    return rates
