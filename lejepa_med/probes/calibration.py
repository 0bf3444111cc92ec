"""Calibration: how often a probability of 0.8 is right, and the corrections that make it right in 8 cases of 10."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logit, logsumexp
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

BINS = 10
RANGE = (0.05, 20.0)  # of a temperature: beyond it the labels are too few to tell


def softened(labels: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """Return targets (n, classes) that stay short of 0 and 1: (n_k + 1) / (n_k + classes) for the true class k.

    Platt (1999) for two classes, by Laplace's rule for more: without it, a few labels that are told apart without
    error would make every probability 0 or 1.
    """
    counts = np.bincount(labels, minlength=classes)[labels][:, None]
    return np.asarray((np.eye(classes)[labels] * counts + 1) / (counts + classes))


def fit_temperature(logits: NDArray[np.float64], labels: NDArray[np.int64], weight: NDArray[np.float64]) -> float:
    """Return the T for which softmax(logits / T) has the least cross-entropy (Guo et al. 2017, arXiv 1706.04599).

    logits: (n, classes) of models that never saw their examples. labels, weight: (n,).

    scikit-learn (CalibratedClassifierCV, method "temperature") takes hard targets: of 6 to 60 examples in three classes
    that are told apart without error it makes T = 0.02 and probabilities of 1.00, where this gives 0.62 to 0.94.
    """
    targets = softened(labels, logits.shape[1]) * weight[:, None]

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return float((targets * (logsumexp(scaled, axis=1, keepdims=True) - scaled)).sum())

    return float(np.exp(minimize_scalar(loss, bounds=np.log(RANGE), method="bounded", options={"xatol": 1e-4}).x))


def fit_platt(logits: NDArray[np.float64], marks: NDArray[np.bool_]) -> tuple[float, float]:
    """Return a >= 0 and b: sigmoid(a z + b) is the probability of a label (Platt 1999, with his softened targets).

    logits, marks: (n,). Fitted without weights, so chances are those among the labelled images. scikit-learn's
    CalibratedClassifierCV does the same, but hands out a and b only in private parts, and lets a be negative.
    """
    present, count = int(marks.sum()), len(marks)
    target = np.where(marks, (present + 1) / (present + 2), 1 / (count - present + 2))
    unit = float(logits.std()) or 1.0
    # Each image counts once for either side, by the share of its target.
    twice, sides = np.tile(logits / unit, 2)[:, None], np.repeat([True, False], count)
    shares = np.concatenate([target, 1 - target])
    fitted = LogisticRegression(C=np.inf, tol=1e-6).fit(twice, sides, sample_weight=shares)
    slope = float(fitted.coef_[0, 0])
    if slope < 0:  # the loss is convex, so its minimum over a >= 0 is at 0
        return 0.0, float(logit(target.mean()))
    return slope / unit, float(fitted.intercept_[0])


def class_weights(labels: NDArray[np.int64], *, balanced: bool) -> NDArray[np.float64]:
    """Return weights (n,) with the sum 1: with `balanced` the same for each class, else for each example."""
    counts = np.bincount(labels)
    return 1 / (len(counts) * counts[labels]) if balanced else np.full(len(labels), 1 / len(labels))


def reliability(confidence: NDArray[np.float64], right: NDArray[Any], weight: NDArray[np.float64]) -> dict[str, Any]:
    """Return `ece` (expected calibration error) and its ten bins of equal width, as JSON; all arrays (n,).

    A bin has the number of predictions in it, their mean confidence and the share that was right.
    """
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    mass = np.bincount(place, weight, minlength=BINS)
    held = np.maximum(mass, np.finfo(float).tiny)
    said = np.bincount(place, weight * confidence, minlength=BINS) / held
    true = np.bincount(place, weight * right, minlength=BINS) / held
    counts = np.bincount(place, minlength=BINS)
    bins = [
        {"from": k / BINS, "to": (k + 1) / BINS, "count": int(n), "confidence": float(said[k]), "right": float(true[k])}
        for k, n in enumerate(counts)
        if n
    ]
    return {"ece": float((mass * np.abs(said - true)).sum() / mass.sum()), "bins": bins}


def class_calibration(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64], weight: NDArray[np.float64]
) -> dict[str, Any]:
    """Return the reliability of the winning class, and `brier`: the squared error, summed over the classes."""
    found = reliability(probabilities.max(1), probabilities.argmax(1) == labels, weight)
    classes = range(probabilities.shape[1])
    brier = brier_score_loss(labels, probabilities, sample_weight=weight, labels=classes, scale_by_half=False)
    return {"ece": found["ece"], "brier": float(brier), "bins": found["bins"]}


def label_calibration(probabilities: NDArray[np.float64], marks: NDArray[np.bool_]) -> dict[str, Any]:
    """Return the reliability and the mean squared error (`brier`) of all labels' probabilities (n, labels) together."""
    flat, truth = probabilities.ravel(), marks.ravel()
    found = reliability(flat, truth, np.full(len(flat), 1 / len(flat)))
    return {"ece": found["ece"], "brier": float(brier_score_loss(truth, flat)), "bins": found["bins"]}


def cross_temperatures(
    outputs: NDArray[np.float64],
    strengths: list[int],
    fold: NDArray[np.int64],
    labels: NDArray[np.int64],
    weight: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the temperature of each fold, (folds,), fitted without the fold's own images.

    That of fold i comes from the out-of-fold logits of the other folds at fold i's strength; outputs:
    (strengths, n, classes).
    """
    return np.array(
        [
            fit_temperature(outputs[strength][fold != i], labels[fold != i], weight[fold != i])
            for i, strength in enumerate(strengths)
        ]
    )
