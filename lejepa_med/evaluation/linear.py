"""L2 logistic regression on standardised vectors, along a path of strengths: classes, or labels of their own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from lejepa_med.evaluation.solver import Turn, logistic_path

GRID = (0.001, 0.01, 0.1, 1.0, 10.0)
MIDDLE = GRID[len(GRID) // 2]
SEARCH_TOLERANCE, FINAL_TOLERANCE = 3e-4, 1e-6  # of the gradient; the first is enough to rank strengths
SMALL_PROBLEM = 4_000_000  # numbers in the design matrix; below it a second BLAS thread costs more than it brings


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
