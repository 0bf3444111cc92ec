"""L2 logistic regression on standardised vectors, along a path of strengths."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from lejepa_med.evaluation.solver import logistic_path

GRID = (0.001, 0.01, 0.1, 1.0, 10.0)
SEARCH_TOLERANCE, FINAL_TOLERANCE = 3e-4, 1e-6  # of the gradient; the first is enough to rank strengths
SMALL_PROBLEM = 4_000_000  # numbers in the design matrix; below it a second BLAS thread costs more than it brings


@dataclass(frozen=True)
class LinearModel:
    """softmax(coef @ ((vector - mean) / scale) + intercept).

    mean, scale: (dim,). coef: (classes, dim). intercept: (classes,).
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    coef: NDArray[np.float64]
    intercept: NDArray[np.float64]

    def probabilities(self, vectors: NDArray[Any]) -> NDArray[np.float64]:
        """(n, dim) -> (n, classes), rows summing to 1."""
        logits = (np.asarray(vectors, np.float64) - self.mean) / self.scale @ self.coef.T + self.intercept
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def fit_path(
    vectors: NDArray[Any],
    labels: NDArray[np.int64],
    *,
    strengths: Sequence[float] = GRID,
    final: bool = False,
) -> list[LinearModel]:
    """One model for each inverse regularisation strength C, each started from the one before.

    vectors: (n, dim). labels: (n,) codes 0 .. classes - 1, all of which must occur. Classes weigh equally whatever
    their counts (scikit-learn's "balanced"), so probabilities are those of a population with equal classes. A search
    among strengths is solved coarsely in float32, the `final` model tightly in float64.
    """
    wide = np.asarray(vectors, np.float64)
    mean, deviation = wide.mean(0), wide.std(0)
    # A feature that is constant up to rounding must not be blown up to unit variance.
    scale = np.where(deviation > 1e-7 * np.maximum(np.abs(mean), 1e-30), deviation, 1.0)
    design = (wide - mean) / scale
    basis: NDArray[np.float64] | None = None
    if design.shape[1] > design.shape[0]:
        # The L2 optimum lies in the span of the examples; an orthonormal basis of it keeps the penalty, so fitting
        # n instead of dim coefficients is exact.
        basis, triangle = np.linalg.qr(design.T)
        design = np.ascontiguousarray(triangle.T)
    solutions = logistic_path(
        design,
        labels,
        strengths=strengths,
        tolerance=FINAL_TOLERANCE if final else SEARCH_TOLERANCE,
        precision=np.float64 if final else np.float32,
    )
    return [
        LinearModel(mean=mean, scale=scale, coef=coef if basis is None else coef @ basis.T, intercept=intercept)
        for coef, intercept in solutions
    ]


@contextmanager
def quiet_threads(numbers: int) -> Iterator[None]:
    """One BLAS thread while a small problem of that many numbers is solved; large ones keep what the process has."""
    with threadpool_limits(limits=1 if numbers < SMALL_PROBLEM else None, user_api="blas"):
        yield
