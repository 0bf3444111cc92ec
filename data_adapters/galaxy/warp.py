"""Rotation, mirror, zoom, shift and crop as one resampling that neither aliases nor loses flux."""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from data_adapters.augment.resize import in_fours, resize

IN_VIEW = 0.35  # of the view's side: how far from its middle the source may come to lie
MIN_SHIFT = 0.04  # of the image's side; Stein et al. shift by 7 of 152 pixels even where the corners then reflect
MAX_STEP = 1.5  # image pixels between the points of which a view pixel is the mean
SHRINK_FIRST = 4.0  # zoom from which the image is area-averaged by an integer before the warp


@dataclass(frozen=True)
class Geometry:
    """An affine map from view pixels (x, y) to image pixels, 2 x 3, and its zoom: image pixels per view pixel."""

    matrix: np.ndarray
    zoom: float


def draw_geometry(
    rng: np.random.Generator, *, height: int, width: int, size: int, area: tuple[float, float], field: float = 1.0
) -> Geometry:
    """A random view of an image with the source in its middle.

    The view is a square of `area` times the field's inner square, turned by 0-360 degrees and mirrored with
    probability one half; the field is the middle of the image, `field` of its sides. Its centre moves as far as the
    turned square stays inside the field (at least 4 % of the side), and never so far that the source leaves the inner
    70 % of the view.
    """
    inner = field * min(height, width)
    side = math.sqrt(rng.uniform(*area)) * inner
    angle = rng.uniform(0, 2 * math.pi)
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    cos, sin = math.cos(angle), math.sin(angle)
    reach = side / 2 * (abs(cos) + abs(sin))
    shift = [rng.uniform(-1, 1) * max(field * extent / 2 - reach, MIN_SHIFT * inner) for extent in (width, height)]
    # The same shift along the view's own axes, where the bound is.
    along = max(abs(cos * shift[0] + sin * shift[1]), abs(cos * shift[1] - sin * shift[0]))
    bound = min(1.0, IN_VIEW * side / along) if along > 0 else 1.0
    zoom = side / size
    turn = zoom * np.asarray([[cos * mirror, -sin], [sin * mirror, cos]])
    centre = np.asarray([(width - 1) / 2 + bound * shift[0], (height - 1) / 2 + bound * shift[1]])
    offset = centre - turn @ np.full(2, (size - 1) / 2)
    return Geometry(matrix=np.column_stack([turn, offset]), zoom=zoom)


def resample(image: np.ndarray, geometry: Geometry, size: int) -> np.ndarray:
    """The view (size, size, C) of an (H, W, C) image, uint8 or float32; averages over a view pixel, edges reflect.

    A warp reads single points, so a zoom above 1 would alias. Here each view pixel is the mean of k x k points that
    lie at most 1.5 image pixels apart. Means keep surface brightness: flux = sum(view) * zoom**2.
    """
    matrix, zoom = geometry.matrix, geometry.zoom
    if zoom >= SHRINK_FIRST:
        factor = int(zoom // 2)
        height, width = (n // factor * factor for n in image.shape[:2])
        image = resize(image[:height, :width], width // factor, height // factor)
        # Pixel centres: x' = (x + .5) / factor - .5.
        matrix = np.column_stack([matrix[:, :2] / factor, (matrix[:, 2] + 0.5) / factor - 0.5])
        zoom /= factor
    k = math.ceil(zoom / MAX_STEP)
    # Points p' of the finer grid lie at p = (p' + .5) / k - .5 of the view.
    fine = np.column_stack([matrix[:, :2] / k, matrix[:, 2] + matrix[:, :2] @ np.full(2, 0.5 / k - 0.5)])
    out = in_fours(image, lambda part: _warp(part, fine, size * k))
    if k > 1:
        # Halving by linear interpolation is the mean of four, as by areas, and four times as fast.
        way = cv2.INTER_LINEAR if k == 2 else cv2.INTER_AREA
        out = in_fours(out, lambda part: cv2.resize(part, (size, size), interpolation=way))
    return np.rint(out, out=out).astype(np.uint8) if image.dtype == np.uint8 else out


def _warp(image: np.ndarray, matrix: np.ndarray, side: int) -> np.ndarray:
    """Linear warp to (side, side), float32, of the part that is needed, with reflected edges where it leaves the image.

    OpenCV is five times slower when it reflects by itself, and three times slower in uint8.
    """
    corners = matrix[:, :2] @ np.asarray([[0, side - 1, 0, side - 1], [0, 0, side - 1, side - 1]]) + matrix[:, 2:]
    low, high = np.floor(corners.min(axis=1)).astype(int) - 1, np.ceil(corners.max(axis=1)).astype(int) + 2
    extent = np.asarray(image.shape[1::-1])
    start, stop = np.clip(low, 0, extent - 1), np.clip(high, 1, extent)
    part = np.ascontiguousarray(image[start[1] : stop[1], start[0] : stop[0]], dtype=np.float32)
    (left, top), (right, bottom) = start - low, high - stop
    if max(left, top, right, bottom) > 0:
        part = cv2.copyMakeBorder(part, int(top), int(bottom), int(left), int(right), cv2.BORDER_REFLECT)
    shifted = np.column_stack([matrix[:, :2], matrix[:, 2] - low])
    out: np.ndarray = cv2.warpAffine(part, shifted, (side, side), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return out
