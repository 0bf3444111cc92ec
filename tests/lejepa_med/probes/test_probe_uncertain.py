import numpy as np
import pytest

from data_adapters.errors import UserError
from lejepa_med.probes.probe import fit_probe, most_uncertain


@pytest.fixture(scope="module")
def probe():
    """Two classes, left and right of 0 in the first dimension."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(60, 6)).astype(np.float32)
    vectors[:, 0] = np.where(np.arange(60) % 2 == 0, 3, -3) + rng.normal(size=60)
    return fit_probe(vectors, ["right", "left"] * 30, [str(i) for i in range(60)])


def pool(n, seed):
    vectors = np.random.default_rng(seed).normal(size=(n, 6)).astype(np.float32)
    vectors[:, 0] *= 4
    return vectors, [f"i{k}" for k in range(n)]


def test_those_near_the_boundary_come_first(probe):
    vectors, ids = pool(300, 1)
    found = most_uncertain(probe, vectors, ids, limit=15)
    rows = [candidate.row for candidate in found]
    assert len(set(rows)) == 15
    assert np.abs(vectors[rows, 0]).mean() < 0.5 * np.abs(vectors[:, 0]).mean()
    doubts = [p.uncertainty for p in probe.predict(vectors)]
    assert [candidate.uncertainty for candidate in found] == pytest.approx([doubts[row] for row in rows])
    assert np.mean([doubts[row] for row in rows]) > np.quantile(doubts, 0.8)


def test_near_duplicates_are_listed_once(probe):
    vectors, ids = pool(100, 2)
    most = vectors[most_uncertain(probe, vectors, ids, limit=1)[0].row]
    copies = np.concatenate([vectors, most + 1e-3 * np.random.default_rng(3).normal(size=(50, 6)).astype(np.float32)])
    found = most_uncertain(probe, copies, [f"i{k}" for k in range(150)], limit=10)
    near = [np.linalg.norm(copies[c.row] - most) < 0.01 for c in found]
    assert sum(near[:5]) == 1 and len(found) == 10
    assert all(c.distance > 0 for c in found)


def test_labelled_and_skipped_items_are_left_out(probe):
    vectors, ids = pool(20, 4)
    mixed = np.concatenate([vectors, probe.examples.vectors[:5], vectors[:3]])
    names = [*ids, *(f"labelled{k}" for k in range(5)), *(f"twin{k}" for k in range(3))]
    found = most_uncertain(probe, mixed, names, limit=100, skip=ids[:4])
    rows = {c.row for c in found}
    assert not rows & {0, 1, 2, 3} and not rows & set(range(20, 25))
    assert len(rows) == 19  # of 16 and 3 copies of skipped ones
    assert most_uncertain(probe, mixed, names, limit=5, skip=names) == []


def test_every_kind_can_be_asked_and_bad_vectors_are_refused(probe):
    rng = np.random.default_rng(0)
    vectors, groups = rng.normal(size=(40, 6)).astype(np.float32), [str(i) for i in range(40)]
    for labels in (vectors[:, 0].tolist(), [["a"] if v > 0 else [] for v in vectors[:, 0]]):
        other = fit_probe(vectors, labels, groups)
        found = most_uncertain(other, *pool(50, 5), limit=5)
        assert len(found) == 5 and all(0 < c.uncertainty <= 1 for c in found)
    with pytest.raises(UserError, match="6 dimensions"):
        most_uncertain(probe, np.zeros((3, 5)), ["a", "b", "c"], limit=2)
