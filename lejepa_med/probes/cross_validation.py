"""Splits by group, nested cross-validation along a path of strengths, and the interface of a kind of probe."""

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lejepa_med.probes.examples import Kind
from lejepa_med.probes.linear import LinearModel

ATTEMPTS = 20
Progress = Callable[[float, str], None]
SEARCH_SHARE = 0.9  # of the work, for the progress bar


@dataclass(frozen=True)
class Folds:
    """The fold of each example, (n,) in 0 .. count - 1, and the code of its group, (n,)."""

    fold: NDArray[np.int64]
    groups: NDArray[np.int64]
    count: int

    def receipt(self, names: Sequence[str]) -> dict[str, Any]:
        """Return what each fold holds as JSON, with a hash of the (group, fold) pairs. `names`: of the groups, by code.

        Raises:
            RuntimeError: a group lies on both sides of a split.
        """
        rows = []
        for k in range(self.count):
            inside = self.fold == k
            train, validation = np.unique(self.groups[~inside]), np.unique(self.groups[inside])
            if np.intersect1d(train, validation).size:
                raise RuntimeError(f"Fold {k} shares groups between training and validation.")
            rows.append(
                {
                    "train": int((~inside).sum()),
                    "validation": int(inside.sum()),
                    "train_groups": len(train),
                    "validation_groups": len(validation),
                }
            )
        pairs = sorted({(names[g], int(f)) for g, f in zip(self.groups, self.fold, strict=True)})
        digest = hashlib.sha256(json.dumps(pairs, ensure_ascii=True).encode()).hexdigest()
        return {"groups_disjoint": True, "sha256": digest, "folds": rows}


def group_folds(labels: NDArray[np.int64], groups: NDArray[np.int64], *, folds: int, seed: int) -> Folds | None:
    """`marked_folds` for exclusive classes: labels (n,) are codes 0 .. classes - 1, all of which occur.

    The number of folds shrinks to the number of groups of the class that has fewest.
    """
    fewest = min(len(np.unique(groups[labels == k])) for k in range(int(labels.max()) + 1))
    marks = np.eye(int(labels.max()) + 1, dtype=np.int64)[labels]
    return marked_folds(marks, groups, folds=min(folds, fewest), seed=seed)


def marked_folds(marks: NDArray[Any], groups: NDArray[np.int64], *, folds: int, seed: int) -> Folds | None:
    """Stratified folds of whole groups, or None where some training part would lack one of the marks.

    marks: (n, marks) of 0 and 1, each of which occurs; rows may have several. Each is in three folds or more (in both
    of two), and the number of folds shrinks to the number of groups, or further where that is impossible. Greedy as
    scikit-learn's StratifiedGroupKFold (groups with most to place first, each into the fold where it unbalances the
    marks least). That one takes no rows of several marks, is 30 times slower (2.6 s for 20,000 groups), and lets the
    share of a class in eight groups vary by 0.051 from fold to fold instead of 0.028: here rare marks count by share.
    Measured by benchmarks/probes.py.
    """
    table = np.zeros((int(groups.max()) + 1, marks.shape[1]), dtype=np.int64)
    np.add.at(table, groups, marks)
    sizes = np.bincount(groups, minlength=len(table))
    for count in range(min(folds, len(np.unique(groups))), 1, -1):
        for attempt in range(ATTEMPTS):
            placed = _place(table, sizes, count, np.random.default_rng([seed, attempt]))
            held = np.zeros((count, marks.shape[1]), dtype=np.int64)
            np.add.at(held, placed, table)
            # The nested choice of C holds out two folds at a time, so a class needs a third one to be learnt from.
            if ((held > 0).sum(0) >= min(count, 3)).all():
                return Folds(fold=placed[groups], groups=groups, count=count)
    return None


def _place(
    table: NDArray[np.int64], weight: NDArray[np.int64], count: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Fold of each group, from its counts of the marks (groups, marks) and its size (groups,)."""
    share = table / table.sum(0)
    order = rng.permutation(len(table))
    order = order[np.argsort(-share[order].max(1), kind="stable")]
    load = np.zeros((count, table.shape[1]))
    sizes = np.zeros(count)
    placed = np.zeros(len(table), dtype=np.int64)
    for group in order:
        # Adding g to fold f raises sum_k load_fk^2 by 2 load_f.g + g.g: the smallest product keeps folds most equal.
        cost = load @ share[group]
        best = int(np.lexsort((sizes, cost))[0])
        placed[group] = best
        load[best] += share[group]
        sizes[best] += weight[group]
    return placed


class Task(Protocol):
    """A kind of probe as the cross-validation sees it: how to learn, and how good each strength is."""

    strengths: Sequence[float]
    """From strong regularisation to weak: a tie goes to the first."""
    heads: int
    """Outputs for each row."""

    def fit(self, rows: NDArray[np.bool_]) -> Sequence[LinearModel]:
        """One model for each strength, of the rows that the mask (n,) picks."""

    def outputs(self, models: Sequence[LinearModel], rows: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(strengths, rows, heads): what the models say about the rows that the mask (n,) picks."""

    def compact(self, outputs: NDArray[np.float64]) -> NDArray[Any]:
        """The part of outputs (..., heads) that `scores` needs; nested cross-validation keeps it many times."""

    def scores(self, compact: NDArray[Any], rows: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(strengths, rows, ...) -> (strengths,), higher is better, for the rows that the mask picks."""


@dataclass(frozen=True)
class CrossValidated:
    """Outputs of examples that their models never saw.

    Attributes:
        outputs: (strengths, n, heads).
        fold_strengths: position of the strength that each fold's training part chose.
        strength: position of the strength for a model of all examples.
        fold: (n,).
        models: for each fold, that of the other folds at the strength that they chose; `nested` is what they give.
    """

    outputs: NDArray[np.float64]
    fold_strengths: list[int]
    strength: int
    fold: NDArray[np.int64]
    models: list[LinearModel]

    @property
    def nested(self) -> NDArray[np.float64]:
        """(n, heads): each fold by the strength that the others chose. Scores come from these."""
        return np.asarray(self.outputs[np.array(self.fold_strengths)[self.fold], np.arange(len(self.fold))])


def cross_validate(
    task: Task, folds: Folds, *, nested: bool = True, progress: Progress | None = None
) -> CrossValidated:
    """Nested cross-validation.

    The strength of fold i comes from the other folds alone: fold j is predicted by a model of all but i and j. That
    model also serves fold j, which halves the work of an ordinary nested cross-validation. Two folds leave nothing to
    choose by: their strength is the middle of the grid, as without `nested`. `progress` gets (fraction, stage) before
    each fit; what it raises ends the run.
    """
    count, middle = folds.count, len(task.strengths) // 2
    outputs = np.zeros((len(task.strengths), len(folds.fold), task.heads))
    single = [(i,) for i in range(count)]
    pairs = list(itertools.combinations(range(count), 2)) if nested and count > 2 else []
    inner: list[NDArray[Any]] = []
    models: list[Sequence[LinearModel]] = []
    jobs = [*single, *pairs]
    for done, job in enumerate(jobs):
        if progress is not None:
            progress(done / len(jobs), f"cross-validation, fit {done + 1} of {len(jobs)}")
        fitted = task.fit(~np.isin(folds.fold, job))
        for fold in job:
            inside = folds.fold == fold
            found = task.outputs(fitted, inside)
            if len(job) == 1:
                outputs[:, inside] = found
                models.append(fitted)
                continue
            kept = task.compact(found)
            if not inner:
                inner = [np.zeros((len(kept), len(folds.fold), *kept.shape[2:]), kept.dtype) for _ in range(count)]
            inner[sum(job) - fold][:, inside] = kept
    chosen = [middle] * count
    for i, kept in enumerate(inner):
        outside = folds.fold != i
        chosen[i] = _best(task.scores(kept[:, outside], outside))
    everywhere = np.ones(len(folds.fold), dtype=bool)
    best = _best(task.scores(task.compact(outputs), everywhere))
    kept_models = [path[strength] for path, strength in zip(models, chosen, strict=True)]
    return CrossValidated(outputs=outputs, fold_strengths=chosen, strength=best, fold=folds.fold, models=kept_models)


def _best(scores: NDArray[np.float64]) -> int:
    return int(np.argmax(np.round(scores, 12)))


@dataclass(frozen=True)
class Options:
    """How a probe is fitted. `balanced`: classes weigh equally; None is the kind's own default."""

    seed: int
    folds: int
    balanced: bool | None
    progress: Progress


class Head(Protocol):
    """A fitted probe of one kind: a linear model, and the nearest labelled vectors."""

    @property
    def k(self) -> int:
        """Number of neighbours that answer."""

    @property
    def kind(self) -> Kind:
        """The kind of labels that it learnt."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the probabilities; empty for regression."""

    def answers(
        self, vectors: NDArray[np.float32], indices: NDArray[np.int64], cosines: NDArray[np.float32]
    ) -> list[dict[str, Any]]:
        """The kind's fields of a `Prediction`, one for each row (n, dim), given its k nearest examples (n, k)."""

    def uncertainty(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        """(n,) in 0 .. 1: how much the label of each row would teach."""

    def document(self) -> dict[str, Any]:
        """The part that is stored as JSON."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The part that is stored as arrays."""


@dataclass(frozen=True)
class Fitted:
    """The result of fitting one kind of probe.

    Attributes:
        head: of all examples.
        metrics: as in `Probe.metrics`.
        split: the folds behind the scores; None where nothing can be scored.
        held_out: for each fold, the head that was learnt from the other folds alone.
    """

    head: Head
    metrics: dict[str, Any]
    split: Folds | None
    held_out: tuple[Head, ...] = ()
