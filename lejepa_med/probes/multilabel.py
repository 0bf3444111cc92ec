"""Multilabel probes (an image has any number of labels): a calibrated logistic head with a threshold for each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from lejepa_med.probes.calibration import fit_platt, label_calibration
from lejepa_med.probes.cross_validation import (
    SEARCH_SHARE,
    CrossValidated,
    Fitted,
    Folds,
    Options,
    cross_validate,
    marked_folds,
)
from lejepa_med.probes.examples import Kind, Marks, two_folds, wide_interval
from lejepa_med.probes.linear import GRID, MIDDLE, LinearModel, fit_heads
from lejepa_med.probes.neighbours import held_out_neighbours, neighbour_count, normalise
from lejepa_med.probes.scores import average_precision, cluster_interval, macro, point, roc_area

APART = 3  # groups with a label, and without it, below which the label cannot be scored
Found = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


class MarkTask:
    """Cross-validation of the heads: one C for all, by mean log-loss, so that rare labels count as much as others."""

    strengths: Sequence[float] = GRID

    def __init__(self, vectors: NDArray[np.float32], marks: NDArray[np.bool_], *, balanced: bool) -> None:
        self._vectors, self._marks, self._balanced = vectors, marks, balanced
        self.heads = marks.shape[1]

    def fit(self, rows: NDArray[np.bool_]) -> list[LinearModel]:
        """One model for each strength, of the rows that the mask picks."""
        return fit_heads(self._vectors[rows], self._marks[rows], balanced=self._balanced)

    def outputs(self, models: Sequence[LinearModel], rows: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(strengths, rows, heads)."""
        return np.stack([model.logits(self._vectors[rows]) for model in models])

    def compact(self, outputs: NDArray[np.float64]) -> NDArray[np.float32]:
        """The logits."""
        return outputs.astype(np.float32)

    def scores(self, compact: NDArray[np.float32], rows: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Negative log-losses, each label's in units of that of its base rate."""
        truth, logits = self._marks[rows], compact.astype(np.float64)
        losses = np.logaddexp(0, logits) - truth * logits
        share = np.clip(truth.mean(0), 1e-3, 1 - 1e-3)
        base = -(share * np.log(share) + (1 - share) * np.log(1 - share))
        return np.asarray(-(losses.mean(1) / base).mean(1))


@dataclass(frozen=True, eq=False)
class MarkHead:
    """sigmoid(slope * logit + offset) for each label, present from its threshold on; and the neighbours' shares.

    slopes, offsets, thresholds, knn_thresholds: (labels,). marks: (n, labels) of the examples.
    """

    classes: tuple[str, ...]
    linear: LinearModel
    slopes: NDArray[np.float64]
    offsets: NDArray[np.float64]
    thresholds: NDArray[np.float64]
    knn_thresholds: NDArray[np.float64]
    marks: NDArray[np.bool_]
    k: int
    kind: Kind = "multilabel"

    def probabilities(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        """(n, dim) -> (n, labels)."""
        return np.asarray(expit(self.linear.logits(vectors) * self.slopes + self.offsets))

    def answers(
        self, vectors: NDArray[np.float32], indices: NDArray[np.int64], cosines: NDArray[np.float32]
    ) -> list[dict[str, Any]]:
        """Labels, the probability of each, and the neighbours' labels."""
        chances, shares = self.probabilities(vectors), self.marks[indices].mean(1)
        return [
            {
                "labels": self._names(chance >= self.thresholds),
                "probabilities": dict(zip(self.classes, chance.tolist(), strict=True)),
                "knn_labels": self._names(share >= self.knn_thresholds),
            }
            for chance, share in zip(chances, shares, strict=True)
        ]

    def _names(self, chosen: NDArray[np.bool_]) -> tuple[str, ...]:
        return tuple(name for name, taken in zip(self.classes, chosen, strict=True) if taken)

    def uncertainty(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        """Mean over the labels of a head's entropy, in bits."""
        chance = np.clip(self.probabilities(vectors), 1e-12, 1 - 1e-12)
        return np.asarray(-(chance * np.log2(chance) + (1 - chance) * np.log2(1 - chance)).mean(1))

    def document(self) -> dict[str, Any]:
        """The part that is stored as JSON."""
        return {"classes": list(self.classes), "k": self.k}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The part that is stored as arrays."""
        own = {name: getattr(self, name) for name in ("slopes", "offsets", "thresholds", "knn_thresholds")}
        return {**vars(self.linear), **own}

    @classmethod
    def restore(
        cls, document: dict[str, Any], arrays: dict[str, NDArray[Any]], labels: Sequence[Sequence[str]]
    ) -> "MarkHead":
        """Rebuild a head from `document`, `arrays`, and the examples' labels (n,)."""
        return cls(
            classes=tuple(document["classes"]),
            linear=LinearModel(*(arrays[name] for name in ("mean", "scale", "coef", "intercept"))),
            slopes=arrays["slopes"],
            offsets=arrays["offsets"],
            thresholds=arrays["thresholds"],
            knn_thresholds=arrays["knn_thresholds"],
            marks=np.array([[name in given for name in document["classes"]] for given in labels], dtype=bool),
            k=document["k"],
        )


def fit_marks(examples: Marks, options: Options) -> Fitted:
    """Fit the head on all examples, and one on the training part of each fold."""
    balanced, marks, groups = options.balanced is True, examples.marks, examples.groups
    apart = [min(len(np.unique(groups[marks[:, k] == side])) for side in (True, False)) for k in range(marks.shape[1])]
    scored = np.array(apart) >= APART
    sides = np.hstack([marks[:, scored], ~marks[:, scored]])
    split = marked_folds(sides, groups, folds=options.folds, seed=options.seed) if scored.any() else None
    metrics: dict[str, Any] = {
        "classes": list(examples.classes),
        "counts": examples.counts,
        "groups_per_class": {n: len(np.unique(groups[marks[:, k]])) for k, n in enumerate(examples.classes)},
        "labels_per_image": float(marks.sum(1).mean()),
        "balanced": balanced,
        "linear": None,
        "knn": None,
        "calibration": None,
        "warnings": [*examples.warnings(), *_fold_warnings(examples, scored, split)],
    }
    heads = marks.shape[1]
    platt, thresholds, knn_thresholds = np.tile([1.0, 0.0], (heads, 1)), np.full(heads, 0.5), np.full(heads, 0.5)
    strength = MIDDLE
    held_out: tuple[MarkHead, ...] = ()
    if split is not None:
        strength, found, held_out = _score(examples, scored, split, metrics, options)
        platt[scored], thresholds[scored], knn_thresholds[scored] = found
    options.progress(SEARCH_SHARE, "fitting the probe on every label")
    head = MarkHead(
        classes=examples.classes,
        linear=fit_heads(examples.vectors, marks, strengths=[strength], final=True, balanced=balanced)[0],
        slopes=np.ascontiguousarray(platt[:, 0]),
        offsets=np.ascontiguousarray(platt[:, 1]),
        thresholds=thresholds,
        knn_thresholds=knn_thresholds,
        marks=marks,
        k=neighbour_count(len(marks)),
    )
    return Fitted(head, metrics | {"C": strength, "k": head.k}, split, held_out)


def _score(
    examples: Marks,
    scored: NDArray[np.bool_],
    split: Folds,
    metrics: dict[str, Any],
    options: Options,
) -> tuple[float, Found, tuple[MarkHead, ...]]:
    """Fill in the scores of both probes.

    Returns:
        The C, each scored label's calibration and thresholds, and the folds' heads.
    """
    marks = examples.marks[:, scored]
    names = [name for name, known in zip(examples.classes, scored, strict=True) if known]
    task = MarkTask(examples.vectors, marks, balanced=options.balanced is True)
    result = cross_validate(task, split, progress=lambda done, stage: options.progress(SEARCH_SHARE * done, stage))
    least = len(marks) - int(np.bincount(split.fold).max())
    k = neighbour_count(least)
    indices, _ = held_out_neighbours(normalise(examples.vectors), split.fold, k)
    shares = marks[indices].mean(1)
    lines = _cross_platt(result, marks)
    calibrated = expit(result.nested * lines[result.fold, :, 0] + lines[result.fold, :, 1])
    cuts = {}
    for key, given in (("linear", calibrated), ("knn", shares)):
        areas = [roc_area(marks[:, j], given[:, j]) for j in range(len(names))]
        precisions = [average_precision(marks[:, j], given[:, j]) for j in range(len(names))]
        others = [split.fold != fold for fold in range(split.count)]
        cuts[key] = np.stack([best_thresholds(given[rows], marks[rows]) for rows in others])
        taken = given >= cuts[key][split.fold]
        f1 = 2 * (taken & marks).sum(0) / np.maximum(taken.sum(0) + marks.sum(0), 1)
        metrics[key] = {
            "auroc": point(macro(areas), len(marks)),
            "auroc_interval": cluster_interval(macro(areas), examples.groups, seed=options.seed, parts=len(names)),
            "average_precision": point(macro(precisions), len(marks)),
            "average_precision_interval": cluster_interval(
                macro(precisions), examples.groups, seed=options.seed, parts=len(names)
            ),
            "macro_f1": float(f1.mean()),
            "labels": {
                name: {
                    "auroc": point(areas[j], len(marks)),
                    "average_precision": point(precisions[j], len(marks)),
                    "base_rate": float(marks[:, j].mean()),
                    "f1": float(f1[j]),
                }
                for j, name in enumerate(names)
            },
        }
    metrics["linear"]["C_of_folds"] = [GRID[chosen] for chosen in result.fold_strengths]
    if metrics["linear"]["auroc_interval"] is not None:
        metrics["warnings"] += wide_interval("macro AUROC", metrics["linear"]["auroc_interval"])
    before = expit(result.nested)
    metrics["calibration"] = {
        "before": label_calibration(before, marks),
        "after": label_calibration(calibrated, marks),
    }
    logits = result.outputs[result.strength]
    platt = np.array([fit_platt(logits[:, j], marks[:, j]) for j in range(len(names))])
    thresholds = best_thresholds(expit(logits * platt[:, 0] + platt[:, 1]), marks)
    metrics["linear"]["thresholds"] = dict(zip(names, thresholds.tolist(), strict=True))
    held_out = []
    for fold, (model, chosen) in enumerate(zip(result.models, result.fold_strengths, strict=True)):
        linear = _completed(model, examples, scored, split.fold != fold, GRID[chosen], options)
        slopes, offsets, taken_from, knn_taken_from = (
            _spread(values, scored, rest)
            for values, rest in (
                (lines[fold, :, 0], 1.0),
                (lines[fold, :, 1], 0.0),
                (cuts["linear"][fold], 0.5),
                (cuts["knn"][fold], 0.5),
            )
        )
        held_out.append(
            MarkHead(examples.classes, linear, slopes, offsets, taken_from, knn_taken_from, examples.marks, k)
        )
    return GRID[result.strength], (platt, thresholds, best_thresholds(shares, marks)), tuple(held_out)


def _spread(values: NDArray[np.float64], scored: NDArray[np.bool_], rest: float) -> NDArray[np.float64]:
    """Values of the scored labels as values of all labels (labels,), the others at `rest`."""
    found = np.full(len(scored), rest)
    found[scored] = values
    return found


def _completed(
    model: LinearModel,
    examples: Marks,
    scored: NDArray[np.bool_],
    rows: NDArray[np.bool_],
    strength: float,
    options: Options,
) -> LinearModel:
    """A fold's heads of the scored labels, with heads for the others from the same rows.

    A label that all of these rows have, or none, gets its chance by Laplace's rule: there is nothing to tell it by.
    """
    vectors, marks = examples.vectors[rows], examples.marks[rows]
    present = marks.sum(0)
    told = ~scored & (present > 0) & (present < len(marks))
    coef, intercept = np.zeros((len(scored), vectors.shape[1])), np.log((present + 1) / (len(marks) - present + 1))
    coef[scored], intercept[scored] = model.coef, model.intercept
    if told.any():
        balanced = options.balanced is True
        own = fit_heads(vectors, marks[:, told], strengths=[strength], final=True, balanced=balanced)[0]
        coef[told], intercept[told] = own.coef, own.intercept
    return LinearModel(model.mean, model.scale, coef, intercept)


def _cross_platt(result: CrossValidated, marks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Slope and offset of each fold and label, (folds, labels, 2), fitted without the fold's own images."""
    found = np.zeros((len(result.fold_strengths), marks.shape[1], 2))
    for i, strength in enumerate(result.fold_strengths):
        outside = result.fold != i
        for j in range(marks.shape[1]):
            found[i, j] = fit_platt(result.outputs[strength, outside, j], marks[outside, j])
    return found


def best_thresholds(scores: NDArray[np.float64], marks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The threshold with the best F1 for each label, (labels,), halfway to the next lower score; (n, labels) each."""
    found = np.empty(marks.shape[1])
    for j in range(marks.shape[1]):
        order = np.argsort(-scores[:, j], kind="stable")
        ordered = scores[order, j]
        last = np.concatenate([ordered[1:] != ordered[:-1], [True]])
        f1 = np.where(last, 2 * np.cumsum(marks[order, j]) / (np.arange(1, len(order) + 1) + marks[:, j].sum()), -1)
        best = int(np.argmax(f1))
        found[j] = ordered[best] if best + 1 == len(order) else (ordered[best] + ordered[best + 1]) / 2
    return found


def _fold_warnings(examples: Marks, scored: NDArray[np.bool_], split: Folds | None) -> list[str]:
    if split is None:
        return [
            f"No cross-validation is possible: it needs a label in {APART} groups and {APART} groups without it. The "
            "probe's quality is unknown, and every label counts as present from 50 % on."
        ]
    found = two_folds(len(np.unique(examples.groups)), "the middle C of the grid") if split.count == 2 else []
    missing = [f"'{name}'" for name, known in zip(examples.classes, scored, strict=True) if not known]
    if not missing:
        return found
    return [
        *found,
        f"No score for {', '.join(missing)}: a label needs {APART} groups with it and {APART} without it. It counts as "
        "present from 50 % on.",
    ]
