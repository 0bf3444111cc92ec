"""Linear models on standardised vectors: logistic regression of classes or labels, and ridge regression."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize
from scipy.special import softmax
from sklearn.linear_model import Ridge
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

MOST_ITERATIONS = 2000
Solution = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Coefficients (heads, dim) and intercepts (heads,)."""
GRID = (0.001, 0.01, 0.1, 1.0, 10.0)
MIDDLE = GRID[len(GRID) // 2]
SEARCH_TOLERANCE, FINAL_TOLERANCE = 3e-4, 1e-6  # of the gradient; the first is enough to rank strengths
SMALL_PROBLEM = 4_000_000  # numbers in the design matrix; below it a second BLAS thread costs more than it brings
PENALTIES = tuple(10.0 ** (1 - step / 2) for step in range(11))  # 10 .. 1e-4, of a mean squared error


@dataclass(frozen=True)
class Rotation:
    """Eigenvalues (dim,) and eigenvectors (dim, dim) of the features' covariance, or of one close to it.

    It decides how fast a fit is, never where it ends, so the fits of a cross-validation share one.
    """

    eigenvalues: NDArray[np.floating[Any]]
    axes: NDArray[np.floating[Any]]

    @classmethod
    def of(cls, design: NDArray[np.float64], precision: type[np.floating[Any]] = np.float32) -> "Rotation":
        """Return the rotation of standardised features (n, dim)."""
        narrow = design.astype(precision)
        eigenvalues, axes = np.linalg.eigh(narrow.T @ narrow / len(design))
        return cls(np.maximum(eigenvalues, 0), axes)


def logistic_path(
    design: NDArray[np.float64],
    truth: NDArray[np.float64],
    weight: NDArray[np.float64],
    *,
    exclusive: bool,
    strengths: Sequence[float],
    tolerance: float,
    precision: type[np.floating[Any]],
    rotation: Rotation,
) -> Iterator[Solution]:
    """Solve for each strength C, each time from the solution before.

    Minimises what scikit-learn's LogisticRegression does (the tests compare them): with `exclusive` one softmax over
    the heads, otherwise a sigmoid for each head, all solved at once. Embeddings are strongly correlated, which makes
    plain L-BFGS crawl: 3 to 6 times slower than this on 384-d features. So the features are rotated onto the
    eigenvectors of their covariance, and each coefficient is scaled by the root of its curvature where every answer is
    the base rate p, eigenvalue * p (1 - p) plus the penalty's (compare the fixed bound of Böhning 1992). The penalty is
    carried over, so the optimum is the same; only the way to it is shorter. `tolerance` bounds the largest gradient in
    that basis; `precision` is that of everything as long as the examples.

    design: (n, dim) standardised. truth: (n, heads) of 0 and 1. weight: (n, 1) or (n, heads), each column summing
    to 1.
    """
    count, heads = truth.shape
    base = (truth * weight).sum(0)
    rotated = design.astype(precision) @ rotation.axes.astype(precision)
    across = np.ascontiguousarray(rotated.T)
    # One row a head: sums over heads are then sums of long rows, which is several times faster than of short ones.
    target, share = (np.ascontiguousarray(table.T, dtype=precision) for table in (truth, weight))
    axes = rotation.axes.astype(np.float64)
    coef, intercept = np.zeros((design.shape[1], heads)), np.zeros(heads)
    for strength in strengths:
        penalty = 1 / (strength * count)
        root = np.sqrt(rotation.eigenvalues.astype(np.float64)[:, None] * base * (1 - base) + penalty)
        shrink = penalty / root**2

        def objective(
            flat: NDArray[np.float64], root: NDArray[np.float64] = root, shrink: NDArray[np.float64] = shrink
        ) -> tuple[float, NDArray[np.float64]]:
            inner = flat[heads:].reshape(-1, heads)
            logits = np.ascontiguousarray((rotated @ (inner / root).astype(precision)).T)
            logits += flat[:heads, None].astype(precision)
            # Neither e^(z - max) nor e^-|z| can overflow.
            if exclusive:
                logits -= logits.max(0)
                powers = np.exp(logits)
                total = powers.sum(0)
                loss = np.log(total) - (target * logits).sum(0)
                slope = (powers / total - target) * share
            else:
                decay = np.exp(-np.abs(logits))
                loss = np.log1p(decay) + np.maximum(logits, 0) - target * logits
                slope = (np.where(logits >= 0, 1, decay) / (1 + decay) - target) * share
            shrunk = shrink * inner
            inward = (across @ np.ascontiguousarray(slope.T)) / root + shrunk
            value = float((loss * share).sum(dtype=np.float64)) + 0.5 * float((shrunk * inner).sum())
            return value, np.concatenate([slope.sum(1, dtype=np.float64), inward.ravel()])

        found = minimize(
            objective,
            np.concatenate([intercept, (coef * root).ravel()]),
            jac=True,
            method="L-BFGS-B",
            options={"gtol": tolerance, "ftol": 1e-15, "maxiter": MOST_ITERATIONS, "maxcor": 10},
        ).x
        intercept, coef = found[:heads].copy(), found[heads:].reshape(-1, heads) / root
        yield (axes @ coef).T, intercept


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


def shared_rotation(vectors: NDArray[Any]) -> Rotation | None:
    """Return one rotation for fits on parts of vectors (n, dim); None where each part is smaller than its dimension."""
    return Rotation.of(standardise(vectors)[0]) if vectors.shape[1] <= len(vectors) // 2 else None


def fit_path(
    vectors: NDArray[Any],
    labels: NDArray[np.int64],
    *,
    strengths: Sequence[float] = GRID,
    final: bool = False,
    balanced: bool = True,
    rotation: Rotation | None = None,
) -> list[LinearModel]:
    """Fit exclusive classes: one model for each inverse regularisation strength C.

    vectors: (n, dim). labels: (n,) codes 0 .. classes - 1, all of which must occur. With `balanced`, classes weigh
    equally whatever their counts (scikit-learn's "balanced"), so probabilities are those of a population with equal
    classes. A search among strengths is solved coarsely in float32, the `final` model tightly in float64. `rotation`
    only saves time.
    """
    counts = np.bincount(labels)
    weight = 1 / (len(counts) * counts[labels]) if balanced else np.full(len(labels), 1 / len(labels))
    truth = np.eye(len(counts))[labels]
    if len(counts) == 2:
        truth = truth[:, 1:]
    return _path(vectors, truth, weight[:, None], len(counts) > 2, strengths, final, rotation)


def fit_heads(
    vectors: NDArray[Any],
    marks: NDArray[np.bool_],
    *,
    strengths: Sequence[float] = GRID,
    final: bool = False,
    balanced: bool = False,
    rotation: Rotation | None = None,
) -> list[LinearModel]:
    """Fit independent labels: one model for each strength; all heads share standardisation, rotation and products.

    vectors: (n, dim). marks: (n, labels), each of which must occur and be absent. With `balanced`, presence and absence
    of a label weigh equally. The rest as in `fit_path`.
    """
    truth = marks.astype(np.float64)
    weight = np.full((len(marks), 1), 1 / len(marks))
    if balanced:
        weight = 0.5 * np.where(marks, 1 / truth.sum(0), 1 / (1 - truth).sum(0))
    return _path(vectors, truth, weight, False, strengths, final, rotation)


def _path(
    vectors: NDArray[Any],
    truth: NDArray[np.float64],
    weight: NDArray[np.float64],
    exclusive: bool,
    strengths: Sequence[float],
    final: bool,
    rotation: Rotation | None,
) -> list[LinearModel]:
    design, mean, scale = standardise(vectors)
    basis: NDArray[np.float64] | None = None
    if design.shape[1] > design.shape[0]:
        # The L2 optimum lies in the span of the examples; an orthonormal basis of it keeps the penalty, so fitting
        # n instead of dim coefficients is exact.
        basis, triangle = np.linalg.qr(design.T)
        design, rotation = np.ascontiguousarray(triangle.T), None
    precision = np.float64 if final else np.float32
    solutions = logistic_path(
        design,
        truth,
        weight,
        exclusive=exclusive,
        strengths=strengths,
        tolerance=FINAL_TOLERANCE if final else SEARCH_TOLERANCE,
        precision=precision,
        rotation=rotation if rotation is not None and not final else Rotation.of(design, precision),
    )
    return [
        LinearModel(mean=mean, scale=scale, coef=coef if basis is None else coef @ basis.T, intercept=intercept)
        for coef, intercept in solutions
    ]


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
