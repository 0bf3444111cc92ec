"""Where voxels lie: a file's affine (voxel -> RAS mm) turned into the nearest RAS order, for every container."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from nibabel import affines, orientations

from data_adapters.errors import BadFileError
from data_adapters.mri.options import VolumeChoice
from data_adapters.mri.volume import Volume

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM, ITK and NRRD's default count to the left and to posterior
PLAUSIBLE_MM = (0.005, 30.0)  # of a voxel's side: beyond MR microscopy, and coarser than any survey
# How containers write their unit of length -> mm.
MILLIMETRES = {
    name: factor
    for factor, names in {
        1000.0: "m,meter,meters,metre,metres",
        10.0: "cm,centimeter,centimeters,centimetre,centimetres",
        1.0: "mm,millimeter,millimeters,millimetre,millimetres",
        1e-3: "um,\N{MICRO SIGN}m,\N{GREEK SMALL LETTER MU}m,"  # both signs for micro
        "micron,microns,micrometer,micrometers,micrometre,micrometres",
        1e-6: "nm,nanometer,nanometers,nanometre,nanometres",
    }.items()
    for name in names.split(",")
}
UNUSABLE = "unusable affine (voxel size or direction missing)"
SPLIT_REMEDY = "Set the option volume to mean, first or an index, or split the file."


@dataclass(frozen=True)
class VoxelGrid:
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
class VolumeHeader:
    """What a volume file says of itself: its `grid`, the `bits` of a voxel, and all `files` it is made of."""

    grid: VoxelGrid
    bits: int
    files: tuple[str, ...]


def check_affine(affine: np.ndarray | None) -> np.ndarray:
    """`affine`, where it can place voxels.

    Raises:
        BadFileError: missing, not finite, or with an axis of length zero.
    """
    if affine is None or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise BadFileError(UNUSABLE, remedy="Convert it from DICOM again.")
    return affine


def millimetres(unit: str) -> float:
    """The factor from a unit of length to mm.

    Raises:
        BadFileError: no unit that is known.
    """
    try:
        return MILLIMETRES[unit.strip().lower()]
    except KeyError as error:
        raise BadFileError(
            "distances in an unknown unit", remedy="Save it with distances in mm, um, cm or m."
        ) from error


def check_spacing(sides: Iterable[float]) -> None:
    """Refuse sides of a voxel or pixel, mm, that no scanner makes.

    Raises:
        BadFileError: the unit of length must be wrong.
    """
    low, high = PLAUSIBLE_MM
    if not all(low <= mm <= high for mm in sides):
        raise BadFileError(
            f"implausible voxel size (below {low:g} or above {high:g} mm)",
            remedy="Correct the voxel size or its unit in the header (xyzt_units in NIfTI), and save it again.",
        )


def single(array: np.ndarray) -> np.ndarray:
    """`array` as float32.

    Raises:
        BadFileError: finite values that float32 cannot hold.
    """
    with np.errstate(over="ignore"):
        out = array.astype(np.float32, copy=False)
    if array.dtype.kind == "f" and array.dtype.itemsize > 4 and bool((np.isinf(out) & ~np.isinf(array)).any()):
        raise BadFileError(
            "values beyond single precision (above 3.4e38)",
            remedy="Divide them by a constant, and save the file again.",
        )
    return out


def canonical_grid(shape: Sequence[int], affine: np.ndarray) -> VoxelGrid:
    """The grid that `to_ras` gives for an array of `shape` (its first three axes) under `affine`.

    Raises:
        BadFileError: a voxel size that no scanner makes, so the unit of length must be wrong.
    """
    turn = orientations.io_orientation(affine)
    size, sizes = [0, 0, 0], affines.voxel_sizes(affine)
    check_spacing([mm for n, mm in zip(shape, sizes.tolist(), strict=False) if n > 1])  # one slice has no distance
    spacing = [0.0, 0.0, 0.0]
    for axis, target in enumerate(turn[:, 0].astype(int)):
        size[target], spacing[target] = int(shape[axis]), round(float(sizes[axis]), 4)
    turned = affine @ orientations.inv_ornt_aff(turn, tuple(shape[:3]))
    return VoxelGrid(
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
    if volume is None and len(shape) == 4 and shape[2] == 1 < shape[3]:
        raise BadFileError(
            "4-D: one slice on the third axis and several on the fourth",
            remedy="Save the slices on the third axis, with their distance; for time points set the option volume.",
        )
    repeats = int(np.prod(shape[3:], dtype=int)) if len(shape) > 3 else 1
    if repeats > 1 and volume is None:
        raise BadFileError("4-D: several volumes in one file", remedy=SPLIT_REMEDY)
    if isinstance(volume, int) and volume >= repeats > 1:
        raise BadFileError("4-D: fewer volumes than the option volume asks for", remedy=SPLIT_REMEDY)
    if min(shape) <= 0:
        raise BadFileError("no voxels", remedy="Export the image again.")
    return int(shape[0]), int(shape[1]), int(shape[2])
