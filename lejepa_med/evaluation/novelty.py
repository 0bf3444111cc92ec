"""How unlike everything labelled an image is."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

UNUSUAL = 0.01  # share of images like the labelled ones that may get a note all the same
SAMPLE = 4096  # labelled images that are measured, at most


@dataclass(frozen=True)
class Novelty:
    """The cosines of labelled images to their nearest one of another group, sorted, (m,)."""

    cosines: NDArray[np.float32]

    def of(self, nearest: NDArray[np.float32]) -> NDArray[np.float64]:
        """Scores (n,) in 0 .. 1 for the cosines (n,) to the nearest labelled image.

        1 - the conformal p-value (Vovk et al. 2005) of the distance: of images like the labelled ones, at most a share
        a has a score of 1 - a or more. The highest possible score is m / (m + 1), so a few labels cannot show much.
        """
        below = np.searchsorted(self.cosines, nearest, side="right")
        return np.asarray((len(self.cosines) - below) / (len(self.cosines) + 1))

    def note(self, nearest: float, score: float) -> str:
        """A sentence where the score is as high as that of the most unusual 1 %, or as it can be."""
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
    """The scale of all labelled images, and for each fold that of the images in the other folds alone.

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
    """Rows that are measured (m,), and their cosine to the nearest image of another group in each fold, (m, folds)."""
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
