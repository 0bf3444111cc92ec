"""The file formats of plain images: pictures, and NumPy arrays (never with pickled objects)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_adapters import raster
from data_adapters.errors import BadFileError
from data_adapters.formats import FormatTable
from data_adapters.raster import MAX_PIXELS, RasterInfo

MAX_CHANNELS = 64  # the largest value of the option `channels`


@dataclass(frozen=True, kw_only=True)
class ImageFormat:
    """One format; both functions raise BadFileError for what they cannot read right.

    Attributes:
        suffixes: lower case.
        info: size, channels and dtype of a file from its header, without decoding it.
        read: pixels, (H, W) or (H, W, C), in the stored dtype and native byte order.
    """

    suffixes: tuple[str, ...]
    info: Callable[[Path], RasterInfo]
    read: Callable[[Path], np.ndarray]


def npy_info(path: Path) -> RasterInfo:
    """Size, channels and dtype of a NumPy file from its header.

    Raises:
        BadFileError: no image of real numbers with the channels last.
    """
    array = _open(path)
    return RasterInfo(
        width=array.shape[1],
        height=array.shape[0],
        channels=array.shape[2] if array.ndim == 3 else 1,
        dtype=array.dtype.newbyteorder("="),
    )


def read_npy(path: Path) -> np.ndarray:
    """The array of a NumPy file in native byte order.

    Raises:
        BadFileError: see `npy_info`.
    """
    array = _open(path)
    return np.array(array, dtype=array.dtype.newbyteorder("="))


def _open(path: Path) -> np.ndarray:
    try:
        # A memory map reads the header only, and raises where the data are shorter than it says.
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy raises ValueError, EOFError or OSError on damaged and on pickled files
        raise BadFileError(
            "damaged .npy file, or one with Python objects", remedy="Save a plain array with numpy.save.", path=path
        ) from error
    if not isinstance(array, np.ndarray) or array.ndim not in (2, 3) or array.dtype.kind not in "uif" or not array.size:
        raise BadFileError("an array that is no image of real numbers", remedy="Save (height, width, channels).")
    if array.ndim == 3 and array.shape[2] > MAX_CHANNELS:
        raise BadFileError(
            f"an array with more than {MAX_CHANNELS} channels on the last axis",
            remedy="Save (height, width, channels); a volume is for the mri modality.",
        )
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise BadFileError("more than 89 million pixels", remedy="Cut it into tiles.")
    return array


FORMATS = FormatTable(
    ImageFormat(suffixes=raster.SUFFIXES, info=raster.raster_info, read=raster.read_raster),
    ImageFormat(suffixes=(".npy",), info=npy_info, read=read_npy),
)
