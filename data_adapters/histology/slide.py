"""Whole slides through openslide: header, overview and regions. Label and macro images are never touched."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data_adapters.errors import BadFileError, require
from data_adapters.histology.crop import resize
from data_adapters.histology.tiledtiff import Canvas, TiledTiff

# A broken pyramid must not make one small view decode gigapixels.
MAX_REGION_PIXELS = 8192**2
MAX_OVERVIEW_PIXELS = 2**28
# Cells of an overview average over a nucleus at least; single dark nuclei would look like black ink.
FINEST_CELL = 16.0
# How far the two axes of one level, or of one pixel, may differ.
ASPECT_TOLERANCE = 0.02


@dataclass(frozen=True, kw_only=True)
class SlideHeader:
    """What a slide's header says.

    Attributes:
        size: width and height at level 0, pixels.
        downsamples: of each level, relative to level 0.
        mpp: um per pixel at level 0, or None where the file does not say.
        vendor: openslide's name of the format.
    """

    size: tuple[int, int]
    downsamples: tuple[float, ...]
    mpp: float | None
    vendor: str


def detect(path: Path) -> str | None:
    """Openslide's name of the slide format, or None when the file is no slide."""
    vendor: str | None = require("openslide", extra="histology").OpenSlide.detect_format(path)
    return vendor


def open_slide(path: Path) -> Any:
    """An openslide handle.

    Raises:
        BadFileError: openslide cannot open the file.
    """
    openslide = require("openslide", extra="histology")
    try:
        return openslide.OpenSlide(path)
    except openslide.OpenSlideUnsupportedFormatError as error:
        raise BadFileError(
            "not a slide that openslide recognises",
            remedy="Copy the slide again with its companion files, or convert it to a tiled pyramidal TIFF.",
            path=path,
        ) from error
    except openslide.OpenSlideError as error:
        raise BadFileError(
            "slide that openslide cannot open",
            remedy="Convert it to a tiled pyramidal TIFF with JPEG or deflate compression.",
            path=path,
        ) from error


def header(slide: Any, path: Path) -> SlideHeader:
    """The header of an open slide, checked.

    Raises:
        BadFileError: the pages are no pyramid of one image, or the pixels are not square.
    """
    width, height = slide.dimensions
    for w, h in slide.level_dimensions[1:]:
        # openslide takes every tiled page of a plain TIFF for a level, also channels and foreign pictures.
        slack = max(ASPECT_TOLERANCE, 2 / min(w, h))
        if w >= width or abs(width * h / (height * w) - 1) > slack:
            raise BadFileError(
                "pages of the file are not levels of one picture",
                remedy="Export one slide (not channels, a stack or several scenes) as a pyramidal TIFF.",
                path=path,
            )
    return SlideHeader(
        size=(width, height),
        downsamples=tuple(float(d) for d in slide.level_downsamples),
        mpp=_mpp(slide, path),
        vendor=str(slide.properties.get("openslide.vendor", "")),
    )


def _mpp(slide: Any, path: Path) -> float | None:
    text = [slide.properties.get(f"openslide.mpp-{axis}") for axis in "xy"]
    try:
        x, y = (float(t) for t in text if t is not None)
    except ValueError:  # one of them is missing, or is no number
        return None
    if not (math.isfinite(x) and math.isfinite(y) and x > 0 and y > 0):
        return None
    if abs(x / y - 1) > ASPECT_TOLERANCE:
        raise BadFileError(
            "pixels of the slide are not square",
            remedy="Convert the slide to square pixels; nuclei would change their shape otherwise.",
            path=path,
        )
    return (x + y) / 2


def read_field(
    slide: Any, *, corner: tuple[float, float], extent: tuple[float, float], out: tuple[int, int]
) -> np.ndarray:
    """A field of the slide at any scale.

    Reads the coarsest level that is at least as fine as wanted and averages over areas, as a high-quality reduction of
    level 0 would. Outside of the scanned area is white.

    Args:
        slide: an open handle.
        corner: left and top, level-0 pixels.
        extent: width and height, level-0 pixels.
        out: width and height of the result, pixels.

    Returns:
        (out height, out width, 3) uint8 RGB.

    Raises:
        BadFileError: the slide has no level near this scale.
        openslide.OpenSlideError: damaged data; the handle is dead afterwards.
    """
    level, downsample = _level(slide, extent[0] / out[0])
    width, height = (max(1, round(side / downsample)) for side in extent)
    _check_size(width * height)
    return resize(_pixels(slide, corner, level, (width, height))[0], out)


def read_source(slide: Any, *, corner: tuple[float, float], side: float, out: int) -> np.ndarray | Canvas:
    """A square field for training: at the slide's own resolution next to the wanted one, so that views resample once.

    Reads the level as `read_field` does; where that is twice as fine or more, whole blocks of 2 x 2, 3 x 3 ... pixels
    are averaged, those of JPEG tiles by 2 or 4 while they are decoded.

    Args:
        slide: an open handle.
        corner: left and top, level-0 pixels.
        side: level-0 pixels.
        out: the wanted side of the field, pixels.

    Returns:
        (n, n, 3) uint8 RGB, n from about out to 2 * out. Of a TiledTiff a Canvas, where nothing needs averaging: its
        tiles are decoded, and damage is found, when views are cut out.

    Raises:
        BadFileError: the slide has no level near this scale.
        openslide.OpenSlideError: damaged data; the handle is dead afterwards.
    """
    level, downsample = _level(slide, side / out)
    wanted = 1.01 * side / out / downsample
    reduce = slide.reduction(level, wanted) if isinstance(slide, TiledTiff) else 1
    block = max(1, int(wanted / reduce))
    n = max(1, round(side / downsample / reduce / block))
    _check_size((n * block * reduce) ** 2)
    size = (n * block, n * block)
    if not isinstance(slide, TiledTiff):
        return resize(_pixels(slide, corner, level, size)[0], (n, n))
    canvas = slide.canvas(corner, level, size, reduce=reduce)
    return canvas if block == 1 else resize(canvas[:, :], (n, n))


def _level(slide: Any, downsample: float) -> tuple[int, float]:
    """The level to read for a downsample, and its own downsample."""
    # 1 %: downsamples are quotients of rounded sizes (4.016 for 4).
    level = slide.get_best_level_for_downsample(1.01 * downsample)
    return level, float(slide.level_downsamples[level])


def _check_size(pixels: int) -> None:
    if pixels > MAX_REGION_PIXELS:
        raise BadFileError(
            "no pyramid level near the wanted scale",
            remedy="Write a pyramid with levels 1, 1/2, 1/4 ... (for example: vips tiffsave --pyramid --tile).",
        )


def _pixels(
    slide: Any, corner: tuple[float, float], level: int, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """RGB and coverage of one level, by either reader."""
    if isinstance(slide, TiledTiff):
        return slide.region(corner, level, size)
    return on_white(slide.read_region((round(corner[0]), round(corner[1])), level, size))


def on_white(region: Any) -> tuple[np.ndarray, np.ndarray]:
    """A region from openslide -> (H, W, 3) uint8 on white, and (H, W) uint8 coverage: 0 where nothing was scanned."""
    rgba = np.asarray(region)
    alpha = cv2.extractChannel(rgba, 3)
    if int(alpha.min()) == 255:
        return cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB), alpha  # numpy takes 40 times as long to drop a channel
    share = alpha[:, :, None].astype(np.float32) / 255
    return np.rint(rgba[:, :, :3] * share + 255 * (1 - share)).astype(np.uint8), alpha


def overview(slide: Any, path: Path, *, longest: int = 1024) -> tuple[np.ndarray, np.ndarray, float]:
    """The whole slide, small, from its own levels (never from associated images, which show the patient's label).

    Args:
        slide: an open handle.
        path: of the slide, for errors.
        longest: most cells along the longer side; small slides have fewer, of FINEST_CELL pixels.

    Returns:
        (h, w, 3) uint8 RGB on white, (h, w) bool that is true where all of the cell was scanned, and the side of a cell
        in level-0 pixels. A last partial cell at the right or bottom edge is left out.

    Raises:
        BadFileError: a slide without small levels that is too large to be averaged.
        openslide.OpenSlideError: damaged data.
    """
    wanted = max(FINEST_CELL, max(slide.dimensions) / longest)
    level = slide.get_best_level_for_downsample(wanted * 1.01)
    downsample = slide.level_downsamples[level]
    width, height = slide.level_dimensions[level]
    factor = max(1, math.ceil(wanted / downsample - 0.01))
    if width * height > MAX_OVERVIEW_PIXELS:
        raise BadFileError(
            "large slide without smaller levels",
            remedy="Convert it to a pyramid (for example: vips tiffsave --pyramid --tile).",
            path=path,
        )
    w, h = max(1, width // factor), max(1, height // factor)
    rgb, covered = np.empty((h, w, 3), np.uint8), np.empty((h, w), bool)
    step = max(1, 2048 // factor)  # cells a block: bounds memory on slides with a single level
    for top in range(0, h, step):
        for left in range(0, w, step):
            cells = (min(step, w - left), min(step, h - top))
            place = (left * factor * downsample, top * factor * downsample)
            block, alpha = _pixels(slide, place, level, (cells[0] * factor, cells[1] * factor))
            window = np.s_[top : top + cells[1], left : left + cells[0]]
            rgb[window] = cv2.resize(block, cells, interpolation=cv2.INTER_AREA)
            covered[window] = cv2.resize(alpha, cells, interpolation=cv2.INTER_AREA) == 255
    return rgb, covered, factor * downsample
