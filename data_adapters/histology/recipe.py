"""One view of a source: crop that keeps the size of nuclei, eight symmetries, stain, colour, focus, JPEG.

Sources of the values: Virchow2 (extended-context crop), Tellez et al. 2018 (stain), OpenMidnight (colour: half of
LeJEPA's natural-image jitter). Blur is focus, JPEG the scanner. No greyscale, because haematoxylin against eosin is the
signal, and no solarisation, because no scanner does that.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from data_adapters.augment.tissue import hed_jitter
from data_adapters.base import ViewKind
from data_adapters.histology.canvas import Canvas
from data_adapters.histology.ops import by_channel, colour_jitter, defocus, jpeg, random_crop, symmetry
from data_adapters.histology.options import HistologyOptions

RATIO = (0.95, 1.05)  # the shape of nuclei is a feature, so views are hardly stretched
ZOOM = (0.9, 1.1)
P_STAIN, P_COLOUR, P_FOCUS, P_JPEG = 0.5, 0.8, 0.3, 0.1
COLOUR = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.1, "hue": 0.05}
FOCUS = (0.1, 1.5)  # pixels
QUALITY = (60, 95)


@dataclass(frozen=True, kw_only=True)
class Source:
    """What all views of one sample are cut from.

    Attributes:
        pixels: (H, W, 3) uint8 RGB. Of a slide, the region at the resolution in which it was read (up to about twice
            finer than wanted), so that a view is resampled once; as a Canvas it is decoded as views are cut out.
        scaled: a region of a slide, at a chosen um per pixel; otherwise a ready-made tile.
    """

    pixels: np.ndarray | Canvas
    scaled: bool


class Recipe:
    """A callable (Source, rng) -> (size, size, 3) uint8 for one kind of view."""

    def __init__(self, kind: ViewKind, size: int, options: HistologyOptions) -> None:
        exact = (size / options.tile_px) ** 2
        tile_area = options.tile_global_area if kind == "global" else options.tile_local_area
        self._region = partial(random_crop, size=size, area=(exact * ZOOM[0] ** 2, exact * ZOOM[1] ** 2), ratio=RATIO)
        self._tile = partial(random_crop, size=size, area=tile_area, ratio=RATIO)
        # Fluorescence and unknown dyes do not obey stain vectors.
        self._stain = None if options.stain == "any" or not options.stain_sigma else options.stain
        self._sigma = options.stain_sigma

    def __call__(self, source: Source, rng: np.random.Generator) -> np.ndarray:
        """`source` -> (size, size, 3) uint8 RGB."""
        stained, coloured, blurred, compressed = rng.random(4) < (P_STAIN, P_COLOUR, P_FOCUS, P_JPEG)
        view = symmetry((self._region if source.scaled else self._tile)(source.pixels, rng), rng)
        if stained and self._stain is not None:
            view = hed_jitter(view, rng, sigma=self._sigma, stain=self._stain)
        if coloured:
            view = colour_jitter(view, rng, **COLOUR)
        if blurred:
            view = defocus(view, rng, sigma=FOCUS)
        return by_channel(jpeg(view, rng, quality=QUALITY) if compressed else view)
