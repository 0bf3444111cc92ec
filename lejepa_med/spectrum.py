"""How embeddings fill their space: spectrum, effective rank, RankMe, LiDAR; and how many vectors a verdict needs.

n vectors span at most n - 1 directions around their mean, so a low effective rank of few vectors says nothing of the
encoder. A rank r counts as low only where the vectors could have shown ten times as much, n - 1 >= 10 r. The factor is
our own: in draws from power-law spectra (dimensions 192 to 2048, 20 draws each) whose true rank is twice a limit, ten
times the limit of vectors measured a rank above the limit in 95 % of the draws, six times of them did not.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_adapters.tables import count

ROUNDING = float(np.finfo(np.float32).eps) ** 2  # variance below this share of the mean square is rounding, not signal
EPSILON = 1e-7  # the constant that RankMe and LiDAR add to each share, for float32 embeddings
LIDAR_DELTA = 1e-4  # ridge on the within-sample covariance (the paper's value)
Figures = dict[str, float | None]
"""None where a figure is undefined (a value is not finite, or a division by a variance of 0)."""
SPREAD = ("norm", "mean_norm", "std", "effective_rank", "rankme", "condition")
ROOM = 10.0


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


def spread(vectors: NDArray[Any]) -> Figures:
    """Return six figures of vectors (n, dim); all None where a value is not finite or n < 2.

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


def most_directions(records: int, dim: int) -> int:
    """Return the largest effective rank that so many vectors of `dim` numbers can have."""
    return max(0, min(records - 1, dim))


def records_for(limit: float) -> int:
    """Return how many vectors always show whether their effective rank is below `limit`."""
    return math.ceil(ROOM * limit) + 1


def below(rank: float, limit: float, *, records: int) -> bool | None:
    """Return whether the rank of so many vectors shows that the encoder's is below `limit`; None: too few to tell."""
    if rank >= limit:
        return False  # more vectors only show more
    return True if records - 1 >= ROOM * rank else None


def too_few(number: int, needed: int, *, what: str = "record", tell: str = "") -> str:
    """Return '42 records are too few to tell ...; 104 are needed'."""
    return f"{count(number, what, 'is')} too few to tell{' ' * bool(tell)}{tell}; {needed:,} are needed"
