import pickle

import h5py
import numpy as np
import pytest
import torch

from data_adapters.augment import sky
from data_adapters.augment.picture import middle_square
from data_adapters.base import IMAGENET_MEAN, Record
from data_adapters.errors import UserError
from data_adapters.galaxy.adapter import GalaxyAdapter
from data_adapters.galaxy.hdf5 import OPEN_FILES
from data_adapters.openfiles import CHUNK_CACHE, open_hdf5
from data_adapters.registry import create, from_description
from tests.data import galaxy as make

SIZES = {"global_size": 32, "local_size": 16, "n_global": 2, "n_local": 3, "field": 1.0}


def flux_archive(folder, count=4, bands="grz"):
    for number in range(count):
        make.write_cube(folder / f"{number}.fits", make.source(bands=bands, seed=number), bands=bands)
    return folder


def fitted(root, **options):
    adapter = create("galaxy", **SIZES, **options)
    records = [found for found in adapter.scan(root) if isinstance(found, Record)]
    return adapter.fit(records), records


def test_fit_settles_everything_and_describe_rebuilds_it(tmp_path):
    adapter, records = fitted(flux_archive(tmp_path))
    options = adapter.describe()["options"]
    assert (options["kind"], options["bands"]) == ("flux", "g,r,z")
    assert options["pixel_scale"] == pytest.approx(0.262)
    assert options["scales"] == [6.0, 3.4, 2.2]  # nanomaggies: the viewer's
    again = from_description(adapter.describe())
    assert again.describe() == adapter.describe()
    assert again.spec == adapter.spec
    torch.testing.assert_close(again.prepare(records[0]), adapter.prepare(records[0]), rtol=0, atol=0)


def test_scales_are_measured_where_the_unit_is_unknown(tmp_path):
    for number in range(5):
        image = 1000 * make.source(bands="r", seed=number)[..., 0] + 77
        make.write_single(tmp_path / f"{number}.fits", image, FILTER="r", BUNIT="counts/s")
    adapter, records = fitted(tmp_path)
    typical = np.median([np.percentile(adapter.pixels(record), 99.5) for record in records])
    assert adapter.options.scales == pytest.approx((1 / typical,), rel=1e-3)
    assert adapter.fit(records).describe() == adapter.describe()
    assert adapter.fit(records[::-1]).describe() == adapter.describe()
    assert 0.5 < adapter.prepare(records[0]).max() <= 1


def test_nanomaggies_on_larger_pixels_get_smaller_scales(tmp_path):
    path = make.write_cube(tmp_path / "a.fits", make.source())
    records = list(GalaxyAdapter().scan(path))
    adapter = GalaxyAdapter(pixel_scale=0.524).fit(records)
    assert adapter.options.scales == pytest.approx((1.5, 0.85, 0.55))


def test_mixed_archives_are_refused_with_counts(tmp_path):
    flux_archive(tmp_path, 3)
    make.write_cube(tmp_path / "other.fits", make.source(bands="gr"), bands="gr")
    with pytest.raises(UserError, match="g,r,z in 3 records; g,r in 1 record") as caught:
        fitted(tmp_path)
    assert "option bands" in caught.value.remedy
    adapter, records = fitted(tmp_path, bands="g,r")
    assert len(records) == 4
    assert adapter.spec.channels == 2
    make.write_pictures(tmp_path, count=2)
    with pytest.raises(UserError, match="mixes kind"):
        fitted(tmp_path)


def test_scales_must_match_the_bands(tmp_path):
    flux_archive(tmp_path, 1)
    with pytest.raises(UserError, match="scales has 2 values"):
        fitted(tmp_path, scales=(1.0, 2.0))
    with pytest.raises(UserError, match="no galaxies"):
        GalaxyAdapter().fit([])


def test_no_signal_is_said(tmp_path):
    hot_pixel = np.zeros((48, 48), np.float32)
    hot_pixel[20, 20] = 1
    make.write_single(tmp_path / "a.fits", hot_pixel, FILTER="r")
    with pytest.raises(UserError, match="no signal"):
        fitted(tmp_path)


def test_flux_before_fit_is_refused(tmp_path):
    (record,) = GalaxyAdapter().scan(make.write_cube(tmp_path / "a.fits", make.source()))
    adapter = GalaxyAdapter(kind="flux")
    adapter.verify(record)
    with pytest.raises(UserError, match="fit"):
        adapter.prepare(record)
    with pytest.raises(UserError, match="fit"):
        adapter.views(adapter.pixels(record), np.random.default_rng(0))


@pytest.mark.parametrize("bands", ["r", "grz", "ugrizy"])
def test_flux_views_have_the_contract(tmp_path, bands):
    flux_archive(tmp_path, 2, bands)
    adapter, records = fitted(tmp_path)
    assert adapter.spec.mean == (0.5,) * len(bands)
    source = adapter.read(records[0], np.random.default_rng(0))
    before = source.copy()
    views = adapter.views(source, np.random.default_rng(1))
    np.testing.assert_array_equal(source, before)
    assert [tuple(view.shape) for view in views] == [(len(bands), 32, 32)] * 2 + [(len(bands), 16, 16)] * 3
    for view in views:
        assert view.dtype == torch.float32
        assert 0 <= view.min() and view.max() <= 1
        assert view[:, 4:-4, 4:-4].amax() > 2 * view[:, :2].median()  # the source is in it
    again = adapter.views(source, np.random.default_rng(1))
    assert all(torch.equal(a, b) for a, b in zip(views, again, strict=True))
    other = adapter.views(source, np.random.default_rng(2))
    assert not any(torch.equal(a, b) for a, b in zip(views, other, strict=True))


def test_picture_views_have_the_contract(tmp_path):
    make.write_pictures(tmp_path)
    adapter, records = fitted(tmp_path)
    assert adapter.spec.mean == IMAGENET_MEAN
    assert adapter.describe()["options"]["kind"] == "picture"
    source = adapter.read(records[0], np.random.default_rng(0))
    for seed in range(20):
        views = adapter.views(source, np.random.default_rng(seed))
        assert {view.dtype for view in views} == {torch.uint8}
        again = adapter.views(source, np.random.default_rng(seed))
        assert all(torch.equal(a, b) for a, b in zip(views, again, strict=True))
    np.testing.assert_array_equal(source, make.picture(seed=0))


def test_picture_views_keep_colour(tmp_path):
    make.write_pictures(tmp_path)
    adapter, _ = fitted(tmp_path)
    red = np.zeros((64, 64, 3), np.uint8)
    red[...] = (200, 100, 50)
    for seed in range(30):
        for view in adapter.views(red, np.random.default_rng(seed)):
            r, g, b = view.float().mean((1, 2))
            assert r > g + 40 > b + 60


def test_grey_pictures_have_one_channel(tmp_path):
    from PIL import Image

    for number in range(2):
        Image.fromarray(make.picture(seed=number)[..., 0]).save(tmp_path / f"{number}.png")
    adapter, records = fitted(tmp_path)
    assert adapter.spec.channels == 1
    assert adapter.prepare(records[0]).shape == (1, 1, 32, 32)
    assert adapter.views(adapter.pixels(records[0]), np.random.default_rng(0))[0].shape == (1, 32, 32)


def test_prepare_is_the_whole_cutout_stretched(tmp_path):
    adapter, records = fitted(flux_archive(tmp_path))
    flux = adapter.pixels(records[1])
    planes = middle_square(flux, 32).transpose(2, 0, 1)
    expected = sky.asinh_stretch(planes, (6.0, 3.4, 2.2), q=20, m=0.03)
    out = adapter.prepare(records[1])
    assert out.shape == (1, 3, 32, 32)
    np.testing.assert_array_equal(out[0].numpy(), expected)
    assert torch.equal(out, adapter.prepare(records[1]))


def test_a_fitted_adapter_refuses_uploads_of_other_bands(tmp_path):
    (tmp_path / "archive").mkdir()
    adapter, _ = fitted(flux_archive(tmp_path / "archive"))
    (other,) = adapter.scan(make.write_cube(tmp_path / "gri.fits", make.source(bands="gri"), bands="gri"))
    assert "differ from the archive's g,r,z" in other.reason
    make.write_pictures(tmp_path / "pictures", count=1)
    (picture,) = adapter.scan(tmp_path / "pictures")
    assert "the option kind, is for flux" in picture.reason


def test_handles_and_pipelines_do_not_cross_processes(tmp_path):
    path = make.write_hdf5(tmp_path / "a.h5")
    adapter, records = fitted(path)
    expected = adapter.views(adapter.read(records[1], np.random.default_rng(0)), np.random.default_rng(0))
    copy = pickle.loads(pickle.dumps(adapter))
    assert len(OPEN_FILES)  # of the process, and none of them in the pickle
    views = copy.views(copy.read(records[1], np.random.default_rng(0)), np.random.default_rng(0))
    assert all(torch.equal(a, b) for a, b in zip(expected, views, strict=True))


def test_a_rewritten_hdf5_file_is_read_anew(tmp_path):
    path = make.write_hdf5(tmp_path / "a.h5", rows=2)
    adapter, records = fitted(path)
    adapter.read(records[1], np.random.default_rng(0))
    replacement = make.write_hdf5(tmp_path / "b.h5", rows=3, size=40)
    replacement.rename(path)
    assert adapter.read(records[1], np.random.default_rng(0)).shape == (40, 40, 3)


def test_many_images_in_a_compressed_chunk_are_kept_decompressed(tmp_path):
    images = np.stack([make.picture(64, seed=row) for row in range(12)])
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("images", data=images, chunks=(6, 64, 64, 3), compression="gzip")
    adapter, records = fitted(tmp_path)
    for row in (7, 0, 11, 3, 7):
        np.testing.assert_array_equal(adapter.pixels(records[row]), images[row])
    file = OPEN_FILES.get(tmp_path / "a.h5", open_hdf5)
    assert file.id.get_access_plist().get_cache()[2] == CHUNK_CACHE  # HDF5's own default passes over large chunks


@pytest.mark.parametrize(
    "options", [{"bands": "g,,z"}, {"bands": "g,g"}, {"global_area": (0.9, 0.2)}, {"scales": (1.0, -1.0)}, {"flux": 1}]
)
def test_wrong_options_are_named(options):
    with pytest.raises(UserError, match=next(iter(options))):
        create("galaxy", **options)
