"""TIFF: which files Pillow would change, and reading those with tifffile."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_adapters.errors import BadFileError, require
from data_adapters.sentinels import darkened, marked

MULTISAMPLE_MODES = ("RGBX",)  # a fourth sample that is declared to be no alpha: a channel
GREY_MODES = ("I;16", "I;16B", "F")  # deep grey pictures that Pillow reads unchanged
MIN_IS_WHITE, MIN_IS_BLACK, RGB = 0, 1, 2  # values of the tag PhotometricInterpretation
BITS, DESCRIPTION, PHOTOMETRIC, ORIENTATION, SAMPLE_FORMAT = 258, 270, 262, 274, 339
NODATA = 42113  # GDAL_NODATA: a number as text, which microscopes and satellites write for pixels without data
DTYPES = ("uint8", "uint16", "uint32", "int16", "int32", "float32", "float64")


@dataclass(frozen=True, kw_only=True)
class TiffLayout:
    """The stored picture: size before orientation, channels with alpha."""

    width: int
    height: int
    channels: int
    alpha: bool
    orientation: int
    dtype: np.dtype[np.generic]


def check_tiff(image: Image.Image, path: Path | str) -> None:
    """Refuse an ImageJ stack behind one page, and deep samples whose zero means white.

    Raises:
        BadFileError: one of the two.
    """
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    description = str(tags.get(DESCRIPTION, ""))
    stack = re.search(r"^images=(\d+)", description, re.MULTILINE)
    if description.startswith("ImageJ=") and stack and int(stack[1]) > 1:
        raise BadFileError(
            "several frames or pages in one file",
            remedy="Save each as a file of its own, or the channels as samples of one page.",
            path=path,
        )
    if tags.get(PHOTOMETRIC) == MIN_IS_WHITE and max(tags.get(BITS, (1,))) > 8:
        raise _unsupported("samples of more than 8 bits in which zero means white", path)


def without_nodata(pixels: np.ndarray, tag: object) -> np.ndarray:
    """Deep pixels with the lowest value where the tag GDAL_NODATA says so; 8 bits, display colours, stay as stored."""
    try:
        value = float(str(tag).strip("\x00 "))
    except ValueError:  # there is no such tag
        return pixels
    return pixels if pixels.dtype == np.uint8 else darkened(pixels, marked(pixels, [value]))


def beyond_pillow(image: Image.Image) -> bool:
    """Whether Pillow would cut or reinterpret the samples of this TIFF, so that tifffile must read it."""
    if image.format != "TIFF":
        return False
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    deep = max(tags.get(BITS, (1,))) > 8 and image.mode not in GREY_MODES
    formats = set(tags.get(SAMPLE_FORMAT, (1,)))
    signed = not formats <= {1, 4} and image.mode != "F"  # 1: unsigned, 4: undefined, taken as unsigned
    return deep or signed or image.mode in MULTISAMPLE_MODES


def tiff_layout(path: Path | str) -> TiffLayout:
    """The header as tifffile sees it.

    Raises:
        BadFileError: several pages, or samples that are no plain intensities.
        MissingExtraError: tifffile is not installed.
    """
    tifffile = require("tifffile", extra="histology")
    with tifffile.TiffFile(path) as tiff:
        if len(tiff.pages) > 1:
            raise BadFileError("several frames or pages in one file", remedy="Save each as a file.", path=path)
        page = tiff.pages[0]
        if page.axes not in ("YX", "YXS", "SYX"):
            raise _unsupported(f"axes {page.axes}", path)
        if page.photometric not in (MIN_IS_BLACK, RGB) or page.dtype is None or page.dtype.name not in DTYPES:
            raise _unsupported("samples that are no plain intensities", path)
        orientation = page.tags.get(ORIENTATION)
        return TiffLayout(
            width=page.imagewidth,
            height=page.imagelength,
            channels=page.samplesperpixel,
            alpha=bool(page.extrasamples) and page.extrasamples[-1] in (1, 2),  # associated or separate alpha
            orientation=1 if orientation is None else int(orientation.value),
            dtype=np.dtype(page.dtype.newbyteorder("=")),
        )


def read_tiff(path: Path | str) -> np.ndarray:
    """Decode the one page of a file that `tiff_layout` accepted: (H, W) or (H, W, C), native byte order.

    Raises:
        BadFileError: pixel data are missing.
    """
    tifffile = require("tifffile", extra="histology")
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        end = tiff.filehandle.size
        # tifffile fills segments that lie outside the file with zeros.
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            if offset <= 0 or count <= 0 or offset + count > end:
                raise BadFileError("damaged or truncated picture", remedy="Copy the file again.", path=path)
        pixels: np.ndarray = page.asarray()
        if page.axes == "SYX":
            pixels = np.moveaxis(pixels, 0, -1)
        nodata = page.tags.get(NODATA)
        native = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
        return without_nodata(native, None if nodata is None else nodata.value)


def _unsupported(what: str, path: Path | str) -> BadFileError:
    return BadFileError(
        f"a TIFF with {what}",
        remedy="Save it as grey or RGB with one page, channels as samples, and zero as black.",
        path=path,
    )
