"""Cross-validation by group: no patient, slide or sky cell is on both sides of a split."""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lejepa_med.evaluation.linear import GRID, LinearModel, fit_path
from lejepa_med.evaluation.scores import balanced_accuracy, confusion_matrix

Progress = Callable[[float, str], None]
ATTEMPTS = 20
MIDDLE = GRID[len(GRID) // 2]


@dataclass(frozen=True)
class Folds:
    """The fold of each example, (n,) in 0 .. count - 1, with its group's code, (n,)."""

    fold: NDArray[np.int64]
    groups: NDArray[np.int64]
    count: int

    def receipt(self, names: Sequence[str]) -> dict[str, Any]:
        """What was split how, as JSON, with a hash of the (group, fold) pairs. `names`: the groups' names by code.

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
    """Stratified folds of whole groups, or None where some training part would lack a class.

    The number of folds shrinks to the number of groups of the class that has fewest. Greedy as scikit-learn's
    StratifiedGroupKFold (groups with most to place first, each into the fold where it unbalances the classes least),
    but rare classes count by share, which spreads them over the folds, and a thousand groups take milliseconds.
    """
    classes = int(labels.max()) + 1
    table = np.zeros((int(groups.max()) + 1, classes), dtype=np.int64)
    np.add.at(table, (groups, labels), 1)
    for count in range(min(folds, int((table > 0).sum(0).min())), 1, -1):
        for attempt in range(ATTEMPTS):
            fold = _place(table, count, np.random.default_rng([seed, attempt]))[groups]
            present = np.zeros((count, classes), dtype=bool)
            present[fold, labels] = True
            # The nested choice of C holds out two folds at a time, so a class needs a third one to be learnt from.
            if (present.sum(0) >= min(count, 3)).all():
                return Folds(fold=fold, groups=groups, count=count)
    return None


def _place(table: NDArray[np.int64], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Fold of each group, from its class counts (groups, classes)."""
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
        sizes[best] += table[group].sum()
    return placed


@dataclass(frozen=True)
class CrossValidated:
    """Out-of-fold probabilities (n, classes), the C of each fold, and the C for a model of all examples."""

    probabilities: NDArray[np.float64]
    fold_strengths: list[float]
    strength: float


def cross_validate(
    vectors: NDArray[Any],
    labels: NDArray[np.int64],
    folds: Folds,
    *,
    progress: Progress | None = None,
) -> CrossValidated:
    """Nested cross-validation of the logistic regression; C by balanced accuracy, a tie going to the smaller C.

    The C of fold i comes from the other folds alone: fold j is predicted by a model of all but i and j. That model
    also serves fold j, which halves the work of an ordinary nested cross-validation. Two folds leave nothing to choose
    by: their C is the middle of the grid.

    vectors: (n, dim). labels: (n,) codes. `progress` gets (fraction, stage)
    before each fit; what it raises ends the run.
    """
    classes, count = int(labels.max()) + 1, folds.count
    outer = np.zeros((len(GRID), len(labels), classes))
    inner = np.zeros((count, len(GRID), len(labels)), dtype=np.int64)
    held = [(i,) for i in range(count)]
    pairs = list(itertools.combinations(range(count), 2)) if count > 2 else []
    for job, path in _held_out(vectors, labels, folds, [*held, *pairs], progress):
        for fold in job:
            inside = folds.fold == fold
            found = np.stack([model.probabilities(vectors[inside]) for model in path])
            if len(job) == 1:
                outer[:, inside] = found
            else:
                inner[sum(job) - fold][:, inside] = found.argmax(2)
    chosen = [MIDDLE] * count
    if count > 2:
        chosen = [_best(labels[o], inner[i][:, o]) for i in range(count) for o in [folds.fold != i]]
    rows = np.array([GRID.index(c) for c in chosen])[folds.fold]
    return CrossValidated(
        probabilities=outer[rows, np.arange(len(labels))],
        fold_strengths=chosen,
        strength=_best(labels, outer.argmax(2)),
    )


def choose_strength(vectors: NDArray[Any], labels: NDArray[np.int64], folds: Folds) -> float:
    """The C with the best out-of-fold balanced accuracy, as `cross_validate` gives it, without the nested part."""
    predicted = np.zeros((len(GRID), len(labels)), dtype=np.int64)
    for (fold,), path in _held_out(vectors, labels, folds, [(i,) for i in range(folds.count)], None):
        inside = folds.fold == fold
        predicted[:, inside] = [model.probabilities(vectors[inside]).argmax(1) for model in path]
    return _best(labels, predicted)


def _held_out(
    vectors: NDArray[Any],
    labels: NDArray[np.int64],
    folds: Folds,
    jobs: Sequence[tuple[int, ...]],
    progress: Progress | None,
) -> Iterator[tuple[tuple[int, ...], list[LinearModel]]]:
    """For each tuple of folds, the models (one for each C) of all other folds."""
    for done, job in enumerate(jobs):
        if progress is not None:
            progress(done / len(jobs), f"cross-validation, fit {done + 1} of {len(jobs)}")
        train = ~np.isin(folds.fold, job)
        yield job, fit_path(vectors[train], labels[train])


def _best(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    """The C with the best balanced accuracy; predicted: (strengths, n)."""
    classes = int(max(labels.max(), predicted.max())) + 1
    scores = [float(balanced_accuracy(confusion_matrix(labels, row, classes))) for row in predicted]
    return GRID[int(np.argmax(np.round(scores, 12)))]
