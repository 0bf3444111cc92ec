"""What a probe has seen: the images that it learnt from, and others of their groups."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_adapters.tables import count
from lejepa_med.evaluation.examples import Labelled

Seen = Literal["no", "record", "group"]
"""An image that the probe did not learn from, one that it did, or another one of such an image's group."""
SAME = 1e-3  # of the labelled vectors' spread: two computations of one image lie nearer, two images farther apart
SERVED = re.compile(r".*/([0-9a-f]{32})")  # the service's ids of examples: archive/id


@dataclass(frozen=True, eq=False)
class Places:
    """How well a probe knows images, (n,) each.

    Attributes:
        seen: one a row.
        fold: whose part of the cross-validation answers; -1 is the whole probe.
        in_sample: what answers has learnt from the image or its group, because no part of the probe is without it.
    """

    seen: list[Seen]
    fold: NDArray[np.int64]
    in_sample: NDArray[np.bool_]


class Memory:
    """Finds images among the labelled ones: by id, by vector and by group. fold: (n,) of each example, if any."""

    def __init__(self, examples: Labelled, fold: NDArray[np.int64] | None) -> None:
        self._examples, self._folded = examples, fold is not None
        self._fold = np.full(len(examples.ids), -1) if fold is None else fold
        served = {found[1]: row for row, name in enumerate(examples.ids) if (found := SERVED.fullmatch(name))}
        self._ids = served | {name: row for row, name in enumerate(examples.ids)}
        self._groups: dict[str, set[int]] = defaultdict(set)
        twins: dict[bytes, set[int]] = defaultdict(set)
        keys = [row.tobytes() for row in examples.vectors]
        for row, number in enumerate(self._fold.tolist()):
            for names in (examples.groups, examples.table_groups):
                if names and names[row]:
                    self._groups[names[row]].add(number)
            twins[keys[row]].add(number)
        self._alone = [len(twins[key]) == 1 for key in keys]  # no equal image in another fold
        self._near = SAME * float(np.sqrt(examples.vectors.astype(np.float64).var(0).sum()))

    def labelled(self, name: str) -> bool:
        """Whether the image with this id is one of the examples."""
        return name in self._ids

    def places(
        self,
        vectors: NDArray[np.float32],
        nearest: NDArray[np.int64] | None,
        ids: Sequence[str] | None,
        groups: Sequence[str] | None,
    ) -> Places:
        """Of vectors (n, dim) whose most similar example is `nearest` (n,); what is None does not count."""
        seen: list[Seen] = ["no"] * len(vectors)
        fold = np.full(len(vectors), -1, np.int64)
        in_sample = np.zeros(len(vectors), dtype=bool)
        alike = np.full(len(vectors), -1) if nearest is None else np.where(self._equal(vectors, nearest), nearest, -1)
        for row, twin in enumerate(alike.tolist()):
            name = "" if ids is None else ids[row]
            group = self._examples.relatives.get(name, "" if groups is None else groups[row])
            folds = self._groups.get(group, set())
            if name in self._ids:
                seen[row], folds, alone = "record", {int(self._fold[self._ids[name]])}, self._alone[self._ids[name]]
            elif twin >= 0:
                seen[row], folds, alone = "record", folds | {int(self._fold[twin])}, self._alone[twin]
            elif folds:
                seen[row], alone = "group", True
            else:
                continue
            fold[row], in_sample[row] = min(folds), not (self._folded and alone and len(folds) == 1)
        return Places(seen, fold, in_sample)

    def _equal(self, vectors: NDArray[np.float32], nearest: NDArray[np.int64]) -> NDArray[np.bool_]:
        apart = vectors.astype(np.float64) - self._examples.vectors[nearest]
        return np.asarray(np.sqrt((apart**2).sum(1)) <= self._near)


def seen_counts(seen: Sequence[str | None], in_sample: Sequence[bool | None]) -> dict[str, int]:
    """How many images a probe has seen how, and how many of its answers are in-sample."""
    counts = Counter(seen)
    return {**{value: counts[value] for value in ("no", "record", "group")}, "in_sample": sum(map(bool, in_sample))}


def seen_remarks(counts: Mapping[str, int], *, folds: int, kept: bool) -> list[str]:
    """What to know about the predictions that `seen_counts` counted, in sentences; none where nothing was seen.

    Args:
        counts: of `seen_counts`.
        folds: of the probe's cross-validation.
        kept: whether the probe has its folds.
    """
    record, group, in_sample = (counts[name] for name in ("record", "group", "in_sample"))
    if not record + group:
        return []
    found = []
    if record:
        found.append(f"the probe learnt from {record:,} of these images (seen: record)")
    if group:
        found.append(f"{count(group, 'other image', 'is')} of groups that it learnt from (seen: group)")
    if record + group > in_sample:
        found.append(
            f"{count(record + group - in_sample, 'prediction', 'is')} made by the parts of the cross-validation that "
            "saw neither the image nor its group, and can be scored"
        )
    if in_sample:
        if kept:
            cause = "an equal image, or the image's group, lies in several folds. Give copies one group and train again"
        elif folds:
            cause = "the probe was saved by an earlier release, without its folds. Train it again from its labels"
        else:
            cause = "too few groups allowed no cross-validation. Label images of more groups and train again"
        what = count(in_sample, "prediction", "is")
        found.append(f"{what} in-sample (in_sample: true) and must not be scored: {cause}")
    return found
