"""The steps of a view in OpenCV: crop, symmetry, colour, focus, JPEG. Every draw comes from the generator.

The colour step is that of torchvision and albumentations (same factors, same random order). It is written out because
albumentations 2.0.8 spends more on its own bookkeeping than on the pixels of a small view.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np

cv2.setNumThreads(0)  # loader workers are the parallelism; nested threads only contend

_LEVELS = np.arange(256, dtype=np.float64)
MIN_SIGMA = 0.1  # pixels; a narrower Gaussian changes nothing that 8 bits can show
_HUES = 180  # OpenCV's 8-bit hue counts steps of 2 degrees
_UNTURNED = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)  # a table that changes nothing


def random_crop(
    image: np.ndarray, rng: np.random.Generator, *, size: int, area: tuple[float, float], ratio: tuple[float, float]
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
    if sigma > MIN_SIGMA:
        side = 2 * math.ceil(3 * sigma) + 1
        crop = cv2.GaussianBlur(crop, (side, side), sigma)
    small: np.ndarray = cv2.resize(crop, (size, size), interpolation=cv2.INTER_LINEAR)
    return small


def resize(rgb: np.ndarray, out: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) -> (out[1], out[0], 3): averaged over areas where it shrinks, linear where it grows."""
    height, width = rgb.shape[:2]
    if (width, height) == out:
        return rgb
    shrinks = out[0] <= width and out[1] <= height
    small: np.ndarray = cv2.resize(rgb, out, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return small


def symmetry(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One of the eight symmetries of the square, equally likely: tissue has no up."""
    turns, mirrored = divmod(int(rng.integers(8)), 2)
    if turns:
        image = cv2.rotate(image, (cv2.ROTATE_90_CLOCKWISE, cv2.ROTATE_180, cv2.ROTATE_90_COUNTERCLOCKWISE)[turns - 1])
    return cv2.flip(image, 1) if mirrored else image


def colour_jitter(
    image: np.ndarray, rng: np.random.Generator, *, brightness: float, contrast: float, saturation: float, hue: float
) -> np.ndarray:
    """Brightness, contrast, saturation (factors uniform in 1 +- limit) and hue (+- limit turns) in random order."""
    draws = rng.uniform(-1, 1, 4) * (brightness, contrast, saturation, hue) + (1, 1, 1, 0)
    for step in rng.permutation(4):
        image = STEPS[step](image, float(draws[step]))
    return image


def brighter(image: np.ndarray, factor: float) -> np.ndarray:
    """V * factor."""
    return _mapped(image, _LEVELS * factor)


def contrasted(image: np.ndarray, factor: float) -> np.ndarray:
    """V * factor + m * (1 - factor), m the mean luma of the view."""
    mean = cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0]
    return _mapped(image, _LEVELS * factor + mean * (1 - factor))


def saturated(image: np.ndarray, factor: float) -> np.ndarray:
    """V * factor + luma * (1 - factor)."""
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    mixed: np.ndarray = cv2.addWeighted(image, factor, grey, 1 - factor, 0)
    return mixed


def turned_hue(image: np.ndarray, turns: float) -> np.ndarray:
    """HSV hue moved by `turns` of the colour circle."""
    table = _UNTURNED.copy()
    table[0, :_HUES, 0] = np.roll(table[0, :_HUES, 0], -round(_HUES * turns))
    hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), table)
    rgb: np.ndarray = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return rgb


STEPS: tuple[Callable[[np.ndarray, float], np.ndarray], ...] = (brighter, contrasted, saturated, turned_hue)


def defocus(image: np.ndarray, rng: np.random.Generator, *, sigma: tuple[float, float]) -> np.ndarray:
    """Gaussian blur with sigma uniform in `sigma`, pixels; the kernel reaches to 3.5 sigma, as Pillow's."""
    width = float(rng.uniform(*sigma))
    side = 2 * int(3.5 * width) + 1
    blurred: np.ndarray = image if side == 1 else cv2.GaussianBlur(image, (side, side), width)
    return blurred


def jpeg(image: np.ndarray, rng: np.random.Generator, *, quality: tuple[int, int]) -> np.ndarray:
    """Through JPEG at a whole quality uniform in `quality`, both ends included."""
    level = int(rng.integers(quality[0], quality[1] + 1))
    _, stream = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, level])
    back: np.ndarray = cv2.cvtColor(cv2.imdecode(stream, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    return back


def _mapped(image: np.ndarray, levels: np.ndarray) -> np.ndarray:
    table = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    out: np.ndarray = cv2.LUT(image, table)
    return out
