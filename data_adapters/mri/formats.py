"""The files of this modality: which reader takes one, which files belong to it, its voxels, and the cache of them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from data_adapters.base import Record
from data_adapters.cache import ArrayCache, Entry, cache_key
from data_adapters.errors import BadFileError, MissingExtraError, UserError
from data_adapters.mri import dicom, exported, metaimage, nifti, nrrd, rawgrid, series
from data_adapters.mri.geometry import VolumeHeader
from data_adapters.mri.options import MRIOptions, VolumeChoice
from data_adapters.mri.volume import Stack, Volume, normalise, stack_slices, stack_volume
from data_adapters.record import files_of

DETACHED = (".nhdr", ".mhd")  # headers whose voxels lie in a file of any name beside them
VOLUME_SUFFIXES = (*nifti.SUFFIXES, *nrrd.SUFFIXES, *metaimage.SUFFIXES)


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


def load_file(path: Path, *, volume: VolumeChoice | None) -> Volume:
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


SLICE_READERS = ("slice", "exported")
T = TypeVar("T")


def missing(record: Record) -> BadFileError:
    """The error for a record whose files have gone since the scan."""
    return BadFileError("a file of the record is missing", remedy="Scan the archive again.", path=record.uri)


def check_files(record: Record) -> None:
    """All files are there, and gzip checksums are right. Raises BadFileError."""
    if not all(Path(name).is_file() for name in files_of(record)):
        raise missing(record)
    if record.meta.get("reader") == "nifti":
        nifti.check_compression(files_of(record))


def guarded(record: Record, decode: Callable[[Record], T]) -> T:
    """`decode(record)`; any failure of a foreign reader becomes a BadFileError that shows no path."""
    try:
        return decode(record)
    except BadFileError as error:
        raise BadFileError(error.cause, remedy=error.remedy, path=error.path or record.uri) from error
    except UserError:  # a missing extra is no fault of the file
        raise
    except FileNotFoundError as error:
        raise missing(record) from error
    except Exception as error:
        cause = f"unreadable ({type(error).__name__})"
        raise BadFileError(cause, remedy="Export the image again.", path=record.uri) from error


def load_volume(record: Record, options: MRIOptions) -> Volume:
    """The voxels of a volume file, a DICOM series or a multi-frame file, in RAS order."""
    path = Path(record.uri)
    match record.meta.get("reader"):
        case "nifti":
            return load_file(path, volume=options.volume)
        case "series":
            return series.load_series(files_of(record))
        case "multiframe":
            return series.load_multiframe(path)
    raise BadFileError("record without a reader", remedy="Records come from scan: scan the archive again.")


def load_stack(record: Record, options: MRIOptions) -> Stack:
    """The canonical stack of a volume, or of a single slice."""
    path, meta = Path(record.uri), record.meta
    match meta.get("reader"):
        case "slice":
            width_mm, height_mm = meta.get("spacing", (1.0, 1.0))
            return stack_slices(
                normalise(dicom.load_slice(path))[None],
                pixel_mm=(height_mm, width_mm),
                mirror=bool(meta.get("mirror", True)),
            )
        case "exported":
            return stack_slices(normalise(exported.load(path))[None])
    return stack_volume(load_volume(record, options), plane=options.plane)


def find(record: Record, *, recipe: Mapping[str, Any], cache: ArrayCache, store: bool) -> tuple[str, Entry | None]:
    """The key of a record's canonical form, and its entry in the cache where there is one.

    With `store`, the content hashes of the files are noted beside the entries.

    Raises:
        BadFileError: a file is missing.
    """
    try:
        key = cache_key(files=files_of(record), recipe=recipe, folder=cache.folder if store else None)
    except FileNotFoundError as error:
        raise missing(record) from error
    return key, cache.find(key)


def cached_stack(
    record: Record, options: MRIOptions, *, recipe: Mapping[str, Any], cache: ArrayCache, store: bool
) -> Stack:
    """The canonical stack: 2-D slices are decoded each time, volumes come from the cache where they are."""
    if record.meta.get("reader") in SLICE_READERS:
        return guarded(record, lambda one: load_stack(one, options))
    key, entry = find(record, recipe=recipe, cache=cache, store=store)
    if entry is not None:
        meta = entry.meta
        return Stack(
            slices=entry.rows("slices"),
            area=entry.array("area"),
            step=float(meta["step"]),
            mirror=meta["mirror"] == "True",
        )
    stack = guarded(record, lambda one: load_stack(one, options))
    if store:
        meta = {"step": repr(stack.step), "mirror": str(stack.mirror)}
        cache.write(key, {"slices": stack.slices, "area": stack.area}, meta=meta)
    return stack
