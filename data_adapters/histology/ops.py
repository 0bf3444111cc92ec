"""The steps of a view in OpenCV: crop, symmetry, colour, focus, JPEG. Every draw comes from the generator.

The colour step is that of torchvision and albumentations (same factors, same random order), but for rounding. It is
written out because albumentations 2.0.8 spends more on its own bookkeeping than on the pixels of a small view.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np

from data_adapters.histology.tiledtiff import Canvas

MIN_SIGMA = 0.28  # pixels; a narrower Gaussian's neighbours weigh under 1/512, which is 0 in OpenCV's 8-bit kernels
STEPS = ("brightness", "contrast", "saturation", "hue")
_SAME = np.eye(3, 4)
_LUMA = np.array([0.299, 0.587, 0.114])  # of red, green, blue (ITU-R BT.601)


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


def gaussian(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur; neighbours beyond 3.3 sigma, which weigh less than half a percent, are left out."""
    if sigma < MIN_SIGMA:
        return image
    side = 2 * max(1, math.ceil(3.3 * sigma - 1)) + 1
    blurred: np.ndarray = cv2.GaussianBlur(image, (side, side), sigma)
    return blurred


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
    return coloured(image, [(STEPS[step], float(draws[step])) for step in rng.permutation(4)])


def coloured(image: np.ndarray, steps: Sequence[tuple[str, float]]) -> np.ndarray:
    """Colour steps in the given order.

    - brightness f: V * f
    - contrast f: V * f + m * (1 - f), m the mean luma of the view
    - saturation f: V * f + luma * (1 - f)
    - hue t: HSV hue moved by t turns of the colour circle

    The first three are affine maps of the three channels, so neighbours among them become one matrix, and values are
    rounded and cut to 0 .. 255 once behind it.
    """
    affine, mean = _SAME, None
    for name, value in steps:
        if name == "hue":
            image = turned_hue(_mapped(image, affine), value)
            affine, mean = _SAME, None
        elif name == "saturation":
            affine = value * affine + (1 - value) * (_LUMA @ affine)
        else:
            luma = 0.0
            if name == "contrast":
                mean = _mean(image) if mean is None else mean
                luma = float(_LUMA @ affine @ mean)
            affine = value * affine
            affine[:, 3] += luma * (1 - value)
    return _mapped(image, affine)


def _mean(image: np.ndarray) -> np.ndarray:
    """Mean red, green, blue, and 1."""
    return np.array([*cv2.mean(image)[:3], 1.0])


def _mapped(image: np.ndarray, affine: np.ndarray) -> np.ndarray:
    out: np.ndarray = image if affine is _SAME else cv2.transform(image, affine)
    return out


def turned_hue(image: np.ndarray, turns: float) -> np.ndarray:
    """HSV hue moved by `turns` of the colour circle, in steps of 1/256."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    row = np.zeros((hsv.shape[1], 3), np.uint8)
    row[:, 0] = round(256 * turns) % 256
    rows = hsv.reshape(len(hsv), -1)
    rows += row.ravel()  # 8-bit numbers turn over as the circle does
    rgb: np.ndarray = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
    return rgb


def defocus(image: np.ndarray, rng: np.random.Generator, *, sigma: tuple[float, float]) -> np.ndarray:
    """Gaussian blur with sigma uniform in `sigma`, pixels."""
    return gaussian(image, float(rng.uniform(*sigma)))


def jpeg(image: np.ndarray, rng: np.random.Generator, *, quality: tuple[int, int]) -> np.ndarray:
    """Through JPEG at a whole quality uniform in `quality`, both ends included."""
    level = int(rng.integers(quality[0], quality[1] + 1))
    _, stream = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, level])
    back: np.ndarray = cv2.cvtColor(cv2.imdecode(stream, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    return back


def by_channel(image: np.ndarray) -> np.ndarray:
    """The same (H, W, 3) picture, laid out channel by channel, as the tensor of it will be."""
    planes = np.empty((3, *image.shape[:2]), np.uint8)
    cv2.split(image, list(planes))
    return planes.transpose(1, 2, 0)
