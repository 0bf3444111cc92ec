"""Maps of vectors: the same at every call, clusters apart, samples of large tables, and an end when it is asked for."""

import numpy as np
import pytest

from lejepa_med.search import projection
from lejepa_med.search.projection import framed, neighbour_embedding, principal


def clusters(count: int) -> tuple[np.ndarray, np.ndarray]:
    """(count, 32) unit vectors around four centres, and which."""
    rng = np.random.default_rng(0)
    code = rng.integers(0, 4, count)
    found = np.eye(4, 32)[code] + 0.1 * rng.normal(size=(count, 32))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32), code


def purity(points: np.ndarray, code: np.ndarray) -> float:
    """Share of the points whose nearest one is of their cluster."""
    distances = ((points[:, None] - points[None]) ** 2).sum(-1)
    np.fill_diagonal(distances, np.inf)
    return float((code[distances.argmin(1)] == code).mean())


def test_principal_components_are_those_of_numpy() -> None:
    vectors, _ = clusters(300)
    centred = vectors - vectors.mean(0)
    expected = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    found = principal(vectors)
    for axis in range(2):
        assert abs(np.corrcoef(found[:, axis], expected[:, axis])[0, 1]) > 0.999
    assert (principal(vectors) == found).all()
    assert principal(vectors[:1]).shape == (1, 2), "of one item, too"


def test_similar_items_lie_together_and_progress_rises(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, code = clusters(240)
    shares: list[float] = []
    whole = neighbour_embedding(vectors, progress=shares.append)
    assert whole.shape == (240, 2) and purity(whole, code) > 0.95
    assert shares == sorted(shares) and 0 < shares[0] < 0.1 and shares[-1] <= 1
    monkeypatch.setattr(projection, "LANDMARKS", 120)
    some = neighbour_embedding(vectors, progress=shares.append)
    assert np.isfinite(some).all() and purity(some, code) > 0.9 and shares[-1] == 1
    points = framed(some)
    assert points.dtype == np.float32 and abs(points).max() == pytest.approx(1)
    assert neighbour_embedding(vectors[:3], progress=shares.append).shape == (3, 2)


def test_a_cancelled_job_ends_the_work() -> None:
    class Stopped(BaseException):
        pass

    def stop(_share: float) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        neighbour_embedding(clusters(100)[0], progress=stop)
