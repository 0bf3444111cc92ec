"""Two-dimensional maps of a table's vectors: principal components at once, a neighbour embedding as a job."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from data_adapters.errors import require

FIT_ROWS = 20_000  # from which principal components are computed; more rows move no point visibly
COMPONENTS = 50  # that a neighbour embedding starts from (Kobak & Berens 2019)
LANDMARKS = 10_000  # rows whose places t-SNE optimises; the others go to the median of their nearest landmarks
BLOCK = 8192  # rows of one product
TREE_ROWS = 5_000  # up to which a tree (Barnes-Hut) is faster than interpolation (FFT): 5 against 14 s for 2,000 rows
PERPLEXITY = 30  # neighbours that hold a point in its place
EVERY = 10  # iterations between two calls of `progress`
EXAGGERATED, ORDINARY = 250, 500  # iterations, openTSNE's defaults

Progress = Callable[[float], None]


def principal(vectors: NDArray[Any], *, components: int = 2, seed: int = 0) -> NDArray[np.float32]:
    """Return the first principal components of vectors (N, dim), (N, components), the same at every call."""
    if len(vectors) < 2:
        return np.zeros((len(vectors), components), np.float32)
    rows = _sample(len(vectors), FIT_ROWS, seed)
    most = min(components, len(rows), vectors.shape[1])
    pca = PCA(most, svd_solver="randomized", random_state=seed).fit(np.asarray(vectors[rows], np.float32))
    found = np.zeros((len(vectors), components), np.float32)
    for start in range(0, len(vectors), BLOCK):
        found[start : start + BLOCK, :most] = pca.transform(np.asarray(vectors[start : start + BLOCK], np.float32))
    return found


def neighbour_embedding(vectors: NDArray[Any], *, progress: Progress, seed: int = 0) -> NDArray[np.float32]:
    """Return a t-SNE of vectors (N, dim), (N, 2): similar images lie together, distances between clusters say little.

    Of more than `LANDMARKS` rows a sample is optimised, and every other row is placed at the median of its nearest
    neighbours in the sample, as openTSNE does for new points (Policar et al. 2019).

    Args:
        vectors: of length 1.
        progress: gets the share that is done; what it raises ends the work.
        seed: of the sample and the optimisation.

    Raises:
        MissingExtraError: openTSNE is not installed.
    """
    tsne = require("openTSNE", extra="serve")
    reduced = principal(vectors, components=COMPONENTS, seed=seed)
    if len(reduced) < 4:
        return reduced[:, :2].copy()
    rows = _sample(len(reduced), LANDMARKS, seed)
    start = reduced[rows, :2] / (np.std(reduced[rows, 0]) or 1.0) * 1e-4  # small, so that the first steps may move it
    done = 0

    def step(_iteration: int, _error: float, _embedding: Any) -> None:
        nonlocal done
        done += EVERY
        progress(min(0.9, 0.9 * done / (EXAGGERATED + ORDINARY)))

    found = tsne.TSNE(
        perplexity=min(PERPLEXITY, (len(rows) - 1) / 3),
        initialization=start.astype(np.float64),
        negative_gradient_method="bh" if len(rows) < TREE_ROWS else "fft",
        early_exaggeration_iter=EXAGGERATED,
        n_iter=ORDINARY,
        n_jobs=1,  # the service computes vectors meanwhile
        random_state=seed,
        callbacks=step,
        callbacks_every_iters=EVERY,
    ).fit(reduced[rows])
    places = np.empty((len(reduced), 2), np.float32)
    places[rows] = found
    others = np.setdiff1d(np.arange(len(reduced)), rows, assume_unique=True)
    for begin in range(0, len(others), BLOCK):
        part = others[begin : begin + BLOCK]
        places[part] = found.prepare_partial(reduced[part], initialization="median", k=10, perplexity=5)
        progress(0.9 + 0.1 * (begin + len(part)) / len(others))
    return places


def framed(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return points (N, 2) centred and scaled into [-1, 1] by one factor, so that the aspect stays."""
    low, high = points.min(axis=0), points.max(axis=0)
    half = float((high - low).max()) / 2 or 1.0
    return np.asarray((points - (low + high) / 2) / half, "<f4")


def _sample(count: int, most: int, seed: int) -> NDArray[np.int64]:
    """Rows, ascending: all, or `most` at random."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))
