import json

import numpy as np
import pytest

from data_adapters.errors import UserError
from lejepa_med.probes.output import out_of_fold_photo_z
from lejepa_med.probes.probe import fit_probe
from lejepa_med.probes.regression import conformal_half_width
from lejepa_med.probes.scores import photo_z


def measured(n=300, dim=20, noise=0.5, seed=0):
    """Vectors, a quantity, groups of two."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, dim)).astype(np.float32) * np.geomspace(3, 0.1, dim) + 4
    values = vectors[:, :3] @ [1.0, -1.0, 2.0] + noise * rng.normal(size=n) + 10
    return vectors.astype(np.float32), values.tolist(), [f"p{i // 2}" for i in range(n)]


@pytest.fixture(scope="module")
def number_probe():
    return fit_probe(*measured(), encoder="e")


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


def test_photo_z_figures_are_those_of_their_definitions() -> None:
    rng = np.random.default_rng(0)
    truth, groups = rng.uniform(0, 1.5, 801), np.arange(801) // 3
    given = truth + (1 + truth) * rng.normal(0.01, 0.03, 801)
    given[:40] += (1 + truth[:40]) * 0.5
    found = photo_z(truth, given, groups, seed=0)
    error = (given - truth) / (1 + truth)
    assert found["sigma_nmad"] == pytest.approx(1.4826 * np.median(np.abs(error - np.median(error))))
    assert found["outlier_rate"] == pytest.approx(40 / 801) and found["bias"] == pytest.approx(error.mean())
    for name in ("sigma_nmad", "outlier_rate", "bias"):
        low, high = found[f"{name}_interval"]
        assert low < found[name] < high
    with pytest.raises(UserError, match="figures divide by"):
        photo_z(truth - 2, given, groups, seed=0)
    vectors = rng.normal(size=(801, 5)) + truth[:, None]
    probe = fit_probe(vectors, truth.tolist(), [str(group) for group in groups], folds=3)
    out = out_of_fold_photo_z(probe)
    assert 0 < out["sigma_nmad"] < 1 and out["sigma_nmad_interval"] is not None
