"""Volumes that nibabel reads: NIfTI-1 and -2, header/image pairs, FreeSurfer MGH, MINC and AFNI, in RAS order."""

import gzip
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel import affines, filebasedimages, orientations, spatialimages

from data_adapters.errors import BadFileError, require
from data_adapters.mri.geometry import Header, canonical_grid, check_affine, spatial_shape, to_ras
from data_adapters.mri.options import VolumeChoice
from data_adapters.mri.volume import Volume

# Data file -> header file. One record is made of the pair, under the header's name.
PAIRS = {".img": ".hdr", ".img.gz": ".hdr.gz", ".brik": ".HEAD", ".brik.gz": ".HEAD"}
SUFFIXES = (
    ".nii",
    ".nii.gz",
    ".hdr",
    ".hdr.gz",
    ".img",
    ".img.gz",
    ".mgh",
    ".mgz",
    ".mnc",
    ".head",
    ".brik",
    ".brik.gz",
)
SPACING_TOLERANCE = 0.05  # relative difference between the header's voxel size and the affine's
GZIP_MAGIC, HDF5_MAGIC = b"\x1f\x8b", b"\x89HDF"
DAMAGE = (OSError, EOFError, ValueError, zlib.error)  # what gzip, zlib and nibabel raise on short or damaged data


def header_of(path: Path) -> Path | None:
    """The header file that belongs to a pair's data file (whether or not it exists); None for any other file."""
    name = path.name.lower()
    for suffix, header in PAIRS.items():
        if name.endswith(suffix):
            stem = path.name[: -len(suffix)]
            found = [path.with_name(stem + h) for h in (header, header.lower(), header.upper())]
            return next((h for h in found if h.is_file()), found[0])
    return None


def open_image(path: Path) -> Any:
    """The nibabel image, header only.

    Raises:
        BadFileError: a file of a pair is missing, or the file holds no single volume on a grid.
    """
    if not path.is_file():  # a pipe would be waited for
        raise BadFileError("a file of the pair is missing", remedy=_PAIR_REMEDY, path=path)
    try:
        if path.name.lower().endswith(".mnc") and _starts_with(path, HDF5_MAGIC):
            require("h5py", extra="mri")  # MINC 2 is HDF5; without h5py nibabel cannot tell the file type
        image = nib.load(path)
        files = [Path(part.filename) for part in image.file_map.values() if part.filename is not None]
    except FileNotFoundError as error:
        raise BadFileError("a file of the pair is missing", remedy=_PAIR_REMEDY, path=path) from error
    except DAMAGE as error:  # MGH keeps a part of its header behind the voxels
        raise BadFileError("truncated or damaged data", remedy="Copy the file again.", path=path) from error
    except filebasedimages.ImageFileError as error:
        raise BadFileError("not a readable volume file", remedy="Export it again.", path=path) from error
    if not all(file.is_file() for file in files if file.suffix.lower() != ".mat"):  # SPM's .mat is optional
        raise BadFileError("a file of the pair is missing", remedy=_PAIR_REMEDY, path=path)
    if not isinstance(image, spatialimages.SpatialImage):
        raise BadFileError("surface or connectivity data, no volume", remedy="Give volumes of voxels.", path=path)
    if isinstance(image, nib.Minc1Image) and len(image.shape) > 3:  # the base of Minc2Image; time comes first there
        remedy = "Convert it to NIfTI, or write each volume to a file; the option volume does not apply to MINC."
        raise BadFileError("4-D: several volumes in one file", remedy=remedy, path=path)
    return image


_PAIR_REMEDY = "Keep .hdr with .img, and .HEAD with .BRIK, in one folder."


def read_header(path: Path, *, volume: VolumeChoice | None, sides_matter: bool) -> Header:
    """Check a file by its header.

    Args:
        path: the file, or the header of a pair.
        volume: which volume of a 4-D file to take; None refuses 4-D files.
        sides_matter: refuse files that do not record their orientation.

    Raises:
        BadFileError: 4-D without a choice, RGB, complex, contradictory or unusable geometry.
    """
    image = open_image(path)
    shape = spatial_shape(image.shape, volume)
    dtype = image.get_data_dtype()
    if dtype.names is not None:
        raise BadFileError("colour (RGB) volume", remedy="Give the grey-value volume.", path=path)
    if dtype.kind not in "iuf":
        raise BadFileError("complex values", remedy="Export the magnitude image.", path=path)
    _check_geometry(image, sides_matter=sides_matter)
    files = {str(path): None} | {
        part.filename: None
        for part in image.file_map.values()
        if part.filename is not None and Path(part.filename).is_file()
    }
    return Header(grid=canonical_grid(shape, image.affine), bits=dtype.itemsize * 8, files=tuple(files))


def load(path: Path, *, volume: VolumeChoice | None) -> Volume:
    """Decode one volume, with the header's intensity scaling, to RAS order and float32.

    Raises:
        BadFileError: 4-D without a choice, or the data end early.
    """
    image = open_image(path)
    shape = spatial_shape(image.shape, volume)
    try:
        if len(image.shape) > 3 and volume == "mean" and image.shape[3] > 1:
            array = np.asanyarray(image.dataobj).mean(axis=3, dtype=np.float64)
        elif len(image.shape) > 3:
            index = volume if isinstance(volume, int) else 0
            array = np.asanyarray(image.dataobj[..., index])
        else:
            array = np.asanyarray(image.dataobj)
    except DAMAGE as error:
        raise BadFileError("truncated or damaged data", remedy="Copy the file again.", path=path) from error
    array = array.reshape(shape).astype(np.float32, copy=False)
    return to_ras(array, image.affine)


def check_compression(files: tuple[str, ...]) -> None:
    """Read gzip files to their end, where their checksum is: a decoder stops after the last voxel and never sees it.

    Raises:
        BadFileError: the stream is damaged.
    """
    for name in files:
        if not _starts_with(Path(name), GZIP_MAGIC):
            continue
        try:
            with gzip.open(name) as stream:
                while stream.read(1 << 20):
                    pass
        except DAMAGE as error:
            raise BadFileError("truncated or damaged data", remedy="Copy the file again.", path=name) from error


def _check_geometry(image: Any, *, sides_matter: bool) -> None:
    affine = check_affine(image.affine)
    header = image.header
    if isinstance(image, nib.Nifti1Pair):
        given = np.asarray(header.get_zooms()[:3], float)
        sizes = affines.voxel_sizes(affine)
        if (given > 0).all() and (np.abs(sizes / given - 1) > SPACING_TOLERANCE).any():
            raise BadFileError(
                "voxel sizes of the header and the affine differ", remedy="Correct pixdim or sform, and save it again."
            )
        sform, qform = header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]
        if sform is not None and qform is not None:
            if _mirrored(sform) != _mirrored(qform):
                raise BadFileError(
                    "sform and qform disagree about left and right", remedy="Correct one, and save it again."
                )
            if not np.array_equal(orientations.io_orientation(sform), orientations.io_orientation(qform)):
                raise BadFileError("sform and qform disagree about the axes", remedy="Correct one, and save it again.")
        recorded = sform is not None or qform is not None
    else:
        recorded = not isinstance(image, nib.AnalyzeImage)
    if sides_matter and not recorded:
        raise BadFileError(
            "the file does not record which side is left", remedy="Convert it from DICOM, or allow flips (option flip)."
        )


def _starts_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(magic)) == magic


def _mirrored(affine: np.ndarray) -> bool:
    return bool(np.linalg.det(affine[:3, :3]) < 0)
