"""One view of a source: crop that keeps the size of nuclei, eight symmetries, stain, colour, focus, JPEG.

Sources of the values: Virchow2 (extended-context crop), Tellez et al. 2018 (stain), OpenMidnight (colour: half of
LeJEPA's natural-image jitter). Blur is focus, JPEG the scanner. No greyscale, because haematoxylin against eosin is the
signal, and no solarisation, because no scanner does that.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from data_adapters.augment.operations import Operation, Scene
from data_adapters.augment.tissue import (
    ColourSteps,
    Defocus,
    Jpeg,
    StainJitter,
    Symmetry,
)
from data_adapters.base import ViewKind
from data_adapters.histology.crop import random_crop
from data_adapters.histology.options import HistologyOptions
from data_adapters.histology.tiledtiff import Canvas

RATIO = (0.95, 1.05)  # the shape of nuclei is a feature, so views are hardly stretched
ZOOM = (0.9, 1.1)


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


class TissueCrop:
    """(Source, rng) -> (size, size, 3) uint8 for one kind of view, and no scene."""

    def __init__(self, kind: ViewKind, size: int, options: HistologyOptions) -> None:
        exact = (size / options.tile_px) ** 2
        tile_area = options.tile_global_area if kind == "global" else options.tile_local_area
        self._region = partial(random_crop, size=size, area=(exact * ZOOM[0] ** 2, exact * ZOOM[1] ** 2), ratio=RATIO)
        self._tile = partial(random_crop, size=size, area=tile_area, ratio=RATIO)

    def __call__(self, source: Source, rng: np.random.Generator) -> tuple[np.ndarray, Scene]:
        """One crop."""
        return (self._region if source.scaled else self._tile)(source.pixels, rng), None


def operations(options: HistologyOptions) -> list[Operation]:
    """What happens to a crop. Fluorescence and unknown dyes do not obey stain vectors, so they keep their stain."""
    found: list[Operation] = [Symmetry()]
    if options.stain != "any" and options.stain_sigma:
        found.append(StainJitter(sigma=options.stain_sigma, stain=options.stain, p=0.5))
    return [*found, ColourSteps(p=0.8), Defocus(p=0.3), Jpeg(p=0.1)]
