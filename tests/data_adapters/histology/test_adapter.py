"""Sources, views and embedding tiles of the histology adapter."""

import dataclasses
import itertools
import json
import math
import pickle
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from data_adapters import UserError, create, from_description
from data_adapters.base import Record
from data_adapters.errors import BadFileError
from data_adapters.histology.adapter import HistologyAdapter, draw_downsample
from data_adapters.histology.crop import random_crop
from data_adapters.histology.options import HistologyOptions
from data_adapters.histology.recipe import RATIO, Source, operations
from data_adapters.histology.tissue import Tissue
from tests.data.histology import write_slide, write_tiles

SMALL = {"global_size": 64, "local_size": 32}


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, np.ndarray]:
    path = tmp_path_factory.mktemp("slide") / "a.tif"
    picture, _ = write_slide(path, seed=4)
    (record,) = HistologyAdapter(**SMALL).scan(path)
    assert isinstance(record, Record)
    return record, picture


@pytest.fixture(scope="module")
def tile(tmp_path_factory: pytest.TempPathFactory) -> Record:
    path = write_tiles(tmp_path_factory.mktemp("tiles"), slides=["s"], per_slide=1)[0]
    (record,) = HistologyAdapter(**SMALL).scan(path)
    assert isinstance(record, Record)
    return record


def test_views_have_the_promised_shapes_and_statistics(slide: tuple[Record, np.ndarray], tile: Record) -> None:
    adapter = HistologyAdapter(**SMALL, n_global=2, n_local=3)
    for record in (slide[0], tile):
        views = adapter.views(adapter.read(record, np.random.default_rng(0)), np.random.default_rng(1))
        assert [tuple(v.shape) for v in views] == [(3, 64, 64)] * 2 + [(3, 32, 32)] * 3
        assert all(v.dtype == torch.uint8 for v in views)
    assert adapter.spec.mean == (0.485, 0.456, 0.406)
    assert adapter.spec.n_views == 5


def test_sources_and_views_depend_on_the_generator_alone(slide: tuple[Record, np.ndarray]) -> None:
    def sample(adapter: HistologyAdapter, seed: int) -> tuple[np.ndarray, list[torch.Tensor]]:
        source = adapter.read(slide[0], np.random.default_rng(seed))
        return source.pixels, adapter.views(source, np.random.default_rng(seed))

    used = HistologyAdapter(**SMALL)
    for seed in range(5):
        sample(used, seed)
    pixels, views = sample(used, 3)
    again, views_again = sample(HistologyAdapter(**SMALL), 3)
    other, views_other = sample(used, 4)
    assert np.array_equal(pixels, again)
    assert all(torch.equal(a, b) for a, b in zip(views, views_again, strict=True))
    assert not np.array_equal(pixels, other)
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(views[:2] + views_other[:2], 2))


def test_regions_lie_on_tissue(slide: tuple[Record, np.ndarray]) -> None:
    adapter = HistologyAdapter(**SMALL)
    for seed in range(20):
        source = adapter.read(slide[0], np.random.default_rng(seed))
        assert source.scaled
        height, width = source.pixels.shape[:2]
        assert height == width
        assert 110 <= width < 2 * 112
        saturation = cv2.cvtColor(np.asarray(source.pixels), cv2.COLOR_RGB2HSV)[..., 1]
        assert (saturation > 30).mean() > 0.45


def test_training_mpp_is_log_uniform_within_what_the_slide_has() -> None:
    options = HistologyOptions()

    def drawn(mpp: float, size: tuple[int, int]) -> np.ndarray:
        rng = np.random.default_rng(0)
        return mpp * np.array([draw_downsample({"mpp": mpp}, options, size, rng) for _ in range(2000)])

    wide = drawn(0.25, (100_000, 80_000))
    assert 0.4 <= wide.min() < 0.41
    assert 1.07 < wide.max() <= 1.1
    assert np.median(wide) == pytest.approx(math.sqrt(0.4 * 1.1), rel=0.05)
    assert drawn(0.5, (100_000, 80_000)).min() >= 0.5  # never finer than the scan
    assert drawn(0.25, (10_000, 1000)).max() <= 0.25 * 1000 / 392 + 1e-9  # never larger than the slide
    fixed = HistologyOptions(mpp_range=None)
    assert draw_downsample({"mpp": 0.25}, fixed, (9999, 9999), np.random.default_rng(0)) == 2.0


def test_training_mpp_may_be_one_of_a_list() -> None:
    options = HistologyOptions(mpp=0.5, mpp_choices=(0.25, 0.5, 1.0, 2.0))

    def drawn(native: float, size: tuple[int, int]) -> dict[float, int]:
        rng = np.random.default_rng(0)
        values = [native * draw_downsample({"mpp": native}, options, size, rng) for _ in range(400)]
        return {v: values.count(v) for v in set(values)}

    all_four = drawn(0.25, (100_000, 80_000))
    assert set(all_four) == {0.25, 0.5, 1.0, 2.0}
    assert min(all_four.values()) > 60
    assert set(drawn(0.5, (100_000, 80_000))) == {0.5, 1.0, 2.0}  # never finer than the scan
    assert set(drawn(0.25, (2000, 2000))) == {0.25, 0.5, 1.0}  # 392 pixels at 2.0 are 3136 of level 0
    with pytest.raises(UserError, match="no mpp_range"):
        create("histology", mpp_choices=(0.5, 1.0), mpp_range=(0.4, 1.0))


def test_region_crops_keep_the_size_of_nuclei() -> None:
    """A crop of side s from the region is .9 to 1.1 s wide: measured on ramps that tell each pixel's place."""
    o = HistologyOptions()
    y, x = np.mgrid[0 : o.tile_px, 0 : o.tile_px].astype(np.float32) / o.tile_px
    ramps = np.stack([x, y, np.zeros_like(x)], axis=-1)
    for size in (o.global_size, o.local_size):
        exact = (size / o.tile_px) ** 2
        crop = partial(random_crop, size=size, area=(exact * 0.81, exact * 1.21), ratio=RATIO)
        spans = []
        for seed in range(60):
            view = crop(ramps, np.random.default_rng(seed))
            spans.append([np.ptp(view[..., axis]) * o.tile_px / size for axis in range(2)])
        assert 0.85 < np.min(spans) < 0.95
        assert 1.05 < np.max(spans) < 1.15


@pytest.mark.parametrize("scaled", [True, False])
def test_views_have_all_eight_symmetries(scaled: bool) -> None:
    pixels = np.zeros((112, 112, 3), np.uint8)
    pixels[:56, :56], pixels[:56, 56:], pixels[56:, :56], pixels[56:, 56:] = 30, 90, 150, 210
    recipe = HistologyAdapter(**SMALL).augment("global", 64)
    seen = set()
    for seed in range(200):
        view = recipe(Source(pixels=pixels, scaled=scaled), np.random.default_rng(seed)).astype(float).mean(axis=2)
        corners = view[[2, 2, -3, -3], [2, -3, 2, -3]]
        if np.diff(np.sort(corners)).min() > 15:  # all four quadrants are in the crop
            seen.add(tuple(corners.argsort().argsort().tolist()))
    square = np.arange(4).reshape(2, 2)
    turned = [np.rot90(side, turns) for side in (square, square.T) for turns in range(4)]
    assert seen == {tuple(t.ravel().tolist()) for t in turned}


def test_stain_jitter_is_for_stains(tile: Record) -> None:
    source = HistologyAdapter(**SMALL).read(tile, np.random.default_rng(0))

    def views(**options: object) -> list[np.ndarray]:
        recipe = HistologyAdapter(**{**SMALL, **options}).augment("global", 64)
        return [recipe(source, np.random.default_rng(i)).astype(float) for i in range(30)]

    assert all(np.array_equal(a, b) for a, b in zip(views(stain="any"), views(stain_sigma=0.0), strict=True))
    assert 8 < sum(not np.array_equal(a, b) for a, b in zip(views(), views(stain="any"), strict=True)) <= 30
    jitter = {stain: operations(HistologyOptions(stain=stain))[1] for stain in ("he", "ihc", "any")}
    assert [getattr(one, "stain", None) for one in jitter.values()] == ["he", "ihc", None]


def test_prepare_gives_tissue_tiles_at_the_wanted_mpp(slide: tuple[Record, np.ndarray]) -> None:
    record, picture = slide
    adapter = HistologyAdapter(**SMALL, mpp=1.0, tiles=6)
    out = adapter.prepare(record)
    assert (out.shape, out.dtype) == ((6, 3, 64, 64), torch.uint8)
    assert torch.equal(out, HistologyAdapter(**SMALL, mpp=1.0, tiles=6).prepare(record))
    tissue = Tissue.unpack(record.meta["histology"]["tissue"])
    corners = tissue.grid(side=128, size=(1200, 1000), least=0.5, count=6)
    for (x, y), got in zip(corners, out, strict=True):
        level_0 = picture[round(y) : round(y) + 128, round(x) : round(x) + 128]
        exact = cv2.resize(level_0, (64, 64), interpolation=cv2.INTER_AREA)
        assert np.abs(got.numpy().transpose(1, 2, 0).astype(int) - exact).mean() < 1.5


def test_prepare_honours_the_catalogue_mpp(slide: tuple[Record, np.ndarray]) -> None:
    record, picture = slide
    corrected = dataclasses.replace(record, meta={**record.meta, "mpp": 0.25, "region": [300, 300, 128, 128]})
    out = HistologyAdapter(**SMALL).prepare(corrected)
    exact = cv2.resize(picture[300:428, 300:428], (64, 64), interpolation=cv2.INTER_AREA)
    assert out.shape == (1, 3, 64, 64)
    assert np.abs(out[0].numpy().transpose(1, 2, 0).astype(int) - exact).mean() < 1


def test_region_of_an_upload_needs_no_scan(slide: tuple[Record, np.ndarray], tmp_path: Path) -> None:
    record, picture = slide
    upload = Record(uri=record.uri, group="upload", meta={"region": [400, 350, 64, 64]})
    out = HistologyAdapter(**SMALL).prepare(upload)
    assert np.array_equal(out[0].numpy().transpose(1, 2, 0), picture[350:414, 400:464])
    whole = Record(uri=record.uri, group="upload")
    assert torch.equal(HistologyAdapter(**SMALL).prepare(whole), HistologyAdapter(**SMALL).prepare(record))
    silent = tmp_path / "silent.tif"
    picture, _ = write_slide(silent, seed=4, mpp=None)
    unknown = Record(uri=str(silent), group="upload", meta={"region": [400, 350, 160, 160]})
    exact = cv2.resize(picture[350:510, 400:560], (64, 64), interpolation=cv2.INTER_AREA)
    got = HistologyAdapter(**SMALL).prepare(unknown)[0].numpy().transpose(1, 2, 0)
    assert np.abs(got.astype(int) - exact).mean() < 1.5


def test_large_regions_are_covered_not_cropped(slide: tuple[Record, np.ndarray]) -> None:
    record, picture = slide
    marked = dataclasses.replace(record, meta={**record.meta, "region": [100, 200, 192, 128]})
    out = HistologyAdapter(**SMALL).prepare(marked).numpy().transpose(0, 2, 3, 1)
    rows = [np.concatenate(out[3 * i : 3 * i + 3], axis=1) for i in range(2)]
    assert np.array_equal(np.concatenate(rows), picture[200:328, 100:292])
    assert len(HistologyAdapter(**SMALL, tiles=4).prepare(marked)) == 4


@pytest.mark.parametrize(
    ("region", "cause"),
    [
        ([1150, 0, 64, 64], "outside of the picture"),
        ([-1, 0, 64, 64], "outside of the picture"),
        ([0, 0, 30, 64], "smaller than one view"),
        ([0, 0, 64], "left, top, width, height"),
        ([0, 0, math.nan, 64], "left, top, width, height"),
        ([0, "0", 64, 64], "left, top, width, height"),
    ],
)
def test_impossible_regions_are_refused(slide: tuple[Record, np.ndarray], region: list[object], cause: str) -> None:
    marked = dataclasses.replace(slide[0], meta={**slide[0].meta, "region": region})
    with pytest.raises(BadFileError, match=cause):
        HistologyAdapter(**SMALL).prepare(marked)


def test_tiles_are_scaled_by_their_shorter_side_and_centred(tmp_path: Path) -> None:
    picture = np.zeros((100, 300, 3), np.uint8)
    picture[:, :100], picture[:, 100:200], picture[:, 200:] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    picture[50:, 100:200] = (0, 100, 0)
    path = tmp_path / "a.png"
    Image.fromarray(picture).save(path)
    out = HistologyAdapter(**SMALL).prepare(Record(uri=str(path), group="g"))[0].numpy().transpose(1, 2, 0)
    assert np.array_equal(out[:31], np.full((31, 64, 3), (0, 250, 0)))
    assert np.array_equal(out[33:], np.full((31, 64, 3), (0, 100, 0)))
    left = HistologyAdapter(**SMALL).prepare(Record(uri=str(path), group="g", meta={"region": [0, 0, 80, 80]}))
    assert (left[0].numpy().transpose(1, 2, 0) == (250, 0, 0)).all()


def test_adapter_travels_to_workers_without_its_handles(slide: tuple[Record, np.ndarray]) -> None:
    adapter = create("histology", **SMALL)
    assert isinstance(adapter, HistologyAdapter)
    source = adapter.read(slide[0], np.random.default_rng(0))
    views = adapter.views(source, np.random.default_rng(1))
    assert len(adapter._handles) == 1
    copy = pickle.loads(pickle.dumps(adapter))
    assert len(copy._handles) == 0
    assert np.array_equal(copy.read(slide[0], np.random.default_rng(0)).pixels, source.pixels)
    assert all(torch.equal(a, b) for a, b in zip(copy.views(source, np.random.default_rng(1)), views, strict=True))


def test_description_rebuilds_the_adapter(slide: tuple[Record, np.ndarray]) -> None:
    adapter = create("histology", **SMALL, mpp=1.0, stain="ihc")
    again = from_description(json.loads(json.dumps(adapter.describe())))
    assert again.describe() == adapter.describe()
    assert torch.equal(again.prepare(slide[0]), adapter.prepare(slide[0]))


def test_options_derive_and_check_each_other() -> None:
    default = HistologyOptions()
    assert default.tile_px == 392
    assert default.mpp_range == pytest.approx((0.4, 1.1))
    assert HistologyOptions(mpp=1.0).mpp_range == pytest.approx((0.8, 2.2))
    assert HistologyOptions(mpp=None).mpp_range is None
    assert HistologyOptions(global_size=64, local_size=32).tile_px == 112
    for wrong, message in [
        ({"tile_px": 230}, "tile_px must be at least 258"),
        ({"mpp": 0.5, "mpp_range": (0.6, 1.0)}, "must enclose mpp"),
        ({"mpp": None, "mpp_range": (0.4, 1.0)}, "mpp_range needs mpp"),
        ({"tile_global_area": (0.5, 1.5)}, "two fractions"),
    ]:
        with pytest.raises(UserError, match=message):
            create("histology", **wrong)
