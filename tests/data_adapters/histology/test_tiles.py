import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from data_adapters.errors import BadFileError
from data_adapters.histology.adapter import by_name
from data_adapters.histology.tiles import read_tile, tile_size
from data_adapters.record import Record
from tests.data.histology import he_picture


@pytest.fixture
def picture() -> np.ndarray:
    return he_picture(width=60, height=40, seed=1)[0]


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "webp"])
def test_lossless_formats_give_their_pixels(tmp_path: Path, picture: np.ndarray, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(picture).save(path, **({"lossless": True} if suffix == "webp" else {}))
    assert tile_size(path, grey=False) == (60, 40)
    assert np.array_equal(read_tile(path, grey=False), picture)


def test_jpeg_gives_its_pixels(tmp_path: Path, picture: np.ndarray) -> None:
    Image.fromarray(picture).save(tmp_path / "a.jpg", quality=98, subsampling=0)
    assert np.abs(read_tile(tmp_path / "a.jpg", grey=False).astype(int) - picture).mean() < 2


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_exif_orientation_is_applied_once(tmp_path: Path, picture: np.ndarray, suffix: str, orientation: int) -> None:
    turns = {3: 2, 6: 1, 8: 3}[orientation]  # quarter turns that bring the stored picture from upright
    exif = Image.Exif()
    exif[274] = orientation
    options = {"jpg": {"quality": 98, "subsampling": 0}, "webp": {"lossless": True}}.get(suffix, {})
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.ascontiguousarray(np.rot90(picture, turns))).save(path, exif=exif, **options)
    assert tile_size(path, grey=False) == (60, 40)
    assert np.abs(read_tile(path, grey=False).astype(int) - picture).mean() < 2


def test_transparency_is_composited_on_white(tmp_path: Path, picture: np.ndarray) -> None:
    alpha = np.full((40, 60), 255, np.uint8)
    alpha[:, :20], alpha[:, 20:40] = 0, 51
    Image.fromarray(np.dstack([picture, alpha])).save(tmp_path / "a.png")
    out = read_tile(tmp_path / "a.png", grey=False).astype(int)
    assert (out[:, :20] == 255).all()
    assert np.abs(out[:, 20:40] - (0.2 * picture[:, 20:40] + 0.8 * 255)).max() <= 1
    assert np.array_equal(out[:, 40:], picture[:, 40:])


def test_palettes_give_their_colours_also_transparent_ones(tmp_path: Path, picture: np.ndarray) -> None:
    palette = Image.fromarray(picture).quantize(16)
    palette.save(tmp_path / "p.png")
    assert np.array_equal(read_tile(tmp_path / "p.png", grey=False), np.array(palette.convert("RGB")))
    index = int(np.array(palette)[0, 0])
    palette.save(tmp_path / "t.png", transparency=index)
    out = read_tile(tmp_path / "t.png", grey=False)
    assert (out[np.array(palette) == index] == 255).all()


def write_png16(path: Path, picture: np.ndarray) -> None:
    height, width = picture.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in picture.astype(np.uint16) * 257)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def awkward(folder: Path, picture: np.ndarray) -> dict[str, tuple[Path, str]]:
    image = Image.fromarray(picture)
    made: dict[str, tuple[Path, str]] = {}

    def make(name: str, cause: str) -> Path:
        made[name] = (folder / name, cause)
        return folder / name

    write_png16(make("rgb16.png", "16 bits"), picture)
    tifffile.imwrite(make("rgb16.tif", "16 bits"), picture.astype(np.uint16) * 257, photometric="rgb")
    Image.fromarray(picture[..., 0].astype(np.uint16)).save(make("grey16.png", "16 bits"))
    tifffile.imwrite(make("float.tif", "32 bits"), picture[..., 0].astype(np.float32))
    image.convert("CMYK").save(make("cmyk.jpg", "CMYK"))
    image.convert("LAB").save(make("lab.tif", "CIELAB"))
    image.convert("L").save(make("grey.jpg", "greyscale"))
    image.convert("1").save(make("bilevel.png", "bilevel"))
    image.save(make("pages.tif", "several pages"), save_all=True, append_images=[image])
    image.save(make("moving.webp", "several pages"), save_all=True, append_images=[image.rotate(90)])
    image.resize((31, 90)).save(make("narrow.png", "under 32 pixels"))
    make("text.png", "not an image").write_text("no picture")
    make("empty.jpg", "not an image").write_bytes(b"")
    image.save(folder / "animation.gif", save_all=True, append_images=[image])
    make("renamed.png", "not an image").write_bytes((folder / "animation.gif").read_bytes())
    return made


def test_what_is_not_8_bit_colour_is_refused_by_header(tmp_path: Path, picture: np.ndarray) -> None:
    for path, cause in awkward(tmp_path, picture).values():
        for reader in (tile_size, read_tile):
            with pytest.raises(BadFileError, match=cause) as caught:
                reader(path, grey=False)
            assert caught.value.remedy
            assert path.name not in caught.value.cause + caught.value.remedy


def test_greyscale_is_read_where_it_is_expected(tmp_path: Path, picture: np.ndarray) -> None:
    Image.fromarray(picture[..., 0]).save(tmp_path / "a.png")
    out = read_tile(tmp_path / "a.png", grey=True)
    assert all(np.array_equal(out[..., c], picture[..., 0]) for c in range(3))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_truncated_pixels_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(he_picture(width=300, height=300)[0]).save(
        path, **({"compression": "tiff_lzw"} if suffix == "tif" else {})
    )
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 3 // 4])
    with pytest.raises(BadFileError):
        read_tile(path, grey=False)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # between its limit and twice it
@pytest.mark.parametrize("side", [12000, 60000])
def test_decompression_bombs_are_refused_before_decoding(tmp_path: Path, side: int) -> None:
    path = tmp_path / "bomb.png"
    write_png16(path, np.zeros((1, 1, 3)))
    data = bytearray(path.read_bytes())
    data[16:26] = struct.pack(">IIBB", side, side, 8, 2)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    path.write_bytes(bytes(data))
    with pytest.raises(BadFileError, match="too many pixels"):
        tile_size(path, grey=False)


def test_groups_that_names_tell(tmp_path: Path) -> None:
    name = "TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF"

    def told(place: str, *, is_slide: bool, known: str = "") -> tuple[str, str]:
        found = by_name(Record(uri=str(tmp_path / place), group=known), tmp_path, is_slide=is_slide)
        return found.group, found.grouped_by

    assert told(f"x/{name}.svs", is_slide=True) == ("TCGA-3C-AALI", "TCGA patient")
    assert told("x/TCGA-3C-AALIX.svs", is_slide=True) == ("TCGA-3C-AALIX", "slide name")
    assert told("TCGA-A1-B2C3/slide 7.ndpi", is_slide=True) == ("slide 7", "slide name")
    assert told("case_1/x_10_20.png", is_slide=False) == ("", "")
    assert told(f"case_1/{name}_5.png", is_slide=False) == ("TCGA-3C-AALI", "TCGA patient")
    assert told("TCGA-A1-B2C3-01Z/t.png", is_slide=False) == ("TCGA-A1-B2C3", "TCGA patient")
    assert told(f"x/{name}.svs", is_slide=True, known="case 9") == ("case 9", "")
