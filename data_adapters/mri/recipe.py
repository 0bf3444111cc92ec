"""The MRI augmentation recipe: one view from a slab of neighbouring slices.

No solarize (it inverts tissue contrast, which is the signal), no hue or grayscale (there is no colour), no up-down flip
or quarter turns (orientation is canonical), no elastic deformation (it changes morphometry).
"""

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from data_adapters.augment.mr_slices import BiasField, GainContrast, Gamma, Gibbs, LowResolution, RicianNoise
from data_adapters.augment.operations import OneOf, Operation, Scene
from data_adapters.augment.picture import Blur
from data_adapters.base import ViewKind
from data_adapters.mri.volume import Stack, resize, square_slice, usable

AREA = {"global": (0.4, 1.0), "local": (0.1, 0.4)}  # 3DINO .48-1 and .16-.48, widened
RATIO = (0.9, 1.11)  # 3DINO
ROTATION = 10.0  # degrees to both sides, in 30 % of the views (BrainIAC's 20, reduced)


class Source(Protocol):
    """What views are drawn from."""

    @property
    def channels(self) -> int:
        """Channels of an image."""

    @property
    def mirror(self) -> bool:
        """Whether a view may be flipped left to right."""

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """One image on a square, (S, S, channels) float32 in [0, 1]."""


@dataclass(frozen=True)
class Slab:
    """A training source: neighbouring slices from which every view draws its own centre (DALE-CT's slab views).

    Attributes:
        slices: (k, H, W) float16 in [0, 1].
        centres: indices into `slices` that a view may choose.
        channels: 1, or 3 neighbouring slices.
        mirror: whether a view may be flipped left to right.
    """

    slices: np.ndarray
    centres: np.ndarray
    channels: int
    mirror: bool

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """One slice of the slab on a square, (S, S, channels) float32."""
        return square_slice(self.slices, int(self.centres[rng.integers(len(self.centres))]), channels=self.channels)


def draw_centre(candidates: np.ndarray, rng: np.random.Generator) -> int:
    """One of the usable slices."""
    return int(rng.choice(candidates))


def draw_slab(stack: Stack, *, rng: np.random.Generator, slab_mm: float, channels: int, mirror: bool) -> Slab:
    """A slab of `slab_mm` to both sides of a centre drawn among the usable slices."""
    candidates = usable(stack.area)
    reach = int(slab_mm / stack.step)
    centre = draw_centre(candidates, rng)
    return cut_slab(stack, candidates[np.abs(candidates - centre) <= reach], channels=channels, mirror=mirror)


def cut_slab(stack: Stack, centres: np.ndarray, *, channels: int, mirror: bool) -> Slab:
    """The slab that holds the slices `centres` and their neighbours."""
    edge = channels // 2
    start, stop = max(int(centres[0]) - edge, 0), min(int(centres[-1]) + edge + 1, len(stack.area))
    return Slab(
        slices=np.asarray(stack.slices[start:stop]),
        centres=centres - start,
        channels=channels,
        mirror=mirror and stack.mirror,
    )


@dataclass(frozen=True)
class SliceCrop:
    """(source, rng) -> (size, size, channels) float32 in [0, 1]: a crop of one slice, sometimes turned or mirrored."""

    kind: ViewKind
    size: int

    def __call__(self, slab: Source, rng: np.random.Generator) -> tuple[np.ndarray, Scene]:
        """One crop, and no scene."""
        image = random_crop(slab.draw(rng), size=self.size, area=AREA[self.kind], rng=rng)
        if slab.mirror and rng.random() < 0.5:
            image = np.ascontiguousarray(image[:, ::-1])
        return image, None


def operations() -> list[Operation]:
    """What a scanner does to a crop: bias field, gamma, gain and contrast, and one artefact.

    The blur is weak, because fine detail is the signal.
    """
    artefacts = (Blur(sigma=(0.25, 1.0)), LowResolution(), Gibbs(), RicianNoise())
    return [BiasField(p=0.3), Gamma(p=0.5), GainContrast(p=0.3), OneOf(transforms=artefacts, p=0.3)]


def random_crop(image: np.ndarray, *, size: int, area: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """A rectangle of a square (S, S, C) image, rotated by up to 10 degrees in 30 % of the views -> (size, size, C).

    Area uniform in `area` of the square, side ratio log-uniform in .9 to 1.11, place uniform: the RandomResizedCrop and
    Affine of albumentations, without reseeding and composing them, which took longer than the pixels. A rotated view
    computes only the pixels inside its rectangle; what lies outside the square is black.
    """
    side = image.shape[0]
    surface = rng.uniform(*area) * side**2
    ratio = np.exp(rng.uniform(*np.log(RATIO)))
    width = min(max(round(float(np.sqrt(surface * ratio))), 1), side)
    height = min(max(round(float(np.sqrt(surface / ratio))), 1), side)
    left, top = int(rng.integers(side - width + 1)), int(rng.integers(side - height + 1))
    if rng.random() < 0.3:
        centre = (side - 1) / 2
        turn = cv2.getRotationMatrix2D((centre, centre), rng.uniform(-ROTATION, ROTATION), 1.0)
        turn[:, 2] -= (left, top)
        planes = [cv2.warpAffine(plane, turn, (width, height)) for plane in cv2.split(image)]
        crop = np.stack(planes, axis=2)
    else:
        crop = image[top : top + height, left : left + width]
    return resize(crop, size)  # which averages when it shrinks: linear interpolation would alias
