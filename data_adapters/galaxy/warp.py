"""Rotation, mirror, zoom, shift and crop as one resampling that neither aliases nor loses flux."""

import math
from dataclasses import dataclass

import cv2
import numpy as np

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
    """The view (size, size, C) of an (H, W, C) image; values are averages over a view pixel, edges reflect.

    A warp reads single points, so a zoom above 1 would alias. Here each view pixel is the mean of k x k points that
    lie at most 1.5 image pixels apart. Means keep surface brightness: flux = sum(view) * zoom**2.
    """
    matrix, zoom = geometry.matrix, geometry.zoom
    if zoom >= SHRINK_FIRST:
        factor = int(zoom // 2)
        height, width = (n // factor * factor for n in image.shape[:2])
        image = _channels_last(
            cv2.resize(image[:height, :width], (width // factor, height // factor), interpolation=cv2.INTER_AREA)
        )
        # Pixel centres: x' = (x + .5) / factor - .5.
        matrix = np.column_stack([matrix[:, :2] / factor, (matrix[:, 2] + 0.5) / factor - 0.5])
        zoom /= factor
    k = math.ceil(zoom / MAX_STEP)
    # Points p' of the finer grid lie at p = (p' + .5) / k - .5 of the view.
    fine = np.column_stack([matrix[:, :2] / k, matrix[:, 2] + matrix[:, :2] @ np.full(2, 0.5 / k - 0.5)])
    out = cv2.warpAffine(
        image,
        fine,
        (size * k, size * k),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT,
    )
    if k > 1:
        out = cv2.resize(out, (size, size), interpolation=cv2.INTER_AREA)
    return _channels_last(out)


def whole(image: np.ndarray, size: int) -> np.ndarray:
    """The inner square of (H, W, C) as (size, size, C): area averages when it shrinks, linear when it grows."""
    height, width = image.shape[:2]
    inner = min(height, width)
    top, left = (height - inner) // 2, (width - inner) // 2
    square = image[top : top + inner, left : left + inner]
    if inner == size:
        return np.ascontiguousarray(square)
    way = cv2.INTER_AREA if inner > size else cv2.INTER_LINEAR
    return _channels_last(cv2.resize(square, (size, size), interpolation=way))


def _channels_last(image: np.ndarray) -> np.ndarray:
    return image[:, :, None] if image.ndim == 2 else image  # OpenCV drops a channel axis of length one
