"""Exclusive classes: a logistic regression whose probabilities are calibrated, and k-NN beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.metrics import balanced_accuracy_score

from lejepa_med.probes.calibration import class_calibration, class_weights, cross_temperatures, fit_temperature
from lejepa_med.probes.cross_validation import SEARCH_SHARE, Fitted, Folds, Options, cross_validate, group_folds
from lejepa_med.probes.examples import Examples, Kind, two_folds, wide_interval
from lejepa_med.probes.linear import GRID, MIDDLE, LinearModel, fit_path
from lejepa_med.probes.neighbours import Neighbours, normalise, top_cosine
from lejepa_med.probes.scores import summary


class ClassTask:
    """Cross-validation of the logistic regression: C by balanced accuracy."""

    strengths: Sequence[float] = GRID

    def __init__(self, vectors: NDArray[np.float32], labels: NDArray[np.int64], *, balanced: bool = True) -> None:
        self._vectors, self._labels, self._balanced = vectors, labels, balanced
        self.heads = int(labels.max()) + 1

    def fit(self, rows: NDArray[np.bool_]) -> list[LinearModel]:
        """One model for each strength, of the rows that the mask picks."""
        return fit_path(self._vectors[rows], self._labels[rows], balanced=self._balanced)

    def outputs(self, models: Sequence[LinearModel], rows: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(strengths, rows, heads)."""
        return np.stack([model.class_logits(self._vectors[rows]) for model in models])

    def compact(self, outputs: NDArray[np.float64]) -> NDArray[np.int32]:
        """The winning class."""
        return np.asarray(outputs.argmax(-1), dtype=np.int32)

    def scores(self, compact: NDArray[np.int32], rows: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Balanced accuracies."""
        truth = self._labels[rows]
        return np.array([balanced_accuracy_score(truth, row) for row in compact])


def choose_strength(vectors: NDArray[np.float32], labels: NDArray[np.int64], folds: Folds) -> float:
    """Return the C with the best out-of-fold balanced accuracy, without the nested part that scores need."""
    task = ClassTask(vectors, labels)
    return task.strengths[cross_validate(task, folds, nested=False).strength]


@dataclass(frozen=True, eq=False)
class ClassHead:
    """softmax(logits / temperature) of the linear model, and the neighbours' vote."""

    classes: tuple[str, ...]
    linear: LinearModel
    neighbours: Neighbours
    temperature: float
    kind: Kind = "classification"

    @property
    def k(self) -> int:
        """Number of neighbours that vote."""
        return self.neighbours.k

    def probabilities(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        """(n, dim) -> (n, classes)."""
        return np.asarray(softmax(self.linear.class_logits(vectors) / self.temperature, axis=1))

    def answers(
        self, vectors: NDArray[np.float32], indices: NDArray[np.int64], cosines: NDArray[np.float32]
    ) -> list[dict[str, Any]]:
        """Label, probabilities and the neighbours' label."""
        winners = self.neighbours.count(indices, cosines).winners.tolist()
        return [
            {
                "label": self.classes[int(row.argmax())],
                "probabilities": dict(zip(self.classes, row.tolist(), strict=True)),
                "knn_label": self.classes[winner],
            }
            for row, winner in zip(self.probabilities(vectors), winners, strict=True)
        ]

    def uncertainty(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        """1 - the margin between the two most probable classes (margin sampling, Scheffer et al. 2001)."""
        ordered = np.sort(self.probabilities(vectors), axis=1)
        return 1 - (ordered[:, -1] - ordered[:, -2])

    def document(self) -> dict[str, Any]:
        """The part that is stored as JSON."""
        return {"classes": list(self.classes), "k": self.k, "temperature": self.temperature}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The part that is stored as arrays."""
        return {**vars(self.linear), "vote_weights": self.neighbours.weights}

    @classmethod
    def restore(
        cls, document: dict[str, Any], arrays: dict[str, NDArray[Any]], labels: Sequence[str], unit: NDArray[np.float32]
    ) -> "ClassHead":
        """Rebuild a head from `document`, `arrays`, and the examples' labels (n,) and unit vectors (n, dim)."""
        place = {name: code for code, name in enumerate(document["classes"])}
        codes = np.array([place[label] for label in labels], dtype=np.int64)
        return cls(
            classes=tuple(document["classes"]),
            linear=LinearModel(*(arrays[name] for name in ("mean", "scale", "coef", "intercept"))),
            neighbours=Neighbours(unit, codes, arrays["vote_weights"], document["k"]),
            temperature=document["temperature"],
        )


def fit_classes(examples: Examples, options: Options) -> Fitted:
    """Fit the head on all examples, and one on the training part of each fold."""
    balanced = options.balanced is not False
    split = group_folds(examples.labels, examples.groups, folds=options.folds, seed=options.seed)
    metrics: dict[str, Any] = {
        "classes": list(examples.classes),
        "counts": examples.counts,
        "groups_per_class": examples.groups_per_class,
        "chance": 1 / len(examples.classes),
        "balanced": balanced,
        "linear": None,
        "knn": None,
        "calibration": None,
        "warnings": [*examples.warnings(), *_fold_warnings(examples, split, options.folds)],
    }
    strength, temperature = MIDDLE, 1.0
    held_out: tuple[ClassHead, ...] = ()
    if split is not None:
        strength, temperature, held_out = _score(examples, split, metrics, balanced, options)
    options.progress(SEARCH_SHARE, "fitting the probe on every label")
    linear = fit_path(examples.vectors, examples.labels, strengths=[strength], final=True, balanced=balanced)[0]
    neighbours = Neighbours.fit(examples.vectors, examples.labels, balanced=balanced)
    metrics |= {"C": strength, "k": neighbours.k}
    return Fitted(ClassHead(examples.classes, linear, neighbours, temperature), metrics, split, held_out)


def _score(
    examples: Examples, split: Folds, metrics: dict[str, Any], balanced: bool, options: Options
) -> tuple[float, float, tuple[ClassHead, ...]]:
    """Fill in the scores of both probes; return the C and the temperature for all examples, and the folds' heads."""
    labels, groups = examples.labels, examples.groups
    task = ClassTask(examples.vectors, labels, balanced=balanced)
    result = cross_validate(task, split, progress=lambda done, stage: options.progress(SEARCH_SHARE * done, stage))
    unit, voters = normalise(examples.vectors), []
    shares, winners = np.zeros((len(labels), task.heads)), np.zeros_like(labels)
    for k in range(split.count):
        inside = split.fold == k
        voters.append(Neighbours.among(unit, labels, ~inside, balanced=balanced))
        votes = voters[-1].count(*top_cosine(unit[inside], unit, voters[-1].k, barred=inside))
        shares[inside], winners[inside] = votes.shares, votes.winners
    probabilities = softmax(result.nested, axis=1)
    for name, predicted, given in (
        ("linear", probabilities.argmax(1), probabilities),
        ("knn", winners, shares),
    ):
        metrics[name] = summary(labels, predicted, given, groups, names=examples.classes, seed=options.seed)
    metrics["linear"]["C_of_folds"] = [GRID[chosen] for chosen in result.fold_strengths]
    metrics["warnings"] += wide_interval("balanced accuracy", metrics["linear"]["balanced_accuracy_interval"])
    weight = class_weights(labels, balanced=balanced)
    temperature = fit_temperature(result.outputs[result.strength], labels, weight)
    temperatures = cross_temperatures(result.outputs, result.fold_strengths, result.fold, labels, weight)
    calibrated = softmax(result.nested / temperatures[result.fold][:, None], axis=1)
    metrics["calibration"] = {
        "temperature": temperature,
        "before": class_calibration(probabilities, labels, weight),
        "after": class_calibration(calibrated, labels, weight),
    }
    held_out = tuple(
        ClassHead(examples.classes, model, neighbours, warmth)
        for model, neighbours, warmth in zip(result.models, voters, temperatures.tolist(), strict=True)
    )
    return GRID[result.strength], temperature, held_out


def _fold_warnings(examples: Examples, split: Folds | None, folds: int) -> list[str]:
    scarce = min(examples.groups_per_class.items(), key=lambda item: item[1])
    if split is None:
        return [
            f"No cross-validation is possible: '{scarce[0]}' occurs in {scarce[1]} group(s), and a score needs every "
            f"class in two groups that can be kept apart. The probe is fitted with C = {MIDDLE}; its quality "
            "is unknown."
        ]
    found = []
    if split.count < folds:
        found.append(f"{split.count} folds instead of {folds}: '{scarce[0]}' occurs in {scarce[1]} groups only.")
    if split.count == 2:
        found += two_folds(len(np.unique(examples.groups)), f"C = {MIDDLE}")
    return found
