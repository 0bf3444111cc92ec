import numpy as np
import pytest

from data_adapters.augment import sky
from tests.data.galaxy import source


def test_dust_is_a_difference_of_two_draws_with_the_law_of_the_bands():
    rng = np.random.default_rng(0)
    draws = np.log10([sky.dust_transmission(("g", "r", "z"), rng) for _ in range(4000)])
    # One E(B-V) a draw: the bands' magnitudes keep the ratio of Stein et al.'s coefficients.
    np.testing.assert_allclose(draws[:, 1], draws[:, 0] * 0.866 / 1.2856, atol=1e-6)
    np.testing.assert_allclose(draws[:, 2], draws[:, 0] * 0.4844 / 1.2856, atol=1e-6)
    excess = draws[:, 0] / -1.2856
    assert abs(np.mean(excess > 0) - 0.5) < 0.03  # as often bluer as redder
    shape, _, scale = sky.EBV
    variance = 2 * scale**2 * np.exp(shape**2) * (np.exp(shape**2) - 1)
    assert np.var(excess) == pytest.approx(variance, rel=0.3)


def test_dust_leaves_unknown_bands_and_the_generator_alone():
    rng = np.random.default_rng(0)
    assert sky.dust_transmission(("g", "F160W"), rng) is None
    assert rng.random() == np.random.default_rng(0).random()


def test_seeing_is_in_pixels_of_the_survey():
    fine = sky.added_seeing(("g", "r", "z"), 0.131, np.random.default_rng(3))
    own = sky.added_seeing(("g", "r", "z"), sky.SEEING_SCALE, np.random.default_rng(3))
    np.testing.assert_allclose(fine, 2 * np.asarray(own))
    draws = np.asarray([sky.added_seeing(("r",), 0.262, np.random.default_rng(k))[0] for k in range(500)])
    assert 0.4 < np.mean(draws == 0) < 0.6  # the other night is better half the time


def test_blur_adds_variance_and_keeps_flux():
    image = source(64, noise=0, sigma=3)
    out = sky.blur(image.transpose(2, 0, 1), [0.0, 2.0, 4.0]).transpose(1, 2, 0)
    np.testing.assert_array_equal(out[..., 0], image[..., 0])
    np.testing.assert_allclose(out.sum((0, 1)), image.sum((0, 1)), rtol=1e-3)
    x = np.arange(64) - 31.5
    for band, sigma in ((1, 2.0), (2, 4.0)):
        profile = out[..., band].sum(0) / out[..., band].sum()
        assert (profile * x**2).sum() == pytest.approx(9 + sigma**2, rel=0.05)


def test_noise_has_the_asked_strength_and_robust_sigma_sees_it():
    rng = np.random.default_rng(0)
    flat = np.zeros((3, 128, 128), np.float32)
    sigma = np.asarray([0.1, 1.0, 3.0], np.float32)
    out = sky.noisy(flat, sigma, rng)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out.std((1, 2)), sigma, rtol=0.03)
    np.testing.assert_allclose(sky.robust_sigma(out.transpose(1, 2, 0)), sigma, rtol=0.12)
    assert not flat.any()


def test_robust_sigma_passes_over_the_source():
    image = source(128, noise=0.01, sigma=6) * np.float32([1, 5, 10])
    np.testing.assert_allclose(sky.robust_sigma(image), [0.01, 0.05, 0.1], rtol=0.3)


@pytest.mark.parametrize("bands", [("g", "r", "z"), ("F160W",)])
def test_added_noise_scales_with_the_image(bands):
    sigma = np.full(len(bands), 2.0, np.float32)
    one = [sky.added_noise(bands, sigma, np.random.default_rng(k)) for k in range(200)]
    ten = [sky.added_noise(bands, 10 * sigma, np.random.default_rng(k)) for k in range(200)]
    np.testing.assert_allclose(ten, 10 * np.asarray(one), rtol=1e-5)
    assert (np.asarray(one) >= 0).all()
    assert np.median(np.asarray(one)[np.asarray(one) > 0]) < 5 * 2.0
    assert 2 * 2.0 < np.max(one) <= np.sqrt(sky.MOST_NOISE**2 - 1) * 2.0 * (1 + 1e-6)


@pytest.mark.parametrize("bands", [1, 3, 5])
def test_stretch_equals_its_formula(bands):
    rng = np.random.default_rng(0)
    flux = rng.normal(0.05, 0.2, (20, 30, bands)).astype(np.float32)
    scales = rng.uniform(1, 6, bands)
    x = flux.astype(np.float64) * scales + 0.03
    intensity = np.maximum(np.maximum(x, 0).mean(2, keepdims=True), 1e-6)
    expected = np.clip(x * np.arcsinh(20 * intensity) / (np.sqrt(20) * intensity), 0, 1)
    before = flux.copy()
    out = sky.asinh_stretch(flux.transpose(2, 0, 1), scales, q=20, m=0.03).transpose(1, 2, 0)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, expected, atol=2e-6)
    np.testing.assert_array_equal(flux, before)


def test_stretch_keeps_colour():
    bright = np.asarray([0.2, 0.4, 0.5], np.float32).reshape(3, 1, 1)
    out = sky.asinh_stretch(bright, (1, 1, 1), q=20, m=0)[:, 0, 0]
    np.testing.assert_allclose(out / out[2], [0.4, 0.8, 1.0], rtol=1e-5)
