"""Which part of a slide or tile is shown: um per pixel, a marked rectangle, and the fields that show it."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_adapters.errors import BadFileError
from data_adapters.histology.options import HistologyOptions

SANE = (0.05, 20.0)
# A scan slightly coarser than wanted is enlarged (scanners called 20x lie between .45 and .55); a coarser one has not
# got the detail.
ENLARGE = 1.15


def native_mpp(meta: Mapping[str, Any]) -> float | None:
    """`meta["mpp"]`, um per pixel at level 0 (a catalogue's value has replaced the file's), or None.

    Raises:
        BadFileError: not a number, or not a microscope's.
    """
    value = meta.get("mpp")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadFileError("mpp is not a number", remedy="Correct the column 'mpp' of the catalogue.")
    if not SANE[0] <= value <= SANE[1]:
        raise BadFileError(
            "mpp out of range",
            remedy=f"A slide has {SANE[0]:g} to {SANE[1]:g} um per pixel; a resolution tag may be a printer's. "
            "Give the true value in a catalogue column 'mpp'.",
        )
    return float(value)


def downsample(meta: Mapping[str, Any], options: HistologyOptions) -> float:
    """Level-0 pixels per pixel of an embedded tile.

    Raises:
        BadFileError: mpp is missing or absurd, or the scan is too coarse for the wanted mpp.
    """
    native = native_mpp(meta)
    if options.mpp is None:
        return 1.0
    if native is None:
        raise BadFileError(
            "mpp missing",
            remedy="Give um per pixel in a catalogue column 'mpp', or set mpp=none to read level 0 as it is.",
        )
    if native > ENLARGE * options.mpp:
        raise BadFileError(
            "scan coarser than the wanted mpp",
            remedy="Set mpp to what the scanner gave; enlarging would invent detail.",
        )
    return options.mpp / native


def draw_downsample(
    meta: Mapping[str, Any], options: HistologyOptions, size: tuple[int, int], rng: np.random.Generator
) -> float:
    """Level-0 pixels per pixel of a training region.

    With `mpp_range`: log-uniform, cut to what the slide has. With `mpp_choices`: one of those that the slide has, and
    `mpp` where it has none. Never finer than the scan, never so coarse that the region is larger than the slide.
    Consumes one draw.

    Raises:
        BadFileError: as `downsample`.
    """
    fixed, u = downsample(meta, options), float(rng.random())
    if options.mpp is None:
        return fixed
    native = options.mpp / fixed
    most = native * min(size) / options.tile_px
    if options.mpp_choices is not None:
        has = [choice for choice in options.mpp_choices if native <= ENLARGE * choice and choice <= most]
        return (has[int(u * len(has))] if has else options.mpp) / native
    if options.mpp_range is None:
        return fixed
    high = max(options.mpp, min(options.mpp_range[1], most))
    low = min(max(options.mpp_range[0], native), high)
    return float(low * (high / low) ** u) / native


Region = tuple[float, float, float, float]


def marked_region(meta: Mapping[str, Any], size: tuple[int, int]) -> Region | None:
    """`meta["region"]` = [left, top, width, height] in level-0 pixels, or None when there is no such list.

    Raises:
        BadFileError: not four numbers, or not wholly inside the picture.
    """
    given = meta.get("region")
    if not isinstance(given, list | tuple):  # a catalogue column of that name holds text
        return None
    numbers = [v for v in given if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)]
    if len(given) != 4 or len(numbers) != 4 or numbers[2] < 1 or numbers[3] < 1:
        raise BadFileError(
            "region is not left, top, width, height", remedy="Give four numbers in level-0 pixels, sides of at least 1."
        )
    x, y, w, h = (float(v) for v in numbers)
    if x < 0 or y < 0 or x + w > size[0] or y + h > size[1]:
        raise BadFileError(
            "region lies outside of the picture",
            remedy=f"Mark a region inside the picture, which is {size[0]} x {size[1]} level-0 pixels.",
        )
    return x, y, w, h


def cover(region: Region, *, side: float, count: int) -> list[tuple[float, float]]:
    """Corners of squares of `side` that show a region, in reading order, evenly spread.

    Along each axis as many squares as fit best (at least one); with more than `count`, every k-th of them.

    Raises:
        BadFileError: the region is smaller than one square.
    """
    x, y, w, h = region
    if min(w, h) < side * 0.999:
        raise BadFileError(
            "region smaller than one view of the encoder",
            remedy=f"Mark at least {math.ceil(side)} x {math.ceil(side)} level-0 pixels of this slide.",
        )
    side = min(side, w, h)
    columns, rows = (_spread(length, side) for length in (w, h))
    corners = [(x + left, y + top) for top in rows for left in columns]
    if len(corners) <= count:
        return corners
    return [corners[int((i + 0.5) * len(corners) / count)] for i in range(count)]


def _spread(length: float, side: float) -> list[float]:
    n = max(1, round(length / side))
    if n == 1:
        return [(length - side) / 2]
    return [i * (length - side) / (n - 1) for i in range(n)]
