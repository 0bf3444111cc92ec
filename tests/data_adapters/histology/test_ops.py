"""The steps of a view against albumentations, and against high-quality references."""

import albumentations.augmentations.pixel.functional as fpixel
import cv2
import numpy as np
import pytest
from scipy.stats import ks_2samp

from data_adapters.augment import tissue
from data_adapters.histology import crop
from data_adapters.pipeline import A, Seeded
from tests.data.histology import he_picture

COLOUR = tissue.ColourSteps().model_dump(exclude={"p"})
FOCUS, QUALITY = tissue.Defocus().sigma, tissue.Jpeg().quality
REFERENCE = {
    "brightness": fpixel.adjust_brightness_torchvision,
    "contrast": fpixel.adjust_contrast_torchvision,
    "saturation": fpixel.adjust_saturation_torchvision,
    "hue": fpixel.adjust_hue_torchvision,
}


@pytest.fixture(scope="module")
def view() -> np.ndarray:
    return he_picture(width=96, height=96, seed=3)[0]


@pytest.mark.parametrize(
    ("step", "values"),
    [
        ("brightness", (0.8, 1.0, 1.2)),
        ("contrast", (0.8, 1.1, 1.2)),
        ("saturation", (0.9, 1.1)),
        ("hue", (-0.05, 0.03, 0.05)),
    ],
)
def test_each_colour_step_is_that_of_albumentations(view: np.ndarray, step: str, values: tuple[float, ...]) -> None:
    for value in values:
        ours = tissue.coloured(view, [(step, value)]).astype(int)
        # albumentations cuts fractions of a level off (a step of hue, or a grey level), here they are rounded
        assert np.abs(ours - REFERENCE[step](view, value)).mean() < 1.2


def means(change: object, view: np.ndarray, count: int = 250) -> np.ndarray:
    return np.array([change(view, np.random.default_rng(i)).mean(axis=(0, 1)) for i in range(count)])  # type: ignore[operator]


def test_colour_jitter_has_the_distribution_of_albumentations(view: np.ndarray) -> None:
    small = np.ascontiguousarray(view[::4, ::4])
    ours = means(lambda image, rng: tissue.colour_jitter(image, rng, **COLOUR), small)
    theirs = means(Seeded([A.ColorJitter(**COLOUR, p=1.0)]), small)
    for channel in range(3):
        assert ks_2samp(ours[:, channel], theirs[:, channel] + 0.5).pvalue > 0.01
    wider = means(lambda image, rng: tissue.colour_jitter(image, rng, **{**COLOUR, "brightness": 0.4}), small)
    assert ks_2samp(wider[:, 0], theirs[:, 0] + 0.5).pvalue < 0.01  # the test sees another range


def test_focus_has_the_distribution_of_albumentations(view: np.ndarray) -> None:
    def sharpness(change: object) -> np.ndarray:
        return np.array([change(view, np.random.default_rng(i)).std() for i in range(150)])  # type: ignore[operator]

    ours = sharpness(lambda image, rng: tissue.defocus(image, rng, sigma=FOCUS))
    theirs = sharpness(Seeded([A.GaussianBlur(blur_limit=0, sigma_limit=FOCUS, p=1.0)]))
    assert ks_2samp(ours, theirs).pvalue > 0.01


def test_jpeg_keeps_colours_and_uses_every_quality(view: np.ndarray) -> None:
    smooth = cv2.GaussianBlur(view, (0, 0), 3)
    out = tissue.jpeg(smooth, np.random.default_rng(0), quality=QUALITY)
    assert np.abs(out.astype(int) - smooth).mean() < 3  # swapped channels would be far off
    assert np.array_equal(
        tissue.jpeg(view, np.random.default_rng(0), quality=(60, 60)),
        tissue.jpeg(view, np.random.default_rng(1), quality=(60, 60)),
    )
    few = {tissue.jpeg(view, np.random.default_rng(i), quality=(60, 62)).tobytes() for i in range(40)}
    assert len(few) == 3


def test_crops_have_the_distribution_of_albumentations() -> None:
    y, x = np.mgrid[0:200, 0:200].astype(np.float32)
    ramps = np.stack([x, y, x], axis=-1) / 200
    options = {"size": 48, "area": (0.15, 0.4), "ratio": (0.95, 1.05)}
    theirs_crop = Seeded([A.RandomResizedCrop((48, 48), scale=(0.15, 0.4), ratio=(0.95, 1.05))])

    def places(change: object) -> np.ndarray:
        views = [change(ramps, np.random.default_rng(i)) for i in range(250)]  # type: ignore[operator]
        return np.array([[v[..., 0].min(), v[..., 1].min(), np.ptp(v[..., 0]), np.ptp(v[..., 1])] for v in views])

    ours, theirs = places(lambda image, rng: crop.random_crop(image, rng, **options)), places(theirs_crop)
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 0.01


@pytest.mark.parametrize("factor", [1.05, 1.3, 1.7, 1.95, 2.6])
def test_shrinking_does_not_alias(factor: float) -> None:
    """Against area averages on tissue, and on stripes beyond what the result can show, which must come out grey."""
    size = 96
    side = round(size * factor)
    picture, _ = he_picture(width=side, height=side, seed=2)
    exact = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)
    assert np.abs(crop._fitted(picture, size).astype(int) - exact).mean() < 2.5
    if factor > 1.6:
        stripes = np.zeros((side, side, 3), np.uint8)
        stripes[::2] = 255
        plain = cv2.resize(stripes, (size, size), interpolation=cv2.INTER_LINEAR)
        assert crop._fitted(stripes, size).std() < 0.6 * plain.std()
