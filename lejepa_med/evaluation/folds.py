"""Splits by group: no patient, slide or sky cell is on both sides of one."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ATTEMPTS = 20


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
    marks least), but rare ones count by share, which spreads them over the folds, and a thousand groups take
    milliseconds.
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
