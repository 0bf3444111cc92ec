"""Rotation, mirror, zoom, shift and crop as one resampling that neither aliases nor loses flux."""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from data_adapters.augment.picture import in_fours, resize

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
    share, turned, mirrored, *moved = rng.random(5).tolist()
    side = math.sqrt(area[0] + (area[1] - area[0]) * share) * inner
    angle = 2 * math.pi * turned
    mirror = -1.0 if mirrored < 0.5 else 1.0
    cos, sin = math.cos(angle), math.sin(angle)
    reach = side / 2 * (abs(cos) + abs(sin))
    shift = [
        (2 * draw - 1) * max(field * extent / 2 - reach, MIN_SHIFT * inner)
        for draw, extent in zip(moved, (width, height), strict=True)
    ]
    # The same shift along the view's own axes, where the bound is.
    along = max(abs(cos * shift[0] + sin * shift[1]), abs(cos * shift[1] - sin * shift[0]))
    bound = min(1.0, IN_VIEW * side / along) if along > 0 else 1.0
    zoom = side / size
    a, b, c, d = zoom * cos * mirror, -zoom * sin, zoom * sin * mirror, zoom * cos
    x, y = (width - 1) / 2 + bound * shift[0], (height - 1) / 2 + bound * shift[1]
    middle = (size - 1) / 2
    rows = [[a, b, x - middle * (a + b)], [c, d, y - middle * (c + d)]]
    return Geometry(matrix=np.asarray(rows), zoom=zoom)


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
    if k > 1:
        # Points p' of the finer grid lie at p = (p' + .5) / k - .5 of the view.
        matrix = np.column_stack([matrix[:, :2] / k, matrix[:, 2] + matrix[:, :2] @ np.full(2, 0.5 / k - 0.5)])
    return in_fours(image, lambda part: _averaged(part, matrix, size, k))


def _averaged(image: np.ndarray, matrix: np.ndarray, size: int, k: int) -> np.ndarray:
    """Up to four channels of the view: a warp to k times its size, and the mean of each k x k points."""
    out = _warp(image, matrix, size * k)
    if k > 1:
        # Halving by linear interpolation is the mean of four, as by areas, and four times as fast.
        out = cv2.resize(out, (size, size), interpolation=cv2.INTER_LINEAR if k == 2 else cv2.INTER_AREA)
    if image.dtype == np.uint8:
        out = cv2.convertScaleAbs(out)  # rounds; means of pixels lie in 0..255
    return out[..., :3] if image.shape[2] == 3 else out


def _warp(image: np.ndarray, matrix: np.ndarray, side: int) -> np.ndarray:
    """Linear warp to (side, side), float32, of the part that is needed, with reflected edges where it leaves the image.

    OpenCV is five times slower when it reflects by itself, three times slower in uint8, and two times slower for three
    channels than for four: three come back with a fourth that holds nothing.
    """
    (a, b, x), (c, d, y) = matrix.tolist()
    end = side - 1
    start, margin, inside = [], [], []
    for first, step, other, extent in ((y, c, d, image.shape[0]), (x, a, b, image.shape[1])):
        low = math.floor(first + min(step * end, 0) + min(other * end, 0)) - 1
        high = math.ceil(first + max(step * end, 0) + max(other * end, 0)) + 2
        begin, stop = min(max(low, 0), extent - 1), min(max(high, 1), extent)
        start.append(low)
        inside.append(slice(begin, stop))
        margin += [begin - low, high - stop]
    part = image[inside[0], inside[1]]
    if image.shape[2] == 3:
        part = cv2.cvtColor(part, cv2.COLOR_RGB2RGBA)
    part = np.ascontiguousarray(part, np.float32)
    if any(margin):
        top, bottom, left, right = margin
        part = cv2.copyMakeBorder(part, top, bottom, left, right, cv2.BORDER_REFLECT)
    shifted = np.asarray([[a, b, x - start[1]], [c, d, y - start[0]]])
    out: np.ndarray = cv2.warpAffine(part, shifted, (side, side), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return out
