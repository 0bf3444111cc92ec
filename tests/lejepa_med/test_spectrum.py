import json
import math

import numpy as np
import pytest
import torch

from lejepa_med.objective import LeJEPA, SIGReg
from lejepa_med.objective.normality import floor_for, make_test
from lejepa_med.spectrum import eigen_spectrum, lidar, pca_rgb, rankme, spread
from lejepa_med.training.log import plain
from lejepa_med.training.monitor import batch_figures, sigreg_figures


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


def entropy_rank(values: np.ndarray, epsilon: float) -> float:
    share = values / values.sum() + epsilon
    return float(np.exp(-(share * np.log(share)).sum()))


def test_a_standard_normal_batch_has_the_aimed_figures() -> None:
    found = spread(np.random.default_rng(0).standard_normal((4000, 16)))
    assert found["norm"] == pytest.approx(4, rel=0.02) and found["mean_norm"] == pytest.approx(0, abs=0.1)
    assert found["std"] == pytest.approx(1, rel=0.02) and found["condition"] == pytest.approx(1, abs=0.5)
    assert found["effective_rank"] == pytest.approx(16, abs=0.05) and found["rankme"] == pytest.approx(16, abs=0.05)


@pytest.mark.parametrize("shape", [(50, 12), (12, 50)])
def test_rankme_is_its_definition(shape: tuple[int, int]) -> None:
    vectors = np.random.default_rng(1).standard_normal(shape) * np.geomspace(1, 0.01, shape[1]) + 2
    expected = entropy_rank(np.linalg.svd(vectors, compute_uv=False), 1e-7)
    assert rankme(vectors) == pytest.approx(expected, rel=1e-4)
    assert rankme(vectors) < spread(vectors)["effective_rank"]  # type: ignore[operator]  # the offset takes a share


def test_condition_number_and_its_absence() -> None:
    vectors = np.random.default_rng(2).standard_normal((300, 5)) * [3, 1, 1, 1, 0.5]
    eigenvalues = np.linalg.eigvalsh(np.cov(vectors.T))
    assert spread(vectors)["condition"] == pytest.approx(eigenvalues[-1] / eigenvalues[0], rel=1e-9)
    vectors[:, 4] = vectors[:, 3]
    assert spread(vectors)["condition"] is None and spread(np.ones((8, 3)))["condition"] is None


@pytest.mark.parametrize("broken", [np.full((4, 3), np.nan), np.zeros((1, 3)), np.zeros((0, 3))])
def test_figures_that_do_not_exist_are_none(broken: np.ndarray) -> None:
    assert set(spread(broken).values()) == {None}


def test_lidar_counts_the_directions_that_tell_samples_apart() -> None:
    rng = np.random.default_rng(3)
    noise = rng.standard_normal((8, 400, 10))
    samples = np.zeros((1, 400, 10))
    samples[..., :4] = rng.standard_normal((400, 4)) * 100
    assert lidar(samples + noise) == pytest.approx(4, abs=0.1)
    # a direction that is large but differs between the views of a sample does not count, unlike in the plain rank
    noise[..., 5:] *= 300
    assert lidar(samples + noise) == pytest.approx(4, abs=0.3)
    assert spread((samples + noise)[0])["effective_rank"] > 7  # type: ignore[operator]


def test_lidar_in_many_dimensions_equals_its_definition() -> None:
    views = np.random.default_rng(4).standard_normal((3, 6, 40)) + np.random.default_rng(5).standard_normal((6, 40))
    centred = views - views.mean((0, 1))
    means = centred.mean(0)
    inside = (centred - means).reshape(-1, 40)
    within = inside.T @ inside / 18 + 1e-4 * np.eye(40)
    values = np.linalg.eigvals(np.linalg.solve(within, means.T @ means / 6)).real
    assert lidar(views) == pytest.approx(entropy_rank(np.sort(np.maximum(values, 0))[-18:], 1e-7), rel=1e-5)
    assert lidar(views[:1]) is None and lidar(views * np.nan) is None


def test_figures_of_a_batch_name_their_part() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4, 300, 8, generator=generator)
    found = batch_figures(torch.randn(300, 20, generator=generator), z[0], z)
    assert (found["backbone/dim"], found["projector/dim"], found["projector/rows"]) == (20, 8, 256)
    assert found["projector/effective_rank"] == pytest.approx(8, abs=0.2) and 1 < found["projector/lidar"] <= 8
    assert "projector/lidar" not in batch_figures(z[0], z[0]) and "projector/lidar" not in batch_figures(
        z[0], z[0], z[:1]
    )


def test_sigreg_is_set_against_its_floor_and_its_batch() -> None:
    sigreg = SIGReg(slices=4, t_max=1.0)
    found = sigreg_figures(LeJEPA(0.1, sigreg), 5.0, samples=50, dim=8)
    assert found == {"sigreg_above_floor": 5.0 - sigreg.floor, "sigreg_per_sample": 0.1}
    watson = make_test("watson", slices=4)
    found = sigreg_figures(LeJEPA(0.1, watson), 5.0, samples=50, dim=8)
    # another statistic is not .409 N at a collapse
    assert found == {"sigreg_above_floor": 5.0 - floor_for(watson, n=50, dim=8)}
    assert sigreg_figures(torch.nn.Linear(2, 2), 5.0, samples=50, dim=8) == {}


def test_a_record_is_json_without_nan() -> None:
    text = json.dumps(plain({"a": math.nan, "b": -math.inf, "c": 1.5, "d": None, "e": 3}), allow_nan=False)
    assert json.loads(text) == {"a": None, "b": None, "c": 1.5, "d": None, "e": 3}
