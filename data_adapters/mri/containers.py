"""Volume files by suffix: which reader takes a file, and which files belong to it."""

from pathlib import Path

from data_adapters.errors import BadFileError, MissingExtraError
from data_adapters.mri import metaimage, nifti, nrrd, rawgrid
from data_adapters.mri.geometry import VolumeHeader
from data_adapters.mri.options import VolumeChoice
from data_adapters.mri.volume import Volume

DETACHED = (".nhdr", ".mhd")  # headers whose voxels lie in a file of any name beside them
SUFFIXES = (*nifti.SUFFIXES, *nrrd.SUFFIXES, *metaimage.SUFFIXES)


def header_of(path: Path) -> Path | None:
    """The header file that a data file belongs to (for NIfTI pairs and AFNI, whether or not it exists), or None."""
    stems = [path.name[:at] for at, letter in enumerate(path.name) if letter == "." and at]
    for header in (path.with_name(stem + suffix) for stem in stems for suffix in DETACHED):
        if path != header and header.is_file() and _names(header, path):
            return header
    return nifti.header_of(path)


def read_header(path: Path, *, volume: VolumeChoice | None, sides_matter: bool) -> VolumeHeader:
    """Check a volume file by its header.

    Args:
        path: the file, or the header of a pair.
        volume: which volume of a 4-D file to take; None refuses 4-D files.
        sides_matter: refuse files that do not record their orientation (NRRD and MetaImage are always refused then).

    Raises:
        BadFileError: 4-D without a choice, RGB, complex, contradictory or unusable geometry.
    """
    raw = _describe(path)
    if raw is not None:
        return rawgrid.header(raw, path, volume=volume)
    return nifti.read_header(path, volume=volume, sides_matter=sides_matter)


def load(path: Path, *, volume: VolumeChoice | None) -> Volume:
    """Decode one volume to RAS order and float32.

    Raises:
        BadFileError: 4-D without a choice, or damaged data.
    """
    raw = _describe(path)
    return nifti.load(path, volume=volume) if raw is None else rawgrid.load(raw, volume=volume)


def _describe(path: Path) -> rawgrid.RawGrid | None:
    name = path.name.lower()
    if name.endswith(nrrd.SUFFIXES):
        return nrrd.describe(path)
    return metaimage.describe(path) if name.endswith(metaimage.SUFFIXES) else None


def _names(header: Path, data: Path) -> bool:
    try:
        raw = _describe(header)
    except (BadFileError, MissingExtraError):  # the header itself is refused with its reason
        return False
    return raw is not None and raw.data == data
