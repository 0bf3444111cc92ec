"""Rank correlation over runs, with its uncertainty."""

from collections.abc import Sequence
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
    value = float(_rows([(x[rows][None], y[rows][None]) for rows in parts])[0])
    if not np.isfinite(value):
        return None
    rng = np.random.default_rng([seed, 95])
    drawn = [rows[rng.integers(0, len(rows), size=(DRAWS, len(rows)))] for rows in parts]
    values = _rows([(x[rows], y[rows]) for rows in drawn])
    low, high = np.quantile(values[np.isfinite(values)], [0.025, 0.975])
    return Correlation(value=value, low=float(low), high=float(high), runs=sum(map(len, parts)))


def _rows(parts: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> NDArray[np.float64]:
    """The coefficient of each row over parts (draws, n) -> (draws,); NaN where a row is constant in every part."""
    a, b = (np.concatenate([_centred(part[side]) for part in parts], axis=1) for side in (0, 1))
    with np.errstate(invalid="ignore"):
        return np.asarray((a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1)))


def _centred(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks of each row, as shares of its length, less their mean."""
    ranks = rankdata(table, axis=1)
    # divided last, so that equal ranks give zeros
    return np.asarray((ranks - ranks.mean(1, keepdims=True)) / table.shape[1])
