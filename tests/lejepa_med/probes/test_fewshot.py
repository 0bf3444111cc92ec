import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data_adapters.errors import UserError
from lejepa_med.probes.fewshot import fewshot


def part(counts, seed, prefix, signal=1.5, dim=40):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    vectors = rng.normal(size=(len(labels), dim)) + np.eye(len(counts), dim)[labels] * signal
    return vectors.astype(np.float32), [f"c{k}" for k in labels], [f"{prefix}{i // 2}" for i in range(len(labels))]


@pytest.fixture(scope="module")
def parts():
    return part([120, 80, 60], 0, "a"), part([50, 50, 50], 1, "b")


def test_more_labels_are_better_and_draws_differ(parts):
    train, test = parts
    ten, fifty, all_labels = fewshot(*train, *test[:2])
    assert [r.shots for r in (ten, fifty, all_labels)] == [10, 50, None]
    assert len(ten.linear) == len(ten.knn) == 5 and len(all_labels.linear) == 1
    assert 0.4 < ten.linear_mean < fifty.linear_mean < all_labels.linear_mean + 0.03
    assert ten.linear_std > 0 and all_labels.linear_std == 0
    assert fewshot(*train, *test[:2], shots=(10,)) == [ten]
    assert fewshot(*train, *test[:2], shots=(10,), seed=1) != [ten]


def test_all_labels_equal_scikit_learn(parts):
    train, test = parts
    result = fewshot(*train, *test[:2], shots=(None,))[0]
    solver = LogisticRegression(C=result.strengths[0], class_weight="balanced", tol=1e-8, max_iter=20000)
    linear = make_pipeline(StandardScaler(), solver).fit(train[0].astype(np.float64), train[1])
    expected = balanced_accuracy_score(test[1], linear.predict(test[0].astype(np.float64)))
    assert result.linear_mean == pytest.approx(expected, abs=0.008)
    knn = KNeighborsClassifier(20, metric="cosine").fit(train[0], train[1])
    assert result.knn_mean == pytest.approx(balanced_accuracy_score(test[1], knn.predict(test[0])), abs=0.03)


def test_the_same_images_are_drawn_for_every_encoder(parts):
    train, test = parts
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(40, 40)))[0]
    first = fewshot(*train, *test[:2], shots=(10,))[0]
    turned = fewshot(train[0] @ rotation, train[1], train[2], test[0] @ rotation, test[1], shots=(10,))[0]
    assert turned.knn == first.knn  # cosine does not see a rotation, so any difference would come from the draw


def test_impossible_requests_are_refused(parts):
    train, test = parts
    with pytest.raises(UserError, match="'c2' has 60"):
        fewshot(*train, *test[:2], shots=(100,))
    with pytest.raises(UserError, match="do not occur in training: c9"):
        fewshot(*train, test[0], ["c9", *test[1][1:]])
    with pytest.raises(UserError, match="150 test vectors and 149 test labels"):
        fewshot(*train, test[0], test[1][1:])
    with pytest.raises(UserError, match="40 dimensions"):
        fewshot(*train, test[0][:, 1:], test[1])
