"""What lies behind a probe's scores: the out-of-fold answer to each example, and the curves that follow from them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import auc, roc_curve

from lejepa_med.probes.probe import Prediction, Probe

POINTS = 200  # of a curve at most
HEADLINE = {"classification": "balanced_accuracy", "multilabel": "auroc", "regression": "spearman"}
"""The score by which versions of a probe are compared, by its kind; one of `metrics["linear"]`."""


def evaluate(probe: Probe) -> dict[str, Any]:
    """Return what stands behind the cross-validated scores of a probe, as JSON.

    Everything comes from the parts of the cross-validation that are kept with the probe, so it is what the scores were
    computed from. Positions in `cells` and `marks` are those of `rows`.

    rows        an example each: id, label, predicted, probability (of the predicted class), fold.
    confusion   classes: counts with the true class in rows and the predicted one in columns, and the rows of each cell.
    roc         classes against all others, and labels of several: rates by falling threshold, and the area.
    marks       labels of several: the rows that are right, too much, and missed.
    calibration bins of confidence with the share that was right, and `ece`, their mean distance.
    """
    found: dict[str, Any] = {"kind": probe.kind, "count": len(probe.examples.ids), "scored": 0, "note": None}
    found |= {"rows": [], "confusion": None, "roc": [], "marks": None, "calibration": None, "ece": None}
    if probe.held_out is None:
        found["note"] = "The probe has no folds, so nothing is known of it but its own examples. Label more groups."
        return found
    answers = probe.predict(probe.examples.vectors, ids=probe.examples.ids, groups=probe.examples.groups)
    kept = [row for row, answer in enumerate(answers) if not answer.in_sample]
    answers, labels = [answers[row] for row in kept], [probe.examples.labels[row] for row in kept]
    found["scored"] = len(kept)
    found["rows"] = [
        {
            "id": probe.examples.ids[row],
            "label": _plain(label),
            "predicted": _plain(_answer(answer)),
            "probability": max(answer.probabilities.values()) if answer.label and answer.probabilities else None,
            "fold": int(probe.held_out.fold[row]),
        }
        for row, label, answer in zip(kept, labels, answers, strict=True)
    ]
    calibration = (probe.metrics.get("calibration") or {}).get("after") or {}
    found |= {"calibration": calibration.get("bins"), "ece": calibration.get("ece")}
    if probe.kind == "classification":
        found["confusion"] = _confusion(probe.classes, labels, [answer.label for answer in answers])
    if probe.kind != "regression":
        found["roc"] = _roc(probe.classes, labels, answers)
    if probe.kind == "multilabel":
        found["marks"] = _marks(probe.classes, labels, answers)
    return found


def _answer(given: Prediction) -> Any:
    return next(value for value in (given.label, given.labels, given.value) if value is not None)


def _plain(label: Any) -> Any:
    return list(label) if isinstance(label, tuple) else label


def _confusion(classes: Sequence[str], truth: Sequence[str], predicted: Sequence[str | None]) -> dict[str, Any]:
    cells: list[list[list[int]]] = [[[] for _ in classes] for _ in classes]
    place = {name: code for code, name in enumerate(classes)}
    for row, (true, given) in enumerate(zip(truth, predicted, strict=True)):
        cells[place[true]][place[given or ""]].append(row)
    return {"classes": list(classes), "matrix": [[len(cell) for cell in line] for line in cells], "cells": cells}


def _has(label: Any, name: str) -> bool:
    return name == label if isinstance(label, str) else name in label


def _roc(classes: Sequence[str], truth: Sequence[Any], answers: Sequence[Prediction]) -> list[dict[str, Any]]:
    found = []
    for name in classes:
        is_so = np.array([_has(label, name) for label in truth], bool)
        if not is_so.any() or is_so.all():
            continue
        scores = np.array([(answer.probabilities or {})[name] for answer in answers])
        false, true, thresholds = roc_curve(is_so, scores)
        some = np.unique(np.linspace(0, len(false) - 1, min(POINTS, len(false))).round().astype(int))
        found.append(
            {
                "label": name,
                "auc": float(auc(false, true)),
                "positives": int(is_so.sum()),
                "negatives": int((~is_so).sum()),
                "false_positive_rate": _numbers(false[some]),
                "true_positive_rate": _numbers(true[some]),
                "thresholds": _numbers(np.minimum(thresholds[some], 1.0)),  # the first one is infinite: nothing passes
            }
        )
    return found


def _marks(classes: Sequence[str], truth: Sequence[Any], answers: Sequence[Prediction]) -> list[dict[str, Any]]:
    found = []
    for name in classes:
        pairs = [(name in label, name in (answer.labels or ())) for label, answer in zip(truth, answers, strict=True)]
        rows = {
            key: [row for row, pair in enumerate(pairs) if pair == wanted]
            for key, wanted in (
                ("true_positive", (True, True)),
                ("false_positive", (False, True)),
                ("false_negative", (True, False)),
            )
        }
        found.append({"label": name, **rows, "true_negatives": pairs.count((False, False))})
    return found


def _numbers(values: NDArray[Any]) -> list[float]:
    return [round(float(value), 6) for value in values]
