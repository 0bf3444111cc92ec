"""A marked rectangle of a slide or tile, and the fields that show it."""

import math
from collections.abc import Mapping
from typing import Any

from data_adapters.errors import BadFileError

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
