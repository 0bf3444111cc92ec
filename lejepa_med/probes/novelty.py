"""How well a probe knows an image: it learnt from it or from its group, or the image is unlike everything labelled."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_adapters.tables import count
from lejepa_med.probes.examples import Labelled

UNUSUAL = 0.01  # share of images like the labelled ones that may get a note all the same
SAMPLE = 4096  # labelled images that are measured, at most
Seen = Literal["no", "record", "group"]
"""An image that the probe did not learn from, one that it did, or another one of such an image's group."""
SAME = 1e-3  # of the labelled vectors' spread: two computations of one image lie nearer, two images farther apart
SERVED = re.compile(r".*/([0-9a-f]{32})")  # the service's ids of examples: archive/id


@dataclass(frozen=True)
class Novelty:
    """The cosines of labelled images to their nearest one of another group, sorted, (m,)."""

    cosines: NDArray[np.float32]

    def of(self, nearest: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return scores (n,) in 0 .. 1 for the cosines (n,) to the nearest labelled image.

        1 - the conformal p-value (Vovk et al. 2005) of the distance: of images like the labelled ones, at most a share
        a has a score of 1 - a or more. The highest possible score is m / (m + 1), so a few labels cannot show much.
        """
        below = np.searchsorted(self.cosines, nearest, side="right")
        return np.asarray((len(self.cosines) - below) / (len(self.cosines) + 1))

    def note(self, nearest: float, score: float) -> str:
        """Return a warning where the score is that of the most unusual 1 %, or the highest possible one; else ''."""
        count = len(self.cosines)
        if score < min(1 - UNUSUAL, count / (count + 1)):
            return ""
        return (
            f"Unlike the labelled images: the nearest has cosine {nearest:.3f}, and {score * (count + 1) / count:.0%} "
            "of the labelled images have a nearer one. Check this prediction by eye."
        )


def fit_novelty(
    unit: NDArray[np.float32], groups: NDArray[Any], fold: NDArray[np.int64] | None = None
) -> tuple[Novelty, list[Novelty]]:
    """Fit the scale on all labelled images, and for each fold on the images of the other folds alone.

    Images of one patient are alike, so only other groups tell how near a new patient's image is to be expected. With a
    single group, each other image stands for another group. unit: (n, dim) of length 1. groups, fold: (n,) codes.
    """
    place = np.zeros(len(unit), np.int64) if fold is None else fold
    rows, nearest = _nearest_elsewhere(unit, groups, place)
    whole = Novelty(np.sort(nearest.max(1)))
    if fold is None:
        return whole, []
    held_out = []
    for number in range(nearest.shape[1]):
        others = place != number
        if (groups[others] == groups[others][0]).all():
            held_out.append(fit_novelty(unit[others], groups[others])[0])
        else:
            found = np.delete(nearest[others[rows]], number, axis=1)
            held_out.append(Novelty(np.sort(found.max(1))))
    return whole, held_out


def _nearest_elsewhere(
    unit: NDArray[np.float32], groups: NDArray[Any], place: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the measured rows (m,), and their cosine to the nearest image of another group by fold, (m, folds)."""
    several = bool((groups != groups[0]).any())
    rows = np.arange(len(unit))
    if len(rows) > SAMPLE:
        rows = np.sort(np.random.default_rng(0).choice(rows, SAMPLE, replace=False))
    order = np.argsort(place, kind="stable")
    starts = np.flatnonzero(np.diff(place[order], prepend=-1))
    names = groups if several else np.arange(len(unit))
    others, owners = unit[order].T, names[order]
    found = np.empty((len(rows), len(starts)), dtype=np.float32)
    step = max(1, 4_000_000 // len(unit))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        cosines = unit[part] @ others
        cosines[names[part][:, None] == owners] = -1
        found[start : start + step] = np.maximum.reduceat(cosines, starts, axis=1)
    return rows, np.clip(found, -1, 1)


@dataclass(frozen=True, eq=False)
class Places:
    """What a probe knows of images, (n,) each.

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
        """Return whether the image with this id is one of the examples."""
        return name in self._ids

    def places(
        self,
        vectors: NDArray[np.float32],
        nearest: NDArray[np.int64] | None,
        ids: Sequence[str] | None,
        groups: Sequence[str] | None,
    ) -> Places:
        """Look up vectors (n, dim) whose most similar example is `nearest` (n,); what is None does not count."""
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
    """Count the images by how the probe has seen them, and its in-sample answers."""
    counts = Counter(seen)
    return {**{value: counts[value] for value in ("no", "record", "group")}, "in_sample": sum(map(bool, in_sample))}


def seen_remarks(counts: Mapping[str, int], *, folds: int, kept: bool) -> list[str]:
    """Return remarks on the predictions that `seen_counts` counted, as sentences; none where nothing was seen.

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
