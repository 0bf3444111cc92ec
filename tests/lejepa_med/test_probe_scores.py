import numpy as np
import pytest
from sklearn import metrics
from sklearn.neighbors import KNeighborsClassifier

from lejepa_med.evaluation.neighbours import Neighbours
from lejepa_med.evaluation.scores import auroc, group_interval, summary


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


def test_interval_equals_a_plain_cluster_bootstrap():
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


def test_unweighted_vote_equals_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 400)
    vectors = rng.normal(size=(400, 10)).astype(np.float32) + np.eye(3, 10)[labels]
    queries = rng.normal(size=(60, 10)).astype(np.float32)
    found = Neighbours.fit(vectors, labels, balanced=False).vote(queries)
    model = KNeighborsClassifier(20, metric="cosine").fit(vectors, labels)
    np.testing.assert_allclose(found.shares, model.predict_proba(queries), atol=1e-12)
    clear = np.sort(found.shares, 1)[:, -1] > np.sort(found.shares, 1)[:, -2]
    np.testing.assert_array_equal(found.winners[clear], model.predict(queries)[clear])


def test_a_tie_goes_to_the_nearer_class():
    vectors = np.array([[1, 0.5], [1, -0.5], [1, 0.1], [1, -0.1]])
    found = Neighbours.fit(vectors, np.array([0, 0, 1, 1]), balanced=False).vote(np.array([[1.0, 0.0]]))
    assert found.shares.tolist() == [[0.5, 0.5]] and found.winners.tolist() == [1]


def test_balanced_votes_let_a_rare_class_win():
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], [190, 10])
    vectors = rng.normal(size=(200, 2)) + [[10, 0]] * 200
    vectors[labels == 1] += [0, 1.0]
    queries = np.array([[10, 1.5]] * 1)
    balanced = Neighbours.fit(vectors, labels, balanced=True)
    assert balanced.k == 10
    assert balanced.vote(queries).winners.tolist() == [1]
    assert Neighbours.fit(vectors, labels, balanced=False).vote(queries).winners.tolist() == [0]
