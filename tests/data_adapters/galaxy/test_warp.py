import numpy as np
import pytest

from data_adapters.augment.picture import middle_square
from data_adapters.galaxy.recipe import IN_VIEW, Geometry, draw_geometry, resample
from tests.data.galaxy import source


def geometry(size, zoom, *, inner, angle=0.0, shift=(0.0, 0.0)):
    turn = zoom * np.asarray([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    offset = np.asarray([(inner - 1) / 2 + shift[0], (inner - 1) / 2 + shift[1]]) - turn @ np.full(2, (size - 1) / 2)
    return Geometry(np.column_stack([turn, offset]), zoom)


@pytest.mark.parametrize("zoom", [0.5, 0.8, 1.0, 1.3, 1.9, 2.7, 3.6, 4.5, 7.3])
@pytest.mark.parametrize("angle", [0.0, 0.6])
@pytest.mark.parametrize("bands", ["r", "grz", "ugrizy"])
def test_flux_of_a_smooth_source_is_conserved(zoom, angle, bands):
    image = source(240, noise=0, sigma=14, bands=bands)
    size = int(200 / zoom)
    view = resample(image, geometry(size, zoom, inner=240, angle=angle, shift=(5.3, -2.8)), size)
    assert view.shape == (size, size, len(bands))
    np.testing.assert_allclose(view.sum((0, 1)) * zoom**2, image.sum((0, 1)), rtol=0.01)


@pytest.mark.parametrize("zoom", [1.0, 2.0, 2.5, 4.0, 5.7])
def test_the_source_lands_where_the_map_says(zoom):
    image = source(240, noise=0, sigma=10, bands="r")[..., 0:1]
    size = int(200 / zoom)
    placed = geometry(size, zoom, inner=240, angle=0.4, shift=(12.0, -7.0))
    view = resample(image, placed, size)[..., 0]
    y, x = np.mgrid[:size, :size]
    centroid = np.asarray([(view * x).sum(), (view * y).sum()]) / view.sum()
    np.testing.assert_allclose(placed.matrix @ [*centroid, 1], [119.5, 119.5], atol=0.15 * zoom)


@pytest.mark.parametrize("zoom", [1.6, 2.4, 3.4, 6.0])
def test_a_pattern_finer_than_a_view_pixel_averages_out(zoom):
    y, x = np.mgrid[:256, :256]
    fine = ((x + y) % 2).astype(np.float32)[..., None]
    size = int(150 / zoom)
    view = resample(fine, geometry(size, zoom, inner=256, angle=0.2), size)
    assert view.mean() == pytest.approx(0.5, abs=0.01)
    assert view.std() < 0.1  # a plain warp keeps up to .5


def test_unit_map_is_the_identity():
    image = source(48)
    np.testing.assert_allclose(resample(image, geometry(48, 1.0, inner=48), 48), image, atol=1e-6)


def test_area_rotation_mirror_and_shift_cover_their_ranges():
    drawn = [
        draw_geometry(np.random.default_rng(k), height=200, width=240, size=64, area=(0.15, 0.4)) for k in range(800)
    ]
    area = np.asarray([(g.zoom * 64 / 200) ** 2 for g in drawn])
    assert area.min() < 0.16
    assert 0.39 < area.max() <= 0.4
    turns = np.asarray([g.matrix[:, :2] / g.zoom for g in drawn])
    np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1), np.broadcast_to(np.eye(2), turns.shape), atol=1e-9)
    mirrored = np.linalg.det(turns) < 0
    assert 0.44 < mirrored.mean() < 0.56
    angle = np.degrees(np.arctan2(-turns[:, 0, 1], turns[:, 1, 1])) % 360
    counts, _ = np.histogram(angle, bins=8, range=(0, 360))
    assert counts.min() > 60


@pytest.mark.parametrize("area", [(0.15, 0.4), (0.5, 1.0)])
@pytest.mark.parametrize(("height", "width"), [(200, 200), (120, 300)])
def test_the_source_stays_in_view_and_the_view_in_the_image(area, height, width):
    for seed in range(300):
        size = 64
        drawn = draw_geometry(np.random.default_rng(seed), height=height, width=width, size=size, area=area)
        inverse = np.linalg.inv(drawn.matrix[:, :2])
        place = inverse @ (np.asarray([(width - 1) / 2, (height - 1) / 2]) - drawn.matrix[:, 2])
        assert (np.abs(place - (size - 1) / 2) <= IN_VIEW * size + 1e-9).all()
        corners = drawn.matrix @ np.asarray([[0, 63, 0, 63], [0, 0, 63, 63], [1, 1, 1, 1]])
        side = drawn.zoom * size
        fits = 1.4143 * side <= min(height, width) * 0.9
        if fits:  # a turned square that can lie inside does
            assert corners.min() >= -0.5 - 0.04 * min(height, width)
            assert (corners.max(1) <= np.asarray([width, height]) + 0.04 * min(height, width)).all()


def test_whole_shows_the_middle_square_by_areas():
    image = source(64, noise=0)
    np.testing.assert_allclose(
        middle_square(image, 16), image.reshape(16, 4, 16, 4, 3).mean((1, 3)), rtol=1e-4, atol=1e-7
    )
    np.testing.assert_array_equal(middle_square(image[:, 8:-8], 48), image[8:-8, 8:-8])
    assert middle_square(image[..., :1], 100).shape == (100, 100, 1)
