import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from lejepa_med.probes.neighbours import Neighbours, nearest


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


def test_nearest_is_exact_and_never_oneself(monkeypatch):
    monkeypatch.setattr("lejepa_med.probes.neighbours.CHUNK", 700)  # several blocks
    vectors = np.random.default_rng(2).normal(size=(90, 7)).astype(np.float32)
    indices, cosines = nearest(vectors, 4)
    model = NearestNeighbors(n_neighbors=5, metric="cosine").fit(vectors)
    distance, expected = model.kneighbors(vectors)
    np.testing.assert_array_equal(indices, expected[:, 1:])
    np.testing.assert_allclose(cosines, 1 - distance[:, 1:], atol=1e-5)


def test_nearest_keeps_a_twin_and_excludes_self():
    vectors = np.random.default_rng(3).normal(size=(10, 4))
    vectors[7] = vectors[2] * 3
    indices, cosines = nearest(vectors, 1)
    assert indices[2, 0] == 7 and indices[7, 0] == 2
    assert cosines[2, 0] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("k", [0, 5])
def test_nearest_refuses_an_impossible_k(k):
    with pytest.raises(ValueError, match="neighbours"):
        nearest(np.eye(5), k)
