"""Scanner intensity operations: form, range, seed, and the physics that each stands for."""

import cv2
import numpy as np
import pytest

from data_adapters.augment import mr_slices
from data_adapters.augment.picture import Blur


def blur(image, *, rng):
    return Blur(sigma=(0.25, 1.0)).change(image, rng, None)


OPERATIONS = (
    mr_slices.gamma,
    mr_slices.brightness_contrast,
    mr_slices.bias_field,
    mr_slices.rician_noise,
    mr_slices.low_resolution,
    mr_slices.gibbs,
    blur,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def disc(side: int = 64, value: float = 0.6) -> np.ndarray:
    y, x = np.mgrid[:side, :side] - side / 2
    return (np.hypot(x, y) < side / 3).astype(np.float32)[:, :, None] * np.float32(value)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("shape", [(31, 48, 1), (64, 64, 3), (40, 32, 6)])
def test_form_range_and_seed(operation, shape):
    image = rng(9).random(shape, dtype=np.float32)
    given = image.copy()
    for seed in range(10):
        out = operation(image, rng=rng(seed))
        assert out.shape == shape and out.dtype == np.float32
        assert np.isfinite(out).all() and out.min() >= 0 and out.max() <= 1
        np.testing.assert_array_equal(out, operation(image, rng=rng(seed)))
    np.testing.assert_array_equal(image, given)  # the input is not touched
    assert not np.array_equal(operation(image, rng=rng(1)), operation(image, rng=rng(2)))


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda f: f.__name__)
def test_anatomy_stays_recognisable(operation):
    image = disc()
    for seed in range(20):
        out = operation(image, rng=rng(seed))
        assert np.corrcoef(out.ravel(), image.ravel())[0, 1] > 0.95


@pytest.mark.parametrize("operation", [mr_slices.gamma, mr_slices.brightness_contrast, mr_slices.bias_field])
def test_air_stays_black(operation):
    image = disc()
    for seed in range(10):
        assert operation(image, rng=rng(seed))[image == 0].max() == 0


def test_bias_field_is_smooth_and_mild():
    flat = np.full((96, 96, 1), 0.5, np.float32)
    fields = np.stack([mr_slices.bias_field(flat, rng=rng(seed)) / flat for seed in range(100)])
    assert 0.75 < np.percentile(fields, 2) and np.percentile(fields, 98) < 1.4
    assert fields.min() > 0.45
    assert np.abs(np.diff(fields, axis=1)).max() < 0.05
    corners = fields[:, [0, 0, -1, -1], [0, -1, 0, -1], 0].mean(axis=0)
    assert np.ptp(corners) < 0.15  # no corner is favoured


def test_rician_noise_has_the_moments_of_its_distribution():
    std = 0.04
    air = mr_slices.rician_noise(np.zeros((256, 256, 1), np.float32), rng=rng(), low=std, high=std)
    assert air.mean() == pytest.approx(std * np.sqrt(np.pi / 2), rel=0.02)  # Rayleigh in air
    tissue = mr_slices.rician_noise(np.full((256, 256, 1), 0.6, np.float32), rng=rng(), low=std, high=std)
    assert tissue.mean() == pytest.approx(np.sqrt(0.6**2 + std**2), rel=0.005)
    assert tissue.std() == pytest.approx(std, rel=0.03)


def test_gibbs_cuts_high_frequencies_only():
    image = cv2.GaussianBlur(disc(), (0, 0), 6)[:, :, None]
    smooth = mr_slices.gibbs(image, rng=rng())
    np.testing.assert_allclose(smooth, image, atol=0.01)  # nothing to cut in a smooth image
    edge = mr_slices.gibbs(disc(), rng=rng(), low=0.6, high=0.6)
    assert edge[32, :, 0].max() > 0.6 * 1.02  # overshoot at the edge
    assert edge.mean() == pytest.approx(disc().mean(), rel=0.05)


def test_low_resolution_works_along_either_axis():
    grid = np.indices((64, 64)).sum(axis=0) % 2
    stripes = {"rows": np.indices((64, 64))[0] % 2, "columns": np.indices((64, 64))[1] % 2}
    lost = {name: 0 for name in stripes}
    for seed in range(40):
        for name, pattern in stripes.items():
            out = mr_slices.low_resolution(pattern.astype(np.float32)[:, :, None], rng=rng(seed))
            lost[name] += bool(out.std() < 0.4)
    assert grid.std() == 0.5 and min(lost.values()) > 8
