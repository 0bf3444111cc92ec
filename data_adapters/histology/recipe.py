"""One view of a source: crop that keeps the size of nuclei, eight symmetries, stain, colour, focus, JPEG.

Sources of the values: Virchow2 (extended-context crop), Tellez et al. 2018 (stain), OpenMidnight (colour: half of
LeJEPA's natural-image jitter). Blur is focus, JPEG the scanner. No greyscale, because haematoxylin against eosin is the
signal, and no solarisation, because no scanner does that.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from data_adapters.augment.seam import A, Seeded
from data_adapters.augment.stain import hed_jitter
from data_adapters.base import ViewKind
from data_adapters.histology.options import HistologyOptions

RATIO = (0.95, 1.05)  # the shape of nuclei is a feature, so views are hardly stretched
ZOOM = (0.9, 1.1)
P_STAIN = 0.5


@dataclass(frozen=True, kw_only=True)
class Source:
    """What all views of one sample are cut from.

    Attributes:
        pixels: (H, W, 3) uint8 RGB.
        scaled: a region of a slide, at a chosen um per pixel; otherwise a ready-made tile.
    """

    pixels: np.ndarray
    scaled: bool


class Recipe:
    """A callable (Source, rng) -> (size, size, 3) uint8 for one kind of view."""

    def __init__(self, kind: ViewKind, size: int, options: HistologyOptions) -> None:
        exact = (size / options.tile_px) ** 2
        tile_area = options.tile_global_area if kind == "global" else options.tile_local_area
        self._region = geometry(size, (exact * ZOOM[0] ** 2, exact * ZOOM[1] ** 2))
        self._tile = geometry(size, tile_area)
        self._colour = Seeded(
            [
                A.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.1, hue=0.05, p=0.8),
                A.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 1.5), p=0.3),
                A.ImageCompression(compression_type="jpeg", quality_range=(60, 95), p=0.1),
            ]
        )
        # Fluorescence and unknown dyes do not obey the three stain vectors.
        self._sigma = 0.0 if options.stain == "any" else options.stain_sigma

    def __call__(self, source: Source, rng: np.random.Generator) -> np.ndarray:
        """`source` -> (size, size, 3) uint8 RGB."""
        view = (self._region if source.scaled else self._tile)(source.pixels, rng)
        if self._sigma and rng.random() < P_STAIN:
            view = hed_jitter(view, rng, sigma=self._sigma)
        return self._colour(view, rng)


def geometry(size: int, area: tuple[float, float]) -> Seeded:
    """Crop of `area` (fractions of the picture) to (size, size), then one of the eight symmetries of the square."""
    crop = A.RandomResizedCrop(
        (size, size),
        scale=area,
        ratio=RATIO,
        interpolation=cv2.INTER_LINEAR,
        area_for_downscale="image",  # linear alone aliases where a crop shrinks
    )
    return Seeded([crop, A.D4(p=1)])
