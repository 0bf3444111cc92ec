"""OpenCV's resizing for any number of channels; it takes at most four at once."""

from collections.abc import Callable

import cv2
import numpy as np

MOST = 4  # channels that cv2.resize and cv2.warpAffine accept


def in_fours(image: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`change`, a function of OpenCV's, over (H, W, C) in groups of at most four channels; (h, w, C)."""
    if image.shape[2] <= MOST:
        return _with_channels(change(image))
    groups = [np.ascontiguousarray(image[..., first : first + MOST]) for first in range(0, image.shape[2], MOST)]
    return np.concatenate([_with_channels(change(group)) for group in groups], axis=2)


def resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """(H, W, C) -> (height, width, C): area averages where it shrinks, linear where it grows."""
    shrinks = width * height < image.shape[0] * image.shape[1]
    way = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return in_fours(image, lambda part: cv2.resize(part, (width, height), interpolation=way))


def middle_square(image: np.ndarray, size: int) -> np.ndarray:
    """The middle square of (H, W, C) as (size, size, C), see `resize`."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = np.ascontiguousarray(image[top : top + side, left : left + side])
    return square if side == size else resize(square, size, size)


def _with_channels(image: np.ndarray) -> np.ndarray:
    return image[:, :, None] if image.ndim == 2 else image  # OpenCV drops a channel axis of length one
