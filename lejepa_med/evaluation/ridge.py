"""Ridge regression on standardised vectors along a path of strengths, in closed form."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lejepa_med.evaluation.linear import standardise

PENALTIES = tuple(10.0 ** (1 - step / 2) for step in range(11))  # 10 .. 1e-4, of a mean squared error


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
