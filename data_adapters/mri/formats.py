"""The files of this modality: which reader takes one, which files belong to it, its voxels, and the cache of them."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data_adapters.base import Record
from data_adapters.cache import ArrayCache, Entry, cache_key
from data_adapters.errors import BadFileError, MissingExtraError, UserError
from data_adapters.formats import FormatTable
from data_adapters.mri import dicom, nifti, nrrd_metaimage, series
from data_adapters.mri import formats as exported
from data_adapters.mri.geometry import VolumeHeader
from data_adapters.mri.options import MRIOptions, VolumeChoice
from data_adapters.mri.volume import Stack, Volume, normalise, stack_slices, stack_volume
from data_adapters.raster import NODATA, without_nodata
from data_adapters.record import files_of

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
BITS = {
    "L": 8,
    "LA": 8,
    "RGB": 8,
    "RGBA": 8,
    "P": 8,
    "I;16": 16,
    "I;16B": 16,
    "I;16L": 16,
    "I;16N": 16,
    "I": 32,
    "F": 32,
}
GREY_TOLERANCE = 2  # grey levels between channels: rounding of JPEG's colour transform


@dataclass(frozen=True)
class SliceHeader:
    """`size`: (width, height) in pixels; `bits` of a pixel's value."""

    size: tuple[int, int]
    bits: int


def read_header(path: Path) -> SliceHeader:
    """Check an exported slice by its header.

    Raises:
        BadFileError: no readable image, several pages, or a pixel type that is no grey value.
    """
    with _opened(path) as image:
        return SliceHeader(size=image.size, bits=BITS[image.mode])


def load(path: Path) -> np.ndarray:
    """(H, W) float32 grey values as stored, turned upright by EXIF.

    Raises:
        BadFileError: truncated, coloured or partly transparent.
    """
    with _opened(path) as opened:
        try:
            image = ImageOps.exif_transpose(opened)
            if image.mode == "P":
                image = image.convert("RGBA" if "transparency" in image.info else "RGB")
            array = np.asarray(image)
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on damaged data
            raise BadFileError("truncated or damaged data", remedy="Copy the file again.", path=path) from error
    if image.mode in ("LA", "RGBA"):
        if (array[..., -1] != 255).any():
            raise BadFileError("partly transparent image", remedy="Export it without transparency.", path=path)
        array = array[..., :-1]
    if array.ndim == 3:
        if int(np.ptp(array, axis=2).max()) > GREY_TOLERANCE:
            raise BadFileError("colour image", remedy="Export MR slices in grey values.", path=path)
        array = array[..., 0]
    return without_nodata(array, getattr(opened, "tag_v2", {}).get(NODATA)).astype(np.float32)


def _opened(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path)
    except FileNotFoundError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadFileError("image far too large for a slice", remedy="Export single slices.", path=path) from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise BadFileError("not a readable image", remedy="Export it again.", path=path) from error
    if getattr(image, "n_frames", 1) > 1:
        image.close()
        raise BadFileError("several pages in one image", remedy="Export single slices, or DICOM or NIfTI.", path=path)
    if image.mode not in BITS:
        image.close()
        raise BadFileError(f"pixels of type {image.mode}, no grey values", remedy="Export 8 or 16 bits.", path=path)
    return image


SLICE_READERS = ("slice", "exported")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class VolumeFormat:
    """A format of volumes, one a file or pair of files.

    `read_header` and `load` raise BadFileError for 4-D files without a choice, colours, vectors and damage. Their
    keyword `volume` says which volume of a 4-D file to take; None refuses 4-D files.

    Attributes:
        suffixes: lower case.
        read_header: (path, *, volume, sides_matter) -> size and geometry of a file, or of the header of a pair;
            `sides_matter` refuses files that do not record their orientation.
        load: (path, *, volume) -> one volume in RAS order and float32.
        header_of: the header file that a data file belongs to (whether or not it exists), or None.
        data_of: data files that a header file may have beside it.
    """

    suffixes: tuple[str, ...]
    read_header: Callable[..., VolumeHeader]
    load: Callable[..., Volume]
    header_of: Callable[[Path], Path | None] = lambda path: None
    data_of: Callable[[Path], list[Path]] = lambda path: []


@dataclass(frozen=True, kw_only=True)
class SliceFormat:
    """A format of single slices; both functions raise BadFileError.

    Attributes:
        suffixes: lower case.
        read_header: size and bits, without decoding.
        load: (H, W) float32 as stored, upright.
    """

    suffixes: tuple[str, ...]
    read_header: Callable[[Path], SliceHeader]
    load: Callable[[Path], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class DicomFormat:
    """DICOM, which is told by content under any name; `series` makes volumes of its files."""

    suffixes: tuple[str, ...]


MRIFormat = VolumeFormat | SliceFormat | DicomFormat


def _text_header(suffixes: tuple[str, str], describe: Callable[[Path], nrrd_metaimage.RawGrid]) -> VolumeFormat:
    """NRRD or MetaImage. The second of `suffixes` is that of headers whose voxels lie in a file of any name beside."""

    def read_header(path: Path, *, volume: VolumeChoice | None, sides_matter: bool) -> VolumeHeader:
        return nrrd_metaimage.header(describe(path), path, volume=volume)  # refused without orientation in any case

    def load(path: Path, *, volume: VolumeChoice | None) -> Volume:
        return nrrd_metaimage.load(describe(path), volume=volume)

    def header_of(path: Path) -> Path | None:
        stems = [path.name[:at] for at, letter in enumerate(path.name) if letter == "." and at]
        found = (path.with_name(stem + suffixes[1]) for stem in stems)
        return next((header for header in found if header.is_file() and names(header, path)), None)

    def names(header: Path, data: Path) -> bool:
        try:
            return header != data and describe(header).data == data
        except (BadFileError, MissingExtraError):  # the header itself is refused with its reason
            return False

    return VolumeFormat(suffixes=suffixes, read_header=read_header, load=load, header_of=header_of)


FORMATS: FormatTable[MRIFormat] = FormatTable(
    VolumeFormat(
        suffixes=nifti.SUFFIXES,
        read_header=nifti.read_header,
        load=nifti.load,
        header_of=nifti.header_of,
        data_of=nifti.data_of,
    ),
    _text_header(nrrd_metaimage.NRRD_SUFFIXES, nrrd_metaimage.describe_nrrd),
    _text_header(nrrd_metaimage.METAIMAGE_SUFFIXES, nrrd_metaimage.describe_metaimage),
    SliceFormat(suffixes=exported.SUFFIXES, read_header=exported.read_header, load=exported.load),
    DicomFormat(suffixes=(*dicom.SUFFIXES, dicom.PACKED)),
)


def volume_formats(table: FormatTable[MRIFormat]) -> list[VolumeFormat]:
    """Return the formats of volumes."""
    return [one for one in table.formats if isinstance(one, VolumeFormat)]


def header_of(path: Path, table: FormatTable[MRIFormat]) -> Path | None:
    """The header file that a data file belongs to (for NIfTI pairs and AFNI, whether or not it exists), or None."""
    found = (one.header_of(path) for one in reversed(volume_formats(table)))  # those that any name may belong to first
    return next((header for header in found if header is not None), None)


def load_file(path: Path, table: FormatTable[MRIFormat], *, volume: VolumeChoice | None) -> Volume:
    """Decode one volume to RAS order and float32.

    Raises:
        BadFileError: see `VolumeFormat`, or no volume file.
    """
    form = table.of(path)
    if not isinstance(form, VolumeFormat):
        raise BadFileError("no volume file", remedy="Scan the archive again.", path=path)
    return form.load(path, volume=volume)


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


def load_volume(record: Record, options: MRIOptions, table: FormatTable[MRIFormat]) -> Volume:
    """The voxels of a volume file, a DICOM series or a multi-frame file, in RAS order."""
    path = Path(record.uri)
    match record.meta.get("reader"):
        case "nifti":
            return load_file(path, table, volume=options.volume)
        case "series":
            return series.load_series(files_of(record))
        case "multiframe":
            return series.load_multiframe(path)
    raise BadFileError("record without a reader", remedy="Records come from scan: scan the archive again.")


def load_stack(record: Record, options: MRIOptions, table: FormatTable[MRIFormat]) -> Stack:
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
            form = table.of(path)
            if isinstance(form, SliceFormat):
                return stack_slices(normalise(form.load(path))[None])
    return stack_volume(load_volume(record, options, table), plane=options.plane)


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
    record: Record,
    options: MRIOptions,
    table: FormatTable[MRIFormat],
    *,
    recipe: Mapping[str, Any],
    cache: ArrayCache,
    store: bool,
) -> Stack:
    """The canonical stack: 2-D slices are decoded each time, volumes come from the cache where they are."""
    if record.meta.get("reader") in SLICE_READERS:
        return guarded(record, lambda one: load_stack(one, options, table))
    key, entry = find(record, recipe=recipe, cache=cache, store=store)
    if entry is not None:
        meta = entry.meta
        return Stack(
            slices=entry.rows("slices"),
            area=entry.array("area"),
            step=float(meta["step"]),
            mirror=meta["mirror"] == "True",
        )
    stack = guarded(record, lambda one: load_stack(one, options, table))
    if store:
        meta = {"step": repr(stack.step), "mirror": str(stack.mirror)}
        cache.write(key, {"slices": stack.slices, "area": stack.area}, meta=meta)
    return stack
