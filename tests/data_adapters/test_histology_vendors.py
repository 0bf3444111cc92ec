"""Slides of each vendor's layout that can be written here: found once, their pixels right, their macro image unread."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import openslide
import pytest

from data_adapters.base import Record
from data_adapters.histology.adapter import HistologyAdapter
from tests.data.histology import he_picture, write_mrxs, write_ndpi, write_ome, write_scn, write_svs

SMALL = {"global_size": 64, "local_size": 32}
WRITERS: dict[str, Callable[..., Path]] = {
    "a.ndpi": write_ndpi,
    "a.scn": write_scn,
    "a.mrxs": write_mrxs,
    "a.svs": write_svs,
    "a.ome.tif": write_ome,
}
VENDORS = {"a.mrxs": "mirax", "a.ndpi": "hamamatsu", "a.scn": "leica", "a.svs": "aperio", "a.ome.tif": "ome-tiff"}


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return he_picture(width=768, height=640, seed=4)[0]


@pytest.mark.parametrize("name", WRITERS)
def test_a_slide_is_one_record_with_its_own_pixels(
    tmp_path: Path, picture: np.ndarray, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    WRITERS[name](tmp_path / name, picture, mpp=0.5)

    def forbidden(self: object) -> None:
        raise AssertionError("associated images show the patient's label")

    monkeypatch.setattr(openslide.OpenSlide, "associated_images", property(forbidden))
    adapter = HistologyAdapter(**SMALL)
    (record,) = adapter.scan(tmp_path)
    assert isinstance(record, Record), record
    own = record.meta["histology"]
    assert own["vendor"] == VENDORS[name]
    assert np.abs(np.subtract(record.meta["size"], [768, 640])).max() <= 1  # Leica rounds the scanned area up
    assert record.meta["mpp"] == pytest.approx(0.5, rel=1e-3)
    marked = Record(uri=record.uri, group="g", meta={**record.meta, "region": [320, 256, 64, 64]})
    got = adapter.prepare(marked)[0].numpy().transpose(1, 2, 0)
    assert np.abs(got.astype(int) - picture[256:320, 320:384]).mean() < 4
    assert adapter.read(record, np.random.default_rng(0)).pixels.shape[2] == 3


def test_ome_without_a_scale_needs_the_catalogue(tmp_path: Path, picture: np.ndarray) -> None:
    write_ome(tmp_path / "a.ome.tif", picture, mpp=None)
    (found,) = HistologyAdapter(**SMALL).scan(tmp_path)
    assert getattr(found, "reason", "") == "mpp missing"
