"""From a decoded volume to the canonical stack of slices: one intensity policy, one orientation, square pixels.

Intensity: the .5 and 99.5 percentiles of the foreground become 0 and 1 and what lies outside is clipped. The foreground
is what exceeds the .5 percentile of all voxels by 5 % of their .5-99.5 range. Equal for every dtype and file format.

Orientation: slices are shown as scanners and viewers show them (radiological display): axial and coronal slices have
the patient's left on the right-hand side and anterior or superior at the top; sagittal slices look to the left.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

from data_adapters.errors import BadFileError
from data_adapters.mri.options import Plane

PERCENTILES = (0.5, 99.5)
FOREGROUND = 0.05  # of the range of all voxels: above the noise of air, below the darkest tissue
SAMPLE = 1_000_000  # voxels that percentiles are taken from
MIN_SIDE = 8  # pixels
LEVELS = 16  # an integer volume with no more grey levels is a mask or a label map
SQUARE = 0.01  # pixels count as square up to this ratio of their sides
TISSUE = 0.1  # canonical intensity above which a pixel counts for the foreground area
CENTRAL = 0.7  # of the foreground's extent is sampled: the ends show little anatomy
MIN_AREA = 0.1  # of the largest slice's foreground
# Slice, row and column axis in RAS; rows and columns are then reversed for radiological display.
LAYOUT = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}
PLANE_OF_AXIS = ("sagittal", "coronal", "axial")
NOT_ONE_GRID = "sequences of one session are not on one grid"


@dataclass(frozen=True)
class Volume:
    """`array`: (X, Y, Z) in RAS order (to the right, anterior, superior); `spacing`: mm along these axes."""

    array: np.ndarray
    spacing: tuple[float, float, float]


@dataclass(frozen=True)
class Stack:
    """The canonical form of a record.

    Attributes:
        slices: (n, H, W) float16 in [0, 1]; an array, or a cached one that reads only the rows asked for.
        area: (n,) foreground fraction of each slice.
        step: mm between slices.
        mirror: whether left and right lie along the columns (also assumed where a file does not say).
    """

    slices: Any
    area: np.ndarray
    step: float
    mirror: bool


def normalise(array: np.ndarray) -> np.ndarray:
    """Finite real values -> float32 in [0, 1] by the policy above.

    Raises:
        BadFileError: NaN or infinite values, or no contrast.
    """
    array = array.astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise BadFileError(
            "contains NaN or infinite values", remedy="Replace them by the background value and save the file again."
        )
    # An odd step does not fall into step with the (mostly even) sides of the volume.
    sample = array.ravel(order="K")[:: (array.size // SAMPLE) | 1]
    floor, ceiling = np.percentile(sample, PERCENTILES)
    foreground = sample[sample > floor + FOREGROUND * (ceiling - floor)]
    if array.min() == array.max() or foreground.size == 0:
        raise BadFileError("empty: all values are equal", remedy="Export the image again.")
    low, high = np.percentile(foreground, PERCENTILES)
    if high <= low:
        low, high = floor, high  # one grey level on air
    if high <= low:
        raise BadFileError("empty: no contrast", remedy="Export the image again.")
    out = (array - np.float32(low)) / np.float32(high - low)
    return np.clip(out, 0, 1, out=out)


def refuse_label_map(array: np.ndarray) -> None:
    """Segmentations lie beside the images in many archives and would be learnt from.

    Raises:
        BadFileError: whole-numbered values with at most 16 levels.
    """
    sample = array.ravel(order="K")[:: (array.size // SAMPLE) | 1]
    levels = np.unique(sample[:: (sample.size // 1000) | 1])
    levels = np.unique(sample) if levels.size <= LEVELS else levels  # the large sort only for suspects
    if 1 < levels.size <= LEVELS and array.size > LEVELS and bool((levels == np.rint(levels)).all()):
        raise BadFileError(
            f"a mask or label map (at most {LEVELS} whole-numbered values)",
            remedy="Keep segmentations outside the archive of images.",
        )


def slicing_plane(*, shape: Sequence[int], spacing: Sequence[float], plane: Plane) -> str:
    """The plane that a volume is sliced in: `plane`, but the only possible one for a single-slice volume."""
    thin = [axis for axis, n in enumerate(shape) if n == 1]
    if len(thin) == 1:
        return PLANE_OF_AXIS[thin[0]]
    if plane != "acquired":
        return plane
    coarsest = max(range(3), key=lambda axis: (round(spacing[axis], 3), axis))
    return PLANE_OF_AXIS[coarsest]


def stack_volume(volume: Volume, *, plane: Plane) -> Stack:
    """Canonical stack of a volume.

    Raises:
        BadFileError: empty, NaN, a label map, or slices too small.
    """
    chosen = slicing_plane(shape=volume.array.shape, spacing=volume.spacing, plane=plane)
    order = LAYOUT[chosen]
    refuse_label_map(volume.array)
    slices = normalise(volume.array).transpose(order)[:, ::-1, ::-1]
    step, row_mm, column_mm = (volume.spacing[axis] for axis in order)
    return stack_slices(slices, step=step, pixel_mm=(row_mm, column_mm), mirror=chosen != "sagittal")


def stack_slices(
    slices: np.ndarray, *, step: float = 1.0, pixel_mm: tuple[float, float] = (1.0, 1.0), mirror: bool = True
) -> Stack:
    """(n, H, W) normalised slices with pixels of (row, column) mm -> square pixels, float16, foreground areas."""
    height, width = slices.shape[1:]
    fine = min(pixel_mm)  # resampled to the finer side, so nothing is lost
    if max(pixel_mm) > fine * (1 + SQUARE):
        height, width = round(height * pixel_mm[0] / fine), round(width * pixel_mm[1] / fine)
    if min(slices.shape[1:]) < MIN_SIDE:
        raise BadFileError(
            f"slices have fewer than {MIN_SIDE} pixels on a side",
            remedy="Choose another slicing plane (option 'plane').",
        )
    out = np.empty((len(slices), height, width), np.float16)
    area = np.empty(len(slices), np.float32)
    for index, image in enumerate(slices):
        if image.shape != (height, width):
            image = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_LINEAR)
        out[index] = image
        area[index] = (image > TISSUE).mean()
    return Stack(slices=out, area=area, step=float(step), mirror=mirror)


def usable(area: np.ndarray) -> np.ndarray:
    """Indices of slices with at least 10 % of the largest foreground, in the central 70 % of its extent."""
    enough = np.flatnonzero(area >= MIN_AREA * area.max())
    first, last = enough[0], enough[-1]
    margin = (last - first) * (1 - CENTRAL) / 2
    central = enough[(enough >= first + margin) & (enough <= last - margin)]
    return central if central.size else enough


def spread(candidates: np.ndarray, n: int) -> np.ndarray:
    """At most `n` of the candidates, spread evenly from the first to the last, none twice."""
    chosen: np.ndarray = candidates[np.unique(np.linspace(0, len(candidates) - 1, n).round().astype(int))]
    return chosen


def square_slice(stack: np.ndarray, index: int, *, channels: int) -> np.ndarray:
    """Slice `index` of (n, H, W), with its neighbours as channels if 3, on a black square: (S, S, channels) float32.

    The first and the last slice are their own neighbours.
    """
    n, height, width = stack.shape
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = height == width
    out = np.empty((side, side, channels), np.float32) if square else np.zeros((side, side, channels), np.float32)
    for channel in range(channels):
        neighbour = min(max(index + channel - channels // 2, 0), n - 1)
        half = np.ascontiguousarray(stack[neighbour])
        # torch converts float16 with vector instructions, numpy value by value.
        out[top : top + height, left : left + width, channel] = torch.from_numpy(half).float().numpy()
    return out


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """(H, W, C) -> (size, size, C): area averages when shrinking, linear interpolation when enlarging."""
    if image.shape[2] > 4:  # more than OpenCV averages at once
        return np.concatenate([resize(image[:, :, c : c + 4], size) for c in range(0, image.shape[2], 4)], axis=2)
    method = cv2.INTER_AREA if size * size < image.shape[0] * image.shape[1] else cv2.INTER_LINEAR
    resized: np.ndarray = cv2.resize(image, (size, size), interpolation=method)
    return resized.reshape(size, size, image.shape[2])
