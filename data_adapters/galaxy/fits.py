"""FITS cut-outs: where the image lies among the extensions, and its flux as native float32."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_adapters.errors import BadFileError, MissingExtraError, require
from data_adapters.galaxy.metadata import (
    COMPANION,
    COMPANION_FILE,
    FILTER_NAME,
    NAME_BANDS,
    Bands,
    Cutout,
    CutoutFile,
    acquisition,
    choose,
    header_band,
    locate,
    plane_bands,
)
from data_adapters.sentinels import blanked, marked

SUFFIXES = (".fits", ".fit", ".fts", ".fits.gz", ".fit.gz", ".fits.fz", ".fits.z")
MAX_PLANES = 32  # a longer third axis is a spectrum


@dataclass(frozen=True, kw_only=True)
class FitsImage:
    """What the headers tell: the chosen planes in channel order, and where they lie."""

    found: tuple[str, ...] | None  # the names of all planes in the file's order, where the headers give them
    count: int  # of all planes
    width: int
    height: int
    bits: int
    unit: str
    planes: tuple[tuple[int, int | None], ...]  # (extension, plane of a cube or None)


def inspect(path: Path, wanted: Bands) -> CutoutFile:
    """Headers only: the image, and its place as `metadata.locate` tells it.

    `wanted`: the archive's bands, or None for those that the file or a catalogue names.

    Raises:
        BadFileError: no image, several images that are no bands of one, other bands, or a companion of an image by the
            survey's file name.
    """
    if COMPANION_FILE.search(path.name):
        raise BadFileError(
            "a weight map, mask or model, by the survey's file name",
            remedy="Skipped, no error: the images beside it are read. If it is an image, rename it.",
            path=path,
        )
    with _opened(path) as hdus:
        image = _layout(hdus, wanted, None, unnamed=True)
        headers = (hdus[image.planes[0][0]].header, hdus[0].header)
        place = {**acquisition(*headers), **locate(*headers)}
    return CutoutFile(
        kind="flux",
        planes=image.found,
        count=image.count,
        width=image.width,
        height=image.height,
        bits=image.bits,
        images=(Cutout(facts={"unit": image.unit, **place} if image.unit else place),),
    )


def read(path: Path, item: str, wanted: Bands, named: Bands) -> np.ndarray:
    """Flux as stored (BSCALE, BZERO and BLANK applied): (height, width, bands) float32 in native byte order.

    `named`: the planes' names by the catalogue, where the headers give none. A file has one item.

    Raises:
        BadFileError: as `inspect`, or damaged data.
    """
    with _opened(path) as hdus:
        image = _layout(hdus, wanted, named)
        planes = np.empty((len(image.planes), image.height, image.width), np.float32)
        for band, (extension, plane) in zip(planes, image.planes, strict=True):
            band[:] = _physical(hdus[extension], plane)
        return planes.transpose(1, 2, 0)


def _physical(hdu: Any, plane: int | None) -> np.ndarray:
    """(height, width) float32 of an image or one plane of a cube: value * BSCALE + BZERO, NaN where BLANK is stored.

    astropy would leave unsigned integers as they are, with BLANK among them, and pass over BLANK = 0.
    """
    scale, zero, sentinels = hdu.header.get("BSCALE", 1), hdu.header.get("BZERO", 0), _blank_values(hdu)
    bits = int(hdu.header["BITPIX"])
    low, high = (0, 255) if bits == 8 else (-(2 ** (abs(bits) - 1)), 2 ** (abs(bits) - 1) - 1)
    if not all(low <= value <= high for value in sentinels):
        hdu.header.remove("BLANK", ignore_missing=True)  # astropy would write it into tiles that cannot hold it
    stored = np.squeeze(hdu.data)
    stored = stored if plane is None else stored[plane]
    stored = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    if stored.dtype.kind == "f":  # NaN is blank there, and the standard forbids BLANK
        scaled: np.ndarray = stored * scale + zero if (scale, zero) != (1, 0) else stored
        return scaled
    # A BLANK that no stored value can have was meant after BZERO: 65535 for unsigned 16 bits.
    mask = marked(stored, [value if low <= value <= high else (value - zero) / scale for value in sentinels])
    if scale == 1 and zero == -low != 0:  # unsigned; 64 bits would lose their last ten in a float
        unsigned = np.dtype(f"u{stored.dtype.itemsize}")
        return blanked(stored.view(unsigned) ^ unsigned.type(zero), mask)
    values = stored.astype(np.float32 if stored.dtype.itemsize <= 2 else np.float64)
    return blanked(values * scale + zero, mask)


def _blank_values(hdu: Any) -> list[int]:
    """BLANK of an image; of a compressed one ZBLANK as well, which the standard lets differ.

    Raises:
        BadFileError: it is no whole number.
    """
    packed = getattr(hdu, "_bintable", None)  # of a CompImageHDU, whose header leaves ZBLANK out
    found = {hdu.header.get("BLANK"), None if packed is None else packed.header.get("ZBLANK")} - {None}
    if hdu.header["BITPIX"] < 0:
        return []
    if not all(isinstance(value, int | float) and float(value).is_integer() for value in found):
        raise BadFileError("BLANK is no whole number", remedy="Correct the keyword BLANK, or remove it.")
    return sorted(int(value) for value in found)


@contextmanager
def _opened(path: Path | str) -> Iterator[Any]:
    fits = require("astropy.io.fits", extra="galaxy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # astropy comments on every non-standard card; damage raises below
        try:
            # memmap leaves file handles open in long runs (astropy issue 3827), and big-endian pages in memory.
            # Integers come as stored, because BLANK is compared with them.
            with fits.open(path, memmap=False, do_not_scale_image_data=True, ignore_blank=True) as hdus:
                yield hdus
        except (BadFileError, MissingExtraError):
            raise
        except ModuleNotFoundError as error:
            raise BadFileError(
                "compressed by Unix compress (.Z)", remedy="Uncompress it and save it as .fits or .fits.gz.", path=path
            ) from error
        except Exception as error:  # truncated data raise TypeError, OSError, EOFError or zlib.error
            raise BadFileError(
                "damaged or truncated FITS file", remedy="Copy the file again from its source.", path=path
            ) from error


def _layout(
    hdus: Any, wanted: tuple[str, ...] | None, named: tuple[str, ...] | None, *, unnamed: bool = False
) -> FitsImage:
    """`unnamed` admits planes that nothing names yet, since a catalogue may."""
    primary = hdus[0].header
    images = [k for k, hdu in enumerate(hdus) if _holds_image(hdu)]
    if len(images) > 1:
        images = [k for k in images if not COMPANION.fullmatch(hdus[k].name or "")] or images
    if not images:
        raise BadFileError(_what_else(hdus), remedy="Give image extensions with at least two axes.")
    if len(images) == 1:
        (extension,) = images
        found, count = _single(hdus[extension], primary)
        nameless = unnamed and found is None
        chosen = list(range(count)) if nameless else choose(found or named, count, wanted)[0]
        cube = len(_shape(hdus[extension])) == 3
        planes = tuple((extension, k if cube else None) for k in chosen)
    else:
        found, extensions = _several(hdus, images, wanted)
        count = len(extensions)
        chosen, _ = choose(found, count, wanted)
        planes = tuple((extensions[k], None) for k in chosen)
    first = hdus[planes[0][0]]
    height, width = _shape(first)[-2:]
    if any(_shape(hdus[k])[-2:] != (height, width) for k, _ in planes):
        raise BadFileError("bands of different sizes", remedy="Resample the bands to one pixel grid.")
    return FitsImage(
        found=found,
        count=count,
        width=width,
        height=height,
        bits=abs(int(first.header["BITPIX"])),
        unit=_unit(first.header, primary),
        planes=planes,
    )


def _shape(hdu: Any) -> tuple[int, ...]:
    """The data's shape without axes of length one (radio maps have two for frequency and polarisation)."""
    return tuple(n for n in hdu.shape if n != 1)


def _holds_image(hdu: Any) -> bool:
    fits = require("astropy.io.fits", extra="galaxy")
    if isinstance(hdu, fits.GroupsHDU) or not isinstance(hdu, fits.PrimaryHDU | fits.ImageHDU | fits.CompImageHDU):
        return False
    return len(_shape(hdu)) >= 2


def _what_else(hdus: Any) -> str:
    fits = require("astropy.io.fits", extra="galaxy")
    if isinstance(hdus[0], fits.GroupsHDU):
        return "random groups (interferometer visibilities), not an image"
    if any(isinstance(hdu, fits.BinTableHDU | fits.TableHDU) for hdu in hdus):
        return "only tables, no image"
    return "no image in the file"


def _single(hdu: Any, primary: Any) -> tuple[tuple[str, ...] | None, int]:
    """Band names and number of planes of the only image."""
    shape = _shape(hdu)
    if len(shape) == 2:
        name = header_band(hdu.header, primary)
        return (None if name is None else (name,)), 1
    if len(shape) > 3 or shape[0] > MAX_PLANES:
        if len(shape) == 3 and shape[2] <= MAX_PLANES:
            raise BadFileError("a cube with the bands on the last axis", remedy="Save it as (bands, height, width).")
        raise BadFileError("a cube of more than 32 planes or four axes", remedy="Extract the images of the bands.")
    return plane_bands(hdu.header, shape[0]) or plane_bands(primary, shape[0]), shape[0]


def _several(hdus: Any, images: list[int], wanted: tuple[str, ...] | None) -> tuple[tuple[str, ...], list[int]]:
    """Names and extension numbers of per-band images; extensions beyond `wanted` are passed over."""
    flat = [k for k in images if len(_shape(hdus[k])) == 2]
    named: dict[str, int] = {}
    for k in flat:
        extension = hdus[k].name
        by_extension = extension if FILTER_NAME.fullmatch(extension) or extension in (wanted or ()) else None
        name = header_band(hdus[k].header) or by_extension
        if name is None and wanted is not None:
            continue
        if name is None or name in named:
            raise BadFileError("several images in one file that are not named as bands", remedy=NAME_BANDS)
        named[name] = k
    if len(flat) != len(images) or not named:
        raise BadFileError("several images in one file that are not named as bands", remedy=NAME_BANDS)
    return tuple(named), list(named.values())


def _unit(*headers: Any) -> str:
    """BUNIT in lower case; Legacy Surveys cut-outs carry none and are in nanomaggies."""
    for header in headers:
        unit = header.get("BUNIT")
        if isinstance(unit, str) and unit.strip():
            return unit.strip().lower()
    return "nanomaggy" if any(header.get("SURVEY") == "LegacySurvey" for header in headers) else ""
