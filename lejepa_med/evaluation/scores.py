"""Scores of a classifier from its confusion matrix, and an interval that respects groups."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

BOOTSTRAP_DRAWS = 2000


def confusion_matrix(truth: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Counts, (classes, classes): rows are the true class, columns the predicted one."""
    return np.bincount(truth * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def balanced_accuracy(confusion: NDArray[Any]) -> NDArray[np.float64]:
    """Mean recall over the classes that occur, for matrices (..., classes, classes) -> (...)."""
    total = confusion.sum(-1)
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    recall = np.divide(hits, total, out=np.zeros(total.shape), where=total > 0)
    return np.asarray(recall.sum(-1) / np.maximum((total > 0).sum(-1), 1))


def auroc(truth: NDArray[np.int64], probabilities: NDArray[Any]) -> float | None:
    """Area under the ROC curve: of class 1 for two classes, else the mean over classes of one-versus-rest.

    None when a class does not occur in `truth`, where the area is undefined.
    """
    classes = probabilities.shape[1]
    if len(np.unique(truth)) < classes:
        return None
    which = [1] if classes == 2 else range(classes)
    return float(np.mean([roc_auc_score(truth == k, probabilities[:, k]) for k in which]))


def group_interval(
    truth: NDArray[np.int64],
    predicted: NDArray[np.int64],
    groups: NDArray[np.int64],
    *,
    classes: int,
    seed: int,
    draws: int = BOOTSTRAP_DRAWS,
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the balanced accuracy, resampling whole groups.

    Images of one patient are alike, so drawing images would give an interval that is too narrow (cluster bootstrap:
    Davison & Hinkley 1997, section 3.8). Groups with equal confusion counts are exchangeable: drawing how often each
    distinct pattern of counts occurs is the same bootstrap, and its cost does not grow with the number of groups.
    """
    cells = classes * classes
    count = int(groups.max()) + 1
    flat = np.bincount(groups * cells + truth * classes + predicted, minlength=count * cells).reshape(count, cells)
    patterns, times = np.unique(flat[flat.sum(1) > 0], axis=0, return_counts=True)
    rng = np.random.default_rng([seed, 95])
    drawn = rng.multinomial(times.sum(), times / times.sum(), size=draws)
    scores = balanced_accuracy((drawn @ patterns).reshape(draws, classes, classes))
    low, high = np.quantile(scores, [0.025, 0.975])
    return float(low), float(high)


def summary(
    truth: NDArray[np.int64],
    predicted: NDArray[np.int64],
    probabilities: NDArray[Any],
    groups: NDArray[np.int64],
    *,
    names: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    """Every score of out-of-fold predictions as JSON: truth, predicted, groups (n,) codes; probabilities (n, classes).

    `confusion_matrix` has the true class in rows and the predicted one in columns, both in the order of `names`.
    """
    confusion = confusion_matrix(truth, predicted, len(names))
    hits, true, guessed = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    f1 = 2 * hits / np.maximum(true + guessed, 1)
    return {
        "balanced_accuracy": float(balanced_accuracy(confusion)),
        "balanced_accuracy_interval": list(group_interval(truth, predicted, groups, classes=len(names), seed=seed)),
        "accuracy": float(hits.sum() / true.sum()),
        "macro_f1": float(f1.mean()),
        "auroc": auroc(truth, probabilities),
        "confusion_matrix": confusion.tolist(),
        "recall": {name: float(h / t) for name, h, t in zip(names, hits, true, strict=True)},
    }
