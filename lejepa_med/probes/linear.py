"""Linear models on standardised vectors: logistic regression of classes or labels, and ridge regression."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression, Ridge
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

MOST_ITERATIONS = 2000
GRID = (0.001, 0.01, 0.1, 1.0, 10.0)
MIDDLE = GRID[len(GRID) // 2]
SEARCH_TOLERANCE, FINAL_TOLERANCE = 1e-4, 1e-6  # of the gradient; the first is enough to rank strengths
SMALL_PROBLEM = 4_000_000  # numbers in the design matrix; below it a second BLAS thread costs more than it brings
PENALTIES = tuple(10.0 ** (1 - step / 2) for step in range(11))  # 10 .. 1e-4, of a mean squared error


@dataclass(frozen=True)
class LinearModel:
    """coef @ ((vector - mean) / scale) + intercept: one head a class or label, a single one for two classes.

    mean, scale: (dim,). coef: (heads, dim). intercept: (heads,).
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    coef: NDArray[np.float64]
    intercept: NDArray[np.float64]

    def __post_init__(self) -> None:
        # one layout, as it is read back from a folder: BLAS sums in another order for the transposed one
        object.__setattr__(self, "coef", np.ascontiguousarray(self.coef))

    def logits(self, vectors: NDArray[Any]) -> NDArray[np.float64]:
        """(n, dim) -> (n, heads)."""
        return (np.asarray(vectors, np.float64) - self.mean) / self.scale @ self.coef.T + self.intercept

    def class_logits(self, vectors: NDArray[Any]) -> NDArray[np.float64]:
        """(n, dim) -> (n, classes); of two classes, the first one's is 0."""
        found = self.logits(vectors)
        return np.hstack([np.zeros_like(found), found]) if found.shape[1] == 1 else found

    def probabilities(self, vectors: NDArray[Any]) -> NDArray[np.float64]:
        """(n, dim) -> (n, classes), rows summing to 1."""
        return np.asarray(softmax(self.class_logits(vectors), axis=1))


def standardise(vectors: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return vectors (n, dim) with mean 0 and deviation 1 in each column, the means and the deviations."""
    wide = np.asarray(vectors, np.float64)
    mean, deviation = wide.mean(0), wide.std(0)
    # A feature that is constant up to the rounding of float32 must not be blown up to unit variance, as scikit-learn's
    # StandardScaler does, which looks for the rounding of float64.
    scale = np.where(deviation > 1e-7 * np.maximum(np.abs(mean), 1e-30), deviation, 1.0)
    return (wide - mean) / scale, mean, scale


def fit_path(
    vectors: NDArray[Any],
    labels: NDArray[np.int64],
    *,
    strengths: Sequence[float] = GRID,
    final: bool = False,
    balanced: bool = True,
) -> list[LinearModel]:
    """Fit exclusive classes: one logistic regression for each inverse regularisation strength C.

    vectors: (n, dim). labels: (n,) codes 0 .. classes - 1, all of which must occur. With `balanced`, classes weigh
    equally whatever their counts, so probabilities are those of a population with equal classes. A search among
    strengths is solved coarsely in float32, which takes a quarter off its time; the `final` model tightly in float64.
    """
    return _logistic_path(*standardise(vectors), labels, strengths, final, balanced)


def fit_heads(
    vectors: NDArray[Any],
    marks: NDArray[np.bool_],
    *,
    strengths: Sequence[float] = GRID,
    final: bool = False,
    balanced: bool = False,
) -> list[LinearModel]:
    """Fit independent labels: one model for each strength, in which each label has a logistic regression of its own.

    vectors: (n, dim). marks: (n, labels), each of which must occur and be absent. With `balanced`, presence and absence
    of a label weigh equally. The rest as in `fit_path`.
    """
    design, mean, scale = standardise(vectors)
    each = [_logistic_path(design, mean, scale, mark, strengths, final, balanced) for mark in marks.T]
    return [
        LinearModel(mean, scale, np.vstack([m.coef for m in models]), np.concatenate([m.intercept for m in models]))
        for models in zip(*each, strict=True)
    ]


def _logistic_path(
    design: NDArray[np.float64],
    mean: NDArray[np.float64],
    scale: NDArray[np.float64],
    truth: NDArray[Any],
    strengths: Sequence[float],
    final: bool,
    balanced: bool,
) -> list[LinearModel]:
    """Fit standardised features (n, dim) for each strength, each time from the solution before."""
    solver = LogisticRegression(
        class_weight="balanced" if balanced else None,
        tol=FINAL_TOLERANCE if final else SEARCH_TOLERANCE,
        max_iter=MOST_ITERATIONS,
        warm_start=True,
    )
    design, found = design.astype(np.float64 if final else np.float32), []
    for strength in strengths:
        solver.set_params(C=strength).fit(design, truth)
        coef, intercept = np.array(solver.coef_, np.float64), np.array(solver.intercept_, np.float64)
        found.append(LinearModel(mean, scale, coef, intercept))
    return found


@contextmanager
def blas_threads(numbers: int) -> Iterator[None]:
    """Use one BLAS thread while a small problem of that many numbers is solved; larger ones keep all threads."""
    with threadpool_limits(limits=1 if numbers < SMALL_PROBLEM else None, user_api="blas"):
        yield


def fit_ridge(
    vectors: NDArray[Any], values: NDArray[np.float64], *, penalties: Sequence[float] = PENALTIES
) -> list[LinearModel]:
    """Fit numbers: one model with a single head for each penalty; minimises mean squared error + penalty * |coef|^2.

    vectors: (n, dim). values: (n,). scikit-learn's Ridge takes penalty * n. It takes one penalty for each target, so
    the targets are copies of the values: all penalties then share one product of the features.
    """
    design, mean, scale = standardise(vectors)
    targets = np.tile(np.asarray(values, np.float64)[:, None], len(penalties))
    fitted = Ridge(alpha=np.array(penalties) * len(design), solver="cholesky").fit(design, targets)
    coef, intercept = fitted.coef_.reshape(len(penalties), 1, -1), fitted.intercept_.reshape(len(penalties), 1)
    return [LinearModel(mean, scale, *one) for one in zip(coef, intercept, strict=True)]


@dataclass(frozen=True, eq=False)
class Leverage:
    """The leverage of new vectors over labelled ones in ridge regression; its matrix is factored when first asked for.

    vectors: (n, dim), of which those count that the mask `rows` (n,) picks; by default all.
    """

    vectors: NDArray[np.float32]
    penalty: float
    rows: NDArray[np.bool_] | None = None

    @cached_property
    def _factored(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], Any]:
        """Z (n, dim) with the means and deviations behind it, and the smaller of Z'Z and ZZ', + penalty n, factored."""
        design, mean, scale = standardise(self.vectors if self.rows is None else self.vectors[self.rows])
        count, dim = design.shape
        product = design.T @ design if dim <= count else design @ design.T
        return design, mean, scale, cho_factor(product + self.penalty * count * np.eye(len(product)))

    def of(self, vectors: NDArray[Any]) -> NDArray[np.float64]:
        """Return z' (Z'Z + penalty n)^-1 z + 1/n of vectors (n, dim): (n,).

        Variance of the fitted value over the noise's, in the Bayesian reading of ridge (Bishop 2006, 3.59).
        """
        design, mean, scale, factor = self._factored
        count, dim = design.shape
        new = (np.asarray(vectors, np.float64) - mean) / scale
        if dim <= count:
            found = (new * cho_solve(factor, new.T).T).sum(1)
        else:  # the same by the identity of Woodbury
            inner = new @ design.T
            rest = (new**2).sum(1) - (inner * cho_solve(factor, inner.T).T).sum(1)
            found = rest / (self.penalty * count)
        return np.asarray(np.maximum(found, 0) + 1 / count)
