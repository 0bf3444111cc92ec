"""Labelled vectors: their checks before a fit, and the warnings about scores that seem better than they are."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_adapters.errors import UserError

Kind = Literal["classification", "multilabel", "regression"]
Label = str | float | Sequence[str]
"""A class, a quantity, or the labels of one image."""
FEW = 10  # labels of a class below which an accuracy is mostly luck of the draw
FEW_NUMBERS = 30  # measured images below which the same holds for a quantity
SKEW = 10  # ratio of the most to the least frequent class that is worth a word
ONE_SIDED = 0.8  # share of a class's labels in one group from which on it may be that group that is learnt
WIDE = 0.2  # width of a 95 % interval of a score between 0 and 1


def kind_of(labels: Sequence[Any]) -> Kind:
    """Return the kind of probe: texts make a classification, lists of texts a multilabel probe, numbers a regression.

    Raises:
        UserError: labels of several kinds.
    """
    kinds = {_kind(label) for label in labels} or {"classification"}
    if len(kinds) > 1:
        raise UserError(
            "Labels of several kinds (text, number, list) in one probe.",
            remedy="Give every image a text (its class), or every image a number, or every image a list of texts.",
        )
    return kinds.pop()


def _kind(label: Any) -> Kind:
    if isinstance(label, list | tuple | set | frozenset):
        return "multilabel"
    number = isinstance(label, int | float | np.integer | np.floating) and not isinstance(label, bool)
    return "regression" if number else "classification"


def few_labels(counts: Mapping[str, int]) -> list[str]:
    """Warn about classes (or labels) with few examples."""
    few = [f"'{name}' {n}" for name, n in counts.items() if n < FEW]
    if not few:
        return []
    return [f"Few labels: {', '.join(few)}. Below {FEW} a class, scores swing with the examples chosen."]


def few_numbers(count: int) -> list[str]:
    """Warn about a regression target that is known for few images only."""
    if count >= FEW_NUMBERS:
        return []
    return [f"Few labels: {count} images are measured. Below {FEW_NUMBERS}, scores swing with the examples chosen."]


def two_folds(groups: int, what: str) -> list[str]:
    """Warn that two folds cannot choose the strength of the regularisation. `what`: the value that is used."""
    cause, remedy = "", "Use three folds or more, with every class in three groups."
    if groups == 2:
        cause, remedy = "All labels come from two groups (patients, slides, fields). ", "Label items of a third group."
    return [
        f"{cause}Two folds: each model learns from one part and is scored on the other, and no third part is left to "
        f"choose the strength of the regularisation by. So {what} is used, and the scores are rough. {remedy}"
    ]


def unequal(counts: Mapping[str, int]) -> list[str]:
    """Warn about classes of very different frequency."""
    most, least = max(counts, key=lambda k: counts[k]), min(counts, key=lambda k: counts[k])
    if counts[most] < SKEW * counts[least]:
        return []
    return [
        f"Unequal classes: '{most}' has {counts[most]} labels, '{least}' {counts[least]}. "
        "Read balanced accuracy and recall, not accuracy."
    ]


def look_alikes(classes: Iterable[str]) -> list[str]:
    """Warn about class names that a person would read as the same."""
    folded: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        folded["".join(unicodedata.normalize("NFKC", name).casefold().split())].append(f"'{name}'")
    return [
        f"Class names that differ only in case, spaces or Unicode form: {', '.join(names)}."
        for names in folded.values()
        if len(names) > 1
    ]


def one_sided(members: Mapping[str, NDArray[np.int64]]) -> list[str]:
    """Warn about classes that come nearly all from one group. `members`: the group of each example, by class."""
    found = []
    for name, groups in members.items():
        most = int(np.bincount(groups).max())
        if most >= ONE_SIDED * len(groups) and len(groups) > 2:
            found.append(
                f"{most} of the {len(groups)} labels of '{name}' come from one group (patient, slide), so the probe "
                "may know that group instead of the class. Label it in other groups."
            )
    return found


def wide_interval(what: str, interval: Any) -> list[str]:
    """Warn about a score with a wide interval."""
    low, high = interval
    if high - low <= WIDE:
        return []
    return [
        f"The {what} is known only to lie between {low:.2f} and {high:.2f} (95 % interval). More labels, of more "
        "groups first, make that narrower."
    ]


@dataclass(frozen=True, eq=False)
class Labelled:
    """The examples of a probe, in the order of the rows: ids, vectors (n, dim) float32, labels, groups.

    Labels are texts (classes), numbers, or lists of texts.

    Attributes:
        table_groups: groups of the rows in their embedding table, where labels came with other ones; else empty.
        relatives: group by id of images without a label that the labels' table puts beside labelled ones.
    """

    ids: tuple[str, ...]
    vectors: NDArray[np.float32]
    labels: tuple[Any, ...]
    groups: tuple[str, ...]
    table_groups: tuple[str, ...] = ()
    relatives: Mapping[str, str] = field(default_factory=dict)

    def updated(self, newer: "Labelled") -> "Labelled":
        """Return both together; where an id occurs in both, the newer label, vector and group hold."""
        known = set(newer.ids)
        kept = [row for row, name in enumerate(self.ids) if name not in known]
        mine, theirs = (one.table_groups or one.groups for one in (self, newer))
        several = self.table_groups or newer.table_groups
        return Labelled(
            ids=(*(self.ids[row] for row in kept), *newer.ids),
            vectors=np.concatenate([self.vectors[kept], newer.vectors]),
            labels=(*(self.labels[row] for row in kept), *newer.labels),
            groups=(*(self.groups[row] for row in kept), *newer.groups),
            table_groups=(*(mine[row] for row in kept), *theirs) if several else (),
            relatives={**self.relatives, **newer.relatives},
        )


@dataclass(frozen=True)
class Rows:
    """Vectors (n, dim) float32 with group codes (n,) into `names`, sorted."""

    vectors: NDArray[np.float32]
    groups: NDArray[np.int64]
    names: tuple[str, ...]

    def warnings(self) -> list[str]:
        """Return the warnings about scores of these examples, as sentences."""
        found = []
        if len(self.names) == 1:
            found.append("All labels come from one group, so nothing says how the probe does on another one.")
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


@dataclass(frozen=True)
class Examples(Rows):
    """Rows with the code of each one's class, (n,), into `classes`, sorted."""

    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Examples of each class."""
        return dict(zip(self.classes, np.bincount(self.labels, minlength=len(self.classes)).tolist(), strict=True))

    @property
    def groups_per_class(self) -> dict[str, int]:
        """Groups in which each class occurs."""
        return {name: len(np.unique(self.groups[self.labels == k])) for k, name in enumerate(self.classes)}

    def warnings(self) -> list[str]:
        """Return the warnings about scores of these examples, as sentences."""
        members = {name: self.groups[self.labels == k] for k, name in enumerate(self.classes)}
        found = [*few_labels(self.counts), *unequal(self.counts), *super().warnings(), *look_alikes(self.classes)]
        return [*found, *(one_sided(members) if len(self.names) > 1 else [])]


@dataclass(frozen=True)
class Marks(Rows):
    """Rows with any number of labels each: marks (n, labels) says which of `classes`, sorted."""

    marks: NDArray[np.bool_]
    classes: tuple[str, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Examples with each label."""
        return dict(zip(self.classes, self.marks.sum(0).tolist(), strict=True))

    @property
    def scarce(self) -> dict[str, int]:
        """Of the examples with a label and those without it, the fewer."""
        return {name: min(n, len(self.marks) - n) for name, n in self.counts.items()}

    def warnings(self) -> list[str]:
        """Return the warnings about scores of these examples, as sentences."""
        members = {name: self.groups[self.marks[:, k]] for k, name in enumerate(self.classes)}
        found = [*few_labels(self.scarce), *super().warnings(), *look_alikes(self.classes)]
        return [*found, *(one_sided(members) if len(self.names) > 1 else [])]


@dataclass(frozen=True)
class Numbers(Rows):
    """Rows with a number each, (n,)."""

    values: NDArray[np.float64]


def check_vectors(vectors: Any, *, dim: int | None = None) -> NDArray[np.float32]:
    """Return vectors as (n, dim) float32.

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


def check_rows(vectors: Any, labels: Sequence[Any], groups: Sequence[str]) -> Rows:
    """Check vectors and groups, which all kinds of labels need.

    Raises:
        UserError: bad vectors, lengths that differ, or an empty group.
    """
    table = check_vectors(vectors)
    if not len(table) == len(labels) == len(groups):
        raise UserError(
            f"There are {len(table)} vectors, {len(labels)} labels and {len(groups)} groups.",
            remedy="Give one label and one group for each vector, in the same order.",
        )
    _check_text(groups, "group", "Give each image its patient, slide or sky cell; an image alone is its own group.")
    names, codes = np.unique(np.array(groups, dtype=object).astype(str), return_inverse=True)
    return Rows(vectors=table, groups=codes.astype(np.int64), names=tuple(names.tolist()))


def check_examples(vectors: Any, labels: Sequence[str], groups: Sequence[str]) -> Examples:
    """Check examples of exclusive classes, in any order.

    Raises:
        UserError: lengths differ, a label or group is empty, there is one class only, or a class has one example.
    """
    rows = check_rows(vectors, labels, groups)
    _check_text(labels, "label", "Give a text, or leave that row out.")
    counts = Counter(map(str, labels))
    if len(counts) < 2:
        raise UserError(
            f"All {len(labels)} labels are '{next(iter(counts))}'.",
            remedy="Add examples of at least one other class.",
        )
    check_singles(counts, "Label at least two images of each class, better ten, or leave the class out.", "classes")
    classes, codes = np.unique(np.array(labels, dtype=object).astype(str), return_inverse=True)
    return Examples(**vars(rows), labels=codes.astype(np.int64), classes=tuple(classes.tolist()))


def check_marks(vectors: Any, labels: Sequence[Sequence[str]], groups: Sequence[str]) -> Marks:
    """Check examples with any number of labels each (also none), in any order.

    Raises:
        UserError: lengths differ, a label or group is empty, no label occurs, or one occurs (or lacks) once only.
    """
    rows = check_rows(vectors, labels, groups)
    for row, given in enumerate(labels):
        if not all(isinstance(name, str) and name.strip() for name in given):
            raise UserError(
                f"Row {row} has an empty label.",
                remedy="Give each image a list of texts; an empty list says that it has no label.",
            )
    classes = sorted({name for given in labels for name in given})
    if not classes:
        raise UserError("No image has any label.", remedy="Give each image the list of what can be seen in it.")
    place = {name: column for column, name in enumerate(classes)}
    marks = np.zeros((len(labels), len(classes)), dtype=bool)
    for row, given in enumerate(labels):
        marks[row, [place[name] for name in given]] = True
    found = Marks(**vars(rows), marks=marks, classes=tuple(classes))
    remedy = "Add images until each label is on two and missing from two, better ten; or leave the label out."
    check_singles(found.scarce, remedy, "labels")
    return found


def check_numbers(vectors: Any, labels: Sequence[float], groups: Sequence[str]) -> Numbers:
    """Check examples of a regression target, in any order.

    Raises:
        UserError: lengths differ, a group is empty, a value is not finite, or fewer than two values differ.
    """
    rows = check_rows(vectors, labels, groups)
    values = np.asarray(labels, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise UserError(
            f"The label of row {bad[0]} is not a finite number.", remedy="Give a number, or leave that row out."
        )
    if len(np.unique(values)) < 2:
        raise UserError(f"All {len(values)} labels are {values[0]:g}.", remedy="Add examples with other values.")
    return Numbers(**vars(rows), values=values)


def _check_text(column: Sequence[Any], what: str, remedy: str) -> None:
    wrong = [i for i, value in enumerate(column) if not isinstance(value, str) or not value.strip()]
    if wrong:
        raise UserError(f"{len(wrong)} rows have no {what} in text (the first is row {wrong[0]}).", remedy=remedy)


def check_singles(counts: dict[str, int] | Counter[str], remedy: str, what: str) -> None:
    """Refuse classes (or labels) with a single example.

    Raises:
        UserError: with their names and the remedy.
    """
    single = sorted(name for name, n in counts.items() if n < 2)
    if single:
        names = ", ".join(f"'{name}'" for name in single[:5]) + (" and others" if len(single) > 5 else "")
        some = "have a single example" if what == "classes" else "are on, or missing from, a single image at most"
        raise UserError(f"{len(single)} of {len(counts)} {what} {some}: {names}.", remedy=remedy)
