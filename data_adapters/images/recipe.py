"""Views of plain images: a random crop without aliasing, then appearance.

Written on OpenCV and PyTorch directly: eight views of a 512 px picture then cost a third of the same chain in
albumentations, whose calls and area resizing dominate at these sizes (benchmarks/adapters.py).
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch.nn.functional import interpolate

from data_adapters.augment.blur import MIN_SIGMA, blur_picture
from data_adapters.augment.picture import MOST, in_fours, resize
from data_adapters.images.colour import colour_matrix

RATIO = (3 / 4, 4 / 3)  # of a crop's sides
TRIES = 10  # for a crop that fits; then the largest one that the ratio permits
STRENGTH = 0.4  # of brightness and contrast
P_JITTER, P_GREY, P_BLUR, P_SOLARIZE = 0.8, 0.2, 0.5, 0.2
BLUR_SIGMA = (0.1, 2.0)  # pixels


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """(H, W, C) uint8 or float32 in [0, 1] -> (size, size, C) of the same dtype.

    `natural` is LeJEPA's recipe for photographs (Balestriero and LeCun 2025): jitter .4/.4/.2/.1 with p .8, grey .2,
    blur .5, solarize .2. Without it grey and solarize are left out, which destroy what colour and brightness say in
    most scientific images. `colour` tells 8-bit RGB: saturation, hue, grey and solarize exist only there; elsewhere
    the jitter changes brightness and contrast, of all channels alike.
    """

    size: int
    area: tuple[float, float]
    colour: bool
    natural: bool
    mirror: float

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Crop, mirror, jitter, blur, solarize."""
        left, top, width, height = draw_crop(rng, *image.shape[1::-1], area=self.area)
        view = shrink(image[top : top + height, left : left + width], self.size)
        if rng.random() < self.mirror:
            view = cv2.flip(view, 1).reshape(view.shape)
        jitter = rng.random() < P_JITTER
        if self.colour:
            grey = self.natural and rng.random() < P_GREY
            view = colour_matrix(view, rng, jitter=jitter, grey=grey, strength=STRENGTH)
        elif jitter:
            view = _brightness_contrast(view, rng)
        if rng.random() < P_BLUR:
            view = _blur(view, rng.uniform(*BLUR_SIGMA))
        if self.natural and self.colour and rng.random() < P_SOLARIZE:
            view = cv2.min(view, cv2.bitwise_not(view))  # values from 128 upwards are inverted
        return view


def draw_crop(
    rng: np.random.Generator, width: int, height: int, *, area: tuple[float, float]
) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a crop with a share of the image in `area` and sides in a ratio of 3:4 to 4:3."""
    for _ in range(TRIES):
        share, ratio, x, y = rng.random(4).tolist()
        pixels = width * height * (area[0] + (area[1] - area[0]) * share)
        ratio = RATIO[0] * (RATIO[1] / RATIO[0]) ** ratio  # its logarithm is uniform
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(x * (width - w + 1)), int(y * (height - h + 1)), w, h
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    return (width - w) // 2, (height - h) // 2, w, h


def shrink(part: np.ndarray, size: int) -> np.ndarray:
    """(H, W, C) -> (size, size, C) without aliasing: a triangle as wide as a view pixel (8 bits), or by areas."""
    if part.dtype != np.uint8 or part.shape[2] > MOST:
        return resize(part, size, size)
    writable = part if part.flags.writeable else part.copy()  # PyTorch has no read-only tensors, and warns
    # A batch axis added by PyTorch keeps the layout known as channels last, for which it has a faster path.
    pixels = torch.from_numpy(writable)[None].permute(0, 3, 1, 2)
    planes = interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)[0]
    return np.ascontiguousarray(planes.permute(1, 2, 0).numpy())


def _blur(view: np.ndarray, sigma: float) -> np.ndarray:
    if view.dtype == np.uint8:
        return blur_picture(view, sigma)
    return view if sigma < MIN_SIGMA else in_fours(view, lambda part: cv2.GaussianBlur(part, (0, 0), sigma))


def _brightness_contrast(view: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """X -> b (c x + (1 - c) mean), b and c uniform in [.6, 1.4], cut to the range of the dtype."""
    brightness, contrast = rng.uniform(1 - STRENGTH, 1 + STRENGTH, 2)
    mean = float(view.mean())
    gain, offset = brightness * contrast, brightness * (1 - contrast) * mean
    if view.dtype == np.uint8:
        levels = np.clip(np.arange(256) * gain + offset, 0, 255).round().astype(np.uint8)
        changed: np.ndarray = cv2.LUT(view, levels).reshape(view.shape)
        return changed
    out = view * np.float32(gain)
    out += np.float32(offset)
    return np.clip(out, 0, 1, out=out)
