"""One view of a galaxy: what the sky, the telescope and the pointing change, and nothing else.

Rotation, mirror, zoom, shift and crop are one resampling that neither aliases nor loses flux. No hue, saturation or
grey (colour tells stellar population and redshift), no solarisation, no small crops that miss the source. Sources:
Stein et al. 2021 (geometry, dust, seeing, noise), AstroCLIP (order: flux first, stretch last).
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from data_adapters.augment.operations import Operation, Scene
from data_adapters.augment.picture import Blur, in_fours, resize
from data_adapters.augment.sky import AsinhStretch, DetectorNoise, Dust, Exposure, FluxScene, Grain, Seeing

IN_VIEW = 0.35  # of the view's side: how far from its middle the source may come to lie
MIN_SHIFT = 0.04  # of the image's side; Stein et al. shift by 7 of 152 pixels even where the corners then reflect
MAX_STEP = 1.5  # image pixels between the points of which a view pixel is the mean
SHRINK_FIRST = 4.0  # zoom from which the image is area-averaged by an integer before the warp


@dataclass(frozen=True)
class Geometry:
    """An affine map from view pixels (x, y) to image pixels, 2 x 3, and its zoom: image pixels per view pixel."""

    matrix: np.ndarray
    zoom: float


def draw_geometry(
    rng: np.random.Generator, *, height: int, width: int, size: int, area: tuple[float, float], field: float = 1.0
) -> Geometry:
    """A random view of an image with the source in its middle.

    The view is a square of `area` times the field's inner square, turned by 0-360 degrees and mirrored with
    probability one half; the field is the middle of the image, `field` of its sides. Its centre moves as far as the
    turned square stays inside the field (at least 4 % of the side), and never so far that the source leaves the inner
    70 % of the view.
    """
    inner = field * min(height, width)
    share, turned, mirrored, *moved = rng.random(5).tolist()
    side = math.sqrt(area[0] + (area[1] - area[0]) * share) * inner
    angle = 2 * math.pi * turned
    mirror = -1.0 if mirrored < 0.5 else 1.0
    cos, sin = math.cos(angle), math.sin(angle)
    reach = side / 2 * (abs(cos) + abs(sin))
    shift = [
        (2 * draw - 1) * max(field * extent / 2 - reach, MIN_SHIFT * inner)
        for draw, extent in zip(moved, (width, height), strict=True)
    ]
    # The same shift along the view's own axes, where the bound is.
    along = max(abs(cos * shift[0] + sin * shift[1]), abs(cos * shift[1] - sin * shift[0]))
    bound = min(1.0, IN_VIEW * side / along) if along > 0 else 1.0
    zoom = side / size
    a, b, c, d = zoom * cos * mirror, -zoom * sin, zoom * sin * mirror, zoom * cos
    x, y = (width - 1) / 2 + bound * shift[0], (height - 1) / 2 + bound * shift[1]
    middle = (size - 1) / 2
    rows = [[a, b, x - middle * (a + b)], [c, d, y - middle * (c + d)]]
    return Geometry(matrix=np.asarray(rows), zoom=zoom)


def resample(image: np.ndarray, geometry: Geometry, size: int) -> np.ndarray:
    """The view (size, size, C) of an (H, W, C) image, uint8 or float32; averages over a view pixel, edges reflect.

    A warp reads single points, so a zoom above 1 would alias. Here each view pixel is the mean of k x k points that
    lie at most 1.5 image pixels apart. Means keep surface brightness: flux = sum(view) * zoom**2.
    """
    matrix, zoom = geometry.matrix, geometry.zoom
    if zoom >= SHRINK_FIRST:
        factor = int(zoom // 2)
        height, width = (n // factor * factor for n in image.shape[:2])
        image = resize(image[:height, :width], width // factor, height // factor)
        # Pixel centres: x' = (x + .5) / factor - .5.
        matrix = np.column_stack([matrix[:, :2] / factor, (matrix[:, 2] + 0.5) / factor - 0.5])
        zoom /= factor
    k = math.ceil(zoom / MAX_STEP)
    if k > 1:
        # Points p' of the finer grid lie at p = (p' + .5) / k - .5 of the view.
        matrix = np.column_stack([matrix[:, :2] / k, matrix[:, 2] + matrix[:, :2] @ np.full(2, 0.5 / k - 0.5)])
    return in_fours(image, lambda part: _averaged(part, matrix, size, k))


def _averaged(image: np.ndarray, matrix: np.ndarray, size: int, k: int) -> np.ndarray:
    """Up to four channels of the view: a warp to k times its size, and the mean of each k x k points."""
    out = _warp(image, matrix, size * k)
    if k > 1:
        # Halving by linear interpolation is the mean of four, as by areas, and four times as fast.
        out = cv2.resize(out, (size, size), interpolation=cv2.INTER_LINEAR if k == 2 else cv2.INTER_AREA)
    if image.dtype == np.uint8:
        out = cv2.convertScaleAbs(out)  # rounds; means of pixels lie in 0..255
    return out[..., :3] if image.shape[2] == 3 else out


def _warp(image: np.ndarray, matrix: np.ndarray, side: int) -> np.ndarray:
    """Linear warp to (side, side), float32, of the part that is needed, with reflected edges where it leaves the image.

    OpenCV is five times slower when it reflects by itself, three times slower in uint8, and two times slower for three
    channels than for four: three come back with a fourth that holds nothing.
    """
    (a, b, x), (c, d, y) = matrix.tolist()
    end = side - 1
    start, margin, inside = [], [], []
    for first, step, other, extent in ((y, c, d, image.shape[0]), (x, a, b, image.shape[1])):
        low = math.floor(first + min(step * end, 0) + min(other * end, 0)) - 1
        high = math.ceil(first + max(step * end, 0) + max(other * end, 0)) + 2
        begin, stop = min(max(low, 0), extent - 1), min(max(high, 1), extent)
        start.append(low)
        inside.append(slice(begin, stop))
        margin += [begin - low, high - stop]
    part = image[inside[0], inside[1]]
    if image.shape[2] == 3:
        part = cv2.cvtColor(part, cv2.COLOR_RGB2RGBA)
    part = np.ascontiguousarray(part, np.float32)
    if any(margin):
        top, bottom, left, right = margin
        part = cv2.copyMakeBorder(part, top, bottom, left, right, cv2.BORDER_REFLECT)
    shifted = np.asarray([[a, b, x - start[1]], [c, d, y - start[0]]])
    out: np.ndarray = cv2.warpAffine(part, shifted, (side, side), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return out


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
