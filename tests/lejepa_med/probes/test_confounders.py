"""The check for confounders: a planted scanner is named, clean sets raise no alarm, and each figure has an oracle."""

import numpy as np
import pytest

from lejepa_med.probes.confounders import Check, code, cramers_v, robustness_index, unseen_groups
from lejepa_med.probes.neighbours import normalise
from lejepa_med.probes.probe import fit_probe

GROUPS, IMAGES = 40, 160


def made(seed: int, *, scanner: float = 0.0):
    """Vectors (n, 16) that know the label, groups, labels, and columns; `scanner` puts class b on one scanner alone."""
    rng = np.random.default_rng(seed)
    groups = np.concatenate([np.arange(GROUPS), rng.integers(0, GROUPS, IMAGES - GROUPS)])
    label = np.arange(GROUPS) % 2
    site, tesla, seeing = rng.integers(0, 3, GROUPS), rng.choice([1.5, 3.0], GROUPS), rng.normal(size=GROUPS)
    if scanner:
        site = np.where(label == 1, 0, site)
    vectors = rng.normal(size=(IMAGES, 16)) + 0.7 * rng.normal(size=(GROUPS, 16))[groups]
    vectors[:, 0] += 2 * label[groups]
    vectors[:, 1] += scanner * (site == 0)[groups]
    columns = {
        "scanner": [f"s{k}" for k in site[groups]],
        "tesla": tesla[groups].tolist(),
        "seeing": seeing[groups].tolist(),
        "stain": [f"b{k}" for k in rng.integers(0, 4, IMAGES)],
    }
    return vectors, [f"g{k}" for k in groups], [f"c{k}" for k in label[groups]], columns


def test_clean_sets_raise_at_most_one_alarm_in_twenty():
    alarms = 0
    for seed in range(20):
        vectors, groups, labels, columns = made(seed)
        found = Check(vectors, groups, labels=labels).columns(columns)
        alarms += any(one.state != "clear" for one in found)
    assert alarms <= 1


def test_a_planted_scanner_is_named_by_the_check_and_by_the_probe():
    vectors, groups, labels, columns = made(1, scanner=6.0)
    found = Check(vectors, groups, labels=labels).columns(columns)
    first = found[0]
    assert (first.column, first.state) == ("scanner", "confounded")
    assert [one.state for one in found[1:]].count("confounded") == 0
    assert first.association is not None and (first.association.label, first.association.value) == ("c1", "s0")
    assert first.association.share == 1.0
    two = {"scanner": ["a" if value == "s0" else "b" for value in columns["scanner"]]}
    (alone,) = Check(vectors, groups, labels=labels).columns(two)
    assert alone.prediction is not None and alone.prediction.auroc > 0.9
    assert alone.prediction.interval is not None and alone.prediction.interval[0] > 0.8
    probe = fit_probe(vectors, labels, groups, columns=columns)
    assert any("confounded with 'scanner'" in text for text in probe.metrics["warnings"])
    assert not any("confounded" in text for text in fit_probe(vectors, labels, groups).metrics["warnings"])


def test_numbers_are_predicted_as_numbers_and_a_column_that_is_the_group_cannot_be_checked():
    vectors, groups, labels, columns = made(2)
    vectors[:, 2] += 3 * np.array(columns["seeing"])
    found = {
        one.column: one
        for one in Check(vectors, groups, labels=labels).columns({**columns, "slide": groups, "one": ["x"] * IMAGES})
    }
    assert found["seeing"].state == "encoded" and found["seeing"].prediction.spearman > 0.7
    assert found["slide"].state == found["one"].state == "unknown"
    assert "single group" in found["slide"].reason and "value x" in found["one"].reason


def test_robustness_index_is_that_of_its_definition():
    rng = np.random.default_rng(0)
    vectors, groups = rng.normal(size=(80, 5)), rng.integers(0, 20, 80)
    labels, values = rng.integers(0, 3, 80), rng.integers(0, 2, 80)
    index, k = robustness_index(vectors, labels, values, groups)
    unit, good, bad = normalise(vectors), 0, 0
    for row in range(80):
        others = sorted((j for j in range(80) if groups[j] != groups[row]), key=lambda j: -float(unit[row] @ unit[j]))
        for near in others[:k]:
            good += labels[near] == labels[row] and values[near] != values[row]
            bad += labels[near] != labels[row] and values[near] == values[row]
    assert index == pytest.approx(good / (good + bad))
    vectors[:, 0] += 50 * labels
    apart = rng.normal(size=(80, 5)) / 10
    apart[np.arange(80), labels] += 5
    assert robustness_index(apart, labels, values, groups)[0] > 0.9
    by_value = rng.normal(size=(80, 5)) / 10
    by_value[np.arange(80), values] += 5
    assert robustness_index(by_value, labels, values, groups)[0] < 0.1


def test_cramers_v_is_corrected_for_bias():
    rng = np.random.default_rng(0)
    chance = [cramers_v(rng.multinomial(50, np.full(12, 1 / 12)).reshape(3, 4).astype(float)) for _ in range(200)]
    assert np.median(chance) < 0.05  # without the correction about 0.24
    assert cramers_v(np.diag([20.0, 20.0, 20.0])) == pytest.approx(1.0)


def test_unseen_groups_join_what_shares_a_site_or_a_patient():
    joined = unseen_groups(["p", "p", "q", "r", "t"], ["A", "B", "B", "C", None])
    assert joined[0] == joined[1] == joined[2]
    assert len(set(joined)) == 3


def test_rare_values_become_one():
    groups = np.arange(100)
    found = code(["a"] * 50 + ["b"] * 40 + [f"rare{k}" for k in range(10)], groups)
    assert found.names == ("(other values)", "a", "b")
