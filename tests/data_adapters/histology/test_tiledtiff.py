"""Tiles read directly against openslide, and against the picture that was written."""

from collections.abc import Callable
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile

from data_adapters.base import Record
from data_adapters.errors import BadFileError
from data_adapters.histology.adapter import HistologyAdapter
from data_adapters.histology.formats import Handles
from data_adapters.histology.slide import on_white
from data_adapters.histology.tiledtiff import TiledTiff, decode_jpeg_tile, jpeg_reduction
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


SIDE = 128
WHOLE = {"tables": None, "ycbcr": True, "tile": (SIDE, SIDE)}


@pytest.fixture(scope="module")
def tile() -> np.ndarray:
    return he_picture(width=SIDE, height=SIDE, seed=4)[0]


@pytest.fixture(scope="module")
def stream(tile: np.ndarray) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(tile, level=90, subsampling="420"))


def test_pixels_are_those_of_libjpeg(stream: bytes) -> None:
    assert np.array_equal(decode_jpeg_tile(stream, **WHOLE), imagecodecs.jpeg8_decode(stream))


@pytest.mark.parametrize("by", [2, 4])
def test_a_reduced_tile_is_an_average(tile: np.ndarray, stream: bytes, by: int) -> None:
    got = decode_jpeg_tile(stream, reduce=by, **WHOLE)
    assert got is not None
    small = (SIDE // by, SIDE // by)
    exact = cv2.resize(imagecodecs.jpeg8_decode(stream), small, interpolation=cv2.INTER_AREA)
    assert np.abs(got.astype(int) - exact).mean() < 2
    assert jpeg_reduction((SIDE, SIDE), by + 0.5) == by
    assert jpeg_reduction((SIDE, SIDE + 1), 9) == jpeg_reduction((SIDE, SIDE), 1.9) == 1


def test_the_tag_decides_on_colours_not_the_stream(tile: np.ndarray) -> None:
    """Aperio's RGB streams have no mark, others claim YCbCr with a JFIF head."""
    plain = bytes(imagecodecs.jpeg8_encode(tile, level=95, colorspace="RGB", outcolorspace="RGB"))
    # 20 bytes of JFIF, or 16 of Adobe's mark, behind the start
    body = plain[2:]
    for mark in (b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00", b""):
        if body.startswith(b"\xff\xee"):
            body = body[16:]
        got = decode_jpeg_tile(b"\xff\xd8" + mark + body, tables=None, ycbcr=False, tile=(SIDE, SIDE))
        assert got is not None
        assert np.abs(got.astype(int) - tile).mean() < 4


def test_tables_may_stand_apart(stream: bytes) -> None:
    tables, rest, at = b"", b"", 2
    while stream[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        tables, rest = (
            (tables + stream[at:end], rest) if stream[at + 1] in (0xDB, 0xC4) else (tables, rest + stream[at:end])
        )
        at = end
    bare = b"\xff\xd8" + rest + stream[at:]
    assert decode_jpeg_tile(bare, **WHOLE) is None
    with_tables = {**WHOLE, "tables": b"\xff\xd8" + tables + b"\xff\xd9"}
    assert np.array_equal(decode_jpeg_tile(bare, **with_tables), decode_jpeg_tile(stream, **WHOLE))


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut off": lambda s: s[: len(s) // 2],
    "cut off, with an end mark": lambda s: s[: len(s) // 2] + b"\xff\xd9",
    "zeros to the end": lambda s: s[: len(s) // 2] + bytes(len(s) - len(s) // 2),
    "zeros, with an end mark": lambda s: s[: len(s) // 2] + bytes(len(s) - len(s) // 2 - 2) + b"\xff\xd9",
    "a mark in the middle": lambda s: s[: len(s) // 2] + b"\xff\xff\xff\xff" + s[len(s) // 2 + 4 :],
    "bytes left over": lambda s: s[:-2] + b"\x55" * 40 + s[-2:],
    "nothing": lambda s: b"",
    "zeros": lambda s: bytes(len(s)),
}


@pytest.mark.parametrize("reduce", [1, 2])
@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_that_libjpeg_tolerates_is_refused(stream: bytes, kind: str, reduce: int) -> None:
    assert decode_jpeg_tile(stream, reduce=reduce, **WHOLE) is not None
    assert decode_jpeg_tile(DAMAGE[kind](stream), reduce=reduce, **WHOLE) is None


def test_a_tile_of_another_size_is_refused(stream: bytes) -> None:
    assert decode_jpeg_tile(stream, tables=None, ycbcr=True, tile=(SIDE * 2, SIDE)) is None


def flip(path: Path, seed: int) -> None:
    """Change one bit of the first tile's pixels."""
    with tifffile.TiffFile(path) as file:
        place, length = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    rng = np.random.default_rng(seed)
    with path.open("r+b") as file:
        file.seek(place + int(rng.integers(length // 4, length - 8)))
        (byte,) = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte ^ (1 << int(rng.integers(8)))]))


def test_changed_bits_are_judged_as_openslide_judges_them(tmp_path: Path) -> None:
    """A changed bit is refused, or leaves a valid stream, which no decoder can tell from a whole one."""
    picture = he_picture(width=512, height=512, seed=4)[0]
    verdicts = set()
    for seed in range(12):
        path = write_pyramid(tmp_path / f"{seed}.tif", picture, levels=1, compression="jpeg")
        flip(path, seed)
        try:
            with openslide.OpenSlide(path) as slide:
                exact = np.asarray(slide.read_region((0, 0), 0, (256, 256)))[..., :3]
        except openslide.OpenSlideError:
            exact = None
        try:
            got = TiledTiff.open(path).region((0, 0), 0, (256, 256))[0]
        except BadFileError as error:
            assert path.name not in error.cause + error.remedy
            got = None
        verdicts.add(got is None)
        assert (got is None) == (exact is None)
        assert got is None or np.array_equal(got, exact)
    assert verdicts == {True, False}


def test_views_of_a_damaged_slide_raise(tmp_path: Path) -> None:
    picture = he_picture(width=512, height=512, seed=4)[0]
    path = write_pyramid(tmp_path / "a.tif", picture, levels=2, compression="jpeg")
    adapter = HistologyAdapter(global_size=64, local_size=32)
    (record,) = adapter.scan(path)
    assert isinstance(record, Record)
    assert record.meta["histology"]["training_reader"] == "tiles"
    with tifffile.TiffFile(path) as file:
        tiles = [t for page in file.pages for t in zip(page.dataoffsets, page.databytecounts, strict=True)]
    with path.open("r+b") as file:
        for place, length in tiles:
            file.seek(place + length // 2)
            file.write(b"\xff\xd9")
    rng = np.random.default_rng(0)
    with pytest.raises(BadFileError, match="cannot be decoded"):
        adapter.views(adapter.read(record, rng), rng)
