"""2-D slices exported as PNG, JPEG or TIFF: grey values, or RGB with equal channels, 8 to 32 bits."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data_adapters.errors import BadFileError
from data_adapters.raster import NODATA, without_nodata

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
BITS = {
    "L": 8,
    "LA": 8,
    "RGB": 8,
    "RGBA": 8,
    "P": 8,
    "I;16": 16,
    "I;16B": 16,
    "I;16L": 16,
    "I;16N": 16,
    "I": 32,
    "F": 32,
}
GREY_TOLERANCE = 2  # grey levels between channels: rounding of JPEG's colour transform


@dataclass(frozen=True)
class SliceHeader:
    """`size`: (width, height) in pixels; `bits` of a pixel's value."""

    size: tuple[int, int]
    bits: int


def read_header(path: Path) -> SliceHeader:
    """Check an exported slice by its header.

    Raises:
        BadFileError: no readable image, several pages, or a pixel type that is no grey value.
    """
    with _opened(path) as image:
        return SliceHeader(size=image.size, bits=BITS[image.mode])


def load(path: Path) -> np.ndarray:
    """(H, W) float32 grey values as stored, turned upright by EXIF.

    Raises:
        BadFileError: truncated, coloured or partly transparent.
    """
    with _opened(path) as opened:
        try:
            image = ImageOps.exif_transpose(opened)
            if image.mode == "P":
                image = image.convert("RGBA" if "transparency" in image.info else "RGB")
            array = np.asarray(image)
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on damaged data
            raise BadFileError("truncated or damaged data", remedy="Copy the file again.", path=path) from error
    if image.mode in ("LA", "RGBA"):
        if (array[..., -1] != 255).any():
            raise BadFileError("partly transparent image", remedy="Export it without transparency.", path=path)
        array = array[..., :-1]
    if array.ndim == 3:
        if int(np.ptp(array, axis=2).max()) > GREY_TOLERANCE:
            raise BadFileError("colour image", remedy="Export MR slices in grey values.", path=path)
        array = array[..., 0]
    return without_nodata(array, getattr(opened, "tag_v2", {}).get(NODATA)).astype(np.float32)


def _opened(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path)
    except FileNotFoundError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadFileError("image far too large for a slice", remedy="Export single slices.", path=path) from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise BadFileError("not a readable image", remedy="Export it again.", path=path) from error
    if getattr(image, "n_frames", 1) > 1:
        image.close()
        raise BadFileError("several pages in one image", remedy="Export single slices, or DICOM or NIfTI.", path=path)
    if image.mode not in BITS:
        image.close()
        raise BadFileError(f"pixels of type {image.mode}, no grey values", remedy="Export 8 or 16 bits.", path=path)
    return image
