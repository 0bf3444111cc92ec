"""NRRD (.nrrd, .nhdr) and MetaImage (.mha, .mhd): a text header, and voxels plain, gzip, zlib, bzip2 or as text.

The reader is strict: a file that holds fewer or more voxels than its header says is refused, and no more than that
number is ever inflated. A header cannot name a file of another folder, since headers come with uploads too.

pynrrd reads the headers of NRRD (http://teem.sourceforge.net/nrrd/format.html), the rest is own code. Of MetaImage the
fields are read that ITK reads, and DistanceUnits; coordinates are LPS mm, and line i of TransformMatrix is the
direction of axis i (https://itk.org/Wiki/ITK/MetaIO/Documentation). SimpleITK, which tests compare with, does not take
the place of this module: docs/mri.md has what it makes of the files that must be refused.
"""

import bz2
import gzip
import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from data_adapters.errors import BadFileError, require
from data_adapters.mri.geometry import (
    LPS_TO_RAS,
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

Encoding = Literal["raw", "gzip", "zlib", "bzip2", "text"]
SHORT = "truncated or damaged data"
CHUNK = 1 << 20
AT_THE_END = -1  # as an offset: the voxels are the last bytes of the file
NRRD_SUFFIXES = (".nrrd", ".nhdr")
# Diagonal of the matrix from the header's space to RAS.
SPACES = {
    "right-anterior-superior": np.eye(4),
    "ras": np.eye(4),
    "left-anterior-superior": np.diag([-1.0, 1.0, 1.0, 1.0]),
    "las": np.diag([-1.0, 1.0, 1.0, 1.0]),
    "left-posterior-superior": LPS_TO_RAS,
    "lps": LPS_TO_RAS,
}
NRRD_TYPES = {
    name: code
    for code, names in {
        "i1": "signed char,int8,int8_t",
        "u1": "uchar,unsigned char,uint8,uint8_t",
        "i2": "short,short int,signed short,signed short int,int16,int16_t",
        "u2": "ushort,unsigned short,unsigned short int,uint16,uint16_t",
        "i4": "int,signed int,int32,int32_t",
        "u4": "uint,unsigned int,uint32,uint32_t",
        "i8": "longlong,long long,long long int,signed long long,signed long long int,int64,int64_t",
        "u8": "ulonglong,unsigned long long,unsigned long long int,uint64,uint64_t",
        "f4": "float",
        "f8": "double",
    }.items()
    for name in names.split(",")
}
BYTE_ORDERS: dict[str, Literal["<", ">"]] = {"little": "<", "big": ">"}
ENCODINGS: dict[str, Encoding] = {
    "raw": "raw",
    "gzip": "gzip",
    "gz": "gzip",
    "bzip2": "bzip2",
    "bz2": "bzip2",
    "text": "text",
    "txt": "text",
    "ascii": "text",
}
REPEATS = ("list", "time", "domain", "stub", "scalar", "none", "???")  # kinds of an axis that counts volumes
COLOURS = ("RGB-color", "HSV-color", "XYZ-color", "RGBA-color", "3-color", "4-color")
METAIMAGE_SUFFIXES = (".mha", ".mhd")
LONGEST_HEADER = 1 << 16  # bytes
METAIMAGE_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # MET_LONG has 4 or 8 bytes, depending on the machine that wrote it: refused
ALIASES = {
    "Rotation": "TransformMatrix",
    "Orientation": "TransformMatrix",
    "Position": "Offset",
    "Origin": "Offset",
    "BinaryDataByteOrderMSB": "ElementByteOrderMSB",
}


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


def _no_header(kind: str, path: Path | str = "") -> BadFileError:
    return BadFileError(f"not a readable {kind} header", remedy="Export it again.", path=path)


def _short(path: Path) -> BadFileError:
    return BadFileError(SHORT, remedy="Copy the file again.", path=path)


def describe_nrrd(path: Path) -> RawGrid:
    """Read the header.

    Raises:
        BadFileError: no NRRD header, or one that leaves the place or the meaning of the voxels open.
    """
    nrrd = require("nrrd", extra="mri")
    with path.open("rb") as stream:
        try:
            fields = {_plain(key): value for key, value in nrrd.read_header(stream).items()}
            start = stream.tell()
            stream.seek(0)
            units = _nrrd_units(stream.read(start))
            sizes = tuple(int(n) for n in fields["sizes"])
            encoding = ENCODINGS[str(fields["encoding"]).lower()]
            dtype = np.dtype(NRRD_TYPES[str(fields["type"]).lower()])
            if dtype.itemsize > 1 and encoding != "text":
                dtype = dtype.newbyteorder(BYTE_ORDERS[str(fields["endian"]).lower()])
        except Exception as error:  # pynrrd raises what its parsing meets
            raise _no_header("NRRD", path) from error
    order, affine = _nrrd_geometry(fields, sizes, units, path)
    data, offset = path, start
    if "datafile" in fields:
        name = str(fields["datafile"])
        if name.split(" ")[0] == "LIST" or "%" in name:
            raise BadFileError("voxels in several data files", remedy="Save it as one .nrrd file.", path=path)
        data, offset = beside(path, name), 0
    return RawGrid(
        shape=sizes,
        order=order,
        dtype=dtype,
        affine=affine,
        data=data,
        offset=_nrrd_skip(fields, data, offset, encoding),
        encoding=encoding,
    )


def _plain(key: str) -> str:
    """Some fields may be written with and without a space: 'data file', 'datafile'."""
    return key.replace(" ", "").lower()


def _nrrd_units(header: bytes) -> list[str]:
    """The unit of each axis of space, empty where none is written. pynrrd drops the sign for micro."""
    line = re.search(rb"^space ?units:(.*)$", header, re.MULTILINE | re.IGNORECASE)
    try:
        text = line[1].decode() if line else ""
    except UnicodeDecodeError:
        text = line[1].decode("latin-1") if line else ""
    return re.findall(r'"([^"]*)"', text)[:3]  # a fourth would be that of time


def _nrrd_geometry(
    fields: dict[str, Any], sizes: tuple[int, ...], units: list[str], path: Path
) -> tuple[tuple[int, ...], np.ndarray]:
    """Axes in the order x, y, z, repeats, and the affine to RAS."""
    unrecorded = BadFileError(
        "the file does not record its orientation", remedy="Save it with 3D Slicer or ITK, or as NIfTI.", path=path
    )
    space = SPACES.get(str(fields.get("space", "")).lower().removesuffix("-time").removesuffix("t"))
    directions = fields.get("spacedirections")
    if space is None or directions is None:
        raise unrecorded
    rows = [None if row is None or not np.isfinite(row).all() else np.asarray(row, float) for row in directions]
    spatial = tuple(axis for axis, row in enumerate(rows) if row is not None)
    if len(rows) != len(sizes) or len(spatial) != 3 or any(len(r) != 3 for r in rows if r is not None):
        raise unrecorded
    if len(units) not in (0, 3):
        raise _no_header("NRRD", path)
    factors = [millimetres("mm" if unit in ("", "???", "none") else unit) for unit in units or ["mm"] * 3]
    rest = tuple(axis for axis in range(len(sizes)) if axis not in spatial)
    kinds = [str(kind) for kind in fields.get("kinds") or ["domain"] * len(sizes)]
    for axis in rest:
        if kinds[axis] in COLOURS and sizes[axis] > 1:
            raise BadFileError("colour (RGB) volume", remedy="Give the grey-value volume.", path=path)
        if kinds[axis] not in REPEATS and sizes[axis] > 1:
            raise BadFileError("five dimensions (vectors or tensors)", remedy="Give scalar images.", path=path)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([row for row in rows if row is not None], axis=1)
    origin = fields.get("spaceorigin")
    if origin is not None:
        affine[:3, 3] = np.asarray(origin, float)
    return spatial + rest, space @ np.diag([*factors, 1.0]) @ affine  # units are those of the axes of space


def _nrrd_skip(fields: dict[str, Any], data: Path, offset: int, encoding: Encoding) -> int:
    """The offset after 'line skip' and 'byte skip'."""
    lines, count = int(fields.get("lineskip", 0)), int(fields.get("byteskip", 0))
    if count == AT_THE_END and encoding == "raw":
        return AT_THE_END
    if lines < 0 or count < 0 or (count and encoding != "raw"):
        raise _no_header("NRRD", data)
    with data.open("rb") as stream:
        stream.seek(offset)
        for _ in range(lines):
            stream.readline()
        return stream.tell() + count


def describe_metaimage(path: Path) -> RawGrid:
    """Read the header.

    Raises:
        BadFileError: no MetaImage header, or one that leaves the place or the meaning of the voxels open.
    """
    fields, start = _metaimage_fields(path)
    try:
        if fields.get("ObjectType", "Image") != "Image":
            raise BadFileError("MetaIO object that is no image", remedy="Give the image.", path=path)
        sizes = tuple(int(n) for n in fields["DimSize"].split())
        if len(sizes) != int(fields["NDims"]):
            raise ValueError("DimSize and NDims disagree")
        dtype = np.dtype(METAIMAGE_TYPES[fields["ElementType"]])
        channels = int(fields.get("ElementNumberOfChannels", 1))
        slope = float(fields.get("ElementToIntensityFunctionSlope", 1))
        intercept = float(fields.get("ElementToIntensityFunctionOffset", 0))
        affine = _metaimage_affine(fields, len(sizes))
        offset = int(fields.get("HeaderSize", 0))
    except (KeyError, ValueError, IndexError) as error:
        raise _no_header("MetaImage", path) from error
    if channels in (3, 4) and dtype == np.uint8:
        raise BadFileError("colour (RGB) volume", remedy="Give the grey-value volume.", path=path)
    if channels != 1:
        raise BadFileError("five dimensions (vectors or tensors)", remedy="Give scalar images.", path=path)
    if (slope, intercept) != (1, 0):  # ITK does not apply it, so readers would disagree about the values
        raise BadFileError("scaled intensities (ElementToIntensityFunction)", remedy="Save it unscaled.", path=path)
    if affine is None:
        raise BadFileError(
            "the file does not record its orientation", remedy="Save it with ITK or SimpleITK, or as NIfTI.", path=path
        )
    name, data = fields["ElementDataFile"], path
    if name.upper() != "LOCAL":
        if name.split(" ")[0] == "LIST" or "%" in name:
            raise BadFileError("voxels in several data files", remedy="Save it as one .mha file.", path=path)
        data = beside(path, name)
    elif offset:
        raise _no_header("MetaImage", path)
    text = _yes(fields.get("BinaryData", "True")) is False
    packed = _yes(fields.get("CompressedData", "False"))
    if offset < AT_THE_END or (offset and (packed or text)):
        raise _no_header("MetaImage", path)
    return RawGrid(
        shape=sizes,
        order=tuple(range(len(sizes))),
        dtype=dtype.newbyteorder(">" if _yes(fields.get("ElementByteOrderMSB", "False")) else "<"),
        affine=affine if affine is not None else np.eye(4),
        data=data,
        offset=start if data == path else offset,
        encoding="text" if text else "zlib" if packed else "raw",
    )


def _metaimage_fields(path: Path) -> tuple[dict[str, str], int]:
    """The header's fields up to ElementDataFile, and where they end, bytes."""
    fields: dict[str, str] = {}
    with path.open("rb") as stream:
        while stream.tell() < LONGEST_HEADER:
            line = stream.readline(LONGEST_HEADER)
            key, equals, value = line.decode("latin-1").partition("=")
            if not equals:
                break
            key = ALIASES.get(key.strip(), key.strip())
            fields.setdefault(key, value.strip())
            if key == "ElementDataFile":
                return fields, stream.tell()
    raise _no_header("MetaImage", path)


def _metaimage_affine(fields: dict[str, str], n: int) -> np.ndarray | None:
    """(4, 4) to RAS, or None where directions or voxel sizes are not given; a fourth axis has no direction in space."""
    sizes = fields.get("ElementSpacing") or fields.get("ElementSize")
    if n < 3 or sizes is None or "TransformMatrix" not in fields:
        return None if n >= 3 else np.eye(4)  # fewer dimensions are refused with a reason of their own
    directions = np.array([float(v) for v in fields["TransformMatrix"].split()]).reshape(n, n)
    spacing = np.array([float(v) for v in sizes.split()])
    origin = np.array([float(v) for v in fields.get("Offset", "0 " * n).split()])
    if len(spacing) != n or len(origin) != n or (spacing[:3] <= 0).any():
        raise ValueError("another number of values than dimensions")
    if n > 3 and (directions[:3, 3:].any() or directions[3:, :3].any()):
        raise ValueError("a fourth axis that points into space")
    affine = np.eye(4)
    affine[:3, :3] = directions[:3, :3].T * spacing[:3]
    affine[:3, 3] = origin[:3]
    unit = fields.get("DistanceUnits", "?")
    affine_ras: np.ndarray = LPS_TO_RAS @ np.diag([millimetres("mm" if unit == "?" else unit)] * 3 + [1.0]) @ affine
    return affine_ras


def _yes(word: str) -> bool:
    if word.lower() in ("true", "t", "1", "yes", "y"):
        return True
    if word.lower() in ("false", "f", "0", "no", "n"):
        return False
    raise _no_header("MetaImage")
