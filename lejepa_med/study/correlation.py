"""Rank correlation over runs, with its uncertainty."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

DRAWS = 5000
FEW = 8  # runs below which the interval itself is hardly worth anything


@dataclass(frozen=True)
class Correlation:
    """Spearman's coefficient over `runs` runs, and its 95 % percentile bootstrap interval, resampling runs."""

    value: float
    low: float
    high: float
    runs: int


def spearman(x: NDArray[np.float64], y: NDArray[np.float64], *, seed: int = 0) -> Correlation | None:
    """Spearman's rank correlation of x and y, (n,); ties get their mean rank.

    None where it is undefined: fewer than 3 runs, or one of both constant. Draws of the bootstrap in which one of both
    is constant have no coefficient and are left out.
    """
    kept = np.isfinite(x) & np.isfinite(y)
    x, y = x[kept], y[kept]
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    value = float(_rows(x[None], y[None])[0])
    drawn = np.random.default_rng([seed, 95]).integers(0, len(x), size=(DRAWS, len(x)))
    values = _rows(x[drawn], y[drawn])
    low, high = np.quantile(values[np.isfinite(values)], [0.025, 0.975])
    return Correlation(value=value, low=float(low), high=float(high), runs=len(x))


def _rows(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Spearman's coefficient of each row, (draws, n) -> (draws,); NaN where a row is constant."""
    a, b = (rankdata(table, axis=1) for table in (x, y))
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return np.asarray((a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1)))
