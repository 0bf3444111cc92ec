"""Regression probes: ridge regression with conformal prediction intervals, and the neighbours' mean beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lejepa_med.probes.cross_validation import (
    SEARCH_SHARE,
    CrossValidated,
    Fitted,
    Folds,
    Options,
    cross_validate,
    marked_folds,
)
from lejepa_med.probes.examples import Kind, Numbers, few_numbers, two_folds, wide_interval
from lejepa_med.probes.linear import PENALTIES, Leverage, LinearModel, fit_ridge
from lejepa_med.probes.neighbours import held_out_neighbours, neighbour_count, normalise
from lejepa_med.probes.scores import cluster_interval, mean_error, point, r2, spearman

COVERAGE = 0.9
MIDDLE = PENALTIES[len(PENALTIES) // 2]
STEPS = 8  # distinct values up to which numbers may be grades that were meant as classes


class RidgeTask:
    """Cross-validation of the ridge regression: the penalty by mean squared error."""

    strengths: Sequence[float] = PENALTIES
    heads = 1

    def __init__(self, vectors: NDArray[np.float32], values: NDArray[np.float64]) -> None:
        self._vectors, self._values, self._spread = vectors, values, float(values.var())

    def fit(self, rows: NDArray[np.bool_]) -> list[LinearModel]:
        """One model for each strength, of the rows that the mask picks."""
        return fit_ridge(self._vectors[rows], self._values[rows])

    def outputs(self, models: Sequence[LinearModel], rows: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(strengths, rows, heads)."""
        return np.stack([model.logits(self._vectors[rows]) for model in models])

    def compact(self, outputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """The value."""
        return outputs[..., 0]

    def scores(self, compact: NDArray[np.float64], rows: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Negative mean squared errors, in units of the variance."""
        return np.asarray(-((compact - self._values[rows]) ** 2).mean(1) / self._spread)


@dataclass(frozen=True, eq=False)
class NumberHead:
    """The ridge model, half the width of its prediction interval (None: too few labels), and the labelled values."""

    ridge: LinearModel
    leverage: Leverage
    half_width: float | None
    values: NDArray[np.float64]
    k: int
    kind: Kind = "regression"
    classes: tuple[str, ...] = ()

    def answers(
        self, vectors: NDArray[np.float32], indices: NDArray[np.int64], cosines: NDArray[np.float32]
    ) -> list[dict[str, Any]]:
        """Value, its interval, and the mean of the neighbours' values."""
        half = self.half_width
        return [
            {
                "value": value,
                "interval": None if half is None else (value - half, value + half),
                "knn_value": neighbours,
            }
            for value, neighbours in zip(
                self.ridge.logits(vectors)[:, 0].tolist(), self.values[indices].mean(1).tolist(), strict=True
            )
        ]

    def uncertainty(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        """H / (1 + h) of the leverage h: the share of a prediction's variance that more labels would take away."""
        found = self.leverage.of(vectors)
        return found / (1 + found)

    def document(self) -> dict[str, Any]:
        """The part that is stored as JSON."""
        return {
            "k": self.k,
            "intercept": float(self.ridge.intercept[0]),
            "penalty": self.leverage.penalty,
            "half_width": self.half_width,
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The part that is stored as arrays."""
        return {"mean": self.ridge.mean, "scale": self.ridge.scale, "coef": self.ridge.coef[0]}

    @classmethod
    def restore(
        cls,
        document: dict[str, Any],
        arrays: dict[str, NDArray[Any]],
        labels: Sequence[float],
        vectors: NDArray[np.float32],
        rows: NDArray[np.bool_] | None = None,
    ) -> "NumberHead":
        """Rebuild a head from `document`, `arrays`, and the examples' values (n,) and vectors (n, dim).

        rows: mask (n,) of the examples that it learnt from; by default all.
        """
        return cls(
            ridge=LinearModel(
                arrays["mean"], arrays["scale"], arrays["coef"][None], np.array([document["intercept"]], np.float64)
            ),
            leverage=Leverage(vectors, document["penalty"], rows),
            half_width=document["half_width"],
            values=np.asarray(labels, np.float64),
            k=document["k"],
        )


def fit_numbers(examples: Numbers, options: Options) -> Fitted:
    """Fit the head on all examples, and one on the training part of each fold."""
    values, steps = examples.values, len(np.unique(examples.values))
    split = marked_folds(np.ones((len(values), 1), np.int64), examples.groups, folds=options.folds, seed=options.seed)
    warnings = [*few_numbers(len(values)), *examples.warnings()]
    if steps <= STEPS:
        warnings.append(f"The labels take {steps} values only. If they are grades, also try them as classes (texts).")
    if split is None:
        warnings.append(
            "All labels come from a single group (patient, slide, field), so there is no other to score the probe "
            "on, and its quality is unknown. Label items of further groups."
        )
    elif split.count == 2:
        warnings += two_folds(len(np.unique(examples.groups)), "the middle penalty of the grid")
    metrics: dict[str, Any] = {
        "range": [float(values.min()), float(values.max())],
        "mean": float(values.mean()),
        "deviation": float(values.std()),
        "linear": None,
        "knn": None,
        "interval": None,
        "warnings": warnings,
    }
    penalty, half = MIDDLE, None
    held_out: tuple[NumberHead, ...] = ()
    if split is not None:
        penalty, half, held_out = _score(examples, split, metrics, options)
    options.progress(SEARCH_SHARE, "fitting the probe on every label")
    head = NumberHead(
        ridge=fit_ridge(examples.vectors, values, penalties=[penalty])[0],
        leverage=Leverage(examples.vectors, penalty),
        half_width=half,
        values=values,
        k=neighbour_count(len(values)),
    )
    metrics |= {"penalty": penalty, "k": head.k}
    return Fitted(head, metrics, split, held_out)


def _score(
    examples: Numbers, split: Folds, metrics: dict[str, Any], options: Options
) -> tuple[float, float | None, tuple[NumberHead, ...]]:
    """Fill in the scores of both probes; return penalty and half width for all examples, and the folds' heads."""
    truth = examples.values
    task = RidgeTask(examples.vectors, truth)
    result = cross_validate(task, split, progress=lambda done, stage: options.progress(SEARCH_SHARE * done, stage))
    least = len(truth) - int(np.bincount(split.fold).max())
    k = neighbour_count(least)
    indices, _ = held_out_neighbours(normalise(examples.vectors), split.fold, k)
    for name, given in (("linear", result.nested[:, 0]), ("knn", truth[indices].mean(1))):
        found: dict[str, Any] = {}
        for key, statistic in (
            ("r2", r2(truth, given)),
            ("mae", mean_error(truth, given)),
            ("spearman", spearman(truth, given)),
        ):
            found[key] = point(statistic, len(truth))
            found[f"{key}_interval"] = cluster_interval(statistic, examples.groups, seed=options.seed)
        metrics[name] = found
    metrics["linear"]["penalty_of_folds"] = [PENALTIES[chosen] for chosen in result.fold_strengths]
    if metrics["linear"]["spearman_interval"] is not None:
        metrics["warnings"] += wide_interval("rank correlation", metrics["linear"]["spearman_interval"])
    half = conformal_half_width(np.abs(truth - result.outputs[result.strength, :, 0]))
    halves = _half_widths(truth, result)
    metrics["interval"] = {
        "coverage": COVERAGE,
        "half_width": half,
        "measured_coverage": _coverage(np.abs(truth - result.nested[:, 0]), result.fold, halves),
    }
    if half is None:
        metrics["warnings"].append(f"Too few labels for prediction intervals that hold {COVERAGE:.0%} of the images.")
    held_out = tuple(
        NumberHead(
            ridge=model,
            leverage=Leverage(examples.vectors, PENALTIES[strength], split.fold != fold),
            half_width=width,
            values=truth,
            k=k,
        )
        for fold, (model, strength, width) in enumerate(zip(result.models, result.fold_strengths, halves, strict=True))
    )
    return PENALTIES[result.strength], half, held_out


def conformal_half_width(residuals: NDArray[np.float64]) -> float | None:
    """The ceil((n + 1) coverage)-th smallest out-of-fold residual (n,), or None where n is too small for one.

    Cross-conformal (Vovk 2015) with one width for all images: exact coverage needs exchangeable images, so across
    patients of very different numbers of images read the measured coverage beside it.
    """
    rank = int(np.ceil((len(residuals) + 1) * COVERAGE))
    return float(np.sort(residuals)[rank - 1]) if rank <= len(residuals) else None


def _half_widths(truth: NDArray[np.float64], result: CrossValidated) -> list[float | None]:
    """The half width of each fold's intervals, from the residuals of the other folds at the fold's penalty."""
    return [
        conformal_half_width(np.abs(truth - result.outputs[strength, :, 0])[result.fold != i])
        for i, strength in enumerate(result.fold_strengths)
    ]


def _coverage(residuals: NDArray[np.float64], fold: NDArray[np.int64], halves: Sequence[float | None]) -> float | None:
    """Share of the examples, (n,) each, inside the intervals of their folds; None where a fold has none."""
    known = [half for half in halves if half is not None]
    if len(known) < len(halves):
        return None
    return float((residuals <= np.array(known)[fold]).mean())
