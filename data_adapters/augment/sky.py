"""What sky, telescope and detector do to a galaxy image: dust, seeing, noise, and the asinh stretch for the encoder.

Images are float32 flux, background subtracted; what works on every pixel takes (bands, height, width), where a band
lies in one piece. The distributions are those that Stein et al.
(2021, "Self-supervised similarity search for large scientific datasets") measured on the DESI Legacy Surveys; the
values are log-normal (shape, location, scale): location + scale * exp(shape * N(0, 1)).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import cv2
import numpy as np
from pydantic import Field

from data_adapters.augment.operations import PictureOperation, Range, Scene, Stage

# Extinction A_b / E(B-V) of the DECam filters (legacysurvey.org, from Schlafly & Finkbeiner 2011).
EXTINCTION = {"u": 3.995, "g": 3.214, "r": 2.165, "i": 1.592, "z": 1.211, "Y": 1.064}
EBV = (0.673, 0.0011, 0.0334)  # E(B-V), mag
SEEING_SCALE = 0.262  # arcsec per pixel, for which SEEING holds
SEEING = {"g": (0.211, 1.081, 1.315), "r": (0.301, 1.239, 0.916), "z": (0.347, 1.193, 0.823)}  # Gaussian sigma, pixels
NOISE = {"g": (0.226, -0.0007, 0.0038), "r": (0.243, -0.0024, 0.0067), "z": (0.133, -0.0143, 0.0261)}  # nanomaggies
REFERENCE_BAND = "r"  # stands for bands without a measured distribution
GRAINS = 2**20  # values in the noise table, 4 MiB
MOST_NOISE = 3.0  # times the image's own: the .98 (r) to .99 (g, z) quantile of the ratio of two draws
MIN_SIGMA = 0.2  # pixels; a narrower Gaussian changes nothing that the pixel grid can show


def lognormal(rng: np.random.Generator, parameters: tuple[float, float, float]) -> float:
    """One draw from a log-normal distribution given as (shape, location, scale)."""
    shape, location, scale = parameters
    return location + scale * float(np.exp(shape * rng.standard_normal()))


def dust_transmission(bands: Sequence[str], rng: np.random.Generator) -> np.ndarray | None:
    """Factor per band, (bands,) float32, that replaces the image's foreground dust by another sightline's.

    10 ** (-0.4 * A_b / E(B-V) * dE), dE the difference of two draws of E(B-V): redder as often as bluer. None, without
    a draw, where a band's extinction is unknown, since reddening some bands only would invent a colour.
    """
    if any(band not in EXTINCTION for band in bands):
        return None
    excess = lognormal(rng, EBV) - lognormal(rng, EBV)
    return np.asarray([10 ** (-0.4 * EXTINCTION[band] * excess) for band in bands], np.float32)


def added_seeing(bands: Sequence[str], pixel_scale: float, rng: np.random.Generator) -> list[float]:
    """Gaussian sigma per band, in pixels of `pixel_scale` arcsec, that takes the image to another night's seeing.

    sqrt(b^2 - a^2) of two draws; 0 where the other night was better, since an image cannot be sharpened.
    """
    factor = SEEING_SCALE / pixel_scale
    return [factor * _excess(rng, SEEING.get(band, SEEING[REFERENCE_BAND])) for band in bands]


def added_noise(bands: Sequence[str], sigma: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noise per band, (bands,) float32, to add to an image whose noise is `sigma`, so that it looks less exposed.

    sqrt(b^2 - a^2) of two draws, as a multiple of the draw `a`, which stands for this image: so it holds in any unit.
    b / a is at most 3: the fits have negative locations, so `a` can come near 0 and the ratio reach 34.
    """
    out = []
    for band, own in zip(bands, sigma, strict=True):
        parameters = NOISE.get(band, NOISE[REFERENCE_BAND])
        mine, other = lognormal(rng, parameters), lognormal(rng, parameters)
        ratio = min(other / mine, MOST_NOISE) if mine > 0 else 0.0
        out.append(own * np.sqrt(max(ratio**2 - 1, 0.0)))
    return np.asarray(out, np.float32)


def _excess(rng: np.random.Generator, parameters: tuple[float, float, float]) -> float:
    mine, other = lognormal(rng, parameters), lognormal(rng, parameters)
    return float(np.sqrt(max(other**2 - mine**2, 0.0)))


def blur(planes: np.ndarray, sigmas: Sequence[float]) -> np.ndarray:
    """Gaussian blur of each band of (bands, H, W) by its own sigma in pixels; the flux of each band is kept."""
    if max(sigmas) < MIN_SIGMA:
        return planes
    out = np.empty(planes.shape, np.float32)
    for band, sigma, blurred in zip(planes, sigmas, out, strict=True):
        if sigma >= MIN_SIGMA:
            cv2.GaussianBlur(band, (0, 0), sigma, dst=blurred, borderType=cv2.BORDER_REFLECT)
        else:
            blurred[:] = band
    return out


@lru_cache(maxsize=1)
def _grain() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(GRAINS, dtype=np.float32)


def _stretch_of_grain(count: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """`count` standard normal values, read-only where they lie in the table, and the sign to take them with."""
    if count > GRAINS:
        return rng.standard_normal(count, dtype=np.float32), 1
    first = int(rng.integers(GRAINS - count + 1))
    return _grain()[first : first + count], -1 if rng.integers(2) else 1


def grain(count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` standard normal values, float32: a random stretch of a fixed table of 2**20, of random sign.

    Drawing them anew takes as long as the rest of a view. More than the table holds are drawn.
    """
    values, sign = _stretch_of_grain(count, rng)
    return sign * values


def noisy(planes: np.ndarray, sigma: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`planes` (bands, H, W) with white Gaussian noise of standard deviation `sigma` (bands,)."""
    out = np.empty(planes.shape, np.float32)
    for plane, strength, noised in zip(planes, sigma.tolist(), out, strict=True):
        values, sign = _stretch_of_grain(plane.size, rng)
        cv2.scaleAdd(values.reshape(plane.shape), sign * strength, plane, dst=noised)
    return out


def robust_sigma(image: np.ndarray) -> np.ndarray:
    """Noise per band, (bands,) float32: 1.4826 times the median absolute deviation, from about 1000 pixels.

    The sources fill a small part of a cut-out, which the median passes over.
    """
    step = max(1, int(np.sqrt(image.shape[0] * image.shape[1] / 1000)))
    sample = np.ascontiguousarray(image[::step, ::step].reshape(-1, image.shape[2]).T)
    middle = sample.shape[1] // 2
    deviation = np.abs(sample - np.partition(sample, middle, axis=1)[:, middle, None])
    return np.asarray(1.4826 * np.partition(deviation, middle, axis=1)[:, middle], np.float32)


def asinh_stretch(
    planes: np.ndarray,
    scales: Sequence[float],
    *,
    q: float,
    m: float,
    log: Callable[[np.ndarray], np.ndarray] = np.log,
) -> np.ndarray:
    """Flux (bands, H, W) -> float32 in [0, 1] with colours kept: the asinh stretch of Lupton et al. (2004).

    With x_b = flux_b * scales[b] + m and I = mean_b max(x_b, 0), a band becomes x_b * asinh(q I) / (sqrt(q) I), cut to
    [0, 1]; q sets where the curve turns logarithmic, m lifts the sky above black (Legacy Surveys viewer: q 20, m .03).
    `log`: NumPy's, or for views OpenCV's, which takes a quarter of the time and differs by 1e-6 of the value at most.
    """
    x: np.ndarray = planes * np.asarray(scales, np.float32)[:, None, None]
    x += np.float32(m)
    y = np.maximum(x, 0).sum(axis=0)
    y *= np.float32(q / len(planes))
    # Below .01, asinh(y) / y is 1 to 2e-5, while float32 loses the sum in the logarithm: pixels are right to 1e-7.
    np.maximum(y, np.float32(0.01), out=y)
    root = y * y
    root += 1
    np.sqrt(root, out=root)
    root += y
    gain = log(root)  # asinh(y); NumPy's own takes ten times as long
    gain /= y
    gain *= np.float32(np.sqrt(q))
    x *= gain
    return np.clip(x, 0, 1, out=x)


# --- what a recipe can name -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FluxScene:
    """What operations on flux need to know of a view.

    Attributes:
        flux: (H, W, bands) float32 of the whole cut-out, on which noise is measured.
        zoom: image pixels per view pixel.
        bands: names in channel order.
        scales: factor on each band's flux before the stretch.
        pixel_scale: arcsec per image pixel.
        q: softening of the stretch.
        m: offset of the stretch.
    """

    flux: np.ndarray
    zoom: float
    bands: tuple[str, ...]
    scales: tuple[float, ...]
    pixel_scale: float
    q: float
    m: float


class _FluxOperation(PictureOperation):
    """Takes a view as flux, which lies band by band in memory."""

    stage: ClassVar[Stage] = "flux"

    def change(self, image: np.ndarray, rng: np.random.Generator, scene: Scene) -> np.ndarray:
        """Change the view band by band."""
        if not isinstance(scene, FluxScene):
            raise TypeError(f"{type(self).__name__} takes calibrated flux, and these are pictures")
        planes = np.ascontiguousarray(image.transpose(2, 0, 1))
        return self.change_planes(planes, rng, scene).transpose(1, 2, 0)

    def change_planes(self, planes: np.ndarray, rng: np.random.Generator, scene: FluxScene) -> np.ndarray:
        """The changed (bands, H, W) float32."""
        raise NotImplementedError


class Dust(_FluxOperation):
    """The dust of another sightline of the Milky Way; nothing changes where a band's extinction is unknown."""

    def change_planes(self, planes: np.ndarray, rng: np.random.Generator, scene: FluxScene) -> np.ndarray:
        """Redden or deredden the view."""
        transmission = dust_transmission(scene.bands, rng)
        return planes if transmission is None else planes * transmission[:, None, None]


class Seeing(_FluxOperation):
    """The point spread function of a worse night, drawn for each band from the Legacy Surveys' distribution."""

    def change_planes(self, planes: np.ndarray, rng: np.random.Generator, scene: FluxScene) -> np.ndarray:
        """Blur each band by its own Gaussian."""
        sigmas = added_seeing(scene.bands, scene.pixel_scale, rng)
        return blur(planes, [sigma / scene.zoom for sigma in sigmas])


class DetectorNoise(_FluxOperation):
    """Noise as of a shorter exposure, in proportion to the noise that the image has."""

    def change_planes(self, planes: np.ndarray, rng: np.random.Generator, scene: FluxScene) -> np.ndarray:
        """Add white noise to each band."""
        noise = added_noise(scene.bands, robust_sigma(scene.flux), rng)
        # A view pixel is the mean of zoom^2 image pixels, which has 1 / zoom of their noise.
        return noisy(planes, noise / max(scene.zoom, 1.0), rng)


class AsinhStretch(_FluxOperation):
    """Flux to values in [0, 1] with the archive's scales; its softening q varies in some of the views."""

    stage: ClassVar[Stage] = "stretch"

    vary: float = Field(default=0.25, ge=0, lt=1)
    """largest change of q, as a part of it"""
    vary_p: float = Field(default=0.3, ge=0, le=1)
    """probability that q varies"""

    def change_planes(self, planes: np.ndarray, rng: np.random.Generator, scene: FluxScene) -> np.ndarray:
        """Stretch the view."""
        q = scene.q
        if self.vary and rng.random() < self.vary_p:
            q *= rng.uniform(1 - self.vary, 1 + self.vary)
        return asinh_stretch(planes, scene.scales, q=q, m=scene.m, log=cv2.log)


class Exposure(PictureOperation):
    """Another depth and stretch of an 8-bit picture: one gain, one gamma, and a factor for each band.

    Black stays black, as the sky does; bands move together but for the little that reddening and calibration allow,
    since their ratio is the signal. Without it, brightness alone tells one galaxy's views from another's.
    """

    gain: Range = (0.6, 1.4)
    """smallest and largest gain"""
    gamma: Range = (0.7, 1.4)
    """smallest and largest exponent, log-uniform"""
    band: float = Field(default=0.1, ge=0, lt=1)
    """largest change of one band's factor"""

    def change(self, image: np.ndarray, rng: np.random.Generator, scene: Scene) -> np.ndarray:
        """Change the levels of the view."""
        if image.dtype != np.uint8:
            raise TypeError(f"Exposure takes 8-bit pictures, not {image.dtype}")
        gain, gamma = rng.uniform(*self.gain), np.exp(rng.uniform(*np.log(self.gamma)))
        bands = rng.uniform(1 - self.band, 1 + self.band, image.shape[2])
        levels = (np.arange(256)[:, None] / 255) ** gamma * gain * bands
        table = np.clip(255 * levels, 0, 255).round().astype(np.uint8)[:, None, :]
        changed: np.ndarray = cv2.LUT(image, table).reshape(image.shape)
        return changed


class Grain(PictureOperation):
    """White noise on an 8-bit picture."""

    strength: Range = (0.01, 0.03)
    """smallest and largest standard deviation, as a part of the range"""

    def change(self, image: np.ndarray, rng: np.random.Generator, scene: Scene) -> np.ndarray:
        """Add noise to the view."""
        if image.dtype != np.uint8:
            raise TypeError(f"Grain takes 8-bit pictures, not {image.dtype}")
        strength = np.float32(255 * rng.uniform(*self.strength))
        values = grain(image.size, rng).reshape(image.shape)
        values *= strength
        values += image
        noised: np.ndarray = cv2.convertScaleAbs(np.maximum(values, 0, out=values))  # rounds, stops at 255
        return noised.reshape(image.shape)
