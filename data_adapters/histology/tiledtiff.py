"""Tiled TIFF pyramids, tile by tile: OME-TIFF, whose levels openslide does not see, and the fast path of training.

openslide composes a region pixel by pixel: 18 to 22 ns a pixel with every tile in its cache, measured, while decoding
a JPEG tile takes 4. A training sample needs hundreds of thousands of pixels, so where the tiles of a slide are plain
(8-bit RGB, one JPEG, deflate or LZW stream each) they are decoded and put side by side here. Scan compares the readers.
"""

import math
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_adapters.errors import BadFileError, require

VENDOR = "ome-tiff"
NONE, LZW, JPEG, DEFLATE, OLD_DEFLATE = 1, 5, 7, 8, 32946
COMPRESSIONS = (NONE, LZW, JPEG, DEFLATE, OLD_DEFLATE)
RGB, YCBCR = 2, 6  # photometric interpretation
MAX_TILE_PIXELS = 4096**2  # a larger one would cost gigabytes for one small view
MICROMETRES = {"m": 1e6, "cm": 1e4, "mm": 1e3, "um": 1.0, "µm": 1.0, "μm": 1.0, "nm": 1e-3}  # both signs for micro
REDUCTIONS = (4, 2)  # libjpeg's scaled inverse transforms, an average over 4 x 4 or 2 x 2 pixels but for rounding
_START = b"\xff\xd8"
_JFIF = b"\xff\xe0"
# libjpeg takes the colours of a stream from these marks, a TIFF from its own tag: the tag's word is put before.
_YCBCR = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"


class Canvas:
    """A rectangle of a tiled picture whose tiles are decoded when a part of it is first cut out.

    Sliced as an array: `canvas[top:bottom, left:right]` is (h, w, 3) uint8 RGB, white outside. The views of a sample
    leave about a quarter of their region's tiles untouched (simulated: 392 px regions at .5 to 1.1 um per pixel, tiles
    of 256), and decoding tiles is half of a sample's cost.

    Args:
        decode: (row, column) of a tile -> (tile height, tile width, 3) uint8; what it raises, slicing raises.
        place: left and top of the rectangle in the picture, pixels; may lie outside.
        size: width and height of the rectangle.
        picture: width and height of the picture.
        tile: width and height of a tile.
    """

    def __init__(
        self,
        decode: Callable[[int, int], np.ndarray],
        *,
        place: tuple[int, int],
        size: tuple[int, int],
        picture: tuple[int, int],
        tile: tuple[int, int],
    ) -> None:
        self._decode, self._place, self._tile = decode, place, tile
        (x, y), (w, h) = place, size
        # what the picture has of the rectangle, in the picture's pixels
        self._x0, self._y0 = max(x, 0), max(y, 0)
        self._x1, self._y1 = min(x + w, picture[0]), min(y + h, picture[1])
        self.shape = (h, w, 3)
        self.whole = (self._x0, self._y0, self._x1, self._y1) == (x, y, x + w, y + h)
        self._rgb = np.empty(self.shape, np.uint8) if self.whole else np.full(self.shape, 255, np.uint8)
        self._done: set[tuple[int, int]] = set()

    def coverage(self) -> np.ndarray:
        """(h, w) uint8: 255 inside of the picture, 0 outside."""
        if self.whole:
            return np.full(self.shape[:2], 255, np.uint8)
        covered, (x, y) = np.zeros(self.shape[:2], np.uint8), self._place
        covered[max(self._y0 - y, 0) : max(self._y1 - y, 0), max(self._x0 - x, 0) : max(self._x1 - x, 0)] = 255
        return covered

    def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
        rows, columns = window
        (x, y), (tw, th) = self._place, self._tile
        top, bottom, _ = rows.indices(self.shape[0])
        left, right, _ = columns.indices(self.shape[1])
        x0, x1 = max(x + left, self._x0), min(x + right, self._x1)
        y0, y1 = max(y + top, self._y0), min(y + bottom, self._y1)
        if x0 < x1 and y0 < y1:
            for row in range(y0 // th, (y1 - 1) // th + 1):
                for column in range(x0 // tw, (x1 - 1) // tw + 1):
                    if (row, column) not in self._done:
                        self._paste(row, column)
        return self._rgb[window]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self[:, :], dtype=dtype)

    def _paste(self, row: int, column: int) -> None:
        (x, y), (tw, th) = self._place, self._tile
        top, bottom = max(self._y0, row * th), min(self._y1, row * th + th)
        left, right = max(self._x0, column * tw), min(self._x1, column * tw + tw)
        tile = self._decode(row, column)
        part = tile[top - row * th : bottom - row * th, left - column * tw : right - column * tw]
        self._rgb[top - y : bottom - y, left - x : right - x] = part
        self._done.add((row, column))


def jpeg_reduction(tile: tuple[int, int], wanted: float) -> int:
    """By how much a tile of this width and height may be reduced while it is decoded: at most `wanted`; 1, 2 or 4."""
    return next((by for by in REDUCTIONS if by <= wanted and not any(side % by for side in tile)), 1)


def decode_jpeg_tile(
    stream: bytes, *, tables: bytes | None, ycbcr: bool, tile: tuple[int, int], reduce: int = 1
) -> np.ndarray | None:
    """One JPEG tile of a TIFF: decoded whole or refused, and smaller where a coarser picture is wanted.

    libjpeg fills up what a damaged stream lacks with grey and goes on; here each of its warnings is an error (openslide
    does the same). What no decoder can see is a changed bit that leaves another valid stream: most bits of a JPEG are
    amplitudes, and there is no checksum.

    Args:
        stream: of the tile, perhaps without tables.
        tables: the level's JPEGTables, a stream of its own.
        ycbcr: the TIFF's photometric interpretation; else RGB.
        tile: width and height in full.
        reduce: 1, 2 or 4, see `jpeg_reduction`.

    Returns:
        (height, width, 3) uint8 RGB; None where the stream is damaged, cut off, or of another size.
    """
    simplejpeg = require("simplejpeg", extra="histology")
    body = stream[2:]
    if not stream.startswith(_START):
        return None
    if not ycbcr and body.startswith(_JFIF):
        body = body[2 + int.from_bytes(body[2:4], "big") :]  # JFIF claims YCbCr
    whole = _START + (_YCBCR if ycbcr else _RGB) + (tables[2:-2] if tables else b"") + body
    width, height = (side // reduce for side in tile)
    out = np.empty((height, width, 3), np.uint8)
    try:
        size = simplejpeg.decode_jpeg_header(whole)[:2]
        if size != (tile[1], tile[0]):  # a stream of another size: nothing is decoded into the wrong place
            return None
        simplejpeg.decode_jpeg(whole, min_height=height, min_width=width, buffer=out, strict=True)
    except ValueError:
        return None
    return out


@dataclass(frozen=True, kw_only=True)
class Level:
    """One level: its size and tile size as (width, height), where each tile lies in the file, and how it is decoded."""

    size: tuple[int, int]
    tile: tuple[int, int]
    offsets: np.ndarray
    counts: np.ndarray
    page: Any
    tables: bytes | None


class TiledTiff:
    """An open pyramid with the attributes of an openslide handle that this adapter uses, and `region`.

    Only the tiled levels of the first picture are known here; labels and macro images are never looked at.
    """

    def __init__(self, path: Path, levels: list[Level], properties: dict[str, str]) -> None:
        self.levels = levels
        self.properties = properties
        self.dimensions = levels[0].size
        self.level_dimensions = tuple(level.size for level in levels)
        width, height = self.dimensions
        self.level_downsamples = tuple((width / w + height / h) / 2 for w, h in self.level_dimensions)
        self.level_count = len(levels)
        self._path = path
        self._lock = threading.Lock()
        self._file = path.open("rb", buffering=0)

    @classmethod
    def open(cls, path: Path) -> "TiledTiff":
        """The pyramid of the first picture of a TIFF.

        Raises:
            BadFileError: no TIFF, or not of plain 8-bit RGB tiles.
        """
        tifffile = require("tifffile", extra="histology")
        require("imagecodecs", extra="histology")
        require("simplejpeg", extra="histology")
        try:
            with tifffile.TiffFile(path) as file:
                first = file.pages[0]
                others = first.pages if first.subifds else list(file.pages)[1:]
                pages = [first, *(p for p in others or () if p.is_tiled and p.imagewidth < first.imagewidth)]
                if not all(_plain(page) for page in pages):
                    raise BadFileError(
                        "tiled TIFF of another kind than 8-bit RGB in JPEG, deflate or LZW",
                        remedy="Convert it to an 8-bit RGB pyramid (for example: vips tiffsave --pyramid --tile).",
                        path=path,
                    )
                levels = [_level(page) for page in pages]
                properties = _properties(first.description)
        except (tifffile.TiffFileError, OSError, ValueError, IndexError, KeyError) as error:
            raise BadFileError(
                "TIFF whose directory is damaged", remedy="Copy the slide again from its source.", path=path
            ) from error
        return cls(path, levels, properties)

    def get_best_level_for_downsample(self, downsample: float) -> int:
        """The coarsest level that is at least as fine."""
        return max(i for i, own in enumerate(self.level_downsamples) if own <= max(downsample, 1.0))

    def reduction(self, level: int, wanted: float) -> int:
        """By how much the tiles of a level can be reduced while they are decoded, at most `wanted`: 1, 2 or 4."""
        own = self.levels[level]
        return jpeg_reduction(own.tile, wanted) if own.page.compression == JPEG else 1

    def canvas(self, place: tuple[float, float], level: int, size: tuple[int, int], *, reduce: int = 1) -> Canvas:
        """Pixels of one level, decoded as they are cut out; a damaged tile raises BadFileError then.

        Args:
            place: left and top, level-0 pixels.
            level: index of the level.
            size: width and height, pixels of the level after its reduction.
            reduce: of the level, as `reduction` allows.
        """
        own = self.levels[level]
        across = math.ceil(own.size[0] / own.tile[0])
        x, y = (round(v / (self.level_downsamples[level] * reduce)) for v in place)
        return Canvas(
            lambda row, column: self._tile(own, row * across + column, reduce),
            place=(x, y),
            size=size,
            picture=(math.ceil(own.size[0] / reduce), math.ceil(own.size[1] / reduce)),
            tile=(own.tile[0] // reduce, own.tile[1] // reduce),
        )

    def region(self, place: tuple[float, float], level: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Pixels of one level, for arguments see `canvas`.

        Returns:
            (h, w, 3) uint8 RGB, white outside of the picture, and (h, w) uint8 coverage, 0 outside.

        Raises:
            BadFileError: a tile is damaged or cut off.
        """
        canvas = self.canvas(place, level, size)
        return canvas[:, :], canvas.coverage()

    def _tile(self, level: Level, index: int, reduce: int) -> np.ndarray:
        """(tile height, tile width, 3) uint8; tiles at the right and bottom edge may be smaller."""
        count = int(level.counts[index])
        with self._lock:
            self._file.seek(int(level.offsets[index]))
            data = self._file.read(count)
        tile = self._decoded(level, data, index, reduce) if len(data) == count else None
        if tile is None:
            raise undecodable(self._path)
        return tile

    def _decoded(self, level: Level, data: bytes, index: int, reduce: int) -> np.ndarray | None:
        if level.page.compression == JPEG:
            ycbcr = level.page.photometric == YCBCR
            return decode_jpeg_tile(data, tables=level.tables, ycbcr=ycbcr, tile=level.tile, reduce=reduce)
        try:
            pixels = level.page.decode(data, index)[0]
        except Exception as error:  # imagecodecs has an exception class for each codec
            raise undecodable(self._path) from error
        return None if pixels is None else np.asarray(pixels[0][..., :3])


def is_ome(path: Path) -> bool:
    """Whether a TIFF has an OME-XML description and the tiles that `TiledTiff` reads."""
    tifffile = require("tifffile", extra="histology")
    try:
        with tifffile.TiffFile(path) as file:
            return bool(file.is_ome) and _plain(file.pages[0])
    except (tifffile.TiffFileError, OSError, ValueError, IndexError, KeyError):
        return False


def _plain(page: Any) -> bool:
    return bool(
        page.is_tiled
        and page.imagedepth == 1
        and page.tilewidth * page.tilelength <= MAX_TILE_PIXELS
        and page.bitspersample == 8
        and page.samplesperpixel == 3
        and page.planarconfig == 1
        and page.compression in COMPRESSIONS
        and page.photometric in (RGB, YCBCR)
        and (page.photometric == RGB or page.compression == JPEG)
        and all(page.databytecounts)
    )


def _level(page: Any) -> Level:
    page.decode  # noqa: B018  (built here, while the file is open)
    return Level(
        size=(page.imagewidth, page.imagelength),
        tile=(page.tilewidth, page.tilelength),
        offsets=np.array(page.dataoffsets, np.int64),
        counts=np.array(page.databytecounts, np.int64),
        page=page,
        tables=page.jpegtables,
    )


def _properties(description: str) -> dict[str, str]:
    """Vendor and mpp in openslide's words, as far as the OME-XML of the first image tells."""
    properties = {"openslide.vendor": VENDOR}
    try:
        pixels = ET.fromstring(description).find(".//{*}Pixels")
    except ET.ParseError:
        return properties
    if pixels is None:
        return properties
    for axis in "XY":
        value, unit = pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm")
        if value is not None and unit in MICROMETRES:
            try:
                properties[f"openslide.mpp-{axis.lower()}"] = str(float(value) * MICROMETRES[unit])
            except ValueError:
                continue  # judged as missing
    return properties


def undecodable(path: Path) -> BadFileError:
    """The error for slide data that a reader opens but cannot decode."""
    return BadFileError(
        "slide whose pixels cannot be decoded",
        remedy="The file is damaged or incomplete; copy it again from the scanner or archive.",
        path=path,
    )
