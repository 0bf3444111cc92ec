"""Retrieval quality: do an image's nearest neighbours share its label, and by which distance do they most?"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from data_adapters.tables import count
from lejepa_med.errors import UserError
from lejepa_med.probes.linear import blas_threads
from lejepa_med.probes.neighbours import normalise
from lejepa_med.probes.scores import Statistic, cluster_interval

KS = (1, 5, 10)
QUERIES = 1000  # at most; drawn at random
BLOCK = 4_000_000  # similarities held at once
LEAST_SHARE = 1e-4  # of the largest variance: directions with less are noise, which whitening would blow up
WORTH = 0.01  # of mAP by which another distance must be better than cosine, which search uses
DISTANCES = ("cosine", "euclidean", "whitened")
Progress = Callable[[int, int], None]


def whiten(vectors: NDArray[Any]) -> NDArray[np.float64]:
    """Return vectors (n, dim) rotated to their principal axes, each of variance 1; axes without variance are left out.

    As for image retrieval: Jegou and Chum 2012, "Negative evidences and co-occurrences in image retrieval".
    """
    centred = np.asarray(vectors, dtype=np.float64) - np.mean(vectors, axis=0, dtype=np.float64)
    values, axes = np.linalg.eigh(centred.T @ centred / max(1, len(centred) - 1))
    kept = values > LEAST_SHARE * values.max()
    return np.asarray((centred @ axes[:, kept]) / np.sqrt(values[kept]))


def measure_retrieval(
    vectors: NDArray[Any],
    labels: Sequence[str | None],
    groups: Sequence[str],
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure cosine, Euclidean and whitened search by label and by group; return the report as JSON.

    By label, an image's own group is left out, so that other slices of one patient do not count. Scores are means over
    the labels, each label counting once. By group only the image itself is left out: how far the vectors tell patients
    apart.

    Args:
        vectors: (n, dim), of one encoder.
        labels: (n,), None where there is none; such images are left out.
        groups: patient, slide or field of each, (n,).
        seed: of the queries and intervals.
        progress: gets (distances done, distances in all).

    Returns:
        `images`, `queries`, `labels`, `chance` (mAP of a random order), `by_label` and `by_group` with, for each
        distance, `recall` at 1, 5 and 10 (share of the queries with a hit among as many neighbours), `map` and its
        `interval`, and of labels `map_of`; `best`, the distance with the highest mAP by label; cosine unless another is
        better by 0.01.

    Raises:
        UserError: no label occurs in two groups.
    """
    rows = np.array([row for row, label in enumerate(labels) if label], dtype=np.int64)
    texts = np.array([str(labels[row]) for row in rows], dtype=object).astype(str)
    names, codes = np.unique(texts, return_inverse=True)
    owners = np.unique(np.array([groups[row] for row in rows], dtype=object).astype(str), return_inverse=True)[1]
    several = [len(np.unique(owners[codes == k])) > 1 for k in range(len(names))]
    if sum(several) < 2:
        raise UserError(
            "Retrieval cannot be measured: two labels must occur in two groups each.",
            remedy="Label images of more groups (patients, slides, fields).",
        )
    rng = np.random.default_rng([seed, 10])
    queries = rng.permutation(np.flatnonzero(np.array(several)[codes]))[:QUERIES]
    own = np.asarray(vectors)[rows]
    report: dict[str, Any] = {
        "images": len(rows),
        "queries": len(queries),
        "labels": {str(name): int((codes == k).sum()) for k, name in enumerate(names)},
        "by_label": {},
        "by_group": {},
    }
    chance = [float((codes == k).mean()) for k in range(len(names)) if several[k]]
    report["chance"] = float(np.mean(chance))
    with blas_threads(own.size):
        for done, distance in enumerate(DISTANCES):
            if progress is not None:
                progress(done, len(DISTANCES))
            table = own.astype(np.float64) if distance == "euclidean" else None
            unit = None if table is not None else normalise(own if distance == "cosine" else whiten(own))
            for key, relevant, barred in (("by_label", codes, owners), ("by_group", owners, np.arange(len(rows)))):
                report[key][distance] = _scores(
                    table if unit is None else unit.astype(np.float64),
                    queries,
                    relevant,
                    barred,
                    is_unit=unit is not None,
                    names=names if key == "by_label" else None,
                    owners=owners,
                    seed=seed,
                )
    found = {distance: report["by_label"][distance]["map"] for distance in DISTANCES}
    best = max(DISTANCES, key=lambda one: found[one])
    report["best"] = best if found[best] >= found["cosine"] + WORTH else "cosine"
    return report


def _scores(
    table: Any,
    queries: NDArray[np.int64],
    relevant: NDArray[np.int64],
    barred: NDArray[np.int64],
    *,
    is_unit: bool,
    names: NDArray[Any] | None,
    owners: NDArray[np.int64],
    seed: int,
) -> dict[str, Any]:
    precision, first = np.full(len(queries), np.nan), np.full(len(queries), np.inf)
    squares = None if is_unit else (table**2).sum(1)
    step = max(1, BLOCK // len(table))
    for start in range(0, len(queries), step):
        part = queries[start : start + step]
        scores = table[part] @ table.T
        if squares is not None:
            scores = 2 * scores - squares  # the query's own square changes no order
        scores[barred[part][:, None] == barred] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")
        hits = np.take_along_axis(relevant[part][:, None] == relevant, order, 1)
        hits &= np.isfinite(np.take_along_axis(scores, order, 1))
        found = np.cumsum(hits, axis=1)
        total = found[:, -1]
        at = found / np.arange(1, hits.shape[1] + 1)
        has = total > 0
        precision[start : start + step][has] = ((at * hits).sum(1) / np.maximum(total, 1))[has]
        first[start : start + step][has] = hits.argmax(1)[has]
    kept = np.isfinite(precision)
    if not kept.any():
        return {"queries": 0, "recall": {}, "map": None, "interval": None}
    labels = relevant[queries[kept]] if names is not None else np.zeros(int(kept.sum()), np.int64)
    weights = 1 / np.bincount(labels)[labels]
    weights /= weights.sum()
    values = precision[kept]
    told: dict[str, Any] = {
        "queries": int(kept.sum()),
        "recall": {str(k): float((weights * (first[kept] < k)).sum()) for k in KS},
        "map": float((weights * values).sum()),
        "interval": cluster_interval(
            _mean(values, weights), np.unique(owners[queries[kept]], return_inverse=True)[1].astype(np.int64), seed=seed
        ),
    }
    if names is not None:
        told["map_of"] = {str(names[k]): float(values[labels == k].mean()) for k in np.unique(labels)}
    return told


def _mean(values: NDArray[np.float64], weights: NDArray[np.float64]) -> Statistic:
    return lambda drawn: np.asarray(drawn @ (weights * values) / np.maximum(drawn @ weights, 1e-12))


def print_retrieval(report: Mapping[str, Any], *, console: Console) -> None:
    """Print both tables and what they say."""
    for key, title in (
        ("by_label", f"by label, without the own group: {count(report['queries'], 'image')} asked"),
        ("by_group", "by group, without the image itself"),
    ):
        table = Table(title=title, title_justify="left")
        for heading in ("distance", *(f"recall@{k}" for k in KS), "mAP (95 % interval)"):
            table.add_column(heading)
        for distance, one in report[key].items():
            if one["map"] is None:
                table.add_row(distance, *("–" for _ in KS), "no group has two images")
                continue
            low = one["interval"]
            width = "" if low is None else f" ({low[0]:.3f} to {low[1]:.3f})"
            table.add_row(distance, *(f"{one['recall'][str(k)]:.3f}" for k in KS), f"{one['map']:.3f}{width}")
        console.print(table)
    best, cosine = report["best"], report["by_label"]["cosine"]
    console.print(
        f"Best by label: {best} (mAP {report['by_label'][best]['map']:.3f}; cosine, which search uses, "
        f"{cosine['map']:.3f}; a random order {report['chance']:.3f}).",
        highlight=False,
        soft_wrap=True,
    )
