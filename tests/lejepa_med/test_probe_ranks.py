import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, mean_absolute_error, r2_score, roc_auc_score

from lejepa_med.evaluation.scores import (
    average_precision,
    cluster_interval,
    macro,
    mean_error,
    point,
    r2,
    roc_area,
    spearman,
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
