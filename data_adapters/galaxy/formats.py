"""The file formats of galaxies: FITS cut-outs, HDF5 tables of cut-outs, and pictures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_adapters import raster
from data_adapters.errors import BadFileError
from data_adapters.formats import FormatTable
from data_adapters.galaxy import fits, hdf5
from data_adapters.galaxy.metadata import COMPANION_FILE, choose
from data_adapters.galaxy.options import PICTURE_BANDS
from data_adapters.openfiles import open_hdf5

Kind = Literal["flux", "picture"]
Bands = tuple[str, ...] | None


@dataclass(frozen=True, kw_only=True)
class Cutout:
    """One image of a file.

    Attributes:
        item: its row in a file of several, else empty.
        label: as the file gives it.
        facts: of `Record.meta`, as far as the file tells: `ra`, `dec` (degrees), `pixel_scale` (arcsec), `unit`.
    """

    item: str = ""
    label: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CutoutFile:
    """What the headers of one file say; all its images have one size.

    Attributes:
        kind: calibrated flux, or display colours.
        planes: names of all planes in the file's order, or None where nothing in the file names them.
        count: number of planes.
        width: pixels.
        height: pixels.
        bits: of a stored value.
        images: one for each record.
    """

    kind: Kind
    planes: Sequence[str] | None
    count: int
    width: int
    height: int
    bits: int
    images: Sequence[Cutout] = (Cutout(),)


@dataclass(frozen=True, kw_only=True)
class CutoutFormat:
    """One format; both functions raise BadFileError for what they cannot read right.

    Attributes:
        suffixes: lower case.
        kind: what every file of the format holds; None where the file decides.
        inspect: (path, the archive's bands) -> what the headers say. Bands None are those that the file names.
        read: (path, item, the archive's bands, names of all planes by the catalogue) -> (H, W, bands): float32 flux
            with NaN for blank pixels, or a uint8 picture.
    """

    suffixes: tuple[str, ...]
    kind: Kind | None
    inspect: Callable[[Path, Bands], CutoutFile]
    read: Callable[[Path, str, Bands, Bands], np.ndarray]


def inspect_fits(path: Path, wanted: Bands) -> CutoutFile:
    """Headers of a FITS file.

    Raises:
        BadFileError: see `fits.fits_info`, or a companion of an image by the survey's file name.
    """
    if COMPANION_FILE.search(path.name):
        raise BadFileError(
            "a weight map, mask or model, by the survey's file name",
            remedy="Skipped, no error: the images beside it are read. If it is an image, rename it.",
            path=path,
        )
    image, place = fits.fits_info(path, wanted)
    return CutoutFile(
        kind="flux",
        planes=image.found,
        count=image.count,
        width=image.width,
        height=image.height,
        bits=image.bits,
        images=(Cutout(facts={"unit": image.unit, **place} if image.unit else place),),
    )


def inspect_hdf5(path: Path, wanted: Bands) -> CutoutFile:
    """Layout of an HDF5 table, with label and measured values of each row.

    Raises:
        BadFileError: see `hdf5.table_layout` and `hdf5.columns`.
    """
    file = hdf5.OPEN_FILES.get(path, open_hdf5)
    table = hdf5.table_layout(file, wanted)
    labels, measured = hdf5.columns(file, table)
    return CutoutFile(
        kind=table.kind,
        planes=table.found,
        count=table.count,
        width=table.width,
        height=table.height,
        bits=table.bits,
        images=[
            Cutout(item=str(row), label=label, facts=facts)
            for row, (label, facts) in enumerate(zip(labels, measured, strict=True))
        ],
    )


def read_hdf5(path: Path, item: str, wanted: Bands, named: Bands) -> np.ndarray:
    """One row of an HDF5 table.

    Raises:
        BadFileError: see `hdf5.read_row`.
    """
    file = hdf5.OPEN_FILES.get(path, open_hdf5)
    return hdf5.read_row(file, hdf5.table_layout(file, wanted), int(item))


def inspect_picture(path: Path, wanted: Bands) -> CutoutFile:
    """Header of a picture.

    Raises:
        BadFileError: see `raster.raster_info`, or no display colours.
    """
    info = raster.raster_info(path)
    if info.bits != 8 or info.channels not in PICTURE_BANDS:
        raise BadFileError(
            f"a picture with {info.channels} channels of {info.bits} bits, neither display colours nor known flux",
            remedy="Save flux as FITS, or the picture as 8-bit grey or RGB.",
        )
    found = PICTURE_BANDS[info.channels]
    choose(found, info.channels, wanted)
    return CutoutFile(
        kind="picture", planes=found, count=info.channels, width=info.width, height=info.height, bits=info.bits
    )


def read_picture(path: Path, item: str, wanted: Bands, named: Bands) -> np.ndarray:
    """Pixels of a picture.

    Raises:
        BadFileError: see `raster.read_raster`, or no display colours.
    """
    picture = raster.read_raster(path)
    picture = picture[:, :, None] if picture.ndim == 2 else picture
    if picture.dtype != np.uint8 or picture.shape[2] not in PICTURE_BANDS:
        raise BadFileError(
            "a picture that is neither 8-bit grey nor 8-bit RGB", remedy="Save it as 8-bit grey or RGB.", path=path
        )
    choose(PICTURE_BANDS[picture.shape[2]], picture.shape[2], wanted)
    return picture


FORMATS = FormatTable(
    CutoutFormat(
        suffixes=fits.SUFFIXES,
        kind="flux",
        inspect=inspect_fits,
        read=lambda path, item, wanted, named: fits.read_fits(path, wanted, named),
    ),
    CutoutFormat(suffixes=hdf5.SUFFIXES, kind=None, inspect=inspect_hdf5, read=read_hdf5),
    CutoutFormat(suffixes=raster.SUFFIXES, kind="picture", inspect=inspect_picture, read=read_picture),
)
