"""MetaImage headers (.mha, .mhd), the format of ITK and elastix, in own code: SimpleITK would bring 264 MB for it.

Read are the fields that ITK's MetaImageIO reads, and DistanceUnits. Coordinates are LPS mm; line i of TransformMatrix
is the direction of axis i. https://itk.org/Wiki/ITK/MetaIO/Documentation.
"""

from pathlib import Path

import numpy as np

from data_adapters.errors import BadFileError
from data_adapters.mri.geometry import LPS_TO_RAS, millimetres
from data_adapters.mri.rawgrid import AT_THE_END, RawGrid, beside

SUFFIXES = (".mha", ".mhd")
LONGEST_HEADER = 1 << 16  # bytes
TYPES = {
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


def describe(path: Path) -> RawGrid:
    """Read the header.

    Raises:
        BadFileError: no MetaImage header, or one that leaves the place or the meaning of the voxels open.
    """
    fields, start = _fields(path)
    try:
        if fields.get("ObjectType", "Image") != "Image":
            raise BadFileError("MetaIO object that is no image", remedy="Give the image.", path=path)
        sizes = tuple(int(n) for n in fields["DimSize"].split())
        if len(sizes) != int(fields["NDims"]):
            raise ValueError("DimSize and NDims disagree")
        dtype = np.dtype(TYPES[fields["ElementType"]])
        channels = int(fields.get("ElementNumberOfChannels", 1))
        slope = float(fields.get("ElementToIntensityFunctionSlope", 1))
        intercept = float(fields.get("ElementToIntensityFunctionOffset", 0))
        affine = _affine(fields, len(sizes))
        offset = int(fields.get("HeaderSize", 0))
    except (KeyError, ValueError, IndexError) as error:
        raise BadFileError("not a readable MetaImage header", remedy="Export it again.", path=path) from error
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
        raise BadFileError("not a readable MetaImage header", remedy="Export it again.", path=path)
    text = _yes(fields.get("BinaryData", "True")) is False
    packed = _yes(fields.get("CompressedData", "False"))
    if offset < AT_THE_END or (offset and (packed or text)):
        raise BadFileError("not a readable MetaImage header", remedy="Export it again.", path=path)
    return RawGrid(
        shape=sizes,
        order=tuple(range(len(sizes))),
        dtype=dtype.newbyteorder(">" if _yes(fields.get("ElementByteOrderMSB", "False")) else "<"),
        affine=affine if affine is not None else np.eye(4),
        data=data,
        offset=start if data == path else offset,
        encoding="text" if text else "zlib" if packed else "raw",
    )


def _fields(path: Path) -> tuple[dict[str, str], int]:
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
    raise BadFileError("not a readable MetaImage header", remedy="Export it again.", path=path)


def _affine(fields: dict[str, str], n: int) -> np.ndarray | None:
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
    raise BadFileError("not a readable MetaImage header", remedy="Export it again.")
