"""Voxels behind a text header, as NRRD and MetaImage keep them: plain, gzip, zlib, bzip2 or written out as text.

The reader is strict: a file that holds fewer or more voxels than its header says is refused, and no more than that
number is ever inflated. A header cannot name a file of another folder, since headers come with uploads too.
"""

import bz2
import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from data_adapters.errors import BadFileError
from data_adapters.mri.geometry import VolumeHeader, canonical_grid, check_affine, single, spatial_shape, to_ras
from data_adapters.mri.options import VolumeChoice
from data_adapters.mri.volume import Volume

Encoding = Literal["raw", "gzip", "zlib", "bzip2", "text"]
SHORT = "truncated or damaged data"
CHUNK = 1 << 20
AT_THE_END = -1  # as an offset: the voxels are the last bytes of the file


@dataclass(frozen=True)
class RawGrid:
    """What a text header says.

    Attributes:
        shape: sizes as stored, the fastest axis first.
        order: stored axes in the order x, y, z, repeats.
        dtype: of a voxel, with its byte order.
        affine: (4, 4) from (x, y, z) voxel to RAS mm.
        data: the file that holds the voxels, which may be the header's own.
        offset: bytes of `data` before the voxels, or AT_THE_END.
        encoding: how they are written.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]
    dtype: np.dtype
    affine: np.ndarray
    data: Path
    offset: int
    encoding: Encoding


def beside(header: Path, name: str) -> Path:
    """The data file `name` in the header's own folder.

    Raises:
        BadFileError: it is elsewhere, in several parts, or missing.
    """
    if Path(name).name != name or "\\" in name or name in ("", ".", ".."):
        raise BadFileError(
            "the header names a data file in another folder", remedy="Keep header and data in one folder.", path=header
        )
    file = header.with_name(name)
    if not file.is_file():
        raise BadFileError(
            "a file of the pair is missing", remedy="Keep the header with its data file in one folder.", path=header
        )
    return file


def header(raw: RawGrid, path: Path, *, volume: VolumeChoice | None) -> VolumeHeader:
    """Check sizes and geometry of the file `path`.

    Raises:
        BadFileError: as `spatial_shape` and `check_affine` do.
    """
    shape = spatial_shape([raw.shape[axis] for axis in raw.order], volume)
    return VolumeHeader(
        grid=canonical_grid(shape, check_affine(raw.affine)),
        bits=raw.dtype.itemsize * 8,
        files=tuple(dict.fromkeys((str(path), str(raw.data)))),
    )


def load(raw: RawGrid, *, volume: VolumeChoice | None) -> Volume:
    """Decode one volume to RAS order and float32.

    Raises:
        BadFileError: damaged data, data of another length than the header says, or 4-D without a choice.
    """
    shape = spatial_shape([raw.shape[axis] for axis in raw.order], volume)
    array = _voxels(raw).reshape(raw.shape, order="F").transpose(raw.order)
    if array.ndim > 3 and volume == "mean" and array.shape[3] > 1:
        array = array.mean(axis=3, dtype=np.float64)
    elif array.ndim > 3:
        array = array[..., volume if isinstance(volume, int) and array.shape[3] > 1 else 0]
    return to_ras(single(array.reshape(shape)), check_affine(raw.affine))


def _voxels(raw: RawGrid) -> np.ndarray:
    count = math.prod(raw.shape)
    wanted = count * raw.dtype.itemsize
    try:
        with raw.data.open("rb") as stream:
            if raw.encoding == "text":
                stream.seek(raw.offset)
                return _numbers(stream, count, raw.dtype)
            start = raw.data.stat().st_size - wanted if raw.offset == AT_THE_END else raw.offset
            if start < 0:
                raise _short(raw.data)
            stream.seek(start)
            content = _inflate(stream, raw.encoding, wanted)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise _short(raw.data) from error
    if len(content) < wanted:
        raise _short(raw.data)
    if len(content) > wanted:
        raise BadFileError("more data than the header says", remedy="Export the image again.", path=raw.data)
    return np.frombuffer(content, raw.dtype)


def _inflate(stream: BinaryIO, encoding: Encoding, wanted: int) -> bytes | bytearray:
    """The decoded bytes, one more than `wanted` at most; reading past the last voxel checks the stream's checksum."""
    match encoding:
        case "gzip":
            return gzip.GzipFile(fileobj=stream).read(wanted + 1)
        case "bzip2":
            return bz2.BZ2File(stream).read(wanted + 1)
        case "zlib":
            inflater, content = zlib.decompressobj(wbits=47), bytearray()  # 47: a zlib or a gzip header
            while not inflater.eof and len(content) <= wanted:
                chunk = stream.read(CHUNK)
                if not chunk:
                    raise EOFError
                content += inflater.decompress(chunk, wanted + 1 - len(content))
            return content
    return stream.read(wanted + 1)


def _numbers(stream: BinaryIO, count: int, dtype: np.dtype) -> np.ndarray:
    words = stream.read(count * 32 + 1).split()  # no voxel takes more than 31 digits and a blank
    if len(words) != count:
        raise ValueError("another number of voxels than the header says")
    numbers = np.array(words, np.float64)
    if dtype.kind in "iu" and not np.array_equal(numbers, np.rint(numbers)):
        raise ValueError("fractions in whole-numbered data")
    return numbers.astype(dtype)


def _short(path: Path) -> BadFileError:
    return BadFileError(SHORT, remedy="Copy the file again.", path=path)
