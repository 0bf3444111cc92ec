import json

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data_adapters.errors import UserError
from lejepa_med.evaluation.examples import Labelled
from lejepa_med.evaluation.linear import PENALTIES, Leverage, fit_ridge
from lejepa_med.evaluation.multilabel import best_thresholds
from lejepa_med.evaluation.probe import Probe, fit_probe
from lejepa_med.evaluation.regression import conformal_half_width


def measured(n=300, dim=20, noise=0.5, seed=0):
    """Vectors, a quantity, groups of two."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, dim)).astype(np.float32) * np.geomspace(3, 0.1, dim) + 4
    values = vectors[:, :3] @ [1.0, -1.0, 2.0] + noise * rng.normal(size=n) + 10
    return vectors.astype(np.float32), values.tolist(), [f"p{i // 2}" for i in range(n)]


def marked(n=400, dim=16, seed=0):
    """Vectors, lists of labels (common, rare, both or none), groups of two."""
    rng = np.random.default_rng(seed)
    marks = rng.random((n, 3)) < [0.5, 0.12, 0.3]
    vectors = rng.normal(size=(n, dim)) + (marks * [1.5, 2.5, 1.0]) @ np.eye(3, dim)
    names = np.array(["necrosis", "mitosis", "lymphocytes"])
    return vectors.astype(np.float32), [names[m].tolist() for m in marks], [f"p{i // 2}" for i in range(n)]


@pytest.fixture(scope="module")
def number_probe():
    return fit_probe(*measured(), encoder="e")


@pytest.fixture(scope="module")
def mark_probe():
    return fit_probe(*marked(), encoder="e")


@pytest.mark.parametrize(("n", "dim"), [(120, 10), (20, 50)])
def test_every_penalty_of_the_path_is_a_ridge_regression_of_its_own(n, dim):
    vectors, values, _ = measured(n, dim)
    wide = vectors.astype(np.float64)
    models = fit_ridge(vectors, np.array(values))
    assert len(models) == len(PENALTIES)
    for penalty, model in zip(PENALTIES, models, strict=True):
        theirs = make_pipeline(StandardScaler(), Ridge(penalty * n)).fit(wide, values)
        np.testing.assert_allclose(model.logits(vectors)[:, 0], theirs.predict(wide), rtol=1e-6)


@pytest.mark.parametrize(("n", "dim"), [(60, 8), (12, 30)])
def test_leverage_is_the_closed_form(n, dim):
    vectors, _, _ = measured(n, dim)
    fresh = measured(5, dim, seed=1)[0]
    scaler = StandardScaler().fit(vectors.astype(np.float64))
    design, new = scaler.transform(vectors.astype(np.float64)), scaler.transform(fresh.astype(np.float64))
    inverse = np.linalg.inv(design.T @ design + 0.1 * n * np.eye(dim))
    expected = np.einsum("ij,jk,ik->i", new, inverse, new) + 1 / n
    np.testing.assert_allclose(Leverage(vectors, 0.1).of(fresh), expected, rtol=1e-6)


def test_a_quantity_is_predicted_with_intervals_that_hold(number_probe):
    metrics = json.loads(json.dumps(number_probe.metrics, allow_nan=False))
    assert (metrics["kind"], metrics["folds"], metrics["warnings"]) == ("regression", 5, [])
    linear = metrics["linear"]
    assert linear["r2"] > 0.9 and linear["spearman"] > 0.9 and 0.3 < linear["mae"] < 0.6
    for name in ("r2", "mae", "spearman"):
        assert linear[f"{name}_interval"][0] < linear[name] < linear[f"{name}_interval"][1]
    assert metrics["knn"]["r2"] < linear["r2"]
    assert 0.86 < metrics["interval"]["measured_coverage"] < 0.94
    fresh, truth, _ = measured(2000, seed=5)
    found = number_probe.predict(fresh)
    held = [p.interval[0] <= t <= p.interval[1] for p, t in zip(found, truth, strict=True)]
    assert 0.86 < np.mean(held) < 0.94
    assert all(0 < p.uncertainty < 1 and p.label is None and p.probabilities is None for p in found)
    far = number_probe.predict(fresh[:1] * 30)[0]
    assert far.uncertainty > max(p.uncertainty for p in found)


def test_the_signature_of_a_group_does_not_leak_into_a_quantity():
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(30), 10)
    vectors = rng.normal(size=(30, 60))[patient] * 5 + rng.normal(size=(300, 60)) * 0.1
    values = rng.normal(size=30)[patient].tolist()
    honest = fit_probe(vectors, values, [f"p{p}" for p in patient]).metrics
    leaking = fit_probe(vectors, values, [str(i) for i in range(300)]).metrics
    for name in ("linear", "knn"):
        assert leaking[name]["r2"] > 0.5 and honest[name]["r2"] < 0.3
    assert any("known only" in w for w in honest["warnings"])


def test_conformal_rank():
    assert conformal_half_width(np.arange(1.0, 10)) == 9
    assert conformal_half_width(np.arange(1.0, 9)) is None
    assert conformal_half_width(np.arange(1.0, 100)) == 90


def test_few_measurements_are_told():
    probe = fit_probe(*[column[:8] for column in measured()])
    assert probe.predict(measured()[0][:1])[0].interval is None
    warnings = " ".join(probe.metrics["warnings"])
    assert "8 images are measured" in warnings and "Too few labels for prediction" in warnings
    assert "8 values only" in warnings
    single = fit_probe(*measured(20)[:2], ["p"] * 20)
    assert single.metrics["linear"] is None and any("single group" in w for w in single.metrics["warnings"])
    assert single.predict(measured(20)[0])[0].value == pytest.approx(measured(20)[1][0], abs=3)


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


@pytest.mark.parametrize("kind", ["number_probe", "mark_probe"])
def test_saved_probes_predict_the_same_bits_and_keep_their_examples(kind, request, tmp_path):
    probe = request.getfixturevalue(kind)
    probe.save(tmp_path / "p")
    loaded = Probe.load(tmp_path / "p")
    queries = np.random.default_rng(1).normal(size=(30, probe.dim)).astype(np.float32) + 2
    assert loaded.predict(queries) == probe.predict(queries)
    assert loaded.examples.ids == probe.examples.ids and loaded.examples.groups == probe.examples.groups
    assert loaded.examples.labels == probe.examples.labels
    np.testing.assert_array_equal(loaded.examples.vectors, probe.examples.vectors)


def test_newer_labels_replace_older_ones_of_the_same_id():
    def table(ids, labels, at):
        return Labelled(tuple(ids), np.full((len(ids), 2), at, np.float32), tuple(labels), tuple("g" * len(ids)))

    both = table("abc", "xyz", 0).updated(table("db", "vw", 1))
    assert (both.ids, both.labels) == (tuple("acdb"), tuple("xzvw"))
    assert both.vectors[:, 0].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("labels", "cause"),
    [
        ([1.0, "a"] * 5, "several kinds"),
        ([True, False] * 5, "no label in text"),
        ([2.0] * 10, "All 10 labels are 2"),
        ([1.0, float("nan")] * 5, "row 1 is not a finite"),
        ([[]] * 10, "No image has any label"),
        ([["a"]] * 9 + [[]], "on, or missing from, a single image"),
        ([["a", " "]] * 10, "Row 0 has an empty label"),
    ],
)
def test_labels_that_make_no_probe_are_refused(labels, cause):
    with pytest.raises(UserError, match=cause) as caught:
        fit_probe(np.random.default_rng(0).normal(size=(10, 3)), labels, [str(i) for i in range(10)])
    assert caught.value.remedy


def test_ids_must_be_unique():
    with pytest.raises(UserError, match="id of its own"):
        fit_probe(np.eye(4), ["a", "b", "a", "b"], list("wxyz"), ids=list("aabc"))
