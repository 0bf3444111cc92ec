"""Geometry of the 3-D mode: every orientation gives one cube, nothing is left out, a turned crop is a rigid turn."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import AdjustContrast, GaussianSmooth, GibbsNoise

from data_adapters.augment import mr_volumes
from data_adapters.errors import BadFileError
from data_adapters.mri.cube import (
    FULL,
    canonical_cubes,
    draw_window,
    foreground_box,
    resize,
    unit_volume,
    whole,
    window_side,
    windows,
)
from data_adapters.mri.cube_adapter import MRI3DAdapter
from data_adapters.mri.cube_views import CubeSource, draw_crop, turned_crop
from data_adapters.mri.nifti import load
from data_adapters.mri.volume import Volume
from tests.data.mri import SPACING, phantom, write_nifti


def cube_of(volume: Volume, spacing_mm: float = 1.0) -> np.ndarray:
    return canonical_cubes([unit_volume(volume)], spacing_mm=spacing_mm).voxels[0]


@pytest.mark.parametrize("axes", ["LPS", "PIR", "SAL"])
def test_every_orientation_gives_the_same_cube(tmp_path, axes):
    ras = load(write_nifti(tmp_path / "ras.nii", phantom()), volume=None)
    other = write_nifti(tmp_path / "o.nii", phantom(), axes=axes, spacing=SPACING)
    np.testing.assert_array_equal(cube_of(load(other, volume=None)), cube_of(ras))


def test_axes_are_those_of_an_axial_viewer():
    cube = cube_of(Volume(array=phantom(shape=(40, 40, 40)), spacing=(1, 1, 1)))
    lesion = np.argwhere(cube == cube.max()).mean(axis=0) / np.array(cube.shape)
    assert lesion[0] > 0.55  # superior: last planes
    assert lesion[1] < 0.45 and lesion[2] < 0.45  # anterior: first rows; the patient's right: first columns


@pytest.mark.parametrize("spacing_mm", [0.7, 1.0, 2.0])
def test_voxels_are_isotropic_and_even(spacing_mm):
    volume = Volume(array=phantom(shape=(48, 40, 30)), spacing=(1.0, 1.25, 2.0))
    shape = cube_of(volume, spacing_mm).shape
    for n, millimetres in zip(shape, (60, 50, 48), strict=True):
        assert n % 2 == 0 and abs(n * spacing_mm - millimetres) <= spacing_mm * 1.0001


def test_the_box_keeps_all_tissue_and_little_air():
    small = phantom(shape=(32, 32, 32)).astype(np.float32) / 1300
    wide = np.zeros((80, 64, 50), np.float32)
    wide[30:62, 5:37, 9:41] = small
    box = foreground_box(wide, margin=(2, 2, 2))
    outside = wide.copy()
    outside[box] = 0
    assert (outside > 0.1).sum() == 0
    assert all(span.stop - span.start <= 36 for span in box)
    noise = np.random.default_rng(0).random((20, 20, 20), dtype=np.float32)
    assert foreground_box(noise, margin=(0, 0, 0)) == (slice(0, 20),) * 3


def test_a_voxel_size_that_is_no_patients_is_refused():
    with pytest.raises(BadFileError, match="voxels at 1 mm") as caught:
        cube_of(Volume(array=phantom(), spacing=(500.0, 500.0, 500.0)))
    assert "spacing_mm" in caught.value.remedy


sides = st.integers(16, 200).map(lambda n: 2 * (n // 2))


@settings(max_examples=40, deadline=None)
@given(shape=st.tuples(sides, sides, sides), seed=st.integers(0, 9))
def test_windows_cover_everything(shape, seed):
    covered = np.zeros([n // 2 for n in shape], bool)
    found = windows(shape)
    for box in found:
        covered[tuple(slice(span.start // 2, -(-span.stop // 2)) for span in box)] = True
        assert max(span.stop - span.start for span in box) <= window_side(shape)
    assert covered.all()
    assert (len(found) == 1) == (max(shape) <= 1.5 * sorted(shape)[1])
    drawn = draw_window(shape, np.random.default_rng(seed))
    for span, other, n in zip(drawn, found[0], shape, strict=True):
        assert 0 <= span.start and span.stop <= n and span.stop - span.start == other.stop - other.start


def test_the_whole_keeps_proportions():
    seen = whole(np.full((20, 40, 30), FULL, np.uint16), 40)
    assert seen.shape == (40, 40, 40) and seen.dtype == np.float32
    assert [int((seen.max(axis=axes) > 0.5).sum()) for axes in ((1, 2), (0, 2), (0, 1))] == [20, 40, 30]
    assert seen.sum() == pytest.approx(20 * 40 * 30)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_resize_is_exact_on_a_ramp_and_keeps_the_mean(dtype):
    z, y, x = np.meshgrid(*(np.arange(n) for n in (24, 32, 40)), indexing="ij")
    ramp = (500 * z + 300 * y + 200 * x).astype(dtype)
    np.testing.assert_allclose(resize(ramp, (12, 16, 20)), ramp.reshape(12, 2, 16, 2, 20, 2).mean((1, 3, 5)), atol=1)
    fine = resize(ramp, (48, 64, 80)).astype(float)
    position = [np.clip((np.arange(2 * n) + 0.5) / 2 - 0.5, 0, n - 1) for n in ramp.shape]
    z, y, x = np.meshgrid(*position, indexing="ij")
    np.testing.assert_allclose(fine, 500 * z + 300 * y + 200 * x, atol=2)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    plane=st.sampled_from([(1, 2), (0, 2), (0, 1)]),
    degrees=st.floats(-10, 10),
    big=st.booleans(),
)
def test_a_turned_crop_is_a_rigid_turn(seed, plane, degrees, big):
    """On a volume that is linear in space, every voxel of the view must have the value of its turned place."""
    slope = np.random.default_rng(seed).uniform(-1, 1, 3) * 250
    shape = (80, 90, 100)
    grid = np.meshgrid(*(np.arange(n) + 0.5 for n in shape), indexing="ij")
    field = 32768 + sum(s * (g - n / 2) for s, g, n in zip(slope, grid, shape, strict=True))
    source = CubeSource(voxels=np.rint(field).astype(np.uint16), mirror=False)
    extent = (52, 60, 64) if big else (20, 26, 24)  # big: shrinks by 2 and more, from planes of half resolution
    box = tuple(slice((n - e) // 4 * 2, (n - e) // 4 * 2 + e) for n, e in zip(shape, extent, strict=True))
    size = 24
    view = turned_crop(source, box, size, plane=plane, degrees=degrees).astype(float)
    index = list(np.meshgrid(*(((np.arange(size) + 0.5) / size - 0.5) * e for e in extent), indexing="ij"))
    i, j = plane
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    index[i], index[j] = cos * index[i] - sin * index[j], sin * index[i] + cos * index[j]
    centre = [(span.start + span.stop) / 2 - n / 2 for span, n in zip(box, shape, strict=True)]
    expected = 32768 + sum(s * (c + g) for s, c, g in zip(slope, centre, index, strict=True))
    inner = (slice(2, -2),) * 3
    # one voxel of the source is up to 430 apart in value; the linear warp knows 1/32 of a voxel
    assert np.abs(view - expected)[inner].max() < 20


def test_a_turn_by_nothing_is_the_plain_crop():
    source = CubeSource(voxels=np.random.default_rng(0).integers(0, FULL, (60, 60, 60)).astype(np.uint16), mirror=False)
    box = (slice(10, 40), slice(4, 34), slice(20, 52))
    plain = source.sample(box, (24,) * 3)
    for plane in ((1, 2), (0, 2), (0, 1)):
        assert np.abs(turned_crop(source, box, 24, plane=plane, degrees=0.0).astype(int) - plain).max() <= 1


@pytest.mark.parametrize(
    ("kind", "area", "depth"), [("global", (0.48, 1), (0.5, 1)), ("local", (0.16, 0.48), (0.2, 0.5))]
)
def test_crops_have_the_ranges_of_3dino(kind, area, depth):
    shape = (160, 200, 180)
    boxes = [draw_crop(shape, kind, np.random.default_rng(seed)) for seed in range(200)]
    sizes = np.array([[span.stop - span.start for span in box] for box in boxes])
    share = sizes[:, 1] * sizes[:, 2] / (200 * 180)
    assert area[0] - 0.03 < share.min() < area[0] + 0.06 and area[1] - 0.12 < share.max() <= area[1] + 0.03
    assert depth[0] - 0.02 < (sizes[:, 0] / 160).min() and (sizes[:, 0] / 160).max() <= depth[1] + 0.02
    assert all(0 <= span.start and span.stop <= n for box in boxes for span, n in zip(box, shape, strict=True))


def test_mirroring_is_left_to_right_and_happens_in_half_of_the_views():
    voxels = np.broadcast_to(np.linspace(0, FULL, 40).astype(np.uint16), (40, 40, 40))
    augment = MRI3DAdapter().augment("global", 16)

    def mirrored(allowed):
        views = [
            augment(CubeSource(voxels=voxels, mirror=allowed), np.random.default_rng(s))[..., 0] for s in range(60)
        ]
        return sum(bool(view[:, :, :4].mean() > view[:, :, -4:].mean()) for view in views)

    assert mirrored(False) == 0
    assert 18 <= mirrored(True) <= 42


def soft(shape=(20, 24, 28)) -> np.ndarray:
    return mr_volumes.blur(np.random.default_rng(0).random(shape, dtype=np.float32), rng=np.random.default_rng(1))


def test_gamma_gibbs_and_blur_agree_with_monai():
    image = soft()
    image -= image.min()
    image /= image.max()  # MONAI's AdjustContrast works on the range of the image
    exponent, alpha, sigma = (float(np.random.default_rng(3).uniform(*r)) for r in ((0.7, 1.5), (0.2, 0.6), (0.25, 1)))
    ours = [
        f(image.copy(), rng=np.random.default_rng(3)) for f in (mr_volumes.gamma, mr_volumes.gibbs, mr_volumes.blur)
    ]
    tensor = torch.from_numpy(image)[None]
    np.testing.assert_allclose(ours[0], AdjustContrast(exponent)(tensor)[0], atol=1e-4)
    # MONAI measures k-space from a centre between two frequencies on even sides: shells at the edge differ
    assert np.abs(ours[1] - np.clip(GibbsNoise(alpha)(tensor)[0], 0, 1)).mean() < 0.01
    theirs = GaussianSmooth(sigma)(tensor)[0]  # integrates the bell over a voxel, where OpenCV samples it
    assert np.abs(ours[2] - theirs.numpy())[5:-5, 5:-5, 5:-5].mean() < 0.03


FUNCTIONS = ("blur", "low_resolution", "gibbs", "rician_noise", "bias_field", "brightness_contrast")


@pytest.mark.parametrize("function", [getattr(mr_volumes, name) for name in FUNCTIONS])
def test_intensities_stay_in_range_and_come_from_the_generator(function):
    image = soft()
    out = function(image.copy(), rng=np.random.default_rng(5))
    assert out.shape == image.shape and out.dtype == np.float32 and out.flags.c_contiguous
    assert 0 <= out.min() and out.max() <= 1 and np.abs(out - image).max() > 1e-4
    for offset in range(8):  # wherever the array lies in memory: workers must agree to the last bit
        moved = np.empty(image.size + 8, np.float32)[offset : offset + image.size].reshape(image.shape)
        moved[...] = image
        np.testing.assert_array_equal(out, function(moved, rng=np.random.default_rng(5)))
    assert np.abs(out - function(image.copy(), rng=np.random.default_rng(6))).max() > 0
    assert np.corrcoef(out.ravel(), image.ravel())[0, 1] > 0.5  # the anatomy is still there


def test_air_stays_black_under_brightness_and_bias():
    image = soft()
    image[:5] = 0
    for function in (mr_volumes.brightness_contrast, mr_volumes.bias_field, mr_volumes.gamma):
        assert function(image.copy(), rng=np.random.default_rng(0))[:5].max() == 0
