"""The MRI augmentation recipe: one view from a slab of neighbouring slices.

No solarize (it inverts tissue contrast, which is the signal), no hue or grayscale (there is no colour), no up-down flip
or quarter turns (orientation is canonical), no elastic deformation (it changes morphometry).
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from data_adapters.augment import intensity
from data_adapters.augment.seam import A, Seeded
from data_adapters.base import ViewKind
from data_adapters.mri.volume import Stack, square_slice, usable

AREA = {"global": (0.4, 1.0), "local": (0.1, 0.4)}  # 3DINO .48-1 and .16-.48, widened
RATIO = (0.9, 1.11)  # 3DINO
ARTEFACTS: tuple[Callable[..., np.ndarray], ...] = (
    intensity.blur,
    intensity.low_resolution,
    intensity.gibbs,
    intensity.rician_noise,
)


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
        return square_slice(self.slices, int(rng.choice(self.centres)), channels=self.channels)


def draw_slab(stack: Stack, *, rng: np.random.Generator, slab_mm: float, channels: int, mirror: bool) -> Slab:
    """A slab of `slab_mm` to both sides of a centre drawn among the usable slices."""
    candidates = usable(stack.area)
    reach = int(slab_mm / stack.step)
    centre = int(rng.choice(candidates))
    centres = candidates[np.abs(candidates - centre) <= reach]
    edge = channels // 2
    start, stop = max(int(centres[0]) - edge, 0), min(int(centres[-1]) + edge + 1, len(stack.area))
    return Slab(
        slices=np.asarray(stack.slices[start:stop]),
        centres=centres - start,
        channels=channels,
        mirror=mirror and stack.mirror,
    )


def slab_augment(kind: ViewKind, size: int) -> Callable[[Slab, np.random.Generator], np.ndarray]:
    """(slab, rng) -> (size, size, channels) float32 in [0, 1]."""
    geometry = Seeded(
        [
            A.Affine(rotate=(-10, 10), interpolation=cv2.INTER_LINEAR, p=0.3),
            A.RandomResizedCrop(
                size=(size, size),
                scale=AREA[kind],
                ratio=RATIO,
                interpolation=cv2.INTER_LINEAR,
                area_for_downscale="image",  # linear interpolation aliases when it shrinks
            ),
        ]
    )

    def view(slab: Slab, rng: np.random.Generator) -> np.ndarray:
        image = slab.draw(rng)
        if slab.mirror and rng.random() < 0.5:
            image = np.ascontiguousarray(image[:, ::-1])
        image = geometry(image, rng).reshape(size, size, slab.channels)
        if rng.random() < 0.3:
            image = intensity.bias_field(image, rng=rng)
        if rng.random() < 0.5:
            image = intensity.gamma(image, rng=rng)
        if rng.random() < 0.3:
            image = intensity.brightness_contrast(image, rng=rng)
        if rng.random() < 0.3:
            image = ARTEFACTS[rng.integers(len(ARTEFACTS))](image, rng=rng)
        return image

    return view
