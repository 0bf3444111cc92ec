import numpy as np
import pytest

from data_adapters.augment.tissue import IHC_STAINS, STAINS, hed_jitter, scale_stains
from tests.data.histology import he_picture

EVERY_LEVEL = np.stack(np.meshgrid(*[np.arange(0, 256, 5)] * 3), axis=-1).reshape(-1, 52, 3).astype(np.uint8)


def test_nothing_changes_at_sigma_zero() -> None:
    out = hed_jitter(EVERY_LEVEL, np.random.default_rng(0), sigma=0.0)
    assert np.abs(out.astype(int) - EVERY_LEVEL).max() <= 1


def test_equals_unmixing_the_three_stains_in_float64() -> None:
    rng = np.random.default_rng(3)
    image = rng.integers(1, 256, (40, 50, 3)).astype(np.uint8)
    alpha, beta = rng.uniform(0.8, 1.2, 3), rng.uniform(-0.2, 0.2, 3)
    stains = -np.log(image / 255) @ np.linalg.inv(STAINS)
    expected = np.clip(255 * np.exp(-(stains * alpha + beta) @ STAINS), 0, 255)
    assert np.abs(scale_stains(image, alpha=alpha, beta=beta) - expected).max() < 0.51


def test_units_are_natural_optical_density() -> None:
    """+.05 on all stains: 13.7 grey levels on average in this unit, 116 in the unit of skimage.rgb2hed."""
    image, _ = he_picture(width=256, height=256, seed=1)
    moved = np.abs(scale_stains(image, alpha=np.ones(3), beta=np.full(3, 0.05)).astype(float) - image).mean()
    assert 10 < moved < 18


def test_light_jitter_moves_a_few_grey_levels_and_strong_more() -> None:
    image, _ = he_picture(width=128, height=128, seed=2)

    def shift(sigma: float) -> float:
        jittered = [hed_jitter(image, np.random.default_rng(i), sigma=sigma) for i in range(40)]
        return float(np.abs(np.array(jittered, float) - image).mean())

    assert 2 < shift(0.05) < 8
    assert 2.5 < shift(0.2) / shift(0.05) < 5


def test_same_generator_state_same_picture() -> None:
    image, _ = he_picture(width=64, height=64)
    one, two, other = (hed_jitter(image, np.random.default_rng(s), sigma=0.1) for s in (5, 5, 6))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(("shape", "dtype"), [((4, 4, 3), np.float32), ((4, 4), np.uint8), ((4, 4, 4), np.uint8)])
def test_only_uint8_rgb(shape: tuple[int, ...], dtype: type) -> None:
    with pytest.raises(TypeError, match="uint8 RGB"):
        hed_jitter(np.zeros(shape, dtype), np.random.default_rng(0), sigma=0.05)


def test_ihc_jitters_haematoxylin_and_dab_and_leaves_the_rest() -> None:
    dab, blue, rest = IHC_STAINS[1], IHC_STAINS[0], IHC_STAINS[2]
    assert abs(rest @ dab) + abs(rest @ blue) < 1e-9
    stains = np.random.default_rng(0).uniform(0.1, 0.8, (64, 2))
    image = np.rint(255 * np.exp(-stains @ IHC_STAINS[:2])).astype(np.uint8).reshape(8, 8, 3)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        alpha, beta = 1 + rng.uniform(-0.2, 0.2, 3), rng.uniform(-0.2, 0.2, 3)
        expected = 255 * np.exp(-(stains * alpha[:2] + beta[:2]) @ IHC_STAINS[:2]).reshape(8, 8, 3)
        out = hed_jitter(image, np.random.default_rng(seed), sigma=0.2, stain="ihc")
        assert np.abs(out - np.clip(expected, 0, 255)).max() < 4
        assert not np.array_equal(out, hed_jitter(image, np.random.default_rng(seed), sigma=0.2))
