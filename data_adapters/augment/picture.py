"""Pictures of any kind: resizing, crops, blur and colour, and the operations of them that a recipe can name.

OpenCV takes at most four channels at once, which the functions here hide.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from pydantic import Field
from torch.nn.functional import interpolate

from data_adapters.augment.operations import PictureOperation, Range, Scene

MOST = 4  # channels that cv2.resize and cv2.warpAffine accept
RATIO = (3 / 4, 4 / 3)  # of a crop's sides
TRIES = 10  # for a crop that fits; then the largest one that the ratio permits
MIN_SIGMA = 0.2  # pixels; a narrower Gaussian changes nothing that the pixel grid can show
REACH = 3.0  # standard deviations to which the kernel extends; .3 % of a Gaussian lies beyond
ONE = 256  # the sum of a kernel's weights
# RGB -> luma and two chroma axes (FCC NTSC 1953, ITU-R BT.601 luma).
YIQ = np.asarray([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
RGB = np.linalg.inv(YIQ)
# The parts of every map of colours: what keeps luma, what keeps chroma, and what turns chroma by a quarter.
LUMA, CHROMA, QUARTER = (
    RGB @ np.asarray(part) @ YIQ
    for part in (np.diag([1, 0, 0]), np.diag([0, 1, 1]), [[0, 0, 0], [0, 0, -1], [0, 1, 0]])
)


# --- sizes and crops --------------------------------------------------------------------------------------------------


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


@dataclass(frozen=True)
class RandomCrop:
    """(H, W, C) -> (size, size, C): a random part with a share of the image in `area`, without aliasing."""

    size: int
    area: tuple[float, float]

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Scene]:
        """One crop, and no scene."""
        left, top, width, height = draw_crop(rng, *image.shape[1::-1], area=self.area)
        return shrink(image[top : top + height, left : left + width], self.size), None


# --- blur -------------------------------------------------------------------------------------------------------------


def kernel(sigma: float) -> np.ndarray:
    """(2 k + 1,) float32 weights of a Gaussian of `sigma` pixels, multiples of 1/256 that sum to 1.

    OpenCV filters 8-bit pictures with weights of 8 bits, and rounds those it is given one by one, by which a picture
    becomes darker or brighter. Here the middle takes up what rounding leaves, so flat areas keep their value.
    """
    reach = max(1, math.ceil(REACH * sigma - 0.5))
    weights = [math.exp(-0.5 * (x / sigma) ** 2) for x in range(reach + 1)]
    total = weights[0] + 2 * sum(weights[1:])
    side = [round(ONE * weight / total) for weight in weights[1:]]
    half = [ONE - 2 * sum(side), *side]
    return np.asarray(half[:0:-1] + half, np.float32) / ONE


def blur_picture(picture: np.ndarray, sigma: float) -> np.ndarray:
    """(H, W, C) uint8 blurred by a Gaussian of `sigma` pixels, with mirrored edges; of any number of channels.

    In whole numbers: OpenCV's own does the same in two to three times the time.
    """
    if sigma < MIN_SIGMA:
        return picture
    weights = kernel(sigma)
    blurred: np.ndarray = cv2.sepFilter2D(picture, -1, weights, weights, borderType=cv2.BORDER_REFLECT_101)
    return blurred.reshape(picture.shape)


class Blur(PictureOperation):
    """Gaussian blur, sigma uniform in a range of pixels."""

    sigma: Range = (0.1, 2.0)
    """smallest and largest sigma, pixels of the view"""

    def change(self, image: np.ndarray, rng: np.random.Generator, scene: Scene) -> np.ndarray:
        """Blur the view."""
        sigma = float(rng.uniform(*self.sigma))
        if image.dtype == np.uint8:
            return blur_picture(image, sigma)
        return image if sigma < MIN_SIGMA else in_fours(image, lambda part: cv2.GaussianBlur(part, (0, 0), sigma))


# --- mirror, brightness, colour ---------------------------------------------------------------------------------------


class Mirror(PictureOperation):
    """Left and right exchanged."""

    def change(self, image: np.ndarray, rng: np.random.Generator, scene: Scene) -> np.ndarray:
        """Mirror the view."""
        return cv2.flip(image, 1).reshape(image.shape)  # type: ignore[no-any-return]


class BrightnessContrast(PictureOperation):
    """Brightness and contrast of all channels alike, factors uniform in 1 +- limit: b (c x + (1 - c) mean)."""

    limit: float = Field(default=0.4, ge=0, lt=1)
    """largest change of either factor"""

    def change(self, image: np.ndarray, rng: np.random.Generator, scene: Scene) -> np.ndarray:
        """Change the view, and cut it to the range of its type."""
        brightness, contrast = rng.uniform(1 - self.limit, 1 + self.limit, 2)
        mean = float(image.mean())
        gain, offset = brightness * contrast, brightness * (1 - contrast) * mean
        if image.dtype == np.uint8:
            levels = np.clip(np.arange(256) * gain + offset, 0, 255).round().astype(np.uint8)
            changed: np.ndarray = cv2.LUT(image, levels).reshape(image.shape)
            return changed
        out = image * np.float32(gain)
        out += np.float32(offset)
        return np.clip(out, 0, 1, out=out)


def rgb_only(image: np.ndarray, name: str) -> None:
    """Refuse anything but (H, W, 3) uint8.

    Raises:
        TypeError: with what the image is.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise TypeError(f"{name} takes (H, W, 3) uint8 RGB, not {image.shape} {image.dtype}")


class ColourJitter(PictureOperation):
    """Brightness, contrast, saturation and hue of 8-bit RGB as one affine map.

    Brightness b and contrast c (about the mean luma) in 1 +- limit, saturation likewise, hue turned by up to `hue`
    turns. In luma and chroma each of these is linear, so all are one matrix, rounded and cut to 0..255 once:
    x -> b (c A x + (1 - c) mean luma), where A keeps luma, scales chroma by the saturation and turns it by the hue.
    (Libraries turn the hue in HSV, which also changes luma.)
    """

    brightness: float = Field(default=0.4, ge=0, lt=1)
    """largest change of the factor"""
    contrast: float = Field(default=0.4, ge=0, lt=1)
    """largest change of the factor"""
    saturation: float = Field(default=0.2, ge=0, le=1)
    """largest change of the factor"""
    hue: float = Field(default=0.1, ge=0, le=0.5)
    """largest turn of the colour circle, turns"""

    def change(self, image: np.ndarray, rng: np.random.Generator, scene: Scene) -> np.ndarray:
        """Change the colours of the view."""
        rgb_only(image, "ColourJitter")
        draws = rng.uniform(-1, 1, 4).tolist()
        brightness, contrast = 1 + self.brightness * draws[0], 1 + self.contrast * draws[1]
        saturation, angle = 1 + self.saturation * draws[2], 2 * math.pi * self.hue * draws[3]
        matrix = np.empty((3, 4), np.float32)
        cos, sin = saturation * math.cos(angle), saturation * math.sin(angle)
        matrix[:, :3] = brightness * contrast * (LUMA + cos * CHROMA + sin * QUARTER)
        matrix[:, 3] = brightness * (1 - contrast) * float(YIQ[0] @ cv2.mean(image)[:3])
        changed: np.ndarray = cv2.transform(image, matrix)
        return changed


class Grey(PictureOperation):
    """Luma in all three channels of 8-bit RGB."""

    def change(self, image: np.ndarray, rng: np.random.Generator, scene: Scene) -> np.ndarray:
        """Take the colours away."""
        rgb_only(image, "Grey")
        changed: np.ndarray = cv2.transform(image, LUMA)
        return changed


class Solarize(PictureOperation):
    """The brighter half of the values inverted."""

    def change(self, image: np.ndarray, rng: np.random.Generator, scene: Scene) -> np.ndarray:
        """Invert values above the middle of the range."""
        inverted = cv2.bitwise_not(image) if image.dtype == np.uint8 else 1 - image
        return cv2.min(image, inverted).reshape(image.shape)  # type: ignore[no-any-return]
