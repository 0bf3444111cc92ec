"""Tiled TIFF pyramids, tile by tile: OME-TIFF, whose levels openslide does not see, and the fast path of training.

openslide composes a region pixel by pixel: 18 to 22 ns a pixel with every tile in its cache, measured, while decoding
a JPEG tile takes 4. A training sample needs hundreds of thousands of pixels, so where the tiles of a slide are plain
(8-bit RGB, one JPEG, deflate or LZW stream each) they are decoded and put side by side here. Scan compares the readers.
"""

import math
import threading
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_adapters.errors import BadFileError, require
from data_adapters.histology import jpegtile
from data_adapters.histology.canvas import Canvas

VENDOR = "ome-tiff"
NONE, LZW, JPEG, DEFLATE, OLD_DEFLATE = 1, 5, 7, 8, 32946
COMPRESSIONS = (NONE, LZW, JPEG, DEFLATE, OLD_DEFLATE)
RGB, YCBCR = 2, 6  # photometric interpretation
MAX_TILE_PIXELS = 4096**2  # a larger one would cost gigabytes for one small view
MICROMETRES = {"m": 1e6, "cm": 1e4, "mm": 1e3, "um": 1.0, "µm": 1.0, "μm": 1.0, "nm": 1e-3}  # both signs for micro


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
        return jpegtile.reduction(own.tile, wanted) if own.page.compression == JPEG else 1

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
            raise _undecodable(self._path)
        return tile

    def _decoded(self, level: Level, data: bytes, index: int, reduce: int) -> np.ndarray | None:
        if level.page.compression == JPEG:
            ycbcr = level.page.photometric == YCBCR
            return jpegtile.decode(data, tables=level.tables, ycbcr=ycbcr, tile=level.tile, reduce=reduce)
        try:
            pixels = level.page.decode(data, index)[0]
        except Exception as error:  # imagecodecs has an exception class for each codec
            raise _undecodable(self._path) from error
        return None if pixels is None else np.asarray(pixels[0][..., :3])


def is_ome(path: Path) -> bool:
    """Whether a TIFF tells of itself in OME-XML and has the tiles that `TiledTiff` reads."""
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


def _undecodable(path: Path) -> BadFileError:
    return BadFileError(
        "slide whose pixels cannot be decoded",
        remedy="The file is damaged or incomplete; copy it again from the scanner or archive.",
        path=path,
    )
