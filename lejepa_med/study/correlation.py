"""Rank correlation over runs, with its uncertainty."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lejepa_med.probes.scores import point
from lejepa_med.probes.scores import spearman as rank_correlation

DRAWS = 5000
FEW = 8  # runs below which the interval itself is hardly worth anything


@dataclass(frozen=True)
class Correlation:
    """Spearman's coefficient over `runs` runs, and its 95 % percentile bootstrap interval, resampling runs."""

    value: float
    low: float
    high: float
    runs: int


def spearman(
    x: NDArray[np.float64], y: NDArray[np.float64], *, strata: Sequence[str] | None = None, seed: int = 0
) -> Correlation | None:
    """Spearman's rank correlation of x and y, (n,); ties get their mean rank.

    With `strata` (n,) only comparisons within a stratum count: ranks are taken there, as shares of its size, and
    centred; the bootstrap resamples there, too. Strata of fewer than 3 runs are left out.

    None where it is undefined: fewer than 3 runs, or one of both constant. Draws of the bootstrap in which one of both
    is constant have no coefficient and are left out.
    """
    names = np.zeros(len(x), dtype=int) if strata is None else np.unique(np.array(strata), return_inverse=True)[1]
    kept = np.isfinite(x) & np.isfinite(y)
    parts = [np.flatnonzero(kept & (names == name)) for name in np.unique(names)]
    parts = [rows for rows in parts if len(rows) >= 3]
    if not parts:
        return None
    rows = np.concatenate(parts)
    statistic = rank_correlation(x[rows], y[rows], names[rows])
    value = point(statistic, len(rows))
    if value is None:
        return None
    rng = np.random.default_rng([seed, 95])
    drawn = [rng.multinomial(len(part), np.full(len(part), 1 / len(part)), size=DRAWS) for part in parts]
    values = statistic(np.concatenate(drawn, axis=1).astype(np.float64))
    low, high = np.quantile(values[np.isfinite(values)], [0.025, 0.975])
    return Correlation(value=value, low=float(low), high=float(high), runs=len(rows))
