"""The file formats of galaxies: FITS cut-outs, HDF5 tables of cut-outs, and pictures."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_adapters import raster
from data_adapters.errors import BadFileError
from data_adapters.formats import FormatTable
from data_adapters.galaxy import fits, hdf5
from data_adapters.galaxy.metadata import Bands, CutoutFile, Kind, choose
from data_adapters.galaxy.options import PICTURE_BANDS


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
    CutoutFormat(suffixes=fits.SUFFIXES, kind="flux", inspect=fits.inspect, read=fits.read),
    CutoutFormat(suffixes=hdf5.SUFFIXES, kind=None, inspect=hdf5.inspect, read=hdf5.read),
    CutoutFormat(suffixes=raster.SUFFIXES, kind="picture", inspect=inspect_picture, read=read_picture),
)
