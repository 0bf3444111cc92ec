"""The fast ways of views against slow ones that are known to be right."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_adapters.augment import sky
from data_adapters.augment.picture import MIN_SIGMA, YIQ, ColourJitter, Grey, blur_picture, draw_crop, kernel, shrink
from data_adapters.base import to_tensor


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels)).astype(np.uint8)


@settings(max_examples=30, deadline=None)
@given(st.integers(20, 200), st.integers(20, 200), st.integers(16, 64), st.integers(1, 4), st.integers(0, 9))
def test_a_crop_agrees_with_pillows_antialiased_resize_to_two_levels(height, width, size, channels, edge):
    picture = noise(height + edge, width + edge, channels)
    part = picture[edge:, edge:]
    expected = [
        Image.fromarray(np.ascontiguousarray(part[..., c])).resize((size, size), Image.Resampling.BILINEAR)
        for c in range(channels)
    ]
    out = shrink(part, size)
    assert out.shape == (size, size, channels)
    assert out.flags.c_contiguous
    difference = np.abs(out.astype(int) - np.stack([np.asarray(e) for e in expected], axis=2))
    assert difference.max() <= 2  # white noise is the worst case: each of two passes rounds
    assert difference.mean() < 0.33  # .29 is the most that 12,000 random shapes gave, all of them small


def test_a_read_only_picture_is_cropped():
    picture = noise(60, 50)
    expected = shrink(picture, 20)
    picture.flags.writeable = False
    np.testing.assert_array_equal(shrink(picture[:, :], 20), expected)


@pytest.mark.parametrize("sigma", [0.2, 0.35, 0.5, 0.77, 1.0, 1.4, 2.0, 3.1])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_blur_in_whole_numbers_is_a_gaussian_to_two_levels(sigma, channels):
    picture = noise(70, 60, channels)
    exact = cv2.GaussianBlur(picture.astype(np.float64), (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)
    out = blur_picture(picture, sigma)
    assert out.shape == picture.shape
    difference = out - exact.reshape(picture.shape)
    assert np.abs(difference).max() < 2
    assert abs(difference.mean()) < 0.05  # neither darker nor brighter
    flat = np.full((30, 30, channels), 201, np.uint8)
    np.testing.assert_array_equal(blur_picture(flat, sigma), flat)


@pytest.mark.parametrize("sigma", [0.6, 1.0, 1.5, 2.0, 3.1])
def test_kernel_is_as_wide_as_asked_and_sums_to_one(sigma):
    weights = kernel(sigma)
    assert weights.sum() == 1
    np.testing.assert_array_equal(weights, weights[::-1])
    x = np.arange(len(weights)) - len(weights) // 2
    assert np.sqrt((weights * x**2).sum()) == pytest.approx(sigma, rel=0.03)


def test_no_blur_below_what_pixels_can_show():
    picture = noise(20, 20)
    assert blur_picture(picture, MIN_SIGMA - 0.01) is picture


def test_colours_change_as_the_formula_says():
    picture = noise(40, 30)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        brightness, contrast, saturation, turn = rng.uniform(-1, 1, 4) * (0.4, 0.4, 0.2, 0.2 * np.pi) + (1, 1, 1, 0)
        yiq = picture @ YIQ.T
        cos, sin = saturation * np.cos(turn), saturation * np.sin(turn)
        turned = np.stack(
            [yiq[..., 0], cos * yiq[..., 1] - sin * yiq[..., 2], sin * yiq[..., 1] + cos * yiq[..., 2]], 2
        )
        expected = brightness * (contrast * turned @ np.linalg.inv(YIQ).T + (1 - contrast) * yiq[..., 0].mean())
        out = ColourJitter().change(picture, np.random.default_rng(seed), None)
        np.testing.assert_allclose(out, np.clip(expected, 0, 255), atol=1)  # OpenCV: ten bits a coefficient
    grey = Grey().change(picture, rng, None)
    np.testing.assert_allclose(grey, np.repeat(yiq[..., :1], 3, axis=2), atol=1)


def test_crops_cover_their_ranges():
    rng = np.random.default_rng(0)
    drawn = np.asarray([draw_crop(rng, 400, 300, area=(0.05, 0.3)) for _ in range(3000)])
    left, top, width, height = drawn.T
    assert (left >= 0).all() and (top >= 0).all()
    assert (left + width <= 400).all() and (top + height <= 300).all()
    area = width * height / 120000
    assert 0.049 < area.min() < 0.055 and 0.29 < area.max() < 0.302
    ratio = np.log(width / height)
    np.testing.assert_allclose(np.quantile(ratio, [0, 0.5, 1]), [-0.2877, 0, 0.2877], atol=0.03)
    assert left.min() == 0 and top.min() == 0  # every place can come up
    assert (left + width).max() == 400 and (top + height).max() == 300


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_channels_come_first(channels, dtype):
    picture = noise(17, 13, channels).astype(dtype)
    for image in (picture, picture[:, ::-1], picture[2:, 3:]):
        out = to_tensor(image)
        assert out.is_contiguous()
        assert torch.equal(out, torch.from_numpy(image.transpose(2, 0, 1).copy()))
    picture.flags.writeable = False
    assert to_tensor(picture).shape == (channels, 17, 13)


def test_the_stretch_of_views_is_that_of_the_encoder():
    planes = np.random.default_rng(0).normal(0.1, 1, (3, 96, 96)).astype(np.float32)
    exact = sky.asinh_stretch(planes, (6, 3.4, 2.2), q=20, m=0.03)
    fast = sky.asinh_stretch(planes, (6, 3.4, 2.2), q=20, m=0.03, log=cv2.log)
    np.testing.assert_allclose(fast, exact, atol=1e-6)
