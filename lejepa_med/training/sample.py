"""The fixed sample on which encoders are compared during training: prepared once, kept in memory, split by group."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data_adapters.base import Adapter
from data_adapters.manifest import Manifest
from lejepa_med.errors import BadFileError
from lejepa_med.evaluation.enough import FEW
from lejepa_med.evaluation.folds import group_folds
from lejepa_med.evaluation.knn import Neighbours
from lejepa_med.evaluation.linear import MIDDLE, fit_path, quiet_threads
from lejepa_med.evaluation.metrics import eigen_spectrum
from lejepa_med.evaluation.scores import balanced_accuracy, confusion_matrix, group_interval
from lejepa_med.evaluation.spread import spread
from lejepa_med.models.encoder import Encoder
from lejepa_med.models.folder import embed_items

REFERENCE, QUERY, NEITHER = 0, 1, -1
NEIGHBOURS = 20
DRAWS = 500  # of the bootstrap: an evaluation during training must be quick
BATCH = 64  # slices or tiles in one forward pass
SPECTRUM_POINTS = 32


class FixedSample:
    """Up to `size` records, the same for every evaluation of a run and for every run on the same manifest.

    Where two classes of the manifest's labels occur in two groups each, only labelled records of such classes are
    taken, and whole groups are dealt to a reference half and a query half. Otherwise any records are.
    """

    def __init__(self, manifest: Manifest, adapter: Adapter, *, size: int, cache_bytes: int, seed: int = 0) -> None:
        self.manifest, self.adapter, self.cache_bytes = manifest, adapter, cache_bytes
        self.rows, self.labels, self.sides, self.classes = _plan(manifest, size=size, seed=seed)
        names = manifest.column("group")
        self.groups = np.unique(np.array([names[row] for row in self.rows], dtype=str), return_inverse=True)[1]
        self.tensors: list[Tensor] = []
        self.kept: list[int] = []  # positions in `rows` of `tensors`
        self._next = self._bytes = 0

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def progress(self) -> float:
        """Share of the records that are prepared, or were found unreadable."""
        return self._next / len(self.rows) if self.rows else 1.0

    def fill(self, count: int, *, until: float = float("inf")) -> None:
        """Prepare records up to position `count`, or to the time `until` (perf_counter); unreadable ones are left out.

        A record that would exceed the cache ends the sample. Both halves come in turn, so a shorter sample is even.
        """
        while self._next < min(count, len(self.rows)) and time.perf_counter() < until:
            position = self._next
            self._next += 1
            try:
                tensor = self.adapter.prepare(self.manifest.record(self.rows[position]))
            except (BadFileError, OSError, ValueError, EOFError, RuntimeError):
                continue  # training meets the same file, replaces it, and says so in bad_files.jsonl
            size = tensor.numel() * tensor.element_size()
            if self._bytes + size > self.cache_bytes:
                self.rows, self._next = self.rows[:position], position
                return
            self._bytes += size
            self.tensors.append(tensor)
            self.kept.append(position)

    @torch.no_grad()  # not inference mode: what a model caches in its first pass must serve training, too
    def embed(self, encoder: Encoder, *, device: torch.device | str) -> NDArray[np.float32]:
        """Embeddings of the prepared records, (n, dim) float32; the encoder keeps its mode and statistics."""
        with evaluating(encoder):
            parts = [
                embed_items(encoder, self.tensors[i : i + BATCH], device=device, batch_size=BATCH)
                for i in range(0, len(self.tensors), BATCH)
            ]
        return np.concatenate(parts) if parts else np.empty((0, encoder.vector_dim), np.float32)

    def accuracies(self, vectors: NDArray[np.float32]) -> dict[str, Any]:
        """Balanced accuracies on the query half of what was learnt from the reference half; None without labels.

        knn: 20 neighbours by cosine, at most half as many as the reference half has of a class on average.
        linear: logistic regression with C = 0.1 on standardised vectors. Classes that the reference half lacks are
        left out of the queries. `..._interval`: 95 %, by bootstrap over the groups that were queried; None where they
        are too few to tell, that is one group, or fewer than 10 queries of a class. `fewest`: queries of the rarest
        class.
        """
        sides, labels = self.sides[self.kept], self.labels[self.kept]
        known = np.unique(labels[sides == REFERENCE])
        query = (sides == QUERY) & np.isin(labels, known)
        nothing: dict[str, Any] = {"knn": None, "linear": None, "chance": None, "queries": 0}
        if len(known) < 2 or not query.any() or not np.isfinite(vectors).all():
            return nothing
        code = np.full(len(self.classes), -1)
        code[known] = np.arange(len(known))
        learnt, truth = code[labels[sides == REFERENCE]], code[labels[query]]
        references, queries = vectors[sides == REFERENCE], vectors[query]
        with quiet_threads(references.size):
            linear = fit_path(references, learnt, strengths=[MIDDLE])[0].probabilities(queries).argmax(1)
        most = min(NEIGHBOURS, max(1, len(learnt) // (2 * len(known))))  # of a tiny half, 20 would be the majority
        knn = Neighbours.fit(references, learnt, most=most, balanced=False).vote(queries).winners
        groups = np.unique(self.groups[self.kept][query], return_inverse=True)[1]
        several, fewest = int(groups.max()) + 1, int(np.bincount(truth, minlength=len(known)).min())
        found: dict[str, Any] = {"chance": 1 / len(known), "queries": int(query.sum()), "fewest": fewest}
        for key, guessed in (("knn", knn), ("linear", linear)):
            found[key] = float(balanced_accuracy(confusion_matrix(truth, guessed, len(known))))
            enough = several > 1 and fewest >= FEW
            given = group_interval(truth, guessed, groups, classes=len(known), seed=0, draws=DRAWS) if enough else None
            found[f"{key}_interval"] = None if given is None else list(given)
        return {**found, "query_groups": several}


@torch.no_grad()
def evaluate(
    sample: FixedSample, encoder: Encoder, projector: nn.Module | None, *, device: torch.device | str
) -> dict[str, Any]:
    """What online.jsonl holds of one evaluation: accuracies, and `spread` and spectrum of backbone and projector.

    The projector is applied in evaluation mode to the embeddings, pooled over an item's slices or tiles.
    """
    vectors = sample.embed(encoder, device=device)
    found: dict[str, Any] = {"records": len(vectors), **sample.accuracies(vectors)}
    pooled = vectors[:, -encoder.dim :]  # without a layer joined to it, which would hide a collapse
    tables = {"backbone": pooled}
    if projector is not None and len(vectors):
        with evaluating(projector):
            tables["projector"] = projector(torch.from_numpy(pooled).to(device)).float().cpu().numpy()
    for name, table in tables.items():
        found |= {f"{name}/dim": table.shape[1]}
        found |= {f"{name}/{key}": value for key, value in spread(table).items()}
        found[f"{name}/spectrum"] = thinned(table)
    return found


def thinned(table: NDArray[Any]) -> list[list[float]]:
    """Eigenvalues of the covariance as [position from 1, share of the sum], at 32 positions at most, by logarithm."""
    if len(table) < 2 or not np.isfinite(table).all():
        return []
    values, _ = eigen_spectrum(table)
    values = values[: min(len(table) - 1, len(values))]
    if values.sum() <= 0:
        return []
    chosen = np.unique(np.geomspace(1, len(values), min(SPECTRUM_POINTS, len(values))).round().astype(int))
    return [[int(k), float(f"{values[k - 1] / values.sum():.4g}")] for k in chosen]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards every part in the mode that it had."""
    before = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training


def _plan(
    manifest: Manifest, *, size: int, seed: int
) -> tuple[list[int], NDArray[np.int64], NDArray[np.int64], tuple[str, ...]]:
    """Rows in the order of preparation, their class codes and sides (-1 without labels), and the class names."""
    labels, groups = manifest.column("label"), manifest.column("group")
    where: dict[str, set[str]] = defaultdict(set)
    for label, group in zip(labels, groups, strict=True):
        if label:
            where[label].add(group)
    usable = {label for label, found in where.items() if len(found) > 1}
    order = np.random.default_rng([seed, 20]).permutation(len(labels)).tolist()  # 20: a stream of its own
    if len(usable) > 1:
        rows = [row for row in order if labels[row] in usable][:size]
        split = _halves([labels[row] for row in rows], [groups[row] for row in rows], seed=seed)
        if split is not None:
            codes, sides, classes = split
            rank = np.empty(len(rows), dtype=np.int64)
            for side in (REFERENCE, QUERY):
                rank[sides == side] = np.arange((sides == side).sum())
            turn = np.lexsort((sides, rank))
            return [rows[i] for i in turn], codes[turn], sides[turn], classes
    rows = order[:size]
    blank = np.full(len(rows), NEITHER, dtype=np.int64)
    return rows, blank, blank.copy(), ()


def _halves(
    labels: list[str], groups: list[str], *, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], tuple[str, ...]] | None:
    """Class codes and sides; a class that the draw has left with one group is on neither side."""
    where: dict[str, set[str]] = defaultdict(set)
    for label, group in zip(labels, groups, strict=True):
        where[label].add(group)
    classes = tuple(sorted(label for label, found in where.items() if len(found) > 1))
    if len(classes) < 2:
        return None
    code = {name: k for k, name in enumerate(classes)}
    codes = np.array([code.get(label, -1) for label in labels], dtype=np.int64)
    inside = codes >= 0
    group_codes = np.unique(np.array(groups, dtype=object)[inside].astype(str), return_inverse=True)[1]
    folds = group_folds(codes[inside], group_codes, folds=2, seed=seed)
    if folds is None:
        return None
    sides = np.full(len(labels), NEITHER, dtype=np.int64)
    sides[inside] = folds.fold
    return codes, sides, classes
