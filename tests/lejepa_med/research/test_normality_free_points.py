"""Free points drawn as an X become N(0, I) by gradient descent on a test alone (Figure 6 of LeJEPA, in small)."""

import numpy as np
import pytest
import torch
from scipy import stats

from lejepa_med.objective.normality import known_tests, make_test

POINTS, STEPS, SLICES, RATE = 128, 120, 8, 0.08
FEW_MOMENTS = ("vcreg", "jarque_bera", "moments")
"""Tests that a non-normal law satisfies: by Theorem 3 of LeJEPA finitely many moments do not identify N(0, I)."""


def x_shape() -> np.ndarray:
    """Points on the two diagonals of a square, (POINTS, 2); their projections on the diagonals are far from normal."""
    rng = np.random.default_rng(0)
    along, branch = rng.uniform(-2, 2, POINTS), rng.choice([-1.0, 1.0], POINTS)
    return np.stack([along, branch * along], 1) + rng.normal(0, 0.05, (POINTS, 2))


def descend(name: str) -> np.ndarray:
    """Minimise the test over the points, with Adam."""
    z = torch.from_numpy(x_shape()).float()[None].requires_grad_()
    test = make_test(name, slices=SLICES)
    optimiser = torch.optim.Adam([z], lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    for step in range(STEPS):
        optimiser.zero_grad()
        test(z, seed=0, step=step).backward()
        optimiser.step()
        schedule.step()
    return z.detach()[0].double().numpy()


def projections(x: np.ndarray) -> np.ndarray:
    """The points along 16 fixed directions, (16, POINTS)."""
    angle = np.arange(16) * np.pi / 16
    return np.stack([np.cos(angle), np.sin(angle)], 1) @ x.T


def kolmogorov_smirnov(x: np.ndarray) -> float:
    """Smallest p-value of the 16 directions and of the squared radius, which has a chi-squared law."""
    p = [stats.kstest(along, "norm").pvalue for along in projections(x)]
    return float(min(*p, stats.kstest((x**2).sum(1), stats.chi2(2).cdf).pvalue))


def test_the_start_is_far_from_normal() -> None:
    assert kolmogorov_smirnov(x_shape()) < 1e-6


@pytest.mark.parametrize("name", [name for name in known_tests() if name not in FEW_MOMENTS])
def test_an_x_becomes_a_standard_normal(name: str) -> None:
    x = descend(name)
    assert kolmogorov_smirnov(x) > 0.2
    assert np.abs(x.mean(0)).max() < 0.15
    if name != "henze_zirkler":  # it strands a few points 5 or 6 away, where its gradient is 0: see docs/method.md
        assert np.abs(np.cov(x.T) - np.eye(2)).max() < 0.1


@pytest.mark.parametrize("name", FEW_MOMENTS)
def test_few_moments_are_matched_by_other_laws(name: str) -> None:
    x = descend(name)
    assert np.abs(x.mean(0)).max() < 0.02
    assert np.abs(np.cov(x.T, bias=True) - np.eye(2)).max() < 0.02
    if name != "vcreg":
        assert np.abs(stats.skew(x)).max() < 0.05
        assert np.abs(stats.kurtosis(x)).max() < 0.15
    assert min(stats.shapiro(along).pvalue for along in projections(x)) < 0.001
