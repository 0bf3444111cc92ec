"""Linear models on standardised vectors, along a path of strengths: classes, labels of their own, quantities."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
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
class Turn:
    """Eigenvalues (dim,) and eigenvectors (dim, dim) of the features' covariance, or of one close to it.

    It decides how fast a fit is, never where it ends, so the fits of a cross-validation share one.
    """

    eigenvalues: NDArray[np.floating[Any]]
    axes: NDArray[np.floating[Any]]

    @classmethod
    def of(cls, design: NDArray[np.float64], precision: type[np.floating[Any]] = np.float32) -> "Turn":
        """From standardised features (n, dim)."""
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
    turn: Turn,
) -> Iterator[Solution]:
    """A solution for each strength C, each started from the one before.

    Minimises what scikit-learn's LogisticRegression does (the tests compare them): with `exclusive` one softmax over
    the heads, otherwise a sigmoid for each head, all solved at once. Embeddings are strongly correlated, which makes
    plain L-BFGS crawl: 3 to 6 times slower than this on 384-d features. So the features are turned into the
    eigenvectors of their covariance, and each coefficient is scaled by the root of its curvature where every answer is
    the base rate p, eigenvalue * p (1 - p) plus the penalty's (compare the fixed bound of Böhning 1992). The penalty is
    carried over, so the optimum is the same; only the way to it is shorter. `tolerance` bounds the largest gradient in
    that basis; `precision` is that of everything as long as the examples.

    design: (n, dim) standardised. truth: (n, heads) of 0 and 1. weight: (n, 1) or (n, heads), each column summing
    to 1.
    """
    count, heads = truth.shape
    base = (truth * weight).sum(0)
    turned = design.astype(precision) @ turn.axes.astype(precision)
    across = np.ascontiguousarray(turned.T)
    # One row a head: sums over heads are then sums of long rows, which is several times faster than of short ones.
    target, share = (np.ascontiguousarray(table.T, dtype=precision) for table in (truth, weight))
    axes = turn.axes.astype(np.float64)
    coef, intercept = np.zeros((design.shape[1], heads)), np.zeros(heads)
    for strength in strengths:
        penalty = 1 / (strength * count)
        root = np.sqrt(turn.eigenvalues.astype(np.float64)[:, None] * base * (1 - base) + penalty)
        shrink = penalty / root**2

        def objective(
            flat: NDArray[np.float64], root: NDArray[np.float64] = root, shrink: NDArray[np.float64] = shrink
        ) -> tuple[float, NDArray[np.float64]]:
            inner = flat[heads:].reshape(-1, heads)
            logits = np.ascontiguousarray((turned @ (inner / root).astype(precision)).T)
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
        return softmax(self.class_logits(vectors))


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the last axis."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 / (1 + e^-z) without overflow."""
    decay = np.exp(-np.abs(logits))
    return np.asarray(np.where(logits >= 0, 1, decay) / (1 + decay))


def standardise(vectors: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(n, dim) -> the same with mean 0 and deviation 1 in each column, the means and the deviations."""
    wide = np.asarray(vectors, np.float64)
    mean, deviation = wide.mean(0), wide.std(0)
    # A feature that is constant up to rounding must not be blown up to unit variance.
    scale = np.where(deviation > 1e-7 * np.maximum(np.abs(mean), 1e-30), deviation, 1.0)
    return (wide - mean) / scale, mean, scale


def shared_turn(vectors: NDArray[Any]) -> Turn | None:
    """One basis for the fits on parts of vectors (n, dim); None where each part is smaller than its dimension."""
    return Turn.of(standardise(vectors)[0]) if vectors.shape[1] <= len(vectors) // 2 else None


def fit_path(
    vectors: NDArray[Any],
    labels: NDArray[np.int64],
    *,
    strengths: Sequence[float] = GRID,
    final: bool = False,
    balanced: bool = True,
    turn: Turn | None = None,
) -> list[LinearModel]:
    """One model of exclusive classes for each inverse regularisation strength C.

    vectors: (n, dim). labels: (n,) codes 0 .. classes - 1, all of which must occur. With `balanced`, classes weigh
    equally whatever their counts (scikit-learn's "balanced"), so probabilities are those of a population with equal
    classes. A search among strengths is solved coarsely in float32, the `final` model tightly in float64. `turn`
    only saves time.
    """
    counts = np.bincount(labels)
    weight = 1 / (len(counts) * counts[labels]) if balanced else np.full(len(labels), 1 / len(labels))
    truth = np.eye(len(counts))[labels]
    if len(counts) == 2:
        truth = truth[:, 1:]
    return _path(vectors, truth, weight[:, None], len(counts) > 2, strengths, final, turn)


def fit_heads(
    vectors: NDArray[Any],
    marks: NDArray[np.bool_],
    *,
    strengths: Sequence[float] = GRID,
    final: bool = False,
    balanced: bool = False,
    turn: Turn | None = None,
) -> list[LinearModel]:
    """One model of independent labels for each strength; all heads share standardisation, basis and matrix products.

    vectors: (n, dim). marks: (n, labels), each of which must occur and be absent. With `balanced`, presence and absence
    of a label weigh equally. The rest as in `fit_path`.
    """
    truth = marks.astype(np.float64)
    weight = np.full((len(marks), 1), 1 / len(marks))
    if balanced:
        weight = 0.5 * np.where(marks, 1 / truth.sum(0), 1 / (1 - truth).sum(0))
    return _path(vectors, truth, weight, False, strengths, final, turn)


def _path(
    vectors: NDArray[Any],
    truth: NDArray[np.float64],
    weight: NDArray[np.float64],
    exclusive: bool,
    strengths: Sequence[float],
    final: bool,
    turn: Turn | None,
) -> list[LinearModel]:
    design, mean, scale = standardise(vectors)
    basis: NDArray[np.float64] | None = None
    if design.shape[1] > design.shape[0]:
        # The L2 optimum lies in the span of the examples; an orthonormal basis of it keeps the penalty, so fitting
        # n instead of dim coefficients is exact.
        basis, triangle = np.linalg.qr(design.T)
        design, turn = np.ascontiguousarray(triangle.T), None
    precision = np.float64 if final else np.float32
    solutions = logistic_path(
        design,
        truth,
        weight,
        exclusive=exclusive,
        strengths=strengths,
        tolerance=FINAL_TOLERANCE if final else SEARCH_TOLERANCE,
        precision=precision,
        turn=turn if turn is not None and not final else Turn.of(design, precision),
    )
    return [
        LinearModel(mean=mean, scale=scale, coef=coef if basis is None else coef @ basis.T, intercept=intercept)
        for coef, intercept in solutions
    ]


@dataclass(frozen=True)
class ModelPath:
    """A `Path` of cross-validation: models of one part of vectors (n, dim), one a strength."""

    vectors: NDArray[np.float32]
    models: list[LinearModel]

    def outputs(self, rows: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Logits, (strengths, rows, classes or labels)."""
        return np.stack([model.logits(self.vectors[rows]) for model in self.models])


@contextmanager
def quiet_threads(numbers: int) -> Iterator[None]:
    """One BLAS thread while a small problem of that many numbers is solved; large ones keep what the process has."""
    with threadpool_limits(limits=1 if numbers < SMALL_PROBLEM else None, user_api="blas"):
        yield


@dataclass(frozen=True)
class RidgeModel:
    """coef @ ((vector - mean) / scale) + intercept.

    mean, scale, coef: (dim,).
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    coef: NDArray[np.float64]
    intercept: float

    def values(self, vectors: NDArray[Any]) -> NDArray[np.float64]:
        """(n, dim) -> (n,)."""
        return np.asarray((np.asarray(vectors, np.float64) - self.mean) / self.scale @ self.coef + self.intercept)


class RidgeFit:
    """The solutions for vectors (n, dim) and values (n,): mean squared error + penalty * |coef|^2 (Hoerl 1970).

    scikit-learn's Ridge has alpha = penalty * n. One eigendecomposition serves every penalty.
    """

    def __init__(self, vectors: NDArray[Any], values: NDArray[np.float64]) -> None:
        design, self._mean, self._scale = standardise(vectors)
        self._count, self._middle = len(design), float(values.mean())
        if design.shape[1] <= len(design):
            spectrum, self._axes = np.linalg.eigh(design.T @ design / len(design))
        else:
            spectrum, left = np.linalg.eigh(design @ design.T / len(design))
            kept = spectrum > 1e-10 * spectrum[-1]
            spectrum = spectrum[kept]
            self._axes = design.T @ left[:, kept] / np.sqrt(spectrum * len(design))
        self._spectrum = np.maximum(spectrum, 0)
        self._moment = self._axes.T @ (design.T @ (values - self._middle)) / len(design)

    def model(self, penalty: float) -> RidgeModel:
        """The solution for one penalty."""
        return RidgeModel(self._mean, self._scale, self.coef([penalty])[0], self._middle)

    def coef(self, penalties: Sequence[float]) -> NDArray[np.float64]:
        """(penalties, dim)."""
        return np.stack([self._axes @ (self._moment / (self._spectrum + penalty)) for penalty in penalties])

    def path(self, vectors: NDArray[Any], penalties: Sequence[float]) -> NDArray[np.float64]:
        """Values of vectors (n, dim) for each penalty, (penalties, n)."""
        design = (np.asarray(vectors, np.float64) - self._mean) / self._scale
        return np.asarray(self.coef(penalties) @ design.T + self._middle)

    def leverage(self, vectors: NDArray[Any], penalty: float) -> NDArray[np.float64]:
        """Z' (Z'Z + penalty n)^-1 z + 1/n of vectors (n, dim): (n,).

        Variance of the fitted value over the noise's, in the Bayesian reading of ridge (Bishop 2006, 3.59).
        """
        design = (np.asarray(vectors, np.float64) - self._mean) / self._scale
        shrunk = np.sqrt(self._spectrum / (self._spectrum + penalty))
        rest = (design**2).sum(1) - ((design @ self._axes * shrunk) ** 2).sum(1)
        return np.asarray((np.maximum(rest, 0) / penalty + 1) / self._count)


@dataclass(frozen=True, eq=False)
class Leverage:
    """The leverage of new vectors over labelled ones, decomposed when first asked for.

    vectors: (n, dim), of which those count that the mask `rows` (n,) picks; by default all.
    """

    vectors: NDArray[np.float32]
    penalty: float
    rows: NDArray[np.bool_] | None = None

    @cached_property
    def _fit(self) -> RidgeFit:
        vectors = self.vectors if self.rows is None else self.vectors[self.rows]
        return RidgeFit(vectors, np.zeros(len(vectors)))

    def of(self, vectors: NDArray[Any]) -> NDArray[np.float64]:
        """(n, dim) -> (n,)."""
        return self._fit.leverage(vectors, self.penalty)
