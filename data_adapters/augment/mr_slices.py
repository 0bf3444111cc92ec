"""What a scanner does to the intensities of an MR image, for float32 images in [0, 1] of shape (H, W, C).

Each function draws its parameters from `rng` and returns a new float32 image in [0, 1] of the same shape. Ranges: nnssl
(gamma, brightness, contrast, low resolution), 3DINO and MONAI (Gibbs), capped so that anatomy stays recognisable.

They run for every view, so each is a few vectorised OpenCV calls: pow and exp of OpenCV are several times faster than
numpy's, and the bias field is a product of small matrices.
"""

from functools import lru_cache

import cv2
import numpy as np
from pydantic import Field
from scipy import fft

from data_adapters.augment.operations import PictureOperation, Range, Scene

CONTROL_POINTS = 4  # per side of the bias field: as smooth as a receive coil's sensitivity
DARKEST = 1e-9  # below one level of float16; the logarithm of 0, and of numbers below 1e-38, is a slow path


def _clipped(image: np.ndarray) -> np.ndarray:
    return np.clip(image, 0, 1, out=image)


def _channels(image: np.ndarray, like: np.ndarray) -> np.ndarray:
    """OpenCV drops a single channel; put it back."""
    return image.reshape(*image.shape[:2], like.shape[2])


def _foreground(image: np.ndarray) -> np.ndarray:
    """1 where the image is above 0, else 0, as float32."""
    return _channels(cv2.threshold(image, 0, 1, cv2.THRESH_BINARY)[1], image)


def gamma(image: np.ndarray, *, rng: np.random.Generator, low: float = 0.7, high: float = 1.5) -> np.ndarray:
    """Tissue contrast: x ** g, g uniform in [low, high]."""
    logarithm = cv2.log(np.maximum(image, np.float32(DARKEST)))
    logarithm *= np.float32(rng.uniform(low, high))
    out = _channels(cv2.exp(logarithm, dst=logarithm), image)
    out *= _foreground(image)
    return _clipped(out)


def brightness_contrast(image: np.ndarray, *, rng: np.random.Generator, limit: float = 0.25) -> np.ndarray:
    """Receiver gain and contrast: factors uniform in [1 - limit, 1 + limit].

    Brightness is a factor and no offset, and contrast turns about the foreground's mean only there, so air stays black.
    """
    gain, contrast = (float(f) for f in rng.uniform(1 - limit, 1 + limit, 2))
    mean = float(image.sum()) / max(int(np.count_nonzero(image)), 1)
    out = cv2.addWeighted(image, contrast * gain, _foreground(image), (1 - contrast) * mean * gain, 0)
    return _clipped(_channels(out, image))


@lru_cache(maxsize=64)
def _spline(size: int) -> np.ndarray:
    """(size, 4) weights of the control points: OpenCV's cubic interpolation as a matrix."""
    weights: np.ndarray = cv2.resize(
        np.eye(CONTROL_POINTS, dtype=np.float32), (CONTROL_POINTS, size), interpolation=cv2.INTER_CUBIC
    )
    return weights


def bias_field(image: np.ndarray, *, rng: np.random.Generator, sigma: float = 0.15) -> np.ndarray:
    """Coil sensitivity: exp of a smooth log-field, 4 x 4 normal draws of `sigma` upsampled with cubic splines.

    sigma .15 gives factors of about .75 to 1.35. (MONAI's RandBiasField default has positive coefficients only and
    reaches a factor of 2.8, always brightest in the same corner.)
    """
    control = (rng.standard_normal((CONTROL_POINTS, CONTROL_POINTS)) * sigma).astype(np.float32)
    field = cv2.exp(_spline(image.shape[0]) @ control @ _spline(image.shape[1]).T)
    return _clipped(image * field[:, :, None])


def rician_noise(image: np.ndarray, *, rng: np.random.Generator, low: float = 0.005, high: float = 0.04) -> np.ndarray:
    """Noise of magnitude images: |x + n1 + i n2|, n1 and n2 normal, std uniform in [low, high] (Gudbjartsson 1995)."""
    std = np.float32(rng.uniform(low, high))
    noise = rng.standard_normal((2, *image.shape), dtype=np.float32)
    noise *= std
    noise[0] += image
    noise *= noise
    # cv2.magnitude is faster, but its last bit depends on where the arrays lie in memory
    return _clipped(np.sqrt(noise[0] + noise[1]))


def low_resolution(image: np.ndarray, *, rng: np.random.Generator, low: float = 0.5) -> np.ndarray:
    """Coarser sampling along one in-plane axis, zoom uniform in [low, 1], and interpolation back."""
    height, width = image.shape[:2]
    zoom = rng.uniform(low, 1)
    along_rows = bool(rng.integers(2))
    small = (width, max(1, round(height * zoom))) if along_rows else (max(1, round(width * zoom)), height)

    def coarsened(part: np.ndarray) -> np.ndarray:
        coarse = cv2.resize(part, small, interpolation=cv2.INTER_AREA)
        return _channels(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR), part)

    # OpenCV averages areas of four channels at the most
    return np.concatenate([coarsened(image[:, :, c : c + 4]) for c in range(0, image.shape[2], 4)], axis=2)


def gibbs(image: np.ndarray, *, rng: np.random.Generator, low: float = 0.2, high: float = 0.6) -> np.ndarray:
    """Ringing: k-space is cut at radius (1 - alpha) sqrt(2)/2 cycles per pixel, alpha uniform in [low, high].

    The radius is that of MONAI's GibbsNoise, whose default alpha of up to 1 leaves an empty image.
    """
    radius = (1 - rng.uniform(low, high)) * np.sqrt(2) / 2
    height, width = image.shape[:2]
    spectrum = fft.rfft2(image, axes=(0, 1))
    spectrum *= (_frequency(height, width) <= radius)[:, :, None]
    return _clipped(fft.irfft2(spectrum, s=(height, width), axes=(0, 1), overwrite_x=True))


@lru_cache(maxsize=16)
def _frequency(height: int, width: int) -> np.ndarray:
    """Distance of each coefficient of a real transform from the centre of k-space, cycles per pixel."""
    distance: np.ndarray = np.hypot(fft.fftfreq(height)[:, None], fft.rfftfreq(width)[None, :])
    return distance


# --- what a recipe can name -------------------------------------------------------------------------------------------


class _Intensity(PictureOperation):
    """Takes float32 in [0, 1]."""

    def change(self, image: np.ndarray, rng: np.random.Generator, scene: Scene) -> np.ndarray:
        """Change the view."""
        if image.dtype != np.float32:
            raise TypeError(f"{type(self).__name__} takes float32 in [0, 1], not {image.dtype}")
        return self.change_values(image, rng)

    def change_values(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The changed (H, W, C) float32."""
        raise NotImplementedError


class BiasField(_Intensity):
    """Coil sensitivity: a smooth factor that differs over the view."""

    sigma: float = Field(default=0.15, ge=0)
    """standard deviation of the factor's logarithm at its 4 x 4 control points"""

    def change_values(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Multiply the view by a drawn field."""
        return bias_field(image, rng=rng, sigma=self.sigma)


class Gamma(_Intensity):
    """Tissue contrast: x ** gamma, gamma uniform in a range."""

    gamma: Range = (0.7, 1.5)
    """smallest and largest exponent"""

    def change_values(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Change the contrast of the view."""
        return gamma(image, rng=rng, low=self.gamma[0], high=self.gamma[1])


class GainContrast(_Intensity):
    """Receiver gain, and contrast about the foreground's mean; air stays black."""

    limit: float = Field(default=0.25, ge=0, lt=1)
    """largest change of either factor"""

    def change_values(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Change gain and contrast of the view."""
        return brightness_contrast(image, rng=rng, limit=self.limit)


class RicianNoise(_Intensity):
    """Noise of magnitude images; none in a channel without signal, where a sequence is missing."""

    sigma: Range = (0.005, 0.04)
    """smallest and largest standard deviation"""

    def change_values(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Add noise to the view."""
        empty = ~image.any(axis=(0, 1))
        noised = rician_noise(image, rng=rng, low=self.sigma[0], high=self.sigma[1])
        noised[:, :, empty] = 0
        return noised


class LowResolution(_Intensity):
    """Coarser sampling along one axis, and interpolation back."""

    zoom: float = Field(default=0.5, gt=0, le=1)
    """smallest zoom; the largest is 1"""

    def change_values(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Coarsen the view."""
        return low_resolution(image, rng=rng, low=self.zoom)


class Gibbs(_Intensity):
    """Ringing: the outer part of k-space is cut off."""

    alpha: Range = (0.2, 0.6)
    """smallest and largest part that is cut off, as MONAI's alpha"""

    def change_values(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Let the view ring."""
        return gibbs(image, rng=rng, low=self.alpha[0], high=self.alpha[1])
