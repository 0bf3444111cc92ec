import pickle

import cv2
import numpy as np
import pytest
import torch

from data_adapters.base import IMAGENET_MEAN, Record, Rejected
from data_adapters.catalog import Catalog
from data_adapters.errors import BadFileError, UserError
from data_adapters.images.adapter import ImagesAdapter
from data_adapters.registry import create, from_description
from tests.data.images import scene, write_archive, write_deep_png, write_image, write_tiff

SIZES = {"global_size": 32, "local_size": 16, "n_global": 2, "n_local": 3}
RNG = np.random.default_rng(0)


def read(path, **options):
    adapter = ImagesAdapter(**options)
    (record,) = adapter.scan(path)
    assert isinstance(record, Record), record
    return adapter.read(record, RNG)


def reason(path, **options):
    adapter = ImagesAdapter(**options)
    (found,) = adapter.scan(path)
    if isinstance(found, Rejected):
        return f"{found.reason}. {found.remedy}"
    with pytest.raises(BadFileError) as caught:
        adapter.verify(found)
    return f"{caught.value.cause}. {caught.value.remedy}"


def test_scan_lists_everything_with_groups(tmp_path):
    root = write_archive(tmp_path)
    (root / "readme.md").write_text("a sidecar")
    (root / "volume.nii").write_bytes(b"no picture")
    found = list(ImagesAdapter().scan(root))
    assert [item.group for item in found if isinstance(item, Record)] == ["a", "a", "b", "b"]
    assert [item.reason for item in found if isinstance(item, Rejected)] == [
        "not a format that the images adapter reads"
    ]
    (first, *_) = [item for item in found if isinstance(item, Record)]
    assert first.meta == {"size": [56, 40], "bits": 8, "channels": 3}
    by_file = [item.group for item in ImagesAdapter(group_by="file").scan(root) if isinstance(item, Record)]
    assert by_file == ["a/0", "a/2", "b/1", "b/3"]
    (root / "catalogue.csv").write_text("path,group,label\na/0.jpg,patient-1,cat\n")
    catalog = Catalog(root / "catalogue.csv")
    (record, *_) = [item for item in ImagesAdapter().scan(root, catalog=catalog) if isinstance(item, Record)]
    assert (record.group, record.label) == ("patient-1", "cat")


def test_grey_is_repeated_for_three_channels_and_kept_for_one(tmp_path):
    path = write_image(tmp_path / "grey.png", scene(channels=1))
    np.testing.assert_array_equal(read(path), np.repeat(scene(channels=1), 3, axis=2))
    np.testing.assert_array_equal(read(path, channels=1), scene(channels=1))


def test_other_channel_counts_are_refused(tmp_path):
    rgb = write_image(tmp_path / "rgb.png", scene())
    assert "3 channels, where the option channels is 1" in reason(rgb, channels=1)
    five = write_tiff(tmp_path / "five.tif", scene(channels=5), photometric="minisblack", planarconfig="contig")
    assert "5 channels" in reason(five)
    np.testing.assert_array_equal(read(five, channels=5), scene(channels=5))
    grey = write_image(tmp_path / "grey.png", scene(channels=1))
    assert "1 channels, where the option channels is 5" in reason(grey, channels=5)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_depth_without_a_policy_is_refused_and_names_the_option(tmp_path, dtype):
    path = write_tiff(tmp_path / "x.tif", scene(dtype=dtype), photometric="rgb")
    said = reason(path)
    assert "intensity" in said
    assert "window" in said


def test_window_and_percentile(tmp_path):
    image = scene(dtype=np.uint16)
    path = write_deep_png(tmp_path / "x.png", image)
    window = read(path, intensity="window", intensity_range=(1000, 41000))
    assert window.dtype == np.float32
    np.testing.assert_allclose(window, np.clip((image.astype(float) - 1000) / 40000, 0, 1), atol=1e-6)
    low, high = np.percentile(image, (2, 98))
    percentile = read(path, intensity="percentile", intensity_range=(2, 98))
    np.testing.assert_allclose(percentile, np.clip((image - low) / (high - low), 0, 1), atol=1e-5)
    doubled = write_deep_png(tmp_path / "y.png", image // 2)
    np.testing.assert_allclose(read(doubled, intensity="percentile"), read(path, intensity="percentile"), atol=1e-3)


def test_values_that_cannot_be_mapped_are_refused(tmp_path):
    image = scene(dtype=np.float32)
    image[3, 3, 1] = np.nan
    path = write_tiff(tmp_path / "nan.tif", image, photometric="rgb")
    assert "NaN" in reason(path, intensity="percentile")
    flat = write_tiff(tmp_path / "flat.tif", np.full((40, 40), 5, np.uint16))
    assert "single value" in reason(flat, intensity="percentile", channels=1)


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", ">f4", "<f8"])
def test_numpy_files(tmp_path, dtype):
    image = scene(channels=7, dtype=np.dtype(dtype).newbyteorder("=").type).astype(dtype)
    np.save(tmp_path / "x.npy", image)
    policy = {} if dtype == "u1" else {"intensity": "window", "intensity_range": (0, float(image.max()))}
    out = read(tmp_path / "x.npy", channels=7, **policy)
    expected = image if dtype == "u1" else image.astype(np.float64) / float(image.max())
    np.testing.assert_allclose(out, expected, atol=1e-6)
    assert out.dtype.isnative


def test_bad_numpy_files_are_refused(tmp_path):
    np.save(tmp_path / "pickled.npy", np.asarray([{"a": 1}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "volume.npy", np.zeros((30, 30, 300), np.uint8))
    np.save(tmp_path / "first.npy", np.zeros((3, 64, 80), np.uint8))
    np.save(tmp_path / "bool.npy", np.zeros((30, 30), bool))
    np.save(tmp_path / "whole.npy", np.zeros((30, 30), np.uint8))
    data = (tmp_path / "whole.npy").read_bytes()
    (tmp_path / "short.npy").write_bytes(data[:-20])
    (tmp_path / "huge.npy").write_bytes(data.replace(b"(30, 30)", b"(99999, 99999)"))
    found = {name: reason(tmp_path / f"{name}.npy") for name in ("pickled", "volume", "first", "bool", "short", "huge")}
    assert "Python objects" in found["pickled"]
    assert "64 channels" in found["volume"]
    assert "channels on the last axis" in found["first"]
    assert "no image" in found["bool"]
    assert "damaged" in found["short"]
    assert "damaged" in found["huge"]


def test_small_images_are_refused(tmp_path):
    assert "less than 16" in reason(write_image(tmp_path / "x.png", scene(12, 200)))


@pytest.mark.parametrize("name", ["moderate", "natural"])
@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint8), (3, np.uint8), (3, np.uint16), (5, np.uint16)])
def test_views_have_the_contract(tmp_path, name, channels, dtype):
    policy = {} if dtype == np.uint8 else {"intensity": "window", "intensity_range": (0.0, 65535.0)}
    np.save(tmp_path / "x.npy", scene(96, 80, channels, dtype=dtype))
    adapter = create("images", **SIZES, channels=channels, recipe=name, **policy)
    (record,) = adapter.scan(tmp_path / "x.npy")
    source = adapter.read(record, RNG)
    before = source.copy()
    kinds = set()
    for seed in range(12):
        views = adapter.views(source, np.random.default_rng(seed))
        assert [tuple(view.shape) for view in views] == [(channels, 32, 32)] * 2 + [(channels, 16, 16)] * 3
        again = adapter.views(source, np.random.default_rng(seed))
        assert all(torch.equal(a, b) for a, b in zip(views, again, strict=True))
        kinds |= {view.dtype for view in views}
        assert all(0 <= view.min() and view.max() <= (255 if dtype == np.uint8 else 1) for view in views)
    assert kinds == {torch.uint8 if dtype == np.uint8 else torch.float32}
    np.testing.assert_array_equal(source, before)
    assert not torch.equal(views[0], views[1])


def test_only_the_natural_recipe_makes_grey_views():
    image = np.zeros((64, 64, 3), np.uint8)
    image[...] = (200, 60, 20)

    def grey_share(name):
        adapter = ImagesAdapter(**SIZES, recipe=name)
        views = [v for seed in range(60) for v in adapter.views(image, np.random.default_rng(seed))]
        return np.mean([bool((view[0] == view[1]).all() and (view[1] == view[2]).all()) for view in views])

    assert grey_share("moderate") == 0
    assert 0.12 < grey_share("natural") < 0.28


def test_mirror_can_be_switched_off():
    image = np.tile(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], (64, 1, 1))

    def mirrored(p):
        adapter = ImagesAdapter(**SIZES, channels=1, hflip=p)
        views = [v for seed in range(20) for v in adapter.views(image, np.random.default_rng(seed))]
        return np.mean([view[0, :, 0].float().mean() > view[0, :, -1].float().mean() for view in views])

    assert mirrored(0.0) == 0
    assert 0.3 < mirrored(0.5) < 0.7


def test_prepare_resizes_the_short_side_and_crops_the_middle(tmp_path):
    image = scene(96, 160)
    adapter = ImagesAdapter(**SIZES)
    (record,) = adapter.scan(write_image(tmp_path / "x.png", image))
    out = adapter.prepare(record)
    assert out.shape == (1, 3, 32, 32)
    assert out.dtype == torch.uint8
    middle = image[:, 32:128].reshape(32, 3, 32, 3, 3).mean((1, 3))
    np.testing.assert_allclose(out[0].permute(1, 2, 0).numpy(), middle, atol=0.51)
    small = scene(20, 20, 1)
    (record,) = adapter.scan(write_image(tmp_path / "small.png", small))
    expected = cv2.resize(small[..., 0], (32, 32), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(adapter.prepare(record)[0, 1].numpy(), expected)
    assert ImagesAdapter(**SIZES, channels=1).prepare(record).shape == (1, 1, 32, 32)


def test_description_and_pickle_give_an_equal_adapter(tmp_path):
    path = write_image(tmp_path / "x.png", scene())
    adapter = create("images", **SIZES, recipe="natural")
    assert adapter.spec.mean == IMAGENET_MEAN
    assert adapter.fit([]) is adapter
    (record,) = adapter.scan(path)
    expected = adapter.views(adapter.read(record, RNG), np.random.default_rng(5))
    for again in (from_description(adapter.describe()), pickle.loads(pickle.dumps(adapter))):
        assert again.describe() == adapter.describe()
        views = again.views(again.read(record, RNG), np.random.default_rng(5))
        assert all(torch.equal(a, b) for a, b in zip(expected, views, strict=True))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"intensity": "window"}, "intensity_range"),
        ({"intensity": "window", "intensity_range": (5, 5)}, "low < high"),
        ({"intensity": "percentile", "intensity_range": (1, 101)}, "percentiles"),
        ({"intensity_range": (0, 255)}, "belongs to"),
        ({"channels": 0}, "channels"),
        ({"recipe": "strong"}, "recipe"),
    ],
)
def test_wrong_options_are_named(options, said):
    with pytest.raises(UserError, match=said):
        create("images", **options)


PLUG_IN = '''
"""Thermal camera frames: a user's own modality in one file."""
import numpy as np
from data_adapters.base import BaseAdapter, Record, to_tensor
from data_adapters.errors import BadFileError


class Thermal(BaseAdapter):
    name = "thermal"
    suffixes = (".raw",)

    @property
    def spec(self):
        return self.make_spec(channels=1, mean=(0.5,), std=(0.5,))

    def inspect(self, path, root):
        if path.stat().st_size != 64 * 64 * 2:
            raise BadFileError("not a frame of 64 x 64 pixels")
        yield Record(uri=str(path), group=path.parent.name)

    def read(self, record, rng):
        kelvin = np.fromfile(record.uri, "<u2").reshape(64, 64, 1) / np.float32(10)
        return np.clip((kelvin - 270) / 50, 0, 1).astype(np.float32)

    def augment(self, kind, size):
        def view(source, rng):
            top, left = rng.integers(0, 64 - size + 1, 2)
            return source[top : top + size, left : left + size]
        return view

    def prepare(self, record):
        size = self.options.global_size
        return to_tensor(self.read(record, None)[:size, :size])[None]
'''


def test_a_plug_in_file_of_under_fifty_lines_is_a_modality(tmp_path):
    assert len(PLUG_IN.splitlines()) < 50
    (tmp_path / "thermal.py").write_text(PLUG_IN)
    (tmp_path / "camera").mkdir()
    (2900 + np.arange(4096) % 300).astype("<u2").tofile(tmp_path / "camera" / "a.raw")
    (tmp_path / "camera" / "b.raw").write_bytes(b"short")
    adapter = create(f"{tmp_path / 'thermal.py'}:Thermal", **SIZES)
    good, bad = adapter.scan(tmp_path / "camera")
    assert bad.reason == "not a frame of 64 x 64 pixels"
    adapter.verify(good)
    views = adapter.views(adapter.read(good, RNG), np.random.default_rng(0))
    assert [tuple(view.shape) for view in views] == [(1, 32, 32)] * 2 + [(1, 16, 16)] * 3
    again = from_description(adapter.describe())
    assert torch.equal(again.prepare(good), adapter.prepare(good))
