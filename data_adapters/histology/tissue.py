"""Where a slide shows tissue: a mask of its overview, packed into the manifest, and the fields drawn from it."""

import base64
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import cv2
import numpy as np

Stain = Literal["he", "ihc", "any"]

# Bounds of Otsu's threshold. Below: the noise and tint of empty glass. Above: on a slide that is all tissue Otsu
# would cut the tissue itself in two.
SATURATION = (15, 45)  # of 255
DENSITY = (0.06, 0.12)  # optical density, natural logarithm
CONTRAST = (15, 45)  # grey levels
# Green lies in no mixture of haematoxylin and eosin: it is marker ink. Hue in OpenCV's units of 2 degrees.
INK_HUE = (35, 90)
# Darker than any stained overview: black ink, the scanner's frame, folds.
DARKEST = 50


def tissue_mask(rgb: np.ndarray, covered: np.ndarray, *, stain: Stain) -> np.ndarray:
    """Tissue in an overview.

    - "he": saturation above Otsu's threshold, without green or black ink (rule of CLAM, threshold within bounds).
    - "ihc": the largest optical density over red, green and blue, against the brightest 2 % of the slide, above Otsu's
      threshold. DAB darkens all channels and a pale counterstain darkens red, which saturation alone would miss.
    - "any": largest difference from the commonest colour, above Otsu's threshold; also for fluorescence on black.

    Args:
        rgb: (h, w, 3) uint8.
        covered: (h, w) bool; what was not scanned is never tissue.
        stain: the rule.

    Returns:
        (h, w) bool.
    """
    if not covered.any():
        return np.zeros(covered.shape, bool)
    smooth = cv2.medianBlur(np.ascontiguousarray(rgb), 3)
    if stain == "he":
        hue, saturation, value = cv2.split(cv2.cvtColor(smooth, cv2.COLOR_RGB2HSV))
        ink = (hue > INK_HUE[0]) & (hue < INK_HUE[1]) | (value < DARKEST)
        found: np.ndarray = _above(saturation, covered & ~ink, SATURATION) & ~ink
    elif stain == "ihc":
        # 255 grey levels of density up to ln 255, which Otsu's histogram needs.
        step = np.log(255.0) / 255
        glass = np.maximum(np.percentile(smooth[covered], 98, axis=0), 1)
        passed = np.clip(smooth / glass, 1 / 255, 1).min(axis=2)
        density = np.rint(-np.log(passed) / step).astype(np.uint8)
        found = _above(density, covered, (DENSITY[0] / step, DENSITY[1] / step))
    else:
        background = _commonest(smooth[covered])
        contrast = np.abs(smooth.astype(np.int16) - background).max(axis=2).astype(np.uint8)
        found = _above(contrast, covered, CONTRAST)
    tissue: np.ndarray = found & covered
    return tissue


def _above(values: np.ndarray, valid: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    if not valid.any():
        return np.zeros(values.shape, bool)
    otsu, _ = cv2.threshold(values[valid].reshape(-1, 1), 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    above: np.ndarray = values > min(max(otsu, bounds[0]), bounds[1])
    return above


def _commonest(colours: np.ndarray) -> np.ndarray:
    """Median of the fullest cell of a 16 x 16 x 16 colour histogram; colours: (n, 3) uint8."""
    cells = (colours >> 4).astype(np.int32) @ np.array([256, 16, 1])
    median: np.ndarray = np.median(colours[cells == np.bincount(cells).argmax()], axis=0).astype(np.int16)
    return median


@dataclass(frozen=True)
class Tissue:
    """The tissue of one slide.

    Attributes:
        mask: (h, w) bool, in cells of the overview.
        cell: side of a cell, level-0 pixels.
    """

    mask: np.ndarray
    cell: float

    def pack(self) -> dict[str, Any]:
        """JSON for the manifest: a few kilobytes a slide."""
        bits = base64.b64encode(zlib.compress(np.packbits(self.mask).tobytes(), 9)).decode("ascii")
        return {"shape": list(self.mask.shape), "cell": self.cell, "bits": bits}

    @staticmethod
    def unpack(packed: Mapping[str, Any]) -> "Tissue":
        """The Tissue that `pack` wrote."""
        height, width = packed["shape"]
        return _unpack(packed["bits"], int(height), int(width), float(packed["cell"]))

    @cached_property
    def _integral(self) -> np.ndarray:
        total: np.ndarray = cv2.integral(self.mask.astype(np.uint8), sdepth=cv2.CV_32S)
        return total

    @cached_property
    def cells(self) -> np.ndarray:
        """Flat indices of the tissue cells, (n,)."""
        return np.flatnonzero(self.mask)

    @property
    def area(self) -> float:
        """Tissue area in square level-0 pixels."""
        return self.cells.size * self.cell**2

    def fraction(self, x: np.ndarray, y: np.ndarray, side: float) -> np.ndarray:
        """Tissue fraction of the cells that squares touch; x, y: (n,) left and top, level-0 pixels."""
        height, width = self.mask.shape
        left = np.clip(np.floor(np.asarray(x) / self.cell + 1e-6), 0, width - 1).astype(int)
        top = np.clip(np.floor(np.asarray(y) / self.cell + 1e-6), 0, height - 1).astype(int)
        right = np.clip(np.ceil((np.asarray(x) + side) / self.cell - 1e-6).astype(int), left + 1, width)
        bottom = np.clip(np.ceil((np.asarray(y) + side) / self.cell - 1e-6).astype(int), top + 1, height)
        s = self._integral
        count = s[bottom, right] - s[top, right] - s[bottom, left] + s[top, left]
        share: np.ndarray = count / ((bottom - top) * (right - left))
        return share

    def corners(self, cells: np.ndarray, shift: np.ndarray, side: float, size: tuple[int, int]) -> np.ndarray:
        """(n, 2) left and top of squares about tissue cells, moved inside the slide.

        Args:
            cells: (n,) flat indices of cells.
            shift: (n, 2) place within the cell, 0 to 1.
            side: of the squares, level-0 pixels.
            size: width and height of the slide, level-0 pixels.
        """
        rows, columns = np.divmod(cells, self.mask.shape[1])
        centre = (np.stack([columns, rows], axis=1) + shift) * self.cell
        inside: np.ndarray = np.clip(centre - side / 2, 0, np.maximum(np.array(size) - side, 0))
        return inside

    def draw(
        self, rng: np.random.Generator, *, side: float, size: tuple[int, int], least: float, tries: int = 5
    ) -> tuple[float, float]:
        """Corner of a random square with at least `least` tissue: the first of `tries` draws that has it.

        Where none has (thin biopsies), the draw with the most tissue.
        """
        cells = self.cells[rng.integers(self.cells.size, size=tries)]
        corners = self.corners(cells, rng.random((tries, 2)), side, size)
        share = self.fraction(corners[:, 0], corners[:, 1], side)
        enough = share >= least
        best = int(enough.argmax()) if enough.any() else int(share.argmax())
        return float(corners[best, 0]), float(corners[best, 1])

    def grid(self, *, side: float, size: tuple[int, int], least: float, count: int) -> list[tuple[float, float]]:
        """Corners of up to `count` tissue squares of a regular grid centred on the slide, in reading order.

        With more qualifying squares, every k-th is taken, so that they spread over the slide; with none, the one
        square about a tissue cell that holds the most tissue.
        """
        nx, ny = (max(1, int(length // side)) for length in size)
        x0, y0 = (max(0.0, (length - n * side) / 2) for length, n in zip(size, (nx, ny), strict=True))
        x, y = (a.ravel() for a in np.meshgrid(x0 + np.arange(nx) * side, y0 + np.arange(ny) * side))
        chosen = np.flatnonzero(self.fraction(x, y, side) >= least)
        if not chosen.size:
            corner, _ = self.best(side=side, size=size)
            return [corner]
        if chosen.size > count:
            chosen = chosen[((np.arange(count) + 0.5) * chosen.size / count).astype(int)]
        return [(float(x[i]), float(y[i])) for i in chosen]

    def most(self, *, side: float, size: tuple[int, int]) -> float:
        """The largest tissue fraction of a square (see `best`)."""
        return self.best(side=side, size=size)[1]

    def best(self, *, side: float, size: tuple[int, int]) -> tuple[tuple[float, float], float]:
        """Of up to 4096 tissue cells, evenly taken: the corner of the square with the most tissue, and its fraction."""
        cells = self.cells[:: max(1, -(-self.cells.size // 4096))]
        corners = self.corners(cells, np.full((cells.size, 2), 0.5), side, size)
        share = self.fraction(corners[:, 0], corners[:, 1], side)
        i = int(share.argmax())
        return (float(corners[i, 0]), float(corners[i, 1])), float(share[i])


@lru_cache(maxsize=16)
def _unpack(bits: str, height: int, width: int, cell: float) -> Tissue:
    packed = np.frombuffer(zlib.decompress(base64.b64decode(bits)), np.uint8)
    mask = np.unpackbits(packed, count=height * width).reshape(height, width).astype(bool)
    return Tissue(mask=mask, cell=cell)
