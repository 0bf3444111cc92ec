import numpy as np
import pytest
import torch
from PIL import Image

from data_adapters.base import Record
from data_adapters.galaxy.adapter import GalaxyAdapter
from data_adapters.galaxy.cutout import source_fraction
from data_adapters.registry import from_description


def disc(size, radius, *, seed=0, beside=False):
    """A flat disc in the middle of a noisy sky, (size, size, 3) float32; `beside` adds a brighter one in a corner."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    image = np.where(np.hypot(x, y) <= radius, 1.0, 0.0)
    if beside:
        image[np.hypot(x - 0.35 * size, y - 0.35 * size) <= 0.1 * size] = 5.0
    noise = np.random.default_rng(seed).normal(0, 0.05, (size, size, 3))
    return (image[..., None] + noise).astype(np.float32)


def as_picture(image):
    return np.clip(100 * image + 20, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("radius", [10, 22, 40])
@pytest.mark.parametrize("beside", [False, True])
def test_a_source_is_measured_alike_in_flux_and_in_pictures(radius, beside):
    image = disc(128, radius, beside=beside)
    found = source_fraction(image)
    assert found == pytest.approx(2 * radius / 128, rel=0.12)  # 90 % of a disc lie in a little less
    assert source_fraction(as_picture(image)) == pytest.approx(found, rel=0.05)


def test_nothing_in_the_middle_gives_no_measure():
    sky = np.random.default_rng(0).normal(0, 1, (96, 96, 1)).astype(np.float32)
    assert source_fraction(sky) is None
    assert source_fraction(np.zeros((96, 96, 3), np.uint8)) is None


def fitted(folder, radius, *, size=128, count=9, **options):
    for number in range(count):
        Image.fromarray(as_picture(disc(size, radius + number % 3 - 1, seed=number))).save(folder / f"{number}.png")
    adapter = GalaxyAdapter(n_global=1, n_local=0, local_size=16, **options)
    records = [found for found in adapter.scan(folder) if isinstance(found, Record)]
    return adapter.fit(records), records


def test_the_field_follows_the_sources_of_the_archive_and_is_saved(tmp_path):
    adapter, records = fitted(tmp_path, 30, global_size=32)
    assert adapter.options.field == pytest.approx(60 / 128, rel=0.12)
    again = from_description(adapter.describe())
    assert again.options.field == adapter.options.field
    torch.testing.assert_close(again.prepare(records[0]), adapter.prepare(records[0]), rtol=0, atol=0)
    assert adapter.fit(records).describe() == adapter.describe()


def test_an_encoder_sees_the_field_and_not_the_sky_around(tmp_path):
    adapter, records = fitted(tmp_path, 30, global_size=32)
    lit = (adapter.prepare(records[0]) > 60).float().mean()  # uint8: sky 20, disc 120
    whole = GalaxyAdapter(**{**adapter.options.model_dump(), "field": 1.0})
    assert lit > 0.6
    assert (whole.prepare(records[0]) > 60).float().mean() < 0.25
    rng = np.random.default_rng(0)
    source = adapter.read(records[0], rng)
    views = [(adapter.views(source, np.random.default_rng(k))[0] > 60).float().mean().item() for k in range(20)]
    assert np.mean(views) > 0.5


def test_no_pixel_is_enlarged_for_the_field(tmp_path):
    adapter, _ = fitted(tmp_path, 8, global_size=96)
    assert adapter.options.field == pytest.approx(96 / 128, abs=0.01)


def test_images_no_larger_than_a_view_are_shown_whole(tmp_path):
    adapter, _ = fitted(tmp_path, 8, size=48, global_size=64)
    assert adapter.options.field == 1.0


def test_a_field_that_is_given_stays(tmp_path):
    adapter, _ = fitted(tmp_path, 30, global_size=32, field=0.9)
    assert adapter.options.field == 0.9


def test_an_archive_without_visible_sources_is_shown_whole(tmp_path):
    for number in range(3):
        noise = np.random.default_rng(number).integers(10, 30, (64, 64, 3))
        Image.fromarray(noise.astype(np.uint8)).save(tmp_path / f"{number}.png")
    adapter = GalaxyAdapter(n_global=1, n_local=0, global_size=32, local_size=16)
    records = [found for found in adapter.scan(tmp_path) if isinstance(found, Record)]
    assert adapter.fit(records).options.field == 1.0
