"""The label-free figures against their definitions, and on embeddings whose answer is known."""

import json
import math

import numpy as np
import pytest
import torch

from lejepa_med.evaluation.spread import lidar, rankme, spread
from lejepa_med.objective import LeJEPA, SIGReg
from lejepa_med.objective.normality import floor_for, make_test
from lejepa_med.training.log import plain
from lejepa_med.training.monitor import batch_figures, sigreg_figures


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
