"""What lies behind a probe's scores is what the scores were computed from, for all kinds of probes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from lejepa_med.probes.evaluation import evaluate
from lejepa_med.probes.probe import Probe, fit_probe

COUNT, DIM = 90, 8


def examples(kind: str) -> tuple[np.ndarray, list[Any], list[str]]:
    """Vectors that say something about the labels, in groups of three."""
    rng = np.random.default_rng(0)
    code = rng.integers(0, 3, COUNT)
    vectors = (np.eye(3, DIM)[code] + 0.6 * rng.normal(size=(COUNT, DIM))).astype(np.float32)
    groups = [f"g{row // 3}" for row in range(COUNT)]
    if kind == "regression":
        return vectors, [float(value) for value in code + rng.normal(size=COUNT) / 5], groups
    if kind == "multilabel":
        return vectors, [[name for name, bit in (("a", one != 0), ("b", one == 1)) if bit] for one in code], groups
    return vectors, ["xyz"[one] for one in code], groups


@pytest.fixture(scope="module", params=["classification", "multilabel", "regression"])
def probe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Probe:
    vectors, labels, groups = examples(request.param)
    fit_probe(vectors, labels, groups, folds=3, encoder="e").save(
        folder := tmp_path_factory.mktemp("probes") / request.param
    )
    return Probe.load(folder)


def test_curves_and_cells_agree_with_the_scores(probe: Probe) -> None:
    found, scores = evaluate(probe), probe.metrics["linear"]
    rows = found["rows"]
    assert found["scored"] == len(rows) == COUNT and {row["fold"] for row in rows} == {0, 1, 2}
    truth, given = [row["label"] for row in rows], [row["predicted"] for row in rows]
    if probe.kind == "regression":
        assert np.mean(np.abs(np.subtract(truth, given))) == pytest.approx(scores["mae"], rel=1e-4)
        assert found["confusion"] is None and found["roc"] == []
        return
    assert found["ece"] == probe.metrics["calibration"]["after"]["ece"]
    assert sum(one["count"] for one in found["calibration"]) in (COUNT, 2 * COUNT)
    if probe.kind == "multilabel":
        (a, b) = found["marks"]
        for one in (a, b):
            assert sorted(one["true_positive"] + one["false_negative"]) == [
                row for row, label in enumerate(truth) if one["label"] in label
            ]
            right = 2 * len(one["true_positive"])
            f1 = right / (right + len(one["false_positive"]) + len(one["false_negative"]))
            assert f1 == pytest.approx(scores["labels"][one["label"]]["f1"], abs=0.1)
        assert [one["label"] for one in found["roc"]] == ["a", "b"]
        return
    assert balanced_accuracy_score(truth, given) == pytest.approx(scores["balanced_accuracy"])
    assert found["confusion"]["matrix"] == scores["confusion_matrix"]
    for true, line in zip(found["confusion"]["classes"], found["confusion"]["cells"], strict=True):
        for predicted, cell in zip(found["confusion"]["classes"], line, strict=True):
            assert all((truth[row], given[row]) == (true, predicted) for row in cell)
    answers = probe.predict(probe.examples.vectors, ids=probe.examples.ids)
    for curve in found["roc"]:
        is_so = [label == curve["label"] for label in truth]
        chances = [(one.probabilities or {})[curve["label"]] for one in answers]
        assert curve["auc"] == pytest.approx(roc_auc_score(is_so, chances))
        assert curve["positives"] + curve["negatives"] == COUNT
        assert (curve["false_positive_rate"][0], curve["true_positive_rate"][-1]) == (0, 1)


def test_without_folds_it_says_so(tmp_path: Path) -> None:
    vectors, labels, _ = examples("classification")
    found = evaluate(fit_probe(vectors, labels, ["one"] * COUNT, encoder="e"))
    assert (found["scored"], found["rows"]) == (0, []) and "no folds" in found["note"]
