"""A rectangle of a tiled picture whose tiles are decoded when a part of it is first cut out.

The views of a sample leave about a quarter of their region's tiles untouched (simulated: 392 px regions at .5 to 1.1
um per pixel, tiles of 256), and decoding tiles is half of a sample's cost.
"""

from collections.abc import Callable
from typing import Any

import numpy as np


class Canvas:
    """Pixels as an array is sliced: `canvas[top:bottom, left:right]` is (h, w, 3) uint8 RGB, white outside.

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
