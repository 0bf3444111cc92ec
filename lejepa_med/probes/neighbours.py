"""Exact nearest neighbours by cosine similarity, and what they vote."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST = 20  # neighbours that vote: the protocol of DINO (Caron et al. 2021)
CHUNK = 4_000_000  # similarities held at once: 16 MB in float32


def normalise(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """Return rows of unit length, (n, dim) float32. A zero row stays zero, so its similarity to everything is 0."""
    wide = np.asarray(vectors, dtype=np.float64)
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.ascontiguousarray(wide / np.where(length > 0, length, 1.0), dtype=np.float32)


def top_cosine(
    queries: NDArray[np.float32],
    references: NDArray[np.float32],
    k: int,
    *,
    skip_self: bool = False,
    barred: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find the k references most similar to each query: indices and cosines, (queries, k), most similar first.

    Both inputs come from `normalise`. With `skip_self`, query i is reference i and is not its own neighbour. References
    that the mask `barred` picks are nobody's neighbours; at least k must be left. scikit-learn's NearestNeighbors is as
    fast (benchmarks/results/probes-cpu.md), but holds up to 1 GiB of distances and bars no references.
    """
    indices = np.empty((len(queries), k), dtype=np.int64)
    cosines = np.empty((len(queries), k), dtype=np.float32)
    step = max(1, CHUNK // len(references))
    for start in range(0, len(queries), step):
        block = queries[start : start + step] @ references.T
        rows = np.arange(len(block))
        if skip_self:
            block[rows, rows + start] = -np.inf
        if barred is not None:
            block[:, barred] = -np.inf
        found = np.sort(np.argpartition(-block, k - 1, axis=1)[:, :k], axis=1)
        values = np.take_along_axis(block, found, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        indices[start : start + step] = np.take_along_axis(found, order, axis=1)
        cosines[start : start + step] = np.take_along_axis(values, order, axis=1)
    return indices, np.clip(cosines, -1.0, 1.0)


@dataclass(frozen=True)
class Votes:
    """Shares of the k neighbours' votes (n, classes), and the winning class (n,)."""

    shares: NDArray[np.float64]
    winners: NDArray[np.int64]


@dataclass(frozen=True)
class Neighbours:
    """A k-NN classifier: unit vectors (n, dim) with class codes (n,), and the weight of a vote for each class."""

    references: NDArray[np.float32]
    labels: NDArray[np.int64]
    weights: NDArray[np.float64]
    k: int

    @classmethod
    def fit(cls, vectors: NDArray[Any], labels: NDArray[np.int64], *, most: int = MOST, balanced: bool) -> "Neighbours":
        """Fit a classifier in which at most `most` neighbours vote.

        With `balanced`, a vote counts by the inverse frequency of its class, as "balanced" does in the logistic
        regression, and no more vote than the rarest class has examples. Otherwise each vote counts alike.
        """
        everyone = np.ones(len(labels), dtype=bool)
        return cls.among(normalise(vectors), labels, everyone, most=most, balanced=balanced)

    @classmethod
    def among(
        cls,
        unit: NDArray[np.float32],
        labels: NDArray[np.int64],
        voters: NDArray[np.bool_],
        *,
        most: int = MOST,
        balanced: bool,
    ) -> "Neighbours":
        """As `fit`, but only the unit vectors that the mask `voters` (n,) picks vote: bar the others in the search."""
        counts = np.bincount(labels[voters])
        total = int(counts.sum())
        weights = total / (len(counts) * counts) if balanced else np.ones(len(counts))
        k = min(most, int(counts.min()) if balanced else total)
        return cls(references=unit, labels=labels, weights=weights, k=k)

    def vote(self, vectors: NDArray[Any]) -> Votes:
        """Count the votes for vectors (n, dim). A tie goes to the class whose neighbours are nearer in sum."""
        return self.count(*top_cosine(normalise(vectors), self.references, self.k))

    def count(self, indices: NDArray[np.int64], cosines: NDArray[np.float32]) -> Votes:
        """Count the votes of neighbours that `top_cosine` found, (n, k) each."""
        rows = np.repeat(np.arange(len(indices)), self.k)
        columns = self.labels[indices].ravel()
        counts = np.zeros((len(indices), len(self.weights)))
        nearness = np.zeros_like(counts)
        np.add.at(counts, (rows, columns), self.weights[columns])
        np.add.at(nearness, (rows, columns), cosines.ravel().astype(np.float64))
        tied = counts >= counts.max(axis=1, keepdims=True) * (1 - 1e-9)
        winners = np.argmax(np.where(tied, nearness, -np.inf), axis=1)
        return Votes(shares=counts / counts.sum(1, keepdims=True), winners=winners)


def held_out_neighbours(
    unit: NDArray[np.float32], fold: NDArray[np.int64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find the k nearest examples of other folds: indices and cosines, (n, k). `unit` comes from `normalise`."""
    indices = np.empty((len(unit), k), dtype=np.int64)
    cosines = np.empty((len(unit), k), dtype=np.float32)
    for number in np.unique(fold):
        inside, outside = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        found, cosines[inside] = top_cosine(unit[inside], unit[outside], k)
        indices[inside] = outside[found]
    return indices, cosines


def nearest_elsewhere(
    unit: NDArray[np.float32], groups: NDArray[np.int64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find the k nearest vectors of other groups: indices and cosines, (n, k), nearest first.

    `unit` comes from `normalise`, groups (n,) are codes. At least k vectors must lie outside of each group.
    """
    indices = np.empty((len(unit), k), dtype=np.int64)
    cosines = np.empty((len(unit), k), dtype=np.float32)
    step = max(1, CHUNK // len(unit))
    for start in range(0, len(unit), step):
        block = unit[start : start + step] @ unit.T
        block[groups[start : start + step, None] == groups] = -np.inf
        found = np.argpartition(-block, k - 1, axis=1)[:, :k]
        values = np.take_along_axis(block, found, axis=1)
        order = np.lexsort((found, -values), axis=1)
        indices[start : start + step] = np.take_along_axis(found, order, axis=1)
        cosines[start : start + step] = np.take_along_axis(values, order, axis=1)
    return indices, np.clip(cosines, -1.0, 1.0)


def neighbour_count(examples: int) -> int:
    """Return the number of neighbours whose mean is taken: the root of the number of examples, at most `MOST`."""
    return max(1, min(MOST, math.isqrt(examples)))


def nearest(vectors: NDArray[Any], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find the k nearest other vectors of each: indices and cosines, both (n, k), nearest first. Exact.

    Raises:
        ValueError: k is not in 1 .. n - 1.
    """
    if not 1 <= k < len(vectors):
        raise ValueError(f"k = {k} neighbours need 1 <= k < {len(vectors)} vectors")
    unit = normalise(vectors)
    return top_cosine(unit, unit, k, skip_self=True)
