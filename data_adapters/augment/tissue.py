"""What varies between laboratories, batches and scanners of tissue: stain, colour, focus, JPEG, and which side is up.

Stain jitter works in optical density. The colour step is that of torchvision and albumentations (same factors, same
random order), but for rounding; it is written out because albumentations 2.0.8 spends more on its own bookkeeping than
on the pixels of a small view.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import cv2
import numpy as np
from pydantic import Field

from data_adapters.augment.operations import PictureOperation, Range, Scene
from data_adapters.augment.picture import rgb_only

# Optical density of haematoxylin, eosin and DAB in red, green, blue (Ruifrok and Johnston 2001), rows to unit length.
_RUIFROK = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
STAINS: np.ndarray = _RUIFROK / np.linalg.norm(_RUIFROK, axis=1, keepdims=True)
_UNMIX = np.linalg.inv(STAINS)


def _ihc_stains() -> np.ndarray:
    """Haematoxylin, DAB and, in the place of a third stain, what neither explains (orthogonal to both)."""
    rest = np.cross(STAINS[0], STAINS[2])
    return np.stack([STAINS[0], STAINS[2], rest / np.linalg.norm(rest)])


IHC_STAINS: np.ndarray = _ihc_stains()
_IHC_UNMIX = np.linalg.inv(IHC_STAINS)

# -ln(v / 255); black has no finite density and counts as 1.
_DENSITY = -np.log(np.maximum(np.arange(256), 1) / 255.0).astype(np.float32)


def scale_stains(
    image: np.ndarray, *, alpha: np.ndarray, beta: np.ndarray, stain: Literal["he", "ihc"] = "he"
) -> np.ndarray:
    """Replace the amount s of each stain by ``alpha * s + beta`` (Beer-Lambert: densities add up).

    The whole change is one affine map of the three optical densities: od' = ((od U) alpha + beta) M with the stain
    matrix M and its inverse U. Densities are natural logarithms, the unit in which Tellez et al. give their figures;
    `skimage.color.rgb2hed` is 13.8 times smaller, so figures must not be moved between the two.

    Args:
        image: (H, W, 3) uint8 RGB.
        alpha: (3,) factors for haematoxylin, eosin, DAB ("he"), or haematoxylin, DAB, rest ("ihc"); 1 changes nothing.
        beta: (3,) amounts in optical density; 0 changes nothing.
        stain: which stains the picture is unmixed into.

    Returns:
        (H, W, 3) uint8 RGB. What would be brighter than white is white.

    Raises:
        TypeError: the image is not uint8 RGB.
    """
    rgb_only(image, "stain jitter")
    unmix, stains = (_UNMIX, STAINS) if stain == "he" else (_IHC_UNMIX, IHC_STAINS)
    slope = (unmix * np.asarray(alpha)) @ stains
    offset = np.asarray(beta) @ stains
    # The sign and the white level go into the map, so that one exponential gives grey levels.
    affine = np.column_stack([-slope.T, math.log(255.0) - offset]).astype(np.float32)
    levels = cv2.exp(cv2.transform(cv2.LUT(image, _DENSITY), affine))
    out: np.ndarray = cv2.convertScaleAbs(levels)
    return out


def hed_jitter(
    image: np.ndarray, rng: np.random.Generator, *, sigma: float, stain: Literal["he", "ihc"] = "he"
) -> np.ndarray:
    """HED jitter of Tellez et al. (2018, 2019).

    s' = alpha s + beta for each stain, alpha ~ U(1 - sigma, 1 + sigma), beta ~ U(-sigma, sigma). Immunohistochemistry
    has no eosin: there haematoxylin and DAB are jittered, each by its own draw, and the rest stays, so a positive cell
    keeps its brown and a negative one its blue.

    Args:
        image: (H, W, 3) uint8 RGB.
        rng: source of the six draws.
        sigma: .05 is their "light" setting (a few grey levels), .2 their "strong" one; 0 gives the image back to
            within one grey level.
        stain: "he" jitters haematoxylin, eosin and DAB (the residual of H&E); "ihc" haematoxylin and DAB.

    Raises:
        TypeError: the image is not uint8 RGB.
    """
    alpha, beta = 1 + rng.uniform(-sigma, sigma, 3), rng.uniform(-sigma, sigma, 3)
    if stain == "ihc":
        alpha[2], beta[2] = 1, 0
    return scale_stains(image, alpha=alpha, beta=beta, stain=stain)


# --- colour, focus, JPEG, symmetry ------------------------------------------------------------------------------------

MIN_SIGMA = 0.28  # pixels; a narrower Gaussian's neighbours weigh under 1/512, which is 0 in OpenCV's 8-bit kernels
STEPS = ("brightness", "contrast", "saturation", "hue")
_SAME = np.eye(3, 4)
_LUMA = np.array([0.299, 0.587, 0.114])  # of red, green, blue (ITU-R BT.601)


def gaussian(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur; neighbours beyond 3.3 sigma, which weigh less than half a percent, are left out."""
    if sigma < MIN_SIGMA:
        return image
    side = 2 * max(1, math.ceil(3.3 * sigma - 1)) + 1
    blurred: np.ndarray = cv2.GaussianBlur(image, (side, side), sigma)
    return blurred


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


# --- what a recipe can name -------------------------------------------------------------------------------------------


class Symmetry(PictureOperation):
    """One of the eight symmetries of the square: tissue has no up."""

    def change(self, image: np.ndarray, rng: np.random.Generator, scene: Scene) -> np.ndarray:
        """Turn and mirror the view."""
        return symmetry(image, rng).reshape(image.shape)


class StainJitter(PictureOperation):
    """HED jitter of Tellez et al. in optical density, for 8-bit RGB of tissue."""

    sigma: float = Field(default=0.05, ge=0, le=0.5)
    """largest change: 0.05 is light, 0.2 is strong"""
    stain: Literal["he", "ihc"] = "he"
    """he: haematoxylin, eosin and rest are jittered; ihc: haematoxylin and DAB"""

    def change(self, image: np.ndarray, rng: np.random.Generator, scene: Scene) -> np.ndarray:
        """Change the amounts of the stains."""
        return hed_jitter(image, rng, sigma=self.sigma, stain=self.stain)


class ColourSteps(PictureOperation):
    """Brightness, contrast, saturation and HSV hue of 8-bit RGB in random order, as torchvision's ColorJitter."""

    brightness: float = Field(default=0.2, ge=0, lt=1)
    """largest change of the factor"""
    contrast: float = Field(default=0.2, ge=0, lt=1)
    """largest change of the factor"""
    saturation: float = Field(default=0.1, ge=0, le=1)
    """largest change of the factor"""
    hue: float = Field(default=0.05, ge=0, le=0.5)
    """largest turn of the colour circle, turns"""

    def change(self, image: np.ndarray, rng: np.random.Generator, scene: Scene) -> np.ndarray:
        """Change the colours of the view."""
        rgb_only(image, "ColourSteps")
        steps = {"brightness": self.brightness, "contrast": self.contrast, "saturation": self.saturation}
        return colour_jitter(image, rng, **steps, hue=self.hue)


class Defocus(PictureOperation):
    """The scanner's focus: Gaussian blur, sigma uniform in a range of pixels."""

    sigma: Range = (0.1, 1.5)
    """smallest and largest sigma, pixels of the view"""

    def change(self, image: np.ndarray, rng: np.random.Generator, scene: Scene) -> np.ndarray:
        """Blur the view."""
        return defocus(image, rng, sigma=self.sigma).reshape(image.shape)


class Jpeg(PictureOperation):
    """8-bit RGB through JPEG, as scanners store it."""

    quality: tuple[Annotated[int, Field(ge=1, le=100)], Annotated[int, Field(ge=1, le=100)]] = (60, 95)
    """lowest and highest quality, both included"""

    def change(self, image: np.ndarray, rng: np.random.Generator, scene: Scene) -> np.ndarray:
        """Compress and decompress the view."""
        rgb_only(image, "Jpeg")
        return jpeg(image, rng, quality=self.quality)
