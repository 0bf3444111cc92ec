"""Geometry of a 3-D view: a random crop, sometimes turned, resized to a cube.

Crops are 3DINO's: a share of the in-slice area with a mild aspect ratio, and a share of the depth on its own. A crop is
resized linearly, from planes of half resolution where it shrinks by 2 or more, so that no voxel is passed over: a third
of the time of area averages.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import cv2
import numpy as np

from data_adapters.augment.mr_volumes import BiasField, Blur, GainContrast, Gamma, Gibbs, LowResolution, RicianNoise
from data_adapters.augment.operations import OneVolumeOperation, Operation, Scene
from data_adapters.base import ViewKind
from data_adapters.mri.cube import Box, halved, resize, to_unit

AREA = {"global": (0.48, 1.0), "local": (0.16, 0.48)}  # of the in-slice area; 3DINO
DEPTH = {"global": (0.5, 1.0), "local": (0.2, 0.5)}  # of the depth; 3DINO
RATIO = (0.9, 1.11)  # of the in-slice sides; 3DINO
TURN = 10.0  # degrees; half of BrainIAC's
TURN_P = 0.3
PLANES = ((1, 2), (0, 2), (0, 1))


class Source(Protocol):
    """What views are drawn from."""

    @property
    def mirror(self) -> bool:
        """Whether a view may be mirrored left to right."""

    def draw(self, rng: np.random.Generator) -> "Sequence[CubeSource | None]":
        """What one view takes as its channels, all of one shape; None stays black."""


@dataclass(frozen=True)
class CubeSource:
    """A training source: (D, H, W) uint16 of `data_adapters.mri.cube`, and whether views may be mirrored."""

    voxels: np.ndarray
    mirror: bool

    def draw(self, rng: np.random.Generator) -> "Sequence[CubeSource | None]":
        """The one channel of every view."""
        return (self,)

    @cached_property
    def half(self) -> np.ndarray:
        """The source with planes of half resolution."""
        return halved(self.voxels)

    def sample(self, box: Box, shape: Sequence[int]) -> np.ndarray:
        """The voxels of `box`, which has even bounds along rows and columns, resized to `shape`."""
        d, h, w = box
        if min((h.stop - h.start) / shape[1], (w.stop - w.start) / shape[2]) < 2:
            return resize(self.voxels[box], shape, averaged=2)
        half = self.half[d, h.start // 2 : h.stop // 2, w.start // 2 : w.stop // 2]
        return resize(half, shape, averaged=2)


def draw_crop(shape: tuple[int, ...], kind: ViewKind, rng: np.random.Generator) -> Box:
    """A random box inside (D, H, W) with even bounds, at least two voxels on each side."""
    depth, height, width = shape
    share, area = rng.uniform(*DEPTH[kind]), rng.uniform(*AREA[kind])
    ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
    side = math.sqrt(area * height * width)
    wanted = (share * depth, side * math.sqrt(ratio), side / math.sqrt(ratio))
    spans = []
    for extent, n in zip(wanted, shape, strict=True):
        length = min(max(2, 2 * round(extent / 2)), n)
        start = 2 * int(rng.integers((n - length) // 2 + 1))
        spans.append(slice(start, start + length))
    return spans[0], spans[1], spans[2]


def turned_crop(source: CubeSource, box: Box, size: int, *, plane: tuple[int, int], degrees: float) -> np.ndarray:
    """The crop `box` turned about its centre within the plane of two axes -> (size, size, size) uint16.

    A rigid turn in millimetres whatever the sides of the crop, since the source is isotropic. What lies beyond the
    source is air (0).
    """
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    i, j = plane
    extent = [float(span.stop - span.start) for span in box]
    centre = [(span.start + span.stop) / 2 for span in box]
    reach = list(extent)
    reach[i] = extent[i] * cos + extent[j] * abs(sin)
    reach[j] = extent[j] * cos + extent[i] * abs(sin)
    low = [max(0, 2 * math.floor((c - r / 2) / 2)) for c, r in zip(centre, reach, strict=True)]
    high = [min(n, 2 * math.ceil((c + r / 2) / 2)) for n, c, r in zip(source.voxels.shape, centre, reach, strict=True)]
    low[3 - i - j], high[3 - i - j] = box[3 - i - j].start, box[3 - i - j].stop
    # first to the resolution of the view, then the turn
    step = [e / size for e in extent]
    shape = [max(1, round((b - a) / s)) for a, b, s in zip(low, high, step, strict=True)]
    shape[3 - i - j] = size
    around = source.sample((slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2])), shape)
    finest = [(b - a) / n for a, b, n in zip(low, high, shape, strict=True)]

    def index_of(row: float, column: float) -> tuple[float, float]:
        """Index in `around` (row, column of the plane) of an index of the view."""
        a = (row + 0.5) * step[i] - extent[i] / 2
        b = (column + 0.5) * step[j] - extent[j] / 2
        turned = (centre[i] + cos * a - sin * b, centre[j] + sin * a + cos * b)
        return (turned[0] - low[i]) / finest[i] - 0.5, (turned[1] - low[j]) / finest[j] - 0.5

    r0, c0 = index_of(0, 0)
    r1, c1 = index_of(1, 0)
    r2, c2 = index_of(0, 1)
    matrix = np.array([[c2 - c0, c1 - c0, c0], [r2 - r0, r1 - r0, r0]])  # OpenCV: (x, y) = (column, row)
    planes = np.ascontiguousarray(np.moveaxis(around, 3 - i - j, 0))
    out = np.empty((size, size, size), np.uint16)
    for index, image in enumerate(planes):
        cv2.warpAffine(image, matrix, (size, size), dst=out[index], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return np.moveaxis(out, 0, 3 - i - j)


@dataclass(frozen=True)
class CubeCrop:
    """(source, rng) -> a list of (size, size, size) float32 in [0, 1], and which channels they are.

    Channels share crop, turn and mirroring. The scene has None for each channel of the view that stays black.
    """

    kind: ViewKind
    size: int

    def __call__(self, source: Source, rng: np.random.Generator) -> tuple[list[np.ndarray], Scene]:
        """One crop."""
        channels = source.draw(rng)
        shown = [cube for cube in channels if cube is not None]
        box = draw_crop(shown[0].voxels.shape, self.kind, rng)
        if rng.random() < TURN_P:
            plane, degrees = PLANES[rng.integers(3)], rng.uniform(-TURN, TURN)
            cubes = [turned_crop(cube, box, self.size, plane=plane, degrees=degrees) for cube in shown]
        else:
            cubes = [cube.sample(box, (self.size,) * 3) for cube in shown]
        if source.mirror and rng.random() < 0.5:
            cubes = [voxels[:, :, ::-1] for voxels in cubes]
        return [to_unit(np.ascontiguousarray(voxels)) for voxels in cubes], channels


def operations() -> list[Operation]:
    """What a scanner does to a crop: bias field, gamma, gain and contrast, and one artefact."""
    artefacts = (Blur(), LowResolution(), Gibbs(), RicianNoise())
    return [BiasField(p=0.3), Gamma(p=0.5), GainContrast(p=0.3), OneVolumeOperation(transforms=artefacts, p=0.3)]
