"""The only door to albumentations.

albumentations 2.0.8 and MONAI keep their own random state, which repeats in every worker and epoch. Here each call
reseeds from the view's generator instead, so a view is a function of (seed, epoch, row, view) and of nothing else.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # 2.0.8 asks the network for its newest version otherwise

import albumentations as A

__all__ = ["A", "Seeded"]


class Seeded:
    """A chain of albumentations transforms as a function (image, rng) -> image."""

    def __init__(self, transforms: Sequence[Any]) -> None:
        self._compose = A.Compose(list(transforms))

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """`image`: (H, W) or (H, W, C), uint8 or float32 in [0, 1]; returns the same dtype."""
        self._compose.set_random_seed(int(rng.integers(2**32)))
        out: np.ndarray = self._compose(image=image)["image"]
        return out
