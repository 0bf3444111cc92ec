"""What a scanner does to the intensities of a volume, for float32 cubes (D, H, W) in [0, 1].

The 3-D forms of `data_adapters.augment.mr_slices`, with its ranges and sources. Written out instead of calling MONAI's
transforms because those cost several times as much (docs/mri3d.md), and reseeding one of MONAI's random transforms for
each view costs about as much as some of these functions. Each draws from `rng` and may change its argument; gamma,
blur and Gibbs agree with MONAI's AdjustContrast, GaussianSmooth and GibbsNoise.
"""

from functools import lru_cache

import cv2
import numpy as np
import torch
from pydantic import Field

from data_adapters.augment.mr_slices import rician_noise
from data_adapters.augment.operations import Range, VolumeOperation

CONTROL_POINTS = 4  # per side of the bias field: as smooth as a receive coil's sensitivity


def _clipped(image: np.ndarray) -> np.ndarray:
    return np.clip(image, 0, 1, out=image)


def _rows(image: np.ndarray) -> np.ndarray:
    """(D, H, W) as the (D, H * W) matrix that OpenCV takes."""
    return image.reshape(len(image), -1)


def gamma(image: np.ndarray, *, rng: np.random.Generator, low: float = 0.7, high: float = 1.5) -> np.ndarray:
    """Tissue contrast: x ** g, g uniform in [low, high]."""
    out: np.ndarray = cv2.pow(_rows(image), float(rng.uniform(low, high)))
    return out.reshape(image.shape)


def brightness_contrast(image: np.ndarray, *, rng: np.random.Generator, limit: float = 0.25) -> np.ndarray:
    """Receiver gain and contrast: factors uniform in [1 - limit, 1 + limit]; air stays black."""
    gain, contrast = (float(f) for f in rng.uniform(1 - limit, 1 + limit, 2))
    foreground = image > 0
    count = int(np.count_nonzero(foreground))
    mean = float(image.sum(dtype=np.float64)) / count if count else 0.0  # air adds nothing to the sum
    out = image * np.float32(contrast * gain)
    out += np.float32(mean * gain * (1 - contrast))
    out *= foreground
    return _clipped(out)


def bias_field(image: np.ndarray, *, rng: np.random.Generator, sigma: float = 0.15) -> np.ndarray:
    """Coil sensitivity: exp of a smooth log-field, 4 x 4 x 4 normal draws of `sigma` upsampled with cubic splines.

    sigma .15 gives factors of about .75 to 1.35, darker as often as brighter. (MONAI's RandBiasField has positive
    coefficients only by default and reaches a factor of 2.8, always brightest in the same corner.)
    """
    depth, height, width = image.shape
    control = (rng.standard_normal((CONTROL_POINTS,) * 3) * sigma).astype(np.float32)
    planes = np.stack([cv2.resize(part, (width, height), interpolation=cv2.INTER_CUBIC) for part in control])
    field = cv2.resize(_rows(planes), (height * width, depth), interpolation=cv2.INTER_CUBIC)
    return _clipped(cv2.multiply(_rows(image), cv2.exp(field)).reshape(image.shape))


def low_resolution(image: np.ndarray, *, rng: np.random.Generator, low: float = 0.5) -> np.ndarray:
    """Thicker slices along one axis, zoom uniform in [low, 1], and linear interpolation back."""
    zoom, axis = rng.uniform(low, 1), int(rng.integers(3))
    moved = np.ascontiguousarray(np.moveaxis(image, axis, 0))
    rows = _rows(moved)
    coarse = cv2.resize(rows, (rows.shape[1], max(1, round(len(rows) * zoom))), interpolation=cv2.INTER_AREA)
    fine = cv2.resize(coarse, (rows.shape[1], len(rows)), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(np.moveaxis(fine.reshape(moved.shape), 0, axis))


def gibbs(image: np.ndarray, *, rng: np.random.Generator, low: float = 0.2, high: float = 0.6) -> np.ndarray:
    """Ringing: k-space is cut at radius (1 - alpha) sqrt(3)/2 cycles per voxel, alpha uniform in [low, high].

    The radius is that of MONAI's GibbsNoise, whose random form draws alpha up to 1 by default: an empty volume.
    """
    radius = (1 - rng.uniform(low, high)) * np.sqrt(3) / 2
    aligned = torch.from_numpy(image).clone()  # torch's own memory: MKL's last bits depend on the alignment
    spectrum = torch.fft.rfftn(aligned)
    spectrum *= torch.from_numpy(_frequencies(image.shape) <= radius)
    return _clipped(torch.fft.irfftn(spectrum, s=image.shape).numpy())


@lru_cache(maxsize=4)
def _frequencies(shape: tuple[int, int, int]) -> np.ndarray:
    """|k| in cycles per voxel on the half spectrum of a real cube."""
    d, h, w = np.fft.fftfreq(shape[0]), np.fft.fftfreq(shape[1]), np.fft.rfftfreq(shape[2])
    squares = d[:, None, None] ** 2 + h[None, :, None] ** 2 + w[None, None, :] ** 2
    return np.asarray(np.sqrt(squares), np.float32)


def blur(image: np.ndarray, *, rng: np.random.Generator, low: float = 0.25, high: float = 1.0) -> np.ndarray:
    """Gaussian blur, sigma uniform in [low, high] voxels: fine detail is the signal, so it stays weak."""
    sigma = float(rng.uniform(low, high))
    out = np.empty_like(image)
    for index, plane in enumerate(image):
        cv2.GaussianBlur(plane, (0, 0), sigma, dst=out[index])
    kernel = cv2.getGaussianKernel(2 * max(1, round(4 * sigma)) + 1, sigma, cv2.CV_32F)
    through: np.ndarray = cv2.sepFilter2D(_rows(out), -1, np.ones(1, np.float32), kernel)
    return through.reshape(image.shape)


# --- what a recipe can name -------------------------------------------------------------------------------------------


class BiasField(VolumeOperation):
    """Coil sensitivity: a smooth factor that differs over the cube."""

    sigma: float = Field(default=0.15, ge=0)
    """standard deviation of the factor's logarithm at its 4 x 4 x 4 control points"""

    def change_channel(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Multiply the cube by a drawn field."""
        return bias_field(image, rng=rng, sigma=self.sigma)


class Gamma(VolumeOperation):
    """Tissue contrast: x ** gamma, gamma uniform in a range."""

    gamma: Range = (0.7, 1.5)
    """smallest and largest exponent"""

    def change_channel(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Change the contrast of the cube."""
        return gamma(image, rng=rng, low=self.gamma[0], high=self.gamma[1])


class GainContrast(VolumeOperation):
    """Receiver gain, and contrast about the foreground's mean; air stays black."""

    limit: float = Field(default=0.25, ge=0, lt=1)
    """largest change of either factor"""

    def change_channel(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Change gain and contrast of the cube."""
        return brightness_contrast(image, rng=rng, limit=self.limit)


class Blur(VolumeOperation):
    """Gaussian blur, sigma uniform in a range of voxels; weak by default, because fine detail is the signal."""

    sigma: Range = (0.25, 1.0)
    """smallest and largest sigma, voxels of the view"""

    def change_channel(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Blur the cube."""
        return blur(image, rng=rng, low=self.sigma[0], high=self.sigma[1])


class LowResolution(VolumeOperation):
    """Thicker slices along one axis, and interpolation back."""

    zoom: float = Field(default=0.5, gt=0, le=1)
    """smallest zoom; the largest is 1"""

    def change_channel(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Coarsen the cube."""
        return low_resolution(image, rng=rng, low=self.zoom)


class Gibbs(VolumeOperation):
    """Ringing: the outer part of k-space is cut off."""

    alpha: Range = (0.2, 0.6)
    """smallest and largest part that is cut off, as MONAI's alpha"""

    def change_channel(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Let the cube ring."""
        return gibbs(image, rng=rng, low=self.alpha[0], high=self.alpha[1])


class RicianNoise(VolumeOperation):
    """Noise of magnitude images, drawn anew for each channel: acquisitions have noise of their own."""

    apart = True

    sigma: Range = (0.005, 0.04)
    """smallest and largest standard deviation"""

    def change_channel(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Add noise to the cube."""
        return rician_noise(image, rng=rng, low=self.sigma[0], high=self.sigma[1])
