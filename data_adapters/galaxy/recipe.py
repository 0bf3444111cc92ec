"""One view of a galaxy: what the sky, the telescope and the pointing change, and nothing else.

No hue, saturation or grey (colour tells stellar population and redshift), no solarisation, no small crops that miss
the source. Sources: Stein et al. 2021 (geometry, dust, seeing, noise), AstroCLIP (order: flux first, stretch last).
"""

from dataclasses import dataclass

import cv2
import numpy as np

from data_adapters.augment import sky
from data_adapters.augment.blur import blur_picture
from data_adapters.galaxy.warp import draw_geometry, resample


@dataclass(frozen=True, kw_only=True)
class FluxRecipe:
    """(H, W, bands) float32 flux -> (size, size, bands) float32 in [0, 1]."""

    size: int
    area: tuple[float, float]
    field: float
    bands: tuple[str, ...]
    scales: tuple[float, ...]
    pixel_scale: float
    q: float
    m: float

    def __call__(self, flux: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Geometry, then dust, seeing and noise with probability .5 each, then the stretch with q off by up to 25 %."""
        height, width = flux.shape[:2]
        geometry = draw_geometry(rng, height=height, width=width, size=self.size, area=self.area, field=self.field)
        view = np.ascontiguousarray(resample(flux, geometry, self.size).transpose(2, 0, 1))
        if rng.random() < 0.5:
            transmission = sky.dust_transmission(self.bands, rng)
            if transmission is not None:
                view *= transmission[:, None, None]
        if rng.random() < 0.5:
            seeing = sky.added_seeing(self.bands, self.pixel_scale, rng)
            view = sky.blur(view, [sigma / geometry.zoom for sigma in seeing])
        if rng.random() < 0.5:
            noise = sky.added_noise(self.bands, sky.robust_sigma(flux), rng)
            # A view pixel is the mean of zoom^2 image pixels, which has 1 / zoom of their noise.
            view = sky.noisy(view, noise / max(geometry.zoom, 1.0), rng)
        q = self.q * rng.uniform(0.75, 1.25) if rng.random() < 0.3 else self.q
        return sky.asinh_stretch(view, self.scales, q=q, m=self.m, log=cv2.log).transpose(1, 2, 0)


@dataclass(frozen=True, kw_only=True)
class PictureRecipe:
    """(H, W, C) uint8 -> (size, size, C) uint8. The stretch is already in the pixels, so flux cannot be changed."""

    size: int
    area: tuple[float, float]
    field: float
    resolution: float  # global_size / 224: the blur below is in pixels of a 224 px view

    def __call__(self, picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Geometry, then another exposure and stretch with probability .8, blur and noise with .3 each."""
        height, width = picture.shape[:2]
        view = resample(
            picture,
            draw_geometry(rng, height=height, width=width, size=self.size, area=self.area, field=self.field),
            self.size,
        )
        if rng.random() < 0.8:
            view = _other_exposure(view, rng)
        if rng.random() < 0.3:
            sigma = self.resolution * rng.uniform(0.1, 1.5)
            view = blur_picture(view, sigma)
        if rng.random() < 0.3:
            strength = np.float32(255 * rng.uniform(0.01, 0.03))
            grain = sky.grain(view.size, rng).reshape(view.shape)
            grain *= strength
            grain += view
            view = cv2.convertScaleAbs(np.maximum(grain, 0, out=grain)).reshape(view.shape)  # rounds, stops at 255
        return view


def _other_exposure(view: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another depth and stretch of the same (H, W, C) uint8 picture: gain +-40 %, gamma .7 to 1.4, each band +-10 %.

    Black stays black, as the sky does; bands move together but for the little that reddening and calibration allow,
    since their ratio is the signal. Without it, brightness alone tells one galaxy's views from another's.
    """
    gain, gamma = rng.uniform(0.6, 1.4), np.exp(rng.uniform(np.log(0.7), np.log(1.4)))
    bands = rng.uniform(0.9, 1.1, view.shape[2])
    levels = (np.arange(256)[:, None] / 255) ** gamma * gain * bands
    table = np.clip(255 * levels, 0, 255).round().astype(np.uint8)[:, None, :]
    changed: np.ndarray = cv2.LUT(view, table).reshape(view.shape)
    return changed
