"""What the labels of a study are, how a probe learns them, and how good its answers are.

Three kinds: exclusive classes, numbers, and any number of labels an image. Answers about n scored images are arrays:
probabilities (n, classes), values (n,), probabilities (n, labels). All kinds answer the same calls, so that few-shot
learning, fine-tuning, comparison and evaluation are written once.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import f1_score, recall_score
from torch import Tensor
from torch.nn import functional

from data_adapters.errors import UserError
from data_adapters.tables import NO_LABELS, meaning
from lejepa_med.probes.calibration import class_calibration, class_weights, label_calibration
from lejepa_med.probes.classification import choose_strength
from lejepa_med.probes.cross_validation import Task, cross_validate, group_folds, marked_folds
from lejepa_med.probes.examples import Kind, check_singles
from lejepa_med.probes.linear import GRID, PENALTIES, fit_heads, fit_path, fit_ridge
from lejepa_med.probes.multilabel import MarkTask
from lejepa_med.probes.regression import RidgeTask
from lejepa_med.probes.scores import (
    ByDraw,
    auroc,
    average_precision,
    balanced_accuracies,
    each_draw,
    macro,
    mean_error,
    point,
    r2,
    roc_area,
    spearman,
)

FOLDS = 5
LEAST_IMAGES = 5  # labelled ones, from which numbers or several labels can be learnt at all
Answers = NDArray[Any]


class Target(ABC):
    """The labels of images to learn from and of images to score on.

    Attributes:
        kind: of labels.
        names: of classes or labels; empty for numbers.
        matrix: what a network is to put out for each image to learn from, (n, heads).
        statistics: the scores that get an interval, the headline first: answers (draws, n, ...) -> score by weights.
        unit: what a number of shots counts.
        probe: what the linear probe is called.
        better: whether higher is better, by score.
    """

    kind: Kind
    names: tuple[str, ...] = ()
    unit = "labelled images"
    probe: str
    matrix: NDArray[np.float32]
    statistics: Mapping[str, Callable[[Answers], ByDraw]]
    parts = 1
    """How much work the headline's statistic is, in single statistics; see `cluster_interval`."""

    @property
    def metric(self) -> str:
        """Name of the headline score."""
        return next(iter(self.statistics))

    @property
    @abstractmethod
    def chance(self) -> float:
        """The headline score of guessing."""

    @abstractmethod
    def fit(
        self, vectors: NDArray[Any], rows: NDArray[np.int64], groups: NDArray[Any], scored: NDArray[Any], seed: int
    ) -> tuple[Answers, float]:
        """Fit the linear probe on these rows, its strength chosen by cross-validation over groups.

        vectors: (learn, dim). rows: (r,). groups: (learn,). scored: (n, dim). Returns the answers and the strength.
        """

    @abstractmethod
    def loss(self, outputs: Tensor, wanted: Tensor) -> Tensor:
        """Loss of outputs (B, heads) of a network against rows of the matrix, which may be mixed or smoothed."""

    @abstractmethod
    def answers(self, outputs: Tensor) -> Answers:
        """Answers from outputs (n, heads) of a network; values are those of `scaled` still."""

    @abstractmethod
    def scores(self, answers: Answers) -> dict[str, float | None]:
        """Every score of the answers of one draw, the headline first."""

    def neighbours(self, rows: NDArray[np.int64], indices: NDArray[np.int64], weights: NDArray[Any]) -> Answers:
        """Weighted mean of the nearest labelled images; indices into `rows` and weights, (n, k)."""
        shares = weights / weights.sum(1, keepdims=True)
        found: Answers = np.einsum("nk,nkh->nh", shares, self.matrix[rows][indices])
        return found

    def scale(self, rows: NDArray[np.int64]) -> tuple[float, float]:
        """Mean and deviation by which a network's outputs are scaled."""
        return 0.0, 1.0

    def members(self) -> list[NDArray[np.int64]]:
        """Rows from which a draw takes `shots` each; a step of fine-tuning takes from each alike."""
        return [np.arange(len(self.matrix))]

    def usable(self, shots: Sequence[int]) -> list[int]:
        """The numbers of shots, sorted, that can be drawn and learnt from."""
        return [k for k in sorted(set(shots)) if LEAST_IMAGES <= k < len(self.matrix)]

    @property
    def per_class(self) -> float:
        """The number of shots that all labels come to, the place of "all" on an axis."""
        return float(np.mean([len(rows) for rows in self.members()]))

    def drawn(self, shots: int | None, *, seed: int, draw: int) -> NDArray[np.int64]:
        """The rows that one draw takes, `shots` of each of `members` (None: all), in order."""
        rng = np.random.default_rng([seed, draw, shots or 0])
        taken = [m if shots is None else rng.choice(m, shots, replace=False) for m in self.members()]
        return np.sort(np.concatenate(taken))


class ClassTarget(Target):
    """Exclusive classes."""

    kind: Kind = "classification"
    unit = "labels per class"
    probe = "logistic regression"

    def __init__(self, learn: Sequence[str], test: Sequence[str]) -> None:
        """Code the classes.

        Raises:
            UserError: a class with one example, or classes to score that do not occur in those to learn from.
        """
        names, self.codes = np.unique(np.array(learn, dtype=object).astype(str), return_inverse=True)
        self.names = tuple(names.tolist())
        code = {name: k for k, name in enumerate(self.names)}
        unknown = sorted({str(label) for label in test} - code.keys())
        if unknown:
            raise UserError(
                f"Test labels that do not occur in training: {', '.join(unknown[:5])}.",
                remedy="Leave those images out, or add examples of the class to the training part.",
            )
        counts = dict(zip(self.names, np.bincount(self.codes).tolist(), strict=True))
        check_singles(counts, "Label at least two images of each class, better ten, or leave the class out.", "classes")
        self.truth = np.array([code[str(label)] for label in test], dtype=np.int64)
        self.matrix = np.eye(len(names), dtype=np.float32)[self.codes]
        self.statistics = {
            "balanced accuracy": lambda answers: balanced_accuracies(self.truth, answers.argmax(-1) == self.truth),
            "AUROC": each_draw(lambda one: macro([roc_area(self.truth == k, one[:, k]) for k in self._scored])),
        }

    @property
    def _scored(self) -> list[int]:
        """Classes that occur among the scored images; of two, the second stands for both."""
        found = sorted(set(self.truth.tolist()))
        return [1] if len(self.names) == 2 else found

    @property
    def chance(self) -> float:
        """One over the number of classes."""
        return 1 / len(self.names)

    def members(self) -> list[NDArray[np.int64]]:
        """The rows of each class."""
        return [np.flatnonzero(self.codes == k) for k in range(len(self.names))]

    def usable(self, shots: Sequence[int]) -> list[int]:
        """Fewer than the rarest class has."""
        return [k for k in sorted(set(shots)) if 1 <= k < min(len(rows) for rows in self.members())]

    def fit(
        self, vectors: NDArray[Any], rows: NDArray[np.int64], groups: NDArray[Any], scored: NDArray[Any], seed: int
    ) -> tuple[Answers, float]:
        """Logistic regression with balanced class weights."""
        chosen, labels = vectors[rows], self.codes[rows]
        split = group_folds(labels, np.unique(groups[rows], return_inverse=True)[1], folds=FOLDS, seed=seed)
        strength = choose_strength(chosen, labels, split) if split is not None else GRID[len(GRID) // 2]
        return fit_path(chosen, labels, strengths=[strength], final=True)[0].probabilities(scored), strength

    def loss(self, outputs: Tensor, wanted: Tensor) -> Tensor:
        """Cross-entropy."""
        return functional.cross_entropy(outputs, wanted)

    def answers(self, outputs: Tensor) -> Answers:
        """Softmax."""
        found: Answers = outputs.softmax(-1).numpy()
        return found

    def scores(self, answers: Answers) -> dict[str, float | None]:
        """Calibration weighs classes alike, as the probe does."""
        predicted = answers.argmax(1)
        known = sorted(set(self.truth.tolist()))
        calibration = self.calibration(answers)
        return {
            self.metric: float(recall_score(self.truth, predicted, average=None, labels=known, zero_division=0).mean()),
            "macro F1": float(f1_score(self.truth, predicted, average="macro", labels=known, zero_division=0)),
            "AUROC": auroc(self.truth, np.asarray(answers, np.float64) / answers.sum(1, keepdims=True)),
            "ECE": calibration["ece"],
            "Brier": calibration["brier"],
        }

    def calibration(self, answers: Answers) -> dict[str, Any]:
        """ECE, Brier score and bins, classes weighed alike."""
        weights = class_weights(self.truth, balanced=True)
        chances = _chances(answers)  # of float32, they sum to 1 less closely than scikit-learn asks for
        return class_calibration(chances / chances.sum(1, keepdims=True), self.truth, weights)


class NumberTarget(Target):
    """A number for each image."""

    kind: Kind = "regression"
    probe = "ridge regression"

    def __init__(self, learn: Sequence[float], test: Sequence[float]) -> None:
        """Keep the numbers.

        Raises:
            UserError: all numbers of a side are equal.
        """
        self.values, self.truth = np.asarray(learn, np.float64), np.asarray(test, np.float64)
        for side in (self.values, self.truth):
            if len(np.unique(side)) < 2:
                raise UserError("All numbers of one side are equal.", remedy="Add images with other values.")
        self.matrix = self.values.astype(np.float32)[:, None]
        self.statistics = {
            "R2": each_draw(lambda one: r2(self.truth, one)),
            "Spearman": each_draw(lambda one: spearman(self.truth, one)),
            "MAE": each_draw(lambda one: mean_error(self.truth, one)),
        }

    @property
    def chance(self) -> float:
        """R2 of the mean."""
        return 0.0

    def fit(
        self, vectors: NDArray[Any], rows: NDArray[np.int64], groups: NDArray[Any], scored: NDArray[Any], seed: int
    ) -> tuple[Answers, float]:
        """Ridge regression."""
        chosen, values = vectors[rows], self.values[rows]
        if len(np.unique(values)) < 2:
            return np.full(len(scored), values[0]), PENALTIES[0]
        ones = np.ones((len(rows), 1), np.int64)
        penalty = _strength(RidgeTask(chosen, values), ones, groups[rows], seed)
        return fit_ridge(chosen, values, penalties=[penalty])[0].logits(scored)[:, 0], penalty

    def scale(self, rows: NDArray[np.int64]) -> tuple[float, float]:
        """Of these rows."""
        return float(self.values[rows].mean()), float(self.values[rows].std()) or 1.0

    def neighbours(self, rows: NDArray[np.int64], indices: NDArray[np.int64], weights: NDArray[Any]) -> Answers:
        """As a column."""
        return super().neighbours(rows, indices, weights)[:, 0]

    def loss(self, outputs: Tensor, wanted: Tensor) -> Tensor:
        """Mean squared error."""
        return functional.mse_loss(outputs, wanted)

    def answers(self, outputs: Tensor) -> Answers:
        """The outputs."""
        found: Answers = outputs[..., 0].numpy()
        return found

    def scores(self, answers: Answers) -> dict[str, float | None]:
        """R2, Spearman's rank correlation and mean absolute error."""
        return {name: point(_first(of, answers), len(self.truth)) for name, of in self.statistics.items()}


class MarkTarget(Target):
    """Any number of labels for each image."""

    kind: Kind = "multilabel"
    probe = "logistic regression, one a label"

    def __init__(self, learn: Sequence[Sequence[str]], test: Sequence[Sequence[str]]) -> None:
        """Keep the labels that can be scored.

        Raises:
            UserError: no label is on some images and missing from others, on both sides.
        """
        marks = {name: _marks((learn, test), name) for name in sorted({name for one in learn for name in one})}
        kept = {name: both for name, both in marks.items() if all(0 < side.sum() < len(side) for side in both)}
        self.skipped = [name for name in marks if name not in kept]
        if not kept:
            raise UserError(
                "No label is on some images and missing from others, both to learn from and to be scored.",
                remedy=f"Write several labels of one image as a;b and none as {NO_LABELS}, and label more images.",
            )
        self.names = tuple(kept)
        self.marks, self.truth = (np.stack([both[side] for both in kept.values()], axis=1) for side in (0, 1))
        self.matrix = self.marks.astype(np.float32)
        self.parts = len(self.names)
        labels = range(len(self.names))
        self.statistics = {
            "macro AUROC": each_draw(lambda one: macro([roc_area(self.truth[:, j], one[:, j]) for j in labels])),
            "macro average precision": each_draw(
                lambda one: macro([average_precision(self.truth[:, j], one[:, j]) for j in labels])
            ),
        }

    @property
    def chance(self) -> float:
        """Of an area under the ROC curve."""
        return 0.5

    def fit(
        self, vectors: NDArray[Any], rows: NDArray[np.int64], groups: NDArray[Any], scored: NDArray[Any], seed: int
    ) -> tuple[Answers, float]:
        """A logistic regression for each label; one that all or none of the rows have gets its share by Laplace."""
        chosen, marks = vectors[rows], self.marks[rows]
        present = marks.sum(0)
        answers = np.tile((present + 1) / (len(rows) + 2), (len(scored), 1))
        told = (present > 0) & (present < len(rows))
        strength = GRID[len(GRID) // 2]
        if told.any():
            task = MarkTask(chosen, marks[:, told], balanced=False)
            sides = np.hstack([marks[:, told], ~marks[:, told]]).astype(np.int64)
            strength = _strength(task, sides, groups[rows], seed)
            logits = fit_heads(chosen, marks[:, told], strengths=[strength], final=True)[0].logits(scored)
            answers[:, told] = 1 / (1 + np.exp(-logits))
        return answers, strength

    def loss(self, outputs: Tensor, wanted: Tensor) -> Tensor:
        """Binary cross-entropy."""
        return functional.binary_cross_entropy_with_logits(outputs, wanted)

    def answers(self, outputs: Tensor) -> Answers:
        """Sigmoid."""
        found: Answers = outputs.sigmoid().numpy()
        return found

    def scores(self, answers: Answers) -> dict[str, float | None]:
        """Macro scores; a label counts as present from one half on."""
        found = {name: point(_first(of, answers), len(self.truth)) for name, of in self.statistics.items()}
        calibration = self.calibration(answers)
        f1 = float(f1_score(self.truth, answers >= 0.5, average="macro", zero_division=0))
        return {**found, "macro F1": f1, "ECE": calibration["ece"], "Brier": calibration["brier"]}

    def calibration(self, answers: Answers) -> dict[str, Any]:
        """ECE, Brier score and bins over all labels."""
        return label_calibration(_chances(answers), self.truth)


def target_of(kind: Kind, learn: Sequence[str], test: Sequence[str]) -> Target:
    """The target of the labels as a catalogue writes them.

    Raises:
        UserError: they do not fit the kind.
    """
    if kind == "classification":
        return ClassTarget(learn, test)
    if kind == "regression":
        return NumberTarget([_number(text) for text in learn], [_number(text) for text in test])
    return MarkTarget([several(text) for text in learn], [several(text) for text in test])


def several(text: str) -> tuple[str, ...]:
    """The labels of an image, written a;b."""
    parts = [] if text == NO_LABELS else [meaning(part) for part in text.split(";") if part.strip()]
    return tuple(dict.fromkeys(part for part in parts if part))


def _chances(answers: Answers) -> NDArray[np.float64]:
    """Probabilities in float64; sums of votes round to a little more than 1, which scikit-learn refuses."""
    return np.clip(np.asarray(answers, np.float64), 0, 1)


def _number(text: str) -> float:
    try:
        found = float(text.replace("_", "no number").replace(",", "."))
    except ValueError:
        found = float("nan")
    if not np.isfinite(found):
        raise UserError(
            f"The label '{text}' is no number.", remedy="Write numbers with a decimal point, or use another --kind."
        )
    return found


def _marks(sides: tuple[Sequence[Sequence[str]], ...], name: str) -> list[NDArray[np.bool_]]:
    return [np.array([name in one for one in side]) for side in sides]


def _strength(task: Task, marks: NDArray[np.int64], groups: NDArray[Any], seed: int) -> float:
    """The strength that cross-validation over groups chooses, the middle one where there are too few groups."""
    folds = marked_folds(marks, np.unique(groups, return_inverse=True)[1], folds=FOLDS, seed=seed)
    middle = task.strengths[len(task.strengths) // 2]
    return middle if folds is None else task.strengths[cross_validate(task, folds, nested=False).strength]


def _first(of: Callable[[Answers], ByDraw], answers: Answers) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """The statistic of a single draw."""
    by_draw = of(answers[None])
    return lambda weights: by_draw(weights)[:, 0]


def as_matrix(target: Target, rows: NDArray[np.int64]) -> Tensor:
    """What a network is to put out for these rows, scaled: (r, heads) float32."""
    mean, deviation = target.scale(rows)
    return torch.from_numpy((target.matrix[rows] - mean) / deviation).float()


def scaled_back(target: Target, rows: NDArray[np.int64], answers: Answers) -> Answers:
    """Answers of a network that learnt from `as_matrix` of these rows."""
    mean, deviation = target.scale(rows)
    found: Answers = answers * deviation + mean
    return found
