import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from lejepa_med.probes.multilabel import best_thresholds
from lejepa_med.probes.probe import fit_probe


def marked(n=400, dim=16, seed=0):
    """Vectors, lists of labels (common, rare, both or none), groups of two."""
    rng = np.random.default_rng(seed)
    marks = rng.random((n, 3)) < [0.5, 0.12, 0.3]
    vectors = rng.normal(size=(n, dim)) + (marks * [1.5, 2.5, 1.0]) @ np.eye(3, dim)
    names = np.array(["necrosis", "mitosis", "lymphocytes"])
    return vectors.astype(np.float32), [names[m].tolist() for m in marks], [f"p{i // 2}" for i in range(n)]


@pytest.fixture(scope="module")
def mark_probe():
    return fit_probe(*marked(), encoder="e")


def test_labels_of_their_own(mark_probe):
    metrics = json.loads(json.dumps(mark_probe.metrics, allow_nan=False))
    assert (metrics["kind"], metrics["classes"]) == ("multilabel", ["lymphocytes", "mitosis", "necrosis"])
    assert metrics["warnings"] == []
    linear = metrics["linear"]
    low, high = linear["auroc_interval"]
    assert 0.7 < low < linear["auroc"] < high < 1
    assert linear["labels"]["mitosis"]["auroc"] > 0.9 > linear["labels"]["lymphocytes"]["auroc"]
    fresh, truth, _ = marked(2000, seed=3)
    found = mark_probe.predict(fresh)
    marks = np.array([[name in given for name in mark_probe.classes] for given in truth])
    chances = np.array([[p.probabilities[name] for name in mark_probe.classes] for p in found])
    expected = [roc_auc_score(marks[:, j], chances[:, j]) for j in range(3)]
    assert linear["auroc"] == pytest.approx(np.mean(expected), abs=0.04)
    precision = [average_precision_score(marks[:, j], chances[:, j]) for j in range(3)]
    assert linear["average_precision"] == pytest.approx(np.mean(precision), abs=0.07)
    np.testing.assert_allclose(chances.mean(0), marks.mean(0), atol=0.05)  # calibrated to the labels' frequency
    named = np.array([[name in p.labels for name in mark_probe.classes] for p in found])
    f1 = 2 * (named & marks).sum(0) / (named.sum(0) + marks.sum(0))
    assert f1.mean() == pytest.approx(linear["macro_f1"], abs=0.08)
    assert f1.mean() > 2 * ((chances > 0.5) & marks).sum() / ((chances > 0.5).sum() + marks.sum()) - 0.05
    assert any(p.labels == () for p in found) and any(len(p.labels) > 1 for p in found)


def test_a_rare_label_has_no_score_but_does_not_take_those_of_the_others():
    vectors, labels, groups = marked()
    labels = [[*given, "giant cell"] if i in (0, 1, 4) else given for i, given in enumerate(labels)]
    metrics = fit_probe(vectors, labels, groups).metrics
    assert metrics["linear"]["labels"].keys() == {"lymphocytes", "mitosis", "necrosis"}
    assert any("No score for 'giant cell'" in w for w in metrics["warnings"])
    assert any("'giant cell' 3" in w for w in metrics["warnings"])
    alone = fit_probe(vectors[:6], [["a"], ["a"], [], [], ["a"], []], list("xxyyxy"))
    assert alone.metrics["linear"] is None and "No cross-validation" in " ".join(alone.metrics["warnings"])
    assert alone.predict(vectors[:1])[0].labels == ("a",)


def test_thresholds_give_the_best_f1():
    rng = np.random.default_rng(0)
    scores, marks = rng.random((60, 1)).round(1), rng.random((60, 1)) < 0.3
    at = best_thresholds(scores, marks)[0]

    def f1(threshold):
        taken = scores >= threshold
        return 2 * (taken & marks).sum() / (taken.sum() + marks.sum())

    assert f1(at) == pytest.approx(max(f1(t) for t in np.arange(0, 1.01, 0.05)))
