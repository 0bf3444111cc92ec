"""How an encoder spreads its embeddings: spectrum, effective rank, neighbours, patch-feature colours."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lejepa_med.evaluation.knn import normalise, top_cosine

ROUNDING = float(np.finfo(np.float32).eps) ** 2  # variance below this share of the mean square is rounding, not signal


def eigen_spectrum(vectors: NDArray[Any]) -> tuple[NDArray[np.float64], float]:
    """Eigenvalues of the covariance of vectors (n, dim), largest first, (dim,), and the effective rank.

    The effective rank is exp(entropy of the normalised singular values) of the centred vectors (Roy & Vetterli 2007):
    dim when every direction carries the same variance, 1 when one direction carries all or all vectors are equal.

    Raises:
        ValueError: not a table of at least two rows, or not finite.
    """
    wide = np.asarray(vectors, dtype=np.float64)
    if wide.ndim != 2 or len(wide) < 2 or not np.isfinite(wide).all():
        raise ValueError(f"need finite vectors (n >= 2, dim), got shape {wide.shape}")
    n, dim = wide.shape
    mean = wide.mean(0)
    centred = wide - mean
    small = centred.T @ centred if dim <= n else centred @ centred.T  # the same non-zero eigenvalues
    eigenvalues = np.zeros(dim)
    eigenvalues[: len(small)] = np.maximum(np.linalg.eigvalsh(small)[::-1], 0) / (n - 1)
    if eigenvalues.sum() <= ROUNDING * float((mean**2).sum()):
        return np.zeros(dim), 1.0
    return eigenvalues, effective_rank(np.sqrt(eigenvalues))


def effective_rank(singular_values: NDArray[Any]) -> float:
    """exp(entropy) of non-negative singular values, normalised to sum 1 (Roy & Vetterli 2007); 1 if all are 0."""
    total = float(singular_values.sum())
    if total <= 0:
        return 1.0
    share = singular_values[singular_values > 0] / total
    return float(np.exp(-(share * np.log(share)).sum()))


def nearest(vectors: NDArray[Any], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k nearest other vectors of each: indices and cosines, both (n, k), nearest first. Exact.

    Raises:
        ValueError: k is not in 1 .. n - 1.
    """
    if not 1 <= k < len(vectors):
        raise ValueError(f"k = {k} neighbours need 1 <= k < {len(vectors)} vectors")
    unit = normalise(vectors)
    return top_cosine(unit, unit, k, skip_self=True)


def pca_rgb(features: NDArray[Any]) -> NDArray[np.uint8]:
    """Patch features (n, height, width, dim) as colours (n, height, width, 3), by one PCA over all patches.

    The first three components become red, green and blue (as in DINOv2, Oquab et al. 2023), each stretched from its
    1st to its 99th percentile. One PCA for all images makes colours comparable between them. Signs are fixed, so that
    equal features give equal colours; a component without variance is mid-grey.

    Raises:
        ValueError: not 4-D, or not finite.
    """
    if features.ndim != 4 or not np.isfinite(features).all():
        raise ValueError(f"need finite features (n, height, width, dim), got shape {features.shape}")
    flat = features.reshape(-1, features.shape[-1]).astype(np.float64)
    mean = flat.mean(0)
    centred = flat - mean
    values, axes = np.linalg.eigh(centred.T @ centred / len(flat))
    colours = np.full((len(flat), 3), 127, dtype=np.uint8)
    floor = max(ROUNDING * float((mean**2).sum()), 1e-12 * float(values[-1]))
    for channel in range(min(3, len(values))):
        if values[-1 - channel] <= floor:
            continue
        axis = axes[:, -1 - channel]
        projected = centred @ (axis * np.sign(axis[np.abs(axis).argmax()]))
        low, high = np.percentile(projected, [1, 99])
        if high > low:
            colours[:, channel] = np.rint(255 * np.clip((projected - low) / (high - low), 0, 1)).astype(np.uint8)
    return colours.reshape(*features.shape[:3], 3)
