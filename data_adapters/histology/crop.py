"""Crops of tissue in OpenCV, and how they are resized."""

import math

import cv2
import numpy as np

from data_adapters.augment.tissue import gaussian
from data_adapters.histology.tiledtiff import Canvas


def random_crop(
    image: np.ndarray | Canvas,
    rng: np.random.Generator,
    *,
    size: int,
    area: tuple[float, float],
    ratio: tuple[float, float],
) -> np.ndarray:
    """A random crop, resized: (H, W, 3) -> (size, size, 3).

    Area uniform in `area` (fractions of the picture), width to height log-uniform in `ratio`; where ten draws do not
    fit, the largest central crop of an allowed ratio. Linear, with antialiasing where it shrinks.
    """
    height, width = image.shape[:2]
    for _ in range(10):
        target = height * width * rng.uniform(*area)
        shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(target * shape)), round(math.sqrt(target / shape))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            break
    else:
        w, h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
        left, top = (width - w) // 2, (height - h) // 2
    return _fitted(image[top : top + h, left : left + w], size)


def _fitted(crop: np.ndarray, size: int) -> np.ndarray:
    """(h, w, 3) uint8 -> (size, size, 3).

    Below a factor of two: a Gaussian and linear sampling, several times as fast as OpenCV's average over areas, which
    takes over from there. Sigma grows as in `skimage.transform.resize`, with .8 for its .5, which comes closer to the
    area average (.2 to .4 grey levels on tissue) and damps stripes beyond the result's resolution as well.
    """
    factor = math.sqrt(crop.shape[0] * crop.shape[1]) / size
    sigma = 0.8 * (factor - 1)
    if factor >= 2:
        return resize(crop, (size, size))
    small: np.ndarray = cv2.resize(gaussian(crop, sigma), (size, size), interpolation=cv2.INTER_LINEAR)
    return small


def resize(rgb: np.ndarray, out: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) -> (out[1], out[0], 3): averaged over areas where it shrinks, linear where it grows."""
    height, width = rgb.shape[:2]
    if (width, height) == out:
        return rgb
    shrinks = out[0] <= width and out[1] <= height
    small: np.ndarray = cv2.resize(rgb, out, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return small
