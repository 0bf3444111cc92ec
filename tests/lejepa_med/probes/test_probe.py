import json
import time

import numpy as np
import pytest

from data_adapters.errors import UserError
from lejepa_med.probes.probe import fit_probe


def made(counts, *, dim=16, signal=3.0, seed=0, per_group=3):
    """Vectors, labels c0.., groups; every group holds one class."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    vectors = rng.normal(size=(len(labels), dim)) + np.eye(len(counts), dim)[labels] * signal
    groups = [f"p{k}-{i // per_group}" for k, n in enumerate(counts) for i in range(n)]
    return vectors.astype(np.float32), [f"c{k}" for k in labels], groups


def test_scores_are_complete_and_json():
    probe = fit_probe(*made([40, 40, 40]), encoder="e1")
    metrics = json.loads(json.dumps(probe.metrics, allow_nan=False))
    assert (probe.classes, probe.dim, probe.encoder) == (("c0", "c1", "c2"), 16, "e1")
    assert metrics["warnings"] == [] and metrics["folds"] == 5 and metrics["chance"] == pytest.approx(1 / 3)
    for name in ("linear", "knn"):
        found = metrics[name]
        low, high = found["balanced_accuracy_interval"]
        assert 0.8 < low <= found["balanced_accuracy"] <= high <= 1
        assert found["auroc"] > 0.9 and np.sum(found["confusion_matrix"]) == 120
        assert found["recall"].keys() == {"c0", "c1", "c2"}
    receipt = metrics["split_receipt"]
    assert receipt["groups_disjoint"] and len(receipt["sha256"]) == 64
    assert all(f["train"] + f["validation"] == 120 for f in receipt["folds"])


def test_same_seed_same_probe_and_row_order_does_not_matter_to_the_receipt():
    vectors, labels, groups = made([30, 30])
    first, second = (fit_probe(vectors, labels, groups, seed=3).metrics for _ in range(2))
    assert first == second
    assert fit_probe(vectors, labels, groups, seed=4).metrics["split_receipt"] != first["split_receipt"]


def test_groups_do_not_leak():
    # Each patient has a signature of its own and a label that has nothing to do with it: a split by image would read
    # the label off the signature and score 1.0, a split by patient can only guess.
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(40), 25)
    vectors = rng.normal(size=(40, 80))[patient] * 5 + rng.normal(size=(1000, 80)) * 0.1
    labels = [f"c{p % 2}" for p in patient]
    honest = fit_probe(vectors, labels, [f"p{p}" for p in patient]).metrics
    leaking = fit_probe(vectors, labels, [f"image{i}" for i in range(1000)]).metrics
    for name in ("linear", "knn"):
        assert leaking[name]["balanced_accuracy"] > 0.99
        assert honest[name]["balanced_accuracy"] < 0.65


def test_labels_of_noise_score_chance_inside_the_interval():
    vectors, labels, groups = made([100, 100], signal=0.0, per_group=1)
    linear = fit_probe(vectors, labels, groups).metrics["linear"]
    low, high = linear["balanced_accuracy_interval"]
    assert low < 0.5 < high and 0.38 < linear["auroc"] < 0.62


def test_imbalance_is_weighted_and_told():
    vectors, labels, groups = made([300, 20], signal=2.5, per_group=2)
    metrics = fit_probe(vectors, labels, groups).metrics
    assert any("Unequal classes" in w for w in metrics["warnings"])
    assert metrics["linear"]["recall"]["c1"] > 0.6 and metrics["knn"]["recall"]["c1"] > 0.5
    assert metrics["counts"] == {"c0": 300, "c1": 20} and metrics["groups_per_class"] == {"c0": 150, "c1": 10}


def test_folds_shrink_with_a_warning():
    metrics = fit_probe(*made([30, 9])).metrics
    assert metrics["folds"] == 3
    assert any("3 folds instead of 5: 'c1' occurs in 3 groups" in w for w in metrics["warnings"])
    assert any("Few labels" in w for w in metrics["warnings"])


def test_two_groups_of_a_class_still_score():
    metrics = fit_probe(*made([12, 6])).metrics
    assert metrics["folds"] == 2 and metrics["linear"]["C_of_folds"] == [0.1, 0.1]
    assert any("Two folds" in w for w in metrics["warnings"])


@pytest.mark.parametrize("one_group", [True, False])
def test_without_two_groups_a_class_there_are_no_scores_but_a_probe(one_group):
    vectors, labels, groups = made([6, 3])
    if one_group:
        groups = ["p"] * 9
    probe = fit_probe(vectors, labels, groups)
    assert probe.metrics["linear"] is None and probe.metrics["knn"] is None and probe.metrics["folds"] == 0
    assert any("No cross-validation is possible" in w for w in probe.metrics["warnings"])
    assert [p.label for p in probe.predict(vectors)] == labels
    assert 0 <= probe.predict(vectors[:1] * -100)[0].novelty <= 0.9


def test_duplicates_across_groups_are_told():
    vectors, labels, groups = made([30, 30])
    vectors[3] = vectors[0]
    assert any("2 images have an exact twin" in w for w in fit_probe(vectors, labels, groups).metrics["warnings"])


def test_unicode_labels_and_look_alikes():
    vectors, labels, groups = made([30, 30, 30])
    names = {"c0": "Glioblastom, IDH‑Wildtyp", "c1": "naïve", "c2": "nai\u0308ve"}
    probe = fit_probe(vectors, [names[v] for v in labels], groups)
    assert set(probe.classes) == set(names.values())
    assert any("Unicode form" in w for w in probe.metrics["warnings"])
    assert probe.predict(vectors[:1])[0].label == "Glioblastom, IDH‑Wildtyp"


def test_predictions_are_probabilities_and_strangers_get_a_note():
    vectors, labels, groups = made([60, 60], signal=6.0)
    vectors[:, -1] += 20
    probe = fit_probe(vectors, labels, groups)
    found = probe.predict(vectors + 0.05)  # images like the labelled ones, but not those
    assert all(sum(p.probabilities.values()) == pytest.approx(1) for p in found)
    assert all(p.label == max(p.probabilities, key=p.probabilities.get) for p in found)
    assert np.mean([p.knn_label == t for p, t in zip(found, labels, strict=True)]) > 0.95
    assert all(p.note == "" and p.nearest_cosine > 0.9999 for p in found)
    stranger = probe.predict(-vectors[:1])[0]
    assert stranger.note.startswith("Unlike the labelled images") and stranger.nearest_cosine < 0


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda v, la, g: (v, ["a"] * 20, g), "All 20 labels are 'a'"),
        (lambda v, la, g: (v, ["a", *la[1:]], g), "single example: 'a'"),
        (lambda v, la, g: (v, la[1:], g), "20 vectors, 19 labels and 20 groups"),
        (lambda v, la, g: (v, ["", *la[1:]], g), "1 rows have no label"),
        (lambda v, la, g: (v, la, [None, *g[1:]]), "1 rows have no group"),
        (lambda v, la, g: (np.where(np.arange(20)[:, None] == 4, np.nan, v), la, g), "first is row 4"),
        (lambda v, la, g: (v.astype(np.float64) * 1e300, la, g), "infinite"),
        (lambda v, la, g: (v[:, 0], la, g), "table of numbers"),
        (lambda v, la, g: (v.astype(str), la, g), "table of numbers"),
    ],
)
def test_bad_input_names_cause_and_remedy(change, cause):
    with pytest.raises(UserError, match=cause) as caught:
        fit_probe(*change(*made([10, 10])))
    assert caught.value.remedy


def test_predict_refuses_other_dimensions_and_nan():
    probe = fit_probe(*made([10, 10]))
    with pytest.raises(UserError, match="16 dimensions; these have 15"):
        probe.predict(np.zeros((2, 15)))
    with pytest.raises(UserError, match="NaN"):
        probe.predict(np.full((1, 16), np.nan))


def test_classes_of_one_group_and_wide_intervals_are_told():
    vectors, labels, groups = made([30, 12])
    groups = ["p1-3" if i >= 32 else g for i, g in enumerate(groups)]
    warnings = fit_probe(vectors, labels, groups).metrics["warnings"]
    assert any("10 of the 12 labels of 'c1' come from one group" in w for w in warnings)
    noise = fit_probe(*made([12, 12], signal=0.0)).metrics
    assert any("known only to lie between" in w for w in noise["warnings"])


def test_probabilities_are_calibrated_out_of_fold():
    # Noisy labels on few examples of many dimensions: the raw logistic regression is too sure of itself.
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(240, 60)).astype(np.float32)
    truth = vectors[:, 0] + 1.5 * rng.normal(size=240) > 0
    probe = fit_probe(vectors, [f"c{int(t)}" for t in truth], [str(i) for i in range(240)])
    found = probe.metrics["calibration"]
    assert found["after"]["ece"] < found["before"]["ece"] and found["after"]["brier"] < found["before"]["brier"]
    assert found["temperature"] > 1
    assert sum(b["count"] for b in found["after"]["bins"]) == 240
    fresh = rng.normal(size=(4000, 60)).astype(np.float32)
    is_right = [
        (p.label == "c1") == t
        for p, t in zip(probe.predict(fresh), fresh[:, 0] + 1.5 * rng.normal(size=4000) > 0, strict=True)
    ]
    confidence = [max(p.probabilities.values()) for p in probe.predict(fresh)]
    assert abs(np.mean(confidence) - np.mean(is_right)) < 0.06


def test_unweighted_classes_keep_their_frequency():
    vectors, labels, groups = made([300, 30], signal=1.0, per_group=1)
    plain, balanced = (fit_probe(vectors, labels, groups, balanced=b) for b in (False, None))
    share = [np.mean([p.probabilities["c1"] for p in probe.predict(vectors)]) for probe in (plain, balanced)]
    assert share[0] == pytest.approx(30 / 330, abs=0.05) and share[1] > 0.2
    assert (plain.metrics["balanced"], balanced.metrics["balanced"]) == (False, True)
    assert balanced.metrics["linear"]["balanced_accuracy"] > plain.metrics["linear"]["balanced_accuracy"] + 0.05


def test_novelty_is_a_conformal_score():
    rng = np.random.default_rng(0)
    draw = lambda n: (rng.normal(size=(n, 12)) + np.r_[8, np.zeros(11)]).astype(np.float32)  # noqa: E731
    probe = fit_probe(draw(200), ["a", "b"] * 100, [str(i) for i in range(200)])
    usual = np.array([p.novelty for p in probe.predict(draw(2000))])
    for share in (0.05, 0.2, 0.5):
        assert (usual >= 1 - share).mean() <= share + 0.05
    assert usual.min() >= 0 and 0.4 < usual.mean() < 0.6
    assert all(p.novelty > 0.99 for p in probe.predict(-draw(5)))


def test_progress_runs_forward_and_its_exception_passes_through():
    class Cancelled(Exception):
        pass

    seen = []
    data = made([20, 20])
    fit_probe(*data, progress=lambda fraction, stage: seen.append((fraction, stage)))
    fractions = [fraction for fraction, _ in seen]
    assert fractions == sorted(fractions) and fractions[0] == 0 and fractions[-1] == 1 and len(fractions) > 10

    def cancel(fraction, stage):
        if fraction > 0.3:
            raise Cancelled

    with pytest.raises(Cancelled):
        fit_probe(*data, progress=cancel)


def test_a_thousand_vectors_take_about_a_second():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 1000)
    scale = np.geomspace(1, 0.01, 384)
    vectors = rng.normal(size=(1000, 384)) * scale + rng.normal(size=(3, 384))[labels] * scale * 0.2
    groups = [f"g{g}" for g in rng.integers(0, 400, 1000)]
    start = time.process_time()
    fit_probe(vectors, [f"c{v}" for v in labels], groups)
    assert time.process_time() - start < 6  # about 1 s of one core; room for slow machines
