"""NRRD headers (.nrrd, .nhdr), read by pynrrd: the format of 3D Slicer. http://teem.sourceforge.net/nrrd/format.html."""

import re
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_adapters.errors import BadFileError, require
from data_adapters.mri.geometry import LPS_TO_RAS, millimetres
from data_adapters.mri.rawgrid import AT_THE_END, Encoding, RawGrid, beside

SUFFIXES = (".nrrd", ".nhdr")
# Diagonal of the matrix from the header's space to RAS.
SPACES = {
    "right-anterior-superior": np.eye(4),
    "ras": np.eye(4),
    "left-anterior-superior": np.diag([-1.0, 1.0, 1.0, 1.0]),
    "las": np.diag([-1.0, 1.0, 1.0, 1.0]),
    "left-posterior-superior": LPS_TO_RAS,
    "lps": LPS_TO_RAS,
}
TYPES = {
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


def describe(path: Path) -> RawGrid:
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
            units = _units(stream.read(start))
            sizes = tuple(int(n) for n in fields["sizes"])
            encoding = ENCODINGS[str(fields["encoding"]).lower()]
            dtype = np.dtype(TYPES[str(fields["type"]).lower()])
            if dtype.itemsize > 1 and encoding != "text":
                dtype = dtype.newbyteorder(BYTE_ORDERS[str(fields["endian"]).lower()])
        except Exception as error:  # pynrrd raises what its parsing meets
            raise BadFileError("not a readable NRRD header", remedy="Export it again.", path=path) from error
    order, affine = _geometry(fields, sizes, units, path)
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
        offset=_skip(fields, data, offset, encoding),
        encoding=encoding,
    )


def _plain(key: str) -> str:
    """Some fields may be written with and without a space: 'data file', 'datafile'."""
    return key.replace(" ", "").lower()


def _units(header: bytes) -> list[str]:
    """The unit of each axis of space, empty where none is written. pynrrd drops the sign for micro."""
    line = re.search(rb"^space ?units:(.*)$", header, re.MULTILINE | re.IGNORECASE)
    try:
        text = line[1].decode() if line else ""
    except UnicodeDecodeError:
        text = line[1].decode("latin-1") if line else ""
    return re.findall(r'"([^"]*)"', text)[:3]  # a fourth would be that of time


def _geometry(
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
        raise BadFileError("not a readable NRRD header", remedy="Export it again.", path=path)
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


def _skip(fields: dict[str, Any], data: Path, offset: int, encoding: Encoding) -> int:
    """The offset after 'line skip' and 'byte skip'."""
    lines, count = int(fields.get("lineskip", 0)), int(fields.get("byteskip", 0))
    if count == AT_THE_END and encoding == "raw":
        return AT_THE_END
    if lines < 0 or count < 0 or (count and encoding != "raw"):
        raise BadFileError("not a readable NRRD header", remedy="Export it again.", path=data)
    with data.open("rb") as stream:
        stream.seek(offset)
        for _ in range(lines):
            stream.readline()
        return stream.tell() + count
