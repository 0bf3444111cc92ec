"""What makes a probe's score less than it seems, in words for the person who labels."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lejepa_med.evaluation.enough import FEW

FEW_NUMBERS = 30  # measured images below which the same holds for a quantity
SKEW = 10  # ratio of the most to the least frequent class that is worth a word
ONE_SIDED = 0.8  # share of a class's labels in one group from which on it may be that group that is learnt
WIDE = 0.2  # width of a 95 % interval of a score between 0 and 1


def few_labels(counts: Mapping[str, int]) -> list[str]:
    """Classes (or labels) with few examples."""
    few = [f"'{name}' {n}" for name, n in counts.items() if n < FEW]
    if not few:
        return []
    return [f"Few labels: {', '.join(few)}. Below {FEW} a class, scores swing with the examples chosen."]


def few_numbers(count: int) -> list[str]:
    """A quantity known for few images."""
    if count >= FEW_NUMBERS:
        return []
    return [f"Few labels: {count} images are measured. Below {FEW_NUMBERS}, scores swing with the examples chosen."]


def two_folds(groups: int, what: str) -> list[str]:
    """A cross-validation that cannot choose the strength of the regularisation. `what`: the value that is used."""
    cause, remedy = "", "Use three folds or more, with every class in three groups."
    if groups == 2:
        cause, remedy = "All labels come from two groups (patients, slides, fields). ", "Label items of a third group."
    return [
        f"{cause}Two folds: each model learns from one part and is scored on the other, and no third part is left to "
        f"choose the strength of the regularisation by. So {what} is used, and the scores are rough. {remedy}"
    ]


def unequal(counts: Mapping[str, int]) -> list[str]:
    """Classes of very different frequency."""
    most, least = max(counts, key=lambda k: counts[k]), min(counts, key=lambda k: counts[k])
    if counts[most] < SKEW * counts[least]:
        return []
    return [
        f"Unequal classes: '{most}' has {counts[most]} labels, '{least}' {counts[least]}. "
        "Read balanced accuracy and recall, not accuracy."
    ]


def look_alikes(classes: Iterable[str]) -> list[str]:
    """Names that a person would read as one."""
    folded: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        folded["".join(unicodedata.normalize("NFKC", name).casefold().split())].append(f"'{name}'")
    return [
        f"Class names that differ only in case, spaces or Unicode form: {', '.join(names)}."
        for names in folded.values()
        if len(names) > 1
    ]


def one_sided(members: Mapping[str, NDArray[np.int64]]) -> list[str]:
    """Classes that come nearly all from one group, given the groups of each one's examples."""
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
    """A score that could be nearly anything."""
    low, high = interval
    if high - low <= WIDE:
        return []
    return [
        f"The {what} is known only to lie between {low:.2f} and {high:.2f} (95 % interval). More labels, of more "
        "groups first, make that narrower."
    ]
