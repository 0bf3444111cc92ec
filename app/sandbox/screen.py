"""What is checked of a file before a reader sees it, and of an item before its pixels are decoded.

The checks are for what a reader would only notice after it has unpacked, listed or allocated it. Whatever else a file
may do to its reader ends at the worker's memory and time.
"""

import bz2
import gzip
import io
import itertools
import lzma
import math
import mmap
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from app.sandbox.limits import Limits
from data_adapters.base import Adapter, Record
from data_adapters.errors import BadFileError, require

PIECE = 1 << 20
MAX_RATIO = 200  # unpacked bytes for one packed byte; masks and empty slices stay below it, and images far below
RATIO_FROM = 64 << 20  # bytes below which the ratio of an item does not matter
WINDOW = 128 << 20  # bytes of a stream over which its ratio is judged again: a few empty slices may follow each other
MAX_SCANS = 400  # of a progressive JPEG, each of which visits every pixel; encoders write about ten
MAX_EXTENSIONS = 2000  # of a FITS file; a mosaic camera writes some 70
MAX_NAMES = 1000  # of an HDF5 file that are looked at
MAX_TILE_PIXELS = 1 << 26  # of one tile or strip that is decoded at once: 8192 x 8192
BYTES_A_VALUE = 40  # that decoding takes at its peak: as stored, as float64 for scaling, and three float32 copies
DEFLATED = b"1.2.840.10008.1.2.1.99"  # DICOM's transfer syntax whose data set is one deflate stream
GROUP_2_LENGTH = b"\x02\x00\x00\x00UL\x04\x00"
OPENERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
DAMAGE = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, struct.error)


def check(path: Path, limits: Limits) -> None:
    """Refuse a file that would take its reader too much. Nothing is said of whether it can be read.

    Raises:
        BadFileError: a bomb, or larger than a limit.
    """
    with path.open("rb") as stream:
        head = stream.read(4096)
    for magic, opener in OPENERS.items():
        if head.startswith(magic):
            with path.open("rb") as packed, opener(packed) as inside:
                _count(inside, packed, limits)
    if head[128:132] == b"DICM" and DEFLATED in head:
        _check_deflated(path, head, limits)
    elif head[:2] == b"\xff\xd8":
        _check_scans(path)
    elif head[:4] in (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"):
        _check_tiff(path, limits)
    elif head.startswith(b"SIMPLE  ="):
        _check_fits(path)
    elif head.startswith(b"\x89HDF"):
        _check_hdf5(path, limits)


def whole_bytes(record: Record, limits: Limits) -> int:
    """Memory that decoding a whole item may take beyond the base, by what its header declares.

    Raises:
        BadFileError: more values than allowed, or many more than its packed bytes can hold.
    """
    meta = record.meta
    pixels = math.prod(int(side) for side in meta.get("size", ()))
    if pixels > limits.max_pixels:
        raise BadFileError(
            f"The image has more than {limits.max_pixels} pixels or voxels.",
            remedy="Send a smaller part of it; the operator sets the limit (LEJEPA_MAX_PIXELS).",
        )
    values = pixels * int(meta.get("channels", 1)) * int(meta.get("planes", 1)) * max(1, len(meta.get("parts", ())))
    unpacked = values * int(meta.get("bits", 8)) // 8
    packed = sum(Path(name).stat().st_size for name in meta.get("files", [record.uri]))
    if unpacked > RATIO_FROM and unpacked > MAX_RATIO * packed:
        raise _swells()
    return BYTES_A_VALUE * values + packed  # the files themselves may be mapped into memory


def tile_bytes(adapter: Adapter) -> int:
    """Memory that the prepared tiles of a slide take, beyond the base."""
    options = getattr(adapter, "options", None)
    tiles, side = getattr(options, "tiles", 1), adapter.spec.global_size
    return 4 * int(tiles) * adapter.spec.channels * side * side


def too_many_items(limits: Limits) -> BadFileError:
    """The refusal of a file that holds more items than one request may have."""
    return BadFileError(
        f"The file holds more than {limits.max_items} items.",
        remedy="Send it in parts; the operator sets the limit (LEJEPA_MAX_ITEMS).",
    )


def too_many_tiles(limits: Limits) -> BadFileError:
    """The refusal of an item that becomes too many images, or a file of too many pages."""
    return BadFileError(
        f"The item has more than {limits.max_tiles} slices, tiles or pages.",
        remedy="Send a smaller part of it; the operator sets the limit (LEJEPA_MAX_TILES).",
    )


def _swells() -> BadFileError:
    return BadFileError(
        f"The file unpacks to more than {MAX_RATIO} times its size.", remedy="Send an image, or send it uncompressed."
    )


def _count(inside: BinaryIO, packed: BinaryIO, limits: Limits) -> None:
    """Read a compressed stream to its end, keeping nothing; damage is left to the reader to name."""
    total, mark, before = 0, 0, 0
    try:
        while piece := inside.read(PIECE):
            total += len(piece)
            if total > limits.max_unzipped_bytes:
                raise BadFileError(
                    f"The file unpacks to more than {limits.max_unzipped_bytes} bytes.",
                    remedy="Send a smaller part of it; the operator sets the limit (LEJEPA_MAX_UNZIPPED_BYTES).",
                )
            if total - mark > WINDOW:
                if total - mark > MAX_RATIO * (packed.tell() - before):
                    raise _swells()
                mark, before = total, packed.tell()
    except DAMAGE:
        return
    if total > RATIO_FROM and total > MAX_RATIO * packed.tell():
        raise _swells()


class _Deflated(io.RawIOBase):
    """The unpacked bytes of a raw deflate stream, a bounded piece at a time."""

    def __init__(self, packed: BinaryIO) -> None:
        self._packed, self._inflate = packed, zlib.decompressobj(-zlib.MAX_WBITS)

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes; none at the end."""
        piece = b""
        while not (piece or self._inflate.eof):
            data = self._inflate.unconsumed_tail or self._packed.read(PIECE)
            if not data:
                break
            piece = self._inflate.decompress(data, size)
        return piece


def _check_deflated(path: Path, head: bytes, limits: Limits) -> None:
    """A deflated DICOM data set, which its reader unpacks before anything else. It begins behind group 2."""
    length = int.from_bytes(head[140:144], "little") if head[132:140] == GROUP_2_LENGTH else 0
    with path.open("rb") as packed:
        packed.seek(144 + length)
        _count(cast(BinaryIO, _Deflated(packed)), packed, limits)


def _check_scans(path: Path) -> None:
    """JPEG: inside of a scan 0xff is followed by 0 or a restart, so the marker 0xffda begins one."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        place, scans = data.find(b"\xff\xda"), 0
        while place >= 0:
            scans += 1
            if scans > MAX_SCANS:
                raise BadFileError(
                    f"The JPEG has more than {MAX_SCANS} scans.", remedy="Save the picture again, as baseline JPEG."
                )
            place = data.find(b"\xff\xda", place + 2)


def _check_tiff(path: Path, limits: Limits) -> None:
    """A chain of directories that does not end, or a tile or strip that alone would fill the memory."""
    with path.open("rb") as stream:
        try:
            for count, tags in enumerate(_directories(stream), start=1):
                if count > limits.max_tiles:
                    raise too_many_tiles(limits)
                width, height = tags.get(322, tags.get(256, 0)), tags.get(323, min(tags.get(278, 0), tags.get(257, 0)))
                whole = tags.get(256, 0) * tags.get(257, 0)
                # Of a strip no more is decoded than the picture has; a tile is always decoded whole.
                if width * height > MAX_TILE_PIXELS and (322 in tags or whole > limits.max_pixels):
                    raise BadFileError(
                        f"The TIFF has a tile or strip of more than {MAX_TILE_PIXELS} pixels.",
                        remedy="Save it with tiles of 256 or 512 pixels.",
                    )
        except DAMAGE:
            return


def _directories(stream: BinaryIO) -> Iterator[dict[int, int]]:
    """The whole-number tags of each directory in a TIFF's main chain.

    Width 256, height 257, rows of a strip 278, width and height of a tile 322 and 323.

    Raises:
        BadFileError: the chain comes back to itself.
        struct.error: it leads out of the file.
    """
    head = stream.read(16)
    order, big = ("<" if head[:2] == b"II" else ">"), head[2:4] in (b"+\x00", b"\x00+")
    count_at, entry, pointer = ("Q", 20, "Q") if big else ("H", 12, "I")
    (place,) = struct.unpack_from(order + pointer, head, 8 if big else 4)
    seen: set[int] = set()
    while place:
        if place in seen:
            raise BadFileError("The directories of the TIFF form a ring.", remedy="Save the picture again.")
        seen.add(place)
        stream.seek(place)
        (count,) = struct.unpack(order + count_at, stream.read(8 if big else 2))
        table = stream.read(entry * min(count, 1 << 12))
        tags = {}
        for start in range(0, len(table) - entry + 1, entry):
            tag, kind = struct.unpack_from(order + "HH", table, start)
            if kind in (3, 4):
                (tags[tag],) = struct.unpack_from(
                    order + ("H" if kind == 3 else "I"), table, start + (12 if big else 8)
                )
        yield tags
        stream.seek(place + (8 if big else 2) + entry * count)
        (place,) = struct.unpack(order + pointer, stream.read(8 if big else 4))


def _check_fits(path: Path) -> None:
    """More extensions than a reader should list; each begins a block of 2880 bytes."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = sum(data[start : start + 9] == b"XTENSION=" for start in range(2880, len(data), 2880))
    if found > MAX_EXTENSIONS:
        raise BadFileError(
            f"The FITS file has more than {MAX_EXTENSIONS} extensions.", remedy="Send the images of one exposure."
        )


def _check_hdf5(path: Path, limits: Limits) -> None:
    """A table of images that declares more rows than a request may have: each becomes an item when it is listed."""
    try:
        h5py = require("h5py", extra="galaxy")
        with h5py.File(path, "r") as file:
            names = list(itertools.islice(file, MAX_NAMES))
            kinds = [file.get(name, getclass=True, getlink=True) for name in names]
            tables = [file[n] for n, kind in zip(names, kinds, strict=True) if kind is h5py.HardLink]
            rows = [
                table.shape[0] for table in tables if isinstance(table, h5py.Dataset) and len(table.shape or ()) > 2
            ]
    except (*DAMAGE, RuntimeError, KeyError, TypeError):
        return
    if max(rows, default=0) > limits.max_items:
        raise too_many_items(limits)
