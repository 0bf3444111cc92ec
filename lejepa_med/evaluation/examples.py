"""Labelled vectors, checked before anything is learnt from them."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_adapters.errors import UserError

FEW = 10  # labels of a class below which a probe is mostly luck of the draw
SKEW = 10  # ratio of the most to the least frequent class that is worth a word


@dataclass(frozen=True)
class Examples:
    """Vectors (n, dim) float32 with class codes (n,) into `classes` and group codes (n,) into `names`, both sorted."""

    vectors: NDArray[np.float32]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    classes: tuple[str, ...]
    names: tuple[str, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Examples of each class."""
        return dict(zip(self.classes, np.bincount(self.labels, minlength=len(self.classes)).tolist(), strict=True))

    @property
    def groups_per_class(self) -> dict[str, int]:
        """Groups in which each class occurs."""
        return {name: len(np.unique(self.groups[self.labels == k])) for k, name in enumerate(self.classes)}

    def warnings(self) -> list[str]:
        """What makes a score of these examples less than it seems, in sentences."""
        found = []
        counts = self.counts
        few = [f"'{name}' {n}" for name, n in counts.items() if n < FEW]
        if few:
            found.append(f"Few labels: {', '.join(few)}. Below {FEW} a class, scores swing with the examples chosen.")
        most, least = max(counts, key=lambda k: counts[k]), min(counts, key=lambda k: counts[k])
        if counts[most] >= SKEW * counts[least]:
            found.append(
                f"Unequal classes: '{most}' has {counts[most]} labels, '{least}' {counts[least]}. Classes are weighted "
                "equally; read balanced accuracy and recall, not accuracy."
            )
        if len(self.names) == 1:
            found.append("All labels come from one group, so nothing says how the probe does on another one.")
        for twins in _look_alikes(self.classes):
            found.append(f"Class names that differ only in case, spaces or Unicode form: {', '.join(twins)}.")
        shared = self._shared_vectors()
        if shared:
            found.append(
                f"{shared} images have an exact twin in another group. Scores are then too good: "
                "give duplicates one group."
            )
        return found

    def _shared_vectors(self) -> int:
        keys = [row.tobytes() for row in self.vectors]
        groups: dict[Hashable, set[int]] = defaultdict(set)
        for key, group in zip(keys, self.groups.tolist(), strict=True):
            groups[key].add(group)
        return sum(len(groups[key]) > 1 for key in keys)


def _look_alikes(classes: Iterable[str]) -> list[list[str]]:
    folded: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        folded["".join(unicodedata.normalize("NFKC", name).casefold().split())].append(f"'{name}'")
    return [names for names in folded.values() if len(names) > 1]


def check_vectors(vectors: Any, *, dim: int | None = None) -> NDArray[np.float32]:
    """Vectors as (n, dim) float32.

    Raises:
        UserError: not a table of finite numbers, empty, or of another dimension than `dim`.
    """
    given = np.asarray(vectors)
    if given.ndim != 2 or given.dtype.kind not in "fiu" or not given.size:
        raise UserError(
            f"Vectors must be a table of numbers (images, dimensions); this one is {given.dtype} {given.shape}.",
            remedy="Give the vectors of one encoder, one row an image.",
        )
    if dim is not None and given.shape[1] != dim:
        raise UserError(
            f"The probe reads vectors of {dim} dimensions; these have {given.shape[1]}.",
            remedy="Embed the images with the encoder that the probe was trained on.",
        )
    with np.errstate(over="ignore"):  # what overflows float32 becomes inf and is refused below
        table = np.ascontiguousarray(given, dtype=np.float32)
    bad = np.flatnonzero(~np.isfinite(table).all(1))
    if len(bad):
        raise UserError(
            f"{len(bad)} of {len(table)} vectors hold NaN or infinite values (the first is row {bad[0]}).",
            remedy="Embed those images again; if it recurs, the encoder's weights are damaged.",
        )
    return table


def check_examples(vectors: Any, labels: Sequence[str], groups: Sequence[str]) -> Examples:
    """Examples from rows in any order.

    Raises:
        UserError: lengths differ, a label or group is empty, there is one class only, or a class has one example.
    """
    table = check_vectors(vectors)
    if not len(table) == len(labels) == len(groups):
        raise UserError(
            f"There are {len(table)} vectors, {len(labels)} labels and {len(groups)} groups.",
            remedy="Give one label and one group for each vector, in the same order.",
        )
    for what, column in (("label", labels), ("group", groups)):
        wrong = [i for i, value in enumerate(column) if not isinstance(value, str) or not value.strip()]
        if wrong:
            raise UserError(
                f"{len(wrong)} rows have no {what} in text (the first is row {wrong[0]}).",
                remedy="Leave unlabelled images out."
                if what == "label"
                else "Give each image its patient, slide or sky cell; an image alone is its own group.",
            )
    counts = Counter(map(str, labels))
    if len(counts) < 2:
        raise UserError(
            f"All {len(table)} labels are '{next(iter(counts))}'.",
            remedy="A probe needs examples of at least two classes.",
        )
    single = sorted(name for name, n in counts.items() if n == 1)
    if single:
        names = ", ".join(f"'{name}'" for name in single[:5]) + (" and others" if len(single) > 5 else "")
        raise UserError(
            f"{len(single)} of {len(counts)} classes have a single example: {names}.",
            remedy="Label at least two images of each class, better ten, or leave the class out.",
        )
    classes, codes = np.unique(np.array(labels, dtype=object).astype(str), return_inverse=True)
    names_, group_codes = np.unique(np.array(groups, dtype=object).astype(str), return_inverse=True)
    return Examples(
        vectors=table,
        labels=codes.astype(np.int64),
        groups=group_codes.astype(np.int64),
        classes=tuple(classes.tolist()),
        names=tuple(names_.tolist()),
    )
