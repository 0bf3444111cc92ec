"""One view of a galaxy: what the sky, the telescope and the pointing change, and nothing else.

No hue, saturation or grey (colour tells stellar population and redshift), no solarisation, no small crops that miss
the source. Sources: Stein et al. 2021 (geometry, dust, seeing, noise), AstroCLIP (order: flux first, stretch last).
"""

from dataclasses import dataclass

import numpy as np

from data_adapters.augment.operations import Operation, Scene
from data_adapters.augment.picture import Blur
from data_adapters.augment.sky import AsinhStretch, DetectorNoise, Dust, Exposure, FluxScene, Grain, Seeing
from data_adapters.galaxy.warp import draw_geometry, resample


@dataclass(frozen=True, kw_only=True)
class SkyCrop:
    """A cut-out turned, mirrored, shifted and cropped in one resampling: (H, W, C) -> (size, size, C)."""

    size: int
    area: tuple[float, float]
    field: float

    def __call__(self, picture: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Scene]:
        """One view of an 8-bit picture, and no scene."""
        return self.view(picture, rng)[0], None

    def view(self, image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
        """One view, and its zoom in image pixels per view pixel."""
        height, width = image.shape[:2]
        geometry = draw_geometry(rng, height=height, width=width, size=self.size, area=self.area, field=self.field)
        return resample(image, geometry, self.size), geometry.zoom


@dataclass(frozen=True, kw_only=True)
class FluxCrop(SkyCrop):
    """The same of flux, with the scene that operations on flux need."""

    bands: tuple[str, ...]
    scales: tuple[float, ...]
    pixel_scale: float
    q: float
    m: float

    def __call__(self, flux: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Scene]:
        """One view as (size, size, bands) float32 that lies band by band in memory, and its scene."""
        view, zoom = self.view(flux, rng)
        planes = np.ascontiguousarray(view.transpose(2, 0, 1))
        return planes.transpose(1, 2, 0), self.scene(flux, zoom)

    def scene(self, flux: np.ndarray, zoom: float) -> FluxScene:
        """The scene of a view of `flux`."""
        return FluxScene(
            flux=flux,
            zoom=zoom,
            bands=self.bands,
            scales=self.scales,
            pixel_scale=self.pixel_scale,
            q=self.q,
            m=self.m,
        )


def flux_operations() -> list[Operation]:
    """Dust, seeing and noise, then the stretch."""
    return [Dust(p=0.5), Seeing(p=0.5), DetectorNoise(p=0.5), AsinhStretch()]


def picture_operations(*, resolution: float) -> list[Operation]:
    """Another exposure, blur and noise; the stretch is already in the pixels, so flux cannot be changed.

    `resolution`: global_size / 224, as the blur is .1 to 1.5 pixels of a 224 px view.
    """
    return [Exposure(p=0.8), Blur(sigma=(0.1 * resolution, 1.5 * resolution), p=0.3), Grain(p=0.3)]
