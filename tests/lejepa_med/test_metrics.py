import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from lejepa_med.evaluation.neighbours import nearest
from lejepa_med.spectrum import eigen_spectrum, pca_rgb


def test_spectrum_is_that_of_the_covariance():
    vectors = np.random.default_rng(0).normal(size=(200, 12)) * np.geomspace(1, 0.1, 12) + 5
    eigenvalues, rank = eigen_spectrum(vectors)
    np.testing.assert_allclose(eigenvalues, np.linalg.eigvalsh(np.cov(vectors.T))[::-1], rtol=1e-9)
    singular = np.linalg.svd(vectors - vectors.mean(0), compute_uv=False)
    share = singular / singular.sum()
    assert rank == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-9)


def test_spectrum_with_fewer_vectors_than_dimensions():
    vectors = np.random.default_rng(1).normal(size=(6, 40))
    eigenvalues, rank = eigen_spectrum(vectors)
    assert eigenvalues.shape == (40,)
    np.testing.assert_allclose(eigenvalues, np.linalg.eigvalsh(np.cov(vectors.T))[::-1], atol=1e-12)
    assert 4 < rank <= 5.001  # centring leaves n - 1 directions


@pytest.mark.parametrize("dim", [8, 64])
def test_effective_rank_counts_equal_directions(dim):
    cross = np.concatenate([np.eye(dim), -np.eye(dim)])
    assert eigen_spectrum(cross)[1] == pytest.approx(dim)


def test_effective_rank_is_one_for_one_direction_and_for_none():
    line = np.outer(np.arange(10.0), np.ones(16)) + 3
    assert eigen_spectrum(line)[1] == pytest.approx(1, abs=1e-4)
    constant = np.full((50, 16), 0.1, dtype=np.float32)
    eigenvalues, rank = eigen_spectrum(constant)
    assert rank == 1 and not eigenvalues.any()


def test_spectrum_refuses_nan():
    with pytest.raises(ValueError, match="finite"):
        eigen_spectrum(np.array([[1.0, np.nan], [0.0, 1.0]]))


def test_nearest_is_exact_and_never_oneself(monkeypatch):
    monkeypatch.setattr("lejepa_med.evaluation.neighbours.CHUNK", 700)  # several blocks
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


def test_pca_colours_separate_regions_alike_in_all_images():
    rng = np.random.default_rng(4)
    centres = rng.normal(size=(3, 20)) * 5
    regions = rng.integers(0, 3, size=(4, 6, 5))
    features = centres[regions] + rng.normal(size=(4, 6, 5, 20)) * 0.01
    colours = pca_rgb(features)
    assert colours.shape == (4, 6, 5, 3) and colours.dtype == np.uint8
    means = [colours[regions == r].mean(0)[:2] for r in range(3)]
    within = max(colours[regions == r][:, :2].std(0).max() for r in range(3))
    between = min(np.linalg.norm(means[a] - means[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    assert between > 60 and within < 8
    np.testing.assert_array_equal(colours, pca_rgb(features))
    np.testing.assert_array_equal(colours[:, ::-1], pca_rgb(features[:, ::-1]))


def test_pca_withstands_an_outlier_and_no_variance():
    features = np.random.default_rng(5).normal(size=(1, 40, 40, 6))
    clean = pca_rgb(features)
    features[0, 0, 0] *= 4
    assert abs(pca_rgb(features).astype(float).std() - clean.astype(float).std()) < 10
    assert (pca_rgb(np.ones((2, 3, 3, 6), dtype=np.float32)) == 127).all()
    two = pca_rgb(np.random.default_rng(6).normal(size=(1, 5, 5, 2)))
    assert two[..., :2].std() > 50 and (two[..., 2] == 127).all()
