import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn import metrics
from sklearn.metrics import average_precision_score, mean_absolute_error, r2_score, roc_auc_score

from lejepa_med.probes.scores import (
    auroc,
    average_precision,
    cluster_interval,
    group_interval,
    macro,
    mean_error,
    point,
    r2,
    roc_area,
    spearman,
    summary,
)

RNG = np.random.default_rng(0)
TRUTH = RNG.normal(size=120).round(1)  # with ties
GIVEN = (TRUTH + RNG.normal(size=120)).round(1)
MARKS = TRUTH > 0.5
GROUPS = RNG.integers(0, 25, 120)
CASES = [
    (spearman(TRUTH, GIVEN), lambda rows: spearmanr(TRUTH[rows], GIVEN[rows]).statistic),
    (r2(TRUTH + 1e6, GIVEN + 1e6), lambda rows: r2_score(TRUTH[rows], GIVEN[rows])),
    (mean_error(TRUTH, GIVEN), lambda rows: mean_absolute_error(TRUTH[rows], GIVEN[rows])),
    (roc_area(MARKS, GIVEN), lambda rows: roc_auc_score(MARKS[rows], GIVEN[rows])),
    (average_precision(MARKS, GIVEN), lambda rows: average_precision_score(MARKS[rows], GIVEN[rows])),
]


def made(classes, n=300, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.choice(classes, n, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    scores = rng.random((n, classes)) + np.eye(classes)[truth] * 0.4
    probabilities = scores / scores.sum(1, keepdims=True)
    return truth, probabilities.argmax(1), probabilities, rng.integers(0, 40, n)


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_summary_equals_scikit_learn(classes):
    truth, predicted, probabilities, groups = made(classes)
    found = summary(truth, predicted, probabilities, groups, names=[f"c{i}" for i in range(classes)], seed=0)
    assert found["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(truth, predicted))
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(truth, predicted))
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(truth, predicted, average="macro"))
    assert found["confusion_matrix"] == metrics.confusion_matrix(truth, predicted).tolist()
    score = probabilities[:, 1] if classes == 2 else probabilities
    assert found["auroc"] == pytest.approx(metrics.roc_auc_score(truth, score, multi_class="ovr", average="macro"))
    recall = metrics.recall_score(truth, predicted, average=None)
    np.testing.assert_allclose(list(found["recall"].values()), recall)


def test_auroc_is_none_when_a_class_does_not_occur():
    assert auroc(np.array([0, 1, 0]), np.full((3, 3), 1 / 3)) is None


def test_a_class_never_predicted_scores_zero_f1():
    truth, predicted = np.array([0, 0, 1, 2]), np.array([0, 0, 0, 0])
    found = summary(truth, predicted, np.full((4, 3), 1 / 3), np.arange(4), names="abc", seed=0)
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(truth, predicted, average="macro", zero_division=0))


def test_interval_of_balanced_accuracy_equals_a_plain_cluster_bootstrap():
    truth, predicted, _, groups = made(3, n=400)
    low, high = group_interval(truth, predicted, groups, classes=3, seed=1)
    rng = np.random.default_rng(7)
    members = [np.flatnonzero(groups == g) for g in range(40)]
    plain = []
    for _ in range(2000):
        rows = np.concatenate([members[g] for g in rng.integers(0, 40, 40)])
        plain.append(np.mean([(predicted[rows] == k)[truth[rows] == k].mean() for k in range(3)]))
    expected = np.quantile(plain, [0.025, 0.975])
    np.testing.assert_allclose([low, high], expected, atol=0.012)
    assert low < metrics.balanced_accuracy_score(truth, predicted) < high


def test_interval_widens_when_errors_cluster_in_groups():
    truth = np.tile([0, 1], 200)
    groups = np.repeat(np.arange(20), 20)
    clustered = np.where(groups < 5, 1 - truth, truth)  # all of five patients wrong
    spread = np.where(np.arange(400) % 20 < 5, 1 - truth, truth)  # the same share of each patient
    widths = [np.diff(group_interval(truth, p, groups, classes=2, seed=0))[0] for p in (clustered, spread)]
    assert widths[0] > 0.25 and widths[1] < 0.02


def test_interval_cost_does_not_grow_with_groups():
    truth = np.random.default_rng(0).integers(0, 2, 200_000)
    low, high = group_interval(truth, truth ^ (np.arange(200_000) % 10 == 0), np.arange(200_000), classes=2, seed=0)
    assert 0.895 < low < high < 0.905


@pytest.mark.parametrize(("ours", "theirs"), CASES)
def test_weighted_statistics_equal_those_of_repeated_rows(ours, theirs):
    assert point(ours, 120) == pytest.approx(theirs(np.arange(120)), abs=1e-6)
    times = RNG.integers(0, 4, (3, 120))
    for row, found in zip(times, ours(times.astype(float)), strict=True):
        assert found == pytest.approx(theirs(np.repeat(np.arange(120), row)), abs=1e-6)


def test_undefined_draws_are_left_out_and_macro_takes_the_rest():
    constant = np.ones(4)
    assert point(spearman(constant, np.arange(4.0)), 4) is None
    assert point(r2(constant, np.arange(4.0)), 4) is None
    one_side = roc_area(np.ones(4, bool), np.arange(4.0))
    other = roc_area(np.array([False, False, True, True]), np.arange(4.0))
    assert point(one_side, 4) is None
    assert point(macro([one_side, other]), 4) == 1.0
    assert point(macro([one_side, one_side]), 4) is None
    assert cluster_interval(one_side, np.arange(4), seed=0) is None


def test_interval_equals_a_plain_cluster_bootstrap():
    low, high = cluster_interval(CASES[0][0], GROUPS, seed=0)
    rng = np.random.default_rng(7)
    members = [np.flatnonzero(GROUPS == g) for g in range(25)]
    plain = []
    for _ in range(500):
        rows = np.concatenate([members[g] for g in rng.integers(0, 25, 25)])
        plain.append(spearmanr(TRUTH[rows], GIVEN[rows]).statistic)
    np.testing.assert_allclose([low, high], np.quantile(plain, [0.025, 0.975]), atol=0.03)
    assert low < point(CASES[0][0], 120) < high
    assert cluster_interval(CASES[0][0], np.zeros(120, int), seed=0) is None
