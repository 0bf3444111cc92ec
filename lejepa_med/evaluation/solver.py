"""L2 logistic regression by L-BFGS in a basis where the curvature is nearly even: softmax, or independent sigmoids."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

MOST_ITERATIONS = 2000
Solution = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Coefficients (heads, dim) and intercepts (heads,)."""


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
