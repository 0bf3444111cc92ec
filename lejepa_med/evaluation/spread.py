"""How embeddings fill their space, in a few numbers: the label-free figures of training, report and `select`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lejepa_med.evaluation.metrics import ROUNDING, eigen_spectrum

EPSILON = 1e-7  # the constant that RankMe and LiDAR add to each share, for float32 embeddings
LIDAR_DELTA = 1e-4  # ridge on the within-sample covariance (the paper's value)

Figures = dict[str, float | None]
"""None where a figure is undefined (a value is not finite, or a division by a variance of 0)."""
SPREAD = ("norm", "mean_norm", "std", "effective_rank", "rankme", "condition")


def spread(vectors: NDArray[Any]) -> Figures:
    """Six figures of vectors (n, dim); all None where a value is not finite or n < 2.

    norm            mean length of a vector; sqrt(dim) for N(0, I).
    mean_norm       length of the mean vector; 0 for N(0, I).
    std             standard deviation of a dimension, averaged over the dimensions; 1 for N(0, I).
    effective_rank  exp(entropy of the normalised singular values) of the centred vectors (Roy & Vetterli 2007).
    rankme          the same of the vectors as they are, each share plus 1e-7 (RankMe, arXiv 2210.02885, equation 1).
    condition       largest over smallest eigenvalue of the covariance, of the min(n - 1, dim) that n vectors can
                    show; None where the smallest is rounding.
    """
    wide = np.asarray(vectors, dtype=np.float64)
    if wide.ndim != 2 or len(wide) < 2 or not np.isfinite(wide).all():
        return dict.fromkeys(SPREAD)
    eigenvalues, rank = eigen_spectrum(wide)
    seen = eigenvalues[: min(len(wide) - 1, wide.shape[1])]
    return {
        "norm": float(np.linalg.norm(wide, axis=1).mean()),
        "mean_norm": float(np.linalg.norm(wide.mean(0))),
        "std": float(wide.std(0, ddof=1).mean()),
        "effective_rank": rank,
        "rankme": rankme(wide),
        "condition": float(seen[0] / seen[-1]) if seen[-1] > ROUNDING * seen[0] > 0 else None,
    }


def rankme(vectors: NDArray[Any]) -> float:
    """RankMe (arXiv 2210.02885): exp(-sum p log p), p = singular value / their sum + 1e-7, of vectors (n, dim).

    The vectors are not centred, so a common offset counts as a direction. 1 for vectors that are all 0.
    """
    wide = np.asarray(vectors, dtype=np.float64)
    gram = wide.T @ wide if wide.shape[1] <= len(wide) else wide @ wide.T
    return _smooth_rank(np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0)))


def lidar(views: NDArray[Any]) -> float | None:
    """LiDAR (arXiv 2312.04000): the rank of what tells samples apart, of embeddings (views, samples, dim).

    Each sample is a class whose members are its views. S_b is the covariance of the class means, S_w the mean
    covariance within a class plus 1e-4 I; LiDAR is exp(-sum p log p), p = eigenvalue / their sum + 1e-7, of
    S_w^(-1/2) S_b S_w^(-1/2). The paper takes 1,000 samples of 50 views each; with the few views of a training batch
    S_w is noisy, so compare only figures of equal counts of views and samples. None where a value is not finite, or
    with fewer than 2 views or samples.
    """
    wide = np.asarray(views, dtype=np.float64)
    if wide.ndim != 3 or min(wide.shape[:2]) < 2 or not np.isfinite(wide).all():
        return None
    count, samples, dim = wide.shape
    wide = wide - wide.mean((0, 1))
    if dim > count * samples:  # coordinates in the span of the data: the same eigenvalues, smaller matrices
        flat = wide.reshape(-1, dim)
        values, axes = np.linalg.eigh(flat @ flat.T)
        wide = (axes * np.sqrt(np.maximum(values, 0))).reshape(count, samples, -1)
    means = wide.mean(0)
    inside = (wide - means).reshape(count * samples, -1)
    between = means.T @ means / samples
    within = inside.T @ inside / len(inside) + LIDAR_DELTA * np.eye(wide.shape[2])
    values, axes = np.linalg.eigh(within)
    whitening = axes / np.sqrt(values)
    return _smooth_rank(np.maximum(np.linalg.eigvalsh(whitening.T @ between @ whitening), 0))


def _smooth_rank(values: NDArray[np.float64]) -> float:
    total = float(values.sum())
    if total <= 0:
        return 1.0
    share = values / total + EPSILON
    return float(np.exp(-(share * np.log(share)).sum()))
