"""Volumes that nibabel reads: NIfTI-1 and -2, header/image pairs, FreeSurfer MGH, MINC and AFNI, in RAS order.

What the standard leaves to the reader, or real headers get wrong, is decided here: which of sform and qform counts,
units of length, and whether a file is gzipped (its content says so, not its name).
"""

import gzip
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel import affines, filebasedimages, imageclasses, orientations, spatialimages

from data_adapters.errors import BadFileError, require
from data_adapters.mri.geometry import (
    UNUSABLE,
    VolumeHeader,
    canonical_grid,
    check_affine,
    millimetres,
    single,
    spatial_shape,
    to_ras,
)
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
QUATERNION_TOLERANCE = 2e-3  # by which rounding in a header may lengthen (b, c, d) beyond 1; nibabel allows 2e-7
UNITS = {0: "mm", 1: "m", 2: "mm", 3: "um"}  # of xyzt_units; 0, not recorded, is mm by custom
LABELS = 1002  # the intent code of label maps
SNIFF = 4096  # bytes that tell nibabel the kind of file
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


def data_of(path: Path) -> list[Path]:
    """Where the data file of a pair's header may lie; none for any other file."""
    name = path.name.lower()
    stems = [(data, path.name[: -len(head)]) for data, head in PAIRS.items() if name.endswith(head.lower())]
    return [path.with_name(stem + suffix) for data, stem in stems for suffix in (data, data.upper())]


@dataclass(frozen=True)
class Opened:
    """A file whose header has been read.

    Attributes:
        image: nibabel's, whose voxels are decoded on access. Its own affine is not used.
        affine: (4, 4) from voxel to RAS mm.
        recorded: whether the file says which side is left.
    """

    image: Any
    affine: np.ndarray
    recorded: bool


def open_image(path: Path) -> Opened:
    """The nibabel image, header only, and where its voxels lie.

    Raises:
        BadFileError: a file of a pair is missing, the file holds no single volume on a grid, or its header contradicts
            itself.
    """
    if not path.is_file():  # a pipe would be waited for
        raise BadFileError("a file of the pair is missing", remedy=_PAIR_REMEDY, path=path)
    try:
        if path.name.lower().endswith(".mnc") and _starts_with(path, HDF5_MAGIC):
            require("h5py", extra="mri")  # MINC 2 is HDF5; without h5py nibabel cannot tell the file type
        kind, parts = _kind(path)
        files = [Path(part.filename) for part in parts.values() if part.filename is not None]
        if not all(file.is_file() for file in files if file.suffix.lower() != ".mat"):  # SPM's .mat is optional
            raise FileNotFoundError
        if issubclass(kind, nib.Nifti1Pair):
            return _open_nifti(kind, parts)
        image = kind.from_file_map(parts)
    except FileNotFoundError as error:
        raise BadFileError("a file of the pair is missing", remedy=_PAIR_REMEDY, path=path) from error
    except DAMAGE as error:  # MGH keeps a part of its header behind the voxels
        raise BadFileError("truncated or damaged data", remedy="Copy the file again.", path=path) from error
    except (filebasedimages.ImageFileError, spatialimages.HeaderDataError) as error:
        raise BadFileError("not a readable volume file", remedy="Export it again.", path=path) from error
    if not isinstance(image, spatialimages.SpatialImage):
        raise BadFileError("surface or connectivity data, no volume", remedy="Give volumes of voxels.", path=path)
    if isinstance(image, nib.Minc1Image) and len(image.shape) > 3:  # the base of Minc2Image; time comes first there
        remedy = "Convert it to NIfTI, or write each volume to a file; the option volume does not apply to MINC."
        raise BadFileError("4-D: several volumes in one file", remedy=remedy, path=path)
    affine = check_affine(image.affine)
    if isinstance(image, nib.Minc1Image):
        affine = _minc_scale(image) @ affine
    return Opened(image=image, affine=affine, recorded=not isinstance(image, nib.AnalyzeImage))


def _kind(path: Path) -> tuple[Any, Any]:
    """The nibabel class of a file, and its parts: a part whose content and suffix disagree about gzip is opened."""
    head, sniff = b"", None
    with _plain(path) as stream:
        head = stream.read(SNIFF)
    sniff = (head, str(path))
    for kind in imageclasses.all_image_classes:
        fits, sniff = kind.path_maybe_image(str(path), sniff)
        if fits:
            break
    else:
        raise filebasedimages.ImageFileError("no format that nibabel knows")
    parts = kind.filespec_to_file_map(str(path))
    for part in parts.values():
        name = Path(part.filename or "")
        if name.is_file() and _starts_with(name, GZIP_MAGIC) != name.name.lower().endswith((".gz", ".mgz")):
            part.fileobj = _plain(name)
    return kind, parts


def _plain(path: Path) -> Any:
    """The file's content, without gzip whatever its name is."""
    return gzip.open(path) if _starts_with(path, GZIP_MAGIC) else path.open("rb")


def _open_nifti(kind: Any, parts: Any) -> Opened:
    """As nibabel opens it, but a header whose quaternion or sform is no rotation or no number is not lost for it."""
    with parts.get("header", parts["image"]).get_prepare_fileobj("rb") as stream:
        header = kind.header_class.from_fileobj(stream, check=False)
    sided = abs(float(header["pixdim"][0])) == 1  # qfac, which nibabel sets to 1 where it is neither 1 nor -1
    given = np.asarray(header["pixdim"][1:4], float)  # before nibabel puts 1 in the place of 0
    header.check_fix()
    if header.is_single and header.get_data_offset() < header.single_vox_offset:
        header.set_data_offset(header.single_vox_offset)  # as the standard has it for offsets inside the header
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if np.isfinite(slope) and slope != 0 and not np.isfinite(inter):
        raise BadFileError(
            "intensity scaling with an offset that is no number (scl_inter)",
            remedy="Set scl_inter to 0 (and scl_slope to 1 for unscaled data), and save it again.",
        )
    if int(header["intent_code"]) == LABELS:
        raise BadFileError(
            "a label map (by the header's intent code)", remedy="Keep segmentations outside the archive of images."
        )
    unit = UNITS.get(int(header["xyzt_units"]) & 7)
    if unit is None:
        raise BadFileError(
            "an unknown unit of length (xyzt_units)", remedy="Set the header's unit to mm, and save it again."
        )
    sform, qform = _sform(header), _qform(header)
    if sform is not None and qform is not None and sided:
        if _mirrored(sform) != _mirrored(qform):
            raise BadFileError(
                "sform and qform disagree about left and right", remedy="Correct one, and save it again."
            )
        if not np.array_equal(orientations.io_orientation(sform), orientations.io_orientation(qform)):
            raise BadFileError("sform and qform disagree about the axes", remedy="Correct one, and save it again.")
    affine = sform if sform is not None else qform
    recorded = affine is not None
    if affine is None and (header["sform_code"] > 0 or header["qform_code"] > 0):
        raise BadFileError(
            "unusable affine (sform or qform is no rotation, or no number)",
            remedy="Set a valid sform or qform (fslorient, or nibabel's set_qform), or convert it from DICOM again.",
        )
    if sform is None and not (np.isfinite(given) & (given != 0))[: header["dim"][0]].all():
        raise BadFileError(UNUSABLE, remedy="Set pixdim to the voxel size, or convert it from DICOM again.")
    if affine is None:
        affine = check_affine(header.get_base_affine())
    sizes = affines.voxel_sizes(affine)
    if (given > 0).all() and (np.abs(sizes / given - 1) > SPACING_TOLERANCE).any():
        raise BadFileError(
            "voxel sizes of the header and the affine differ", remedy="Correct pixdim or sform, and save it again."
        )
    voxels = kind.ImageArrayProxy(parts["image"].file_like, header.copy())
    factor = millimetres(unit)
    return Opened(
        image=kind(voxels, None, header, file_map=parts),
        affine=np.diag([factor, factor, factor, 1.0]) @ affine,
        recorded=recorded,
    )


def _sform(header: Any) -> np.ndarray | None:
    """The sform, or None where it is not set or cannot place voxels."""
    found = header.get_sform(coded=True)[0]
    try:
        return None if found is None else check_affine(found)
    except BadFileError:
        return None


def _qform(header: Any) -> np.ndarray | None:
    """The qform, or None where it is not set or no rotation. A quaternion lengthened by rounding is made whole."""
    if header["qform_code"] <= 0:
        return None
    names = ("quatern_b", "quatern_c", "quatern_d")
    length = float(np.linalg.norm([float(header[name]) for name in names]))
    if not length <= 1 + QUATERNION_TOLERANCE:
        return None
    if length > 1:
        for name in names:
            header[name] = float(header[name]) / length
    try:
        return check_affine(header.get_qform())
    except (BadFileError, ValueError, spatialimages.HeaderDataError):
        return None


def _minc_scale(image: Any) -> np.ndarray:
    """(4, 4) from the unit of MINC's dimensions, an attribute of each, to mm."""
    dims = image.dataobj.minc_file._dims
    units = [getattr(dim, "units", b"mm") for dim in dims]
    factors = {millimetres(unit.decode() if isinstance(unit, bytes) else str(unit)) for unit in units}
    if len(factors) > 1:
        raise BadFileError("axes in different units of length", remedy="Save it with all distances in mm.")
    return np.diag([*factors] * 3 + [1.0])


_PAIR_REMEDY = "Keep .hdr with .img, and .HEAD with .BRIK, in one folder."


def read_header(path: Path, *, volume: VolumeChoice | None, sides_matter: bool) -> VolumeHeader:
    """Check a file by its header.

    Args:
        path: the file, or the header of a pair.
        volume: which volume of a 4-D file to take; None refuses 4-D files.
        sides_matter: refuse files that do not record their orientation.

    Raises:
        BadFileError: 4-D without a choice, RGB, complex, contradictory or unusable geometry.
    """
    opened = open_image(path)
    image = opened.image
    shape = spatial_shape(image.shape, volume)
    dtype = image.get_data_dtype()
    if dtype.names is not None:
        raise BadFileError("colour (RGB) volume", remedy="Give the grey-value volume.", path=path)
    if dtype.kind not in "iuf":
        raise BadFileError("complex values", remedy="Export the magnitude image.", path=path)
    if sides_matter and not opened.recorded:
        raise BadFileError(
            "the file does not record which side is left", remedy="Convert it from DICOM, or allow flips (option flip)."
        )
    files = {str(path): None} | {
        part.filename: None
        for part in image.file_map.values()
        if part.filename is not None and Path(part.filename).is_file()
    }
    return VolumeHeader(grid=canonical_grid(shape, opened.affine), bits=dtype.itemsize * 8, files=tuple(files))


def load(path: Path, *, volume: VolumeChoice | None) -> Volume:
    """Decode one volume, with the header's intensity scaling, to RAS order and float32.

    Raises:
        BadFileError: 4-D without a choice, or the data end early.
    """
    opened = open_image(path)
    image = opened.image
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
    return to_ras(single(array.reshape(shape)), opened.affine)


def check_compression(files: Iterable[str]) -> None:
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


def _starts_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(magic)) == magic


def _mirrored(affine: np.ndarray) -> bool:
    return bool(np.linalg.det(affine[:3, :3]) < 0)
