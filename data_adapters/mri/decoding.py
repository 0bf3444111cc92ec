"""From a record of the scan to decoded pixels: each reader behind one door, and the cache of decoded volumes.

Whatever a foreign reader raises becomes a BadFileError that names the file only to the owner of the archive.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from data_adapters.base import Record
from data_adapters.cache import ArrayCache, Entry, cache_key
from data_adapters.errors import BadFileError, UserError
from data_adapters.mri import containers, dicom, exported, nifti, series
from data_adapters.mri.options import MRIOptions
from data_adapters.mri.volume import Stack, Volume, normalise, stack_slices, stack_volume
from data_adapters.record import files_of

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
            return containers.load(path, volume=options.volume)
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
