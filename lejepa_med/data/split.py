"""Train, validation and test by group: no patient, slide or sky cell on two sides, and the same mix of labels on each.

Groups that share an exactly equal image are taken as one. Then, as in multi-label iterative stratification
(Sechidis, Tsoumakas and Vlahavas 2011): the largest unit first, each goes where it lowers most the chi-squared distance
sum over splits and labels of (count - wanted)^2 / wanted. Before that, each label gets one small unit in every split.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

from data_adapters.leaks import NO_GROUPS
from lejepa_med.errors import UserError

UNLABELLED = ""


def check_fractions(fractions: Mapping[str, float]) -> None:
    """Two splits or more that sum to 1.

    Raises:
        UserError: they do not.
    """
    if len(fractions) < 2 or min(fractions.values()) <= 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        given = " ".join(f"{name}={value:g}" for name, value in fractions.items()) or "nothing"
        raise UserError(
            f"The fractions must be two or more, above 0, and sum to 1; they are: {given}.",
            remedy="For example: --fractions train=.7 val=.15 test=.15",
        )


def assign(
    groups: Sequence[str],
    labels: Sequence[str | None],
    contents: Sequence[str],
    *,
    fractions: Mapping[str, float],
    seed: int,
) -> tuple[list[str], int]:
    """The split of each item, and the number of units: groups, after those with equal content became one.

    Args:
        groups: what must stay on one side, (N).
        labels: class names; None or empty where unlabelled, which is balanced like a class, (N).
        contents: equal where two items are exactly equal, (N).
        fractions: split name -> wanted part of the items.
        seed: of the order among units of equal size.

    Raises:
        UserError: too few groups, or a class in fewer groups than there are splits.
    """
    check_fractions(fractions)
    unit, count = _units(groups, contents)
    names, code = np.unique([label or UNLABELLED for label in labels], return_inverse=True)
    counts = csr_array(coo_array((np.ones(len(unit), np.int64), (unit, code)), shape=(count, len(names))))
    if count < len(fractions):
        raise UserError(
            f"The archive has {count} separate groups, fewer than the {len(fractions)} splits.",
            remedy=f"Give a catalogue with finer groups, or fewer --fractions{NO_GROUPS}.",
        )
    chosen = _Assignment(counts, names, fractions, np.random.default_rng(seed))
    chosen.cover()
    chosen.fill()
    return [chosen.splits[side] for side in chosen.side[unit]], count


def _units(groups: Sequence[str], contents: Sequence[str]) -> tuple[NDArray[np.int64], int]:
    """For each item its unit: the connected part of the graph in which items join groups and contents."""
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    _, content = np.unique(np.asarray(contents), return_inverse=True)
    nodes = int(group.max()) + 1
    size = nodes + int(content.max()) + 1
    graph = coo_array((np.ones(len(group), np.int8), (group, content + nodes)), shape=(size, size))
    _, part = connected_components(graph, directed=False)
    _, unit = np.unique(part[group], return_inverse=True)
    return unit.astype(np.int64), int(unit.max()) + 1


class _Assignment:
    """Which unit lies on which side, while it is being decided."""

    def __init__(
        self, counts: csr_array, names: NDArray[np.str_], fractions: Mapping[str, float], rng: np.random.Generator
    ) -> None:
        self.counts, self.names, self.splits = counts, names, list(fractions)
        self.parts = np.array(list(fractions.values()))
        self.side = np.full(counts.shape[0], -1)
        self.wanted = np.outer(self.parts, counts.sum(axis=0))  # (splits, classes), items
        self.given = np.zeros_like(self.wanted)
        sizes = counts.sum(axis=1)
        self.order = np.lexsort((rng.permutation(len(sizes)), -sizes))  # the largest first

    def put(self, unit: int, side: int) -> None:
        """Decide one unit."""
        self.side[unit] = side
        classes, items = self._of(unit)
        self.given[side, classes] += items

    def _of(self, unit: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        inside = slice(self.counts.indptr[unit], self.counts.indptr[unit + 1])
        return self.counts.indices[inside], self.counts.data[inside]

    def cover(self) -> None:
        """Give every class a unit in every split, the rarest class and the smallest units first."""
        smallest = self.order[::-1]
        by_class = self.counts[smallest].tocsc()  # the indices of a column ascend: from the smallest unit on
        needed = [c for c, name in enumerate(self.names) if name != UNLABELLED] or list(range(len(self.names)))
        holders = {c: smallest[by_class.indices[by_class.indptr[c] : by_class.indptr[c + 1]]] for c in needed}
        for c in sorted(needed, key=lambda c: len(holders[c])):
            if len(holders[c]) < len(self.splits):
                raise self._too_rare(c, len(holders[c]))
            free = (unit for unit in holders[c] if self.side[unit] < 0)
            for side in np.argsort(self.parts, kind="stable"):
                if self.given[side, c] == 0:
                    unit = next(free, None)
                    if unit is None:
                        raise self._too_rare(c, len(holders[c]))
                    self.put(int(unit), int(side))

    def _too_rare(self, c: int, units: int) -> UserError:
        what = f"The label '{self.names[c]}'" if self.names[c] != UNLABELLED else "The archive"
        return UserError(
            f"{what} lies in {units} separate groups, too few for each of the {len(self.splits)} splits to get one.",
            remedy="Take fewer --fractions, join rare labels into one, or leave that label empty in the catalogue"
            f"{NO_GROUPS}.",
        )

    def fill(self) -> None:
        """Put each further unit where it lowers the chi-squared distance most."""
        for unit in self.order:
            if self.side[unit] >= 0:
                continue
            classes, items = self._of(int(unit))
            wanted = self.wanted[:, classes]
            change = (items * (2 * (self.given[:, classes] - wanted) + items) / wanted).sum(axis=1)
            self.put(int(unit), int(change.argmin()))
