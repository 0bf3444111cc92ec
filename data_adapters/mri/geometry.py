"""Where voxels lie: a file's affine (voxel -> RAS mm) turned into the nearest RAS order, for every container."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from nibabel import affines, orientations

from data_adapters.errors import BadFileError
from data_adapters.mri.options import VolumeChoice
from data_adapters.mri.volume import Volume

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM, ITK and NRRD's default count to the left and to posterior
SPLIT_REMEDY = "Set the option volume to mean, first or an index, or split the file."


@dataclass(frozen=True)
class Grid:
    """A volume in RAS order.

    Attributes:
        size: voxels along R, A, S.
        spacing: mm.
        affine: the first three rows of the matrix from RAS voxel to RAS mm, row by row, 12 numbers.
    """

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    affine: tuple[float, ...]


@dataclass(frozen=True)
class Header:
    """What a volume file says of itself: its `grid`, the `bits` of a voxel, and all `files` it is made of."""

    grid: Grid
    bits: int
    files: tuple[str, ...]


def check_affine(affine: np.ndarray | None) -> np.ndarray:
    """`affine`, where it can place voxels.

    Raises:
        BadFileError: missing, not finite, or with an axis of length zero.
    """
    if affine is None or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise BadFileError("unusable affine (voxel size or direction missing)", remedy="Convert it from DICOM again.")
    return affine


def canonical_grid(shape: Sequence[int], affine: np.ndarray) -> Grid:
    """The grid that `to_ras` gives for an array of `shape` (its first three axes) under `affine`."""
    turn = orientations.io_orientation(affine)
    size, sizes = [0, 0, 0], affines.voxel_sizes(affine)
    spacing = [0.0, 0.0, 0.0]
    for axis, target in enumerate(turn[:, 0].astype(int)):
        size[target], spacing[target] = int(shape[axis]), round(float(sizes[axis]), 4)
    turned = affine @ orientations.inv_ornt_aff(turn, tuple(shape[:3]))
    return Grid(
        size=(size[0], size[1], size[2]),
        spacing=(spacing[0], spacing[1], spacing[2]),
        affine=tuple(round(float(value), 4) for value in turned[:3].ravel()),
    )


def to_ras(array: np.ndarray, affine: np.ndarray) -> Volume:
    """A stored (i, j, k) array under `affine` in RAS order: axes are swapped and turned, values are not resampled."""
    turn = orientations.io_orientation(affine)
    sizes, spacing = affines.voxel_sizes(affine), [0.0, 0.0, 0.0]
    for axis, target in enumerate(turn[:, 0].astype(int)):
        spacing[target] = float(sizes[axis])
    return Volume(array=orientations.apply_orientation(array, turn), spacing=(spacing[0], spacing[1], spacing[2]))


def spatial_shape(shape: Sequence[int], volume: VolumeChoice | None) -> tuple[int, int, int]:
    """The three spatial sizes of a file; a fourth axis needs a choice, a fifth is never an image.

    Raises:
        BadFileError: 4-D without a choice or with fewer volumes than it asks for, vectors, or no volume at all.
    """
    if len(shape) < 3:
        raise BadFileError("fewer than three dimensions", remedy="Give a volume, or export the slice as PNG.")
    if any(n > 1 for n in shape[4:]):
        raise BadFileError("five dimensions (vectors or tensors)", remedy="Give scalar images.")
    repeats = int(np.prod(shape[3:], dtype=int)) if len(shape) > 3 else 1
    if repeats > 1 and volume is None:
        raise BadFileError("4-D: several volumes in one file", remedy=SPLIT_REMEDY)
    if isinstance(volume, int) and volume >= repeats > 1:
        raise BadFileError("4-D: fewer volumes than the option volume asks for", remedy=SPLIT_REMEDY)
    if min(shape) <= 0:
        raise BadFileError("no voxels", remedy="Export the image again.")
    return int(shape[0]), int(shape[1]), int(shape[2])
