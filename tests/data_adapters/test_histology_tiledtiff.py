"""Tiles read directly against openslide, and against the picture that was written."""

from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile

from data_adapters.base import Record
from data_adapters.errors import BadFileError
from data_adapters.histology.adapter import HistologyAdapter
from data_adapters.histology.formats import Handles
from data_adapters.histology.slide import on_white
from data_adapters.histology.tiledtiff import TiledTiff
from tests.data.histology import he_picture, write_dicom_slide, write_ome, write_pyramid, write_svs

SMALL = {"global_size": 64, "local_size": 32}


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return he_picture(width=700, height=600, seed=4)[0]


@pytest.mark.parametrize("compression", ["jpeg", "deflate", "lzw", None])
def test_pixels_are_those_of_openslide(tmp_path: Path, picture: np.ndarray, compression: str | None) -> None:
    path = write_pyramid(tmp_path / "a.tif", picture, compression=compression)  # type: ignore[arg-type]
    direct, reference = TiledTiff.open(path), openslide.OpenSlide(path)
    assert direct.level_dimensions == reference.level_dimensions
    assert direct.level_downsamples == pytest.approx(reference.level_downsamples)
    rng = np.random.default_rng(0)
    for _ in range(8):
        place, size = rng.integers(-60, 600, 2), rng.integers(1, 300, 2)
        rgb, covered = direct.region((int(place[0]), int(place[1])), 0, (int(size[0]), int(size[1])))
        exact, alpha = on_white(reference.read_region((int(place[0]), int(place[1])), 0, (int(size[0]), int(size[1]))))
        assert np.array_equal(rgb, exact)
        assert np.array_equal(covered, alpha)


def test_aperio_pixels_are_those_of_openslide(tmp_path: Path, picture: np.ndarray) -> None:
    path = write_svs(tmp_path / "a.svs", picture)
    direct, reference = TiledTiff.open(path), openslide.OpenSlide(path)
    assert direct.level_dimensions == reference.level_dimensions  # without thumbnail and label
    exact = np.array(reference.read_region((200, 100), 0, (300, 300)))[..., :3]
    assert np.array_equal(direct.region((200, 100), 0, (300, 300))[0], exact)


def test_label_and_thumbnail_are_not_needed(tmp_path: Path, picture: np.ndarray) -> None:
    """The bytes of every page that is no level are wiped, and nothing changes."""
    path = write_svs(tmp_path / "a.svs", picture)
    adapter = HistologyAdapter(**SMALL)
    (record,) = adapter.scan(path)
    assert isinstance(record, Record)
    assert record.meta["histology"]["training_reader"] == "tiles"
    before = adapter.prepare(record), adapter.read(record, np.random.default_rng(0)).pixels
    with tifffile.TiffFile(path) as file:
        strips = [
            (place, length)
            for page in file.pages
            if not page.is_tiled
            for place, length in zip(page.dataoffsets, page.databytecounts, strict=True)
        ]
    assert len(strips) >= 2
    with path.open("r+b") as file:
        for place, length in strips:
            file.seek(place)
            file.write(b"\0" * length)
    again = HistologyAdapter(**SMALL)
    assert np.array_equal(again.prepare(record), before[0])
    assert np.array_equal(again.read(record, np.random.default_rng(0)).pixels, before[1])


def test_ome_levels_are_found_in_sub_directories(tmp_path: Path, picture: np.ndarray) -> None:
    path = write_ome(tmp_path / "a.ome.tif", picture)
    assert openslide.OpenSlide(path).level_count == 1
    direct = TiledTiff.open(path)
    assert direct.level_dimensions == ((700, 600), (350, 300), (175, 150))
    assert np.array_equal(direct.region((100, 50), 0, (90, 80))[0], picture[50:130, 100:190])
    assert direct.get_best_level_for_downsample(0.5) == 0
    assert direct.get_best_level_for_downsample(3.9) == 1


@pytest.mark.parametrize("compression", ["jpeg", "deflate"])
@pytest.mark.parametrize("damage", ["zeroed", "cut"])
def test_damaged_tiles_raise_and_the_handle_goes(
    tmp_path: Path, picture: np.ndarray, compression: str, damage: str
) -> None:
    path = write_pyramid(tmp_path / "a.tif", picture, levels=1, compression=compression)
    with tifffile.TiffFile(path) as file:
        place, length = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    with path.open("r+b") as file:
        file.seek(place + (0 if damage == "zeroed" else length // 2))
        file.write(b"\0" * (length if damage == "zeroed" else length - length // 2))
    handles = Handles()
    with pytest.raises(BadFileError, match="cannot be decoded"):
        handles.read(path, corner=(0, 0), extent=(100, 100), out=(100, 100), reader="tiles")
    assert len(handles) == 0
    source = handles.source(path, corner=(200, 200), side=200, out=200, reader="tiles")
    with pytest.raises(BadFileError, match="cannot be decoded"):
        source[0:100, 0:100]
    assert source[100:200, 100:200].shape == (100, 100, 3)


def test_only_tiles_that_are_cut_out_are_decoded(tmp_path: Path, picture: np.ndarray) -> None:
    direct = TiledTiff.open(write_pyramid(tmp_path / "a.tif", picture, levels=1, tile=128))
    whole, covered = direct.region((-20, 30), 0, (400, 300))
    canvas = direct.canvas((-20, 30), 0, (400, 300))
    assert np.array_equal(canvas[10:90, 30:140], whole[10:90, 30:140])
    assert np.array_equal(np.asarray(canvas), whole)
    assert np.array_equal(canvas.coverage(), covered)
    assert (whole[:, :20] == 255).all()
    counts = direct.levels[0].counts
    counts[0] = 10**9  # the first tile reaches beyond the file's end
    fresh = direct.canvas((0, 0), 0, (400, 300))
    assert np.array_equal(fresh[0:128, 128:256], picture[0:128, 128:256])
    with pytest.raises(BadFileError, match="cannot be decoded"):
        fresh[0:128, 127:256]


def test_other_tiffs_are_refused(tmp_path: Path, picture: np.ndarray) -> None:
    deep = write_pyramid(tmp_path / "deep.tif", picture.astype(np.uint16) * 257)
    strips = tmp_path / "strips.tif"
    tifffile.imwrite(strips, picture, photometric="rgb")
    (tmp_path / "text.tif").write_text("no picture")
    for path, cause in ((deep, "another kind"), (strips, "another kind"), (tmp_path / "text.tif", "damaged")):
        with pytest.raises(BadFileError, match=cause) as caught:
            TiledTiff.open(path)
        assert path.name not in caught.value.cause + caught.value.remedy


def test_training_reads_other_formats_through_openslide(tmp_path: Path, picture: np.ndarray) -> None:
    write_dicom_slide(tmp_path, picture)
    (record,) = HistologyAdapter(**SMALL).scan(tmp_path)
    assert isinstance(record, Record)
    assert record.meta["histology"]["training_reader"] == "openslide"
    assert HistologyAdapter(**SMALL).read(record, np.random.default_rng(0)).pixels.shape[2] == 3
