"""Nested cross-validation by group, for whatever is learnt along a path of strengths."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lejepa_med.evaluation.folds import Folds

Progress = Callable[[float, str], None]


class Path(Protocol):
    """Models of one training part, one for each strength."""

    @property
    def models(self) -> Sequence[Any]:
        """One for each strength."""

    def outputs(self, rows: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(strengths, rows, outputs) for the rows that the mask (n,) picks."""


class Task(Protocol):
    """What is learnt from where, and what makes one strength better than another."""

    strengths: Sequence[float]
    """From strong regularisation to weak: a tie goes to the first."""
    heads: int
    """Outputs a row."""

    def fit(self, rows: NDArray[np.bool_]) -> Path:
        """Models of the rows that the mask (n,) picks."""

    def decided(self, outputs: NDArray[np.float64]) -> NDArray[Any]:
        """What `scores` needs of outputs (..., outputs); nested cross-validation keeps it many times."""

    def scores(self, decided: NDArray[Any], rows: NDArray[np.bool_]) -> NDArray[np.float64]:
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
    models: list[Any]

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
    models: list[Sequence[Any]] = []
    for job, path in _held_out(task, folds, [*single, *pairs], progress):
        for fold in job:
            inside = folds.fold == fold
            found = path.outputs(inside)
            if len(job) == 1:
                outputs[:, inside] = found
                models.append(path.models)
                continue
            kept = task.decided(found)
            if not inner:
                inner = [np.zeros((len(kept), len(folds.fold), *kept.shape[2:]), kept.dtype) for _ in range(count)]
            inner[sum(job) - fold][:, inside] = kept
    chosen = [middle] * count
    for i, kept in enumerate(inner):
        outside = folds.fold != i
        chosen[i] = _best(task.scores(kept[:, outside], outside))
    everywhere = np.ones(len(folds.fold), dtype=bool)
    best = _best(task.scores(task.decided(outputs), everywhere))
    kept_models = [path[strength] for path, strength in zip(models, chosen, strict=True)]
    return CrossValidated(outputs=outputs, fold_strengths=chosen, strength=best, fold=folds.fold, models=kept_models)


def _held_out(
    task: Task,
    folds: Folds,
    jobs: Sequence[tuple[int, ...]],
    progress: Progress | None,
) -> Iterator[tuple[tuple[int, ...], Path]]:
    """For each tuple of folds, the models of all other folds."""
    for done, job in enumerate(jobs):
        if progress is not None:
            progress(done / len(jobs), f"cross-validation, fit {done + 1} of {len(jobs)}")
        yield job, task.fit(~np.isin(folds.fold, job))


def _best(scores: NDArray[np.float64]) -> int:
    return int(np.argmax(np.round(scores, 12)))
