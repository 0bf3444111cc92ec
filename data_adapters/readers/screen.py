"""What is checked of a file before a reader sees it, and of an item before its pixels are decoded.

The checks are for what a reader would notice only after it has unpacked, listed or allocated it. Each raises
BadFileError, and says nothing of any other damage. The memory and time of the process limit whatever else a file does.
"""

import bz2
import gzip
import io
import itertools
import lzma
import math
import mmap
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from data_adapters.base import Adapter, BaseAdapter, Record
from data_adapters.errors import BadFileError, require
from data_adapters.readers.limits import Limits
from data_adapters.record import files_of

MAX_RATIO = 200  # unpacked bytes for one packed byte; masks and empty slices stay below it, and images far below
RATIO_FROM = 64 << 20  # bytes of an item below which the ratio does not matter
BYTES_A_VALUE = 40  # that decoding takes at its peak: as stored, as float64 for scaling, and three float32 copies
TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
PIECE = 1 << 20
BITE = 1 << 16  # packed bytes at once: what is read ahead blurs the ratio
WINDOW = 64 << 20  # bytes of a stream over which its ratio is judged: some empty slices may follow each other
OPENERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
GZIP_MEMBER, GZIP_WBITS = b"\x1f\x8b\x08", 31
DAMAGE = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, struct.error)
HEAD = 1 << 16  # bytes; they hold a DICOM file's number of frames
MAX_SCANS = 400  # of a progressive JPEG, each of which visits every pixel; encoders write about ten
MAX_EXTENSIONS = 2000  # of a FITS file; a mosaic camera writes some 70
MAX_PIXEL_BYTES = 64  # of a TIFF: four channels of 16 bytes are the most that its readers know
MAX_TILE_PIXELS = 1 << 26  # of one tile or strip that is decoded at once: 8192 x 8192
MAX_CHUNK_BYTES = 128 << 20  # of an HDF5 dataset
MAX_NAMES = 1000  # of an HDF5 file that are looked at
# the value of NumberOfFrames, (0028,0008), in explicit or implicit encoding
FRAMES = re.compile(rb"\x28\x00\x08\x00(?:IS..|.\x00\x00\x00) {0,4}(\d{1,12})", re.DOTALL)
DEFLATED, JPEG_2000 = b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.4.9"  # DICOM's transfer syntaxes
RAW_WBITS = -15  # of zlib, for a stream without a header
GROUP_2_LENGTH = b"\x02\x00\x00\x00UL\x04\x00"
START_OF_SIZE = b"\xff\x4f\xff\x51"  # of a JPEG 2000 codestream, and then its size


def check(path: Path, limits: Limits, *, whole: bool) -> None:
    """Refuse a file that would take its reader too much. Nothing is said of whether it can be read.

    Args:
        path: the file.
        limits: of the service.
        whole: its items are decoded whole, not by region as slides are.

    Raises:
        BadFileError: a bomb, or larger than a limit.
    """
    with path.open("rb") as stream:
        head = stream.read(HEAD)
    for magic, opener in OPENERS.items():
        if head.startswith(magic):
            with path.open("rb") as packed, opener(packed) as inside:
                count_unpacked(inside, packed, limits)
    if head[128:132] == b"DICM":
        check_dicom(path, head, limits, whole=whole)
    elif head[:4] == b"\x89PNG":
        if png_size(head) > max(RATIO_FROM, MAX_RATIO * path.stat().st_size):
            raise swells()
    elif head[:2] == b"\xff\xd8":
        check_scans(path)
    elif head[:4] in TIFF:
        check_tiff(path, limits)
    elif head.startswith(b"SIMPLE  ="):
        check_fits(path, limits)
    elif head.startswith(b"\x89HDF"):
        check_hdf5(path, limits)


def listing_bytes(path: Path) -> int:
    """Memory that a picture's reader takes before it tells what it holds: of a PNG, whose EXIF may come last, all."""
    with path.open("rb") as stream:
        size = png_size(stream.read(26))
    return 4 * size


def is_whole(adapter: Adapter) -> bool:
    """Whether its items are decoded whole. Slides are read by region; what their tiles may hold is screened."""
    return not (isinstance(adapter, BaseAdapter) and adapter.reads_regions)


def whole_bytes(record: Record, limits: Limits) -> int:
    """Memory that decoding a whole item may take beyond the base, by what its header declares.

    Raises:
        BadFileError: more values than allowed, or many more than its packed bytes can hold.
    """
    meta = record.meta
    pixels = math.prod(int(side) for side in meta.get("size", ()))
    if pixels > limits.max_pixels:
        raise too_many_pixels(limits)
    values = pixels * int(meta.get("channels", 1)) * int(meta.get("planes", 1)) * max(1, len(meta.get("parts", ())))
    unpacked = values * int(meta.get("bits", 8)) // 8
    packed = sum(Path(name).stat().st_size for name in files_of(record))
    if unpacked > RATIO_FROM and unpacked > MAX_RATIO * packed:
        raise swells()
    return BYTES_A_VALUE * values + packed  # the files themselves may be mapped into memory


def tile_bytes(adapter: Adapter) -> int:
    """Memory that the prepared tiles of a slide take, beyond the base."""
    tiles, side = adapter.most_images if isinstance(adapter, BaseAdapter) else 1, adapter.spec.embed_size
    return 4 * tiles * adapter.spec.channels * side * side


# --- compressed streams, counted on their real bytes ------------------------------------------------------------------


def count_unpacked(inside: Any, packed: BinaryIO, limits: Limits) -> int:
    """Read a compressed stream to its end, keeping nothing; damage is left to the reader to name.

    Args:
        inside: gives the unpacked bytes.
        packed: the file below it.
        limits: of the service.

    Returns:
        Unpacked bytes.

    Raises:
        BadFileError: more than allowed, or more than MAX_RATIO times the packed ones.
    """
    start = packed.tell()
    total, mark, before = 0, 0, start
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
                    raise swells()
                mark, before = total, packed.tell()
    except DAMAGE:
        return total
    if total > RATIO_FROM and total > MAX_RATIO * (packed.tell() - start):
        raise swells()
    return total


class Inflated(io.RawIOBase):
    """The unpacked bytes of a deflate stream from here on, a bounded piece at a time."""

    def __init__(self, packed: BinaryIO, *, wbits: int) -> None:
        self._packed, self._inflate = packed, zlib.decompressobj(wbits)

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes; none at the end."""
        piece = b""
        while not (piece or self._inflate.eof):
            data = self._inflate.unconsumed_tail or self._packed.read(BITE)
            if not data:
                break
            piece = self._inflate.decompress(data, size)
        return piece


def check_members(path: Path, limits: Limits) -> None:
    """The gzip members in a file, one for each tile of a compressed FITS image, together."""
    size, total = path.stat().st_size, 0
    with path.open("rb") as packed, mmap.mmap(packed.fileno(), 0, access=mmap.ACCESS_READ) as data:
        place = data.find(GZIP_MEMBER)
        while place >= 0:
            packed.seek(place)
            total += count_unpacked(Inflated(packed, wbits=GZIP_WBITS), packed, limits)
            if total > max(RATIO_FROM, MAX_RATIO * size):
                raise swells()
            place = data.find(GZIP_MEMBER, place + len(GZIP_MEMBER))


# --- what single formats can hide from a look at their size -----------------------------------------------------------


def png_size(head: bytes) -> int:
    """Unpacked bytes of a PNG by its header chunk; 0 for any other file."""
    if not head.startswith(b"\x89PNG\r\n\x1a\n") or len(head) < 26:
        return 0
    width, height, depth, colour = struct.unpack(">IIBB", head[16:26])
    return int(width * height * depth * {2: 3, 4: 2, 6: 4}.get(colour, 1) // 8)


def check_dicom(path: Path, head: bytes, limits: Limits, *, whole: bool) -> None:
    """Frames that are decoded together, and compressed data that say another size than the header."""
    if DEFLATED in head[:1024]:
        _check_deflated(path, head, limits)
    frames = FRAMES.search(head)
    if whole and frames is not None and int(frames[1]) > limits.max_tiles:
        raise too_many_tiles(limits)
    if JPEG_2000 in head[:1024]:
        _check_codestreams(path, limits)


def _check_codestreams(path: Path, limits: Limits) -> None:
    """The size that a JPEG 2000 stream declares by itself (ISO/IEC 15444-1, A.5.1) is what its decoder allocates."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        place = data.find(START_OF_SIZE)
        while place >= 0:
            right, bottom, left, top = struct.unpack(">4I", data[place + 8 : place + 24].ljust(16, b"\0"))
            if (right - left) * (bottom - top) > limits.max_pixels:
                raise too_many_pixels(limits)
            place = data.find(START_OF_SIZE, place + 4)


def _check_deflated(path: Path, head: bytes, limits: Limits) -> None:
    """A deflated DICOM data set, which its reader unpacks before anything else. It begins behind group 2."""
    length = int.from_bytes(head[140:144], "little") if head[132:140] == GROUP_2_LENGTH else 0
    with path.open("rb") as packed:
        packed.seek(144 + length)
        count_unpacked(Inflated(packed, wbits=RAW_WBITS), packed, limits)


def check_scans(path: Path) -> None:
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


def check_tiff(path: Path, limits: Limits) -> None:
    """A chain of directories that does not end, or a tile or strip that alone would fill the memory."""
    with path.open("rb") as stream:
        try:
            for number, tags in enumerate(_directories(stream), start=1):
                if number > limits.max_tiles:
                    raise too_many_tiles(limits)
                width, height = tags.get(322, tags.get(256, 0)), tags.get(323, min(tags.get(278, 0), tags.get(257, 0)))
                whole = tags.get(256, 0) * tags.get(257, 0)
                # Of a strip no more is decoded than the picture has; a tile is always decoded whole.
                if width * height > MAX_TILE_PIXELS and (322 in tags or whole > limits.max_pixels):
                    raise BadFileError(
                        f"The TIFF has a tile or strip of more than {MAX_TILE_PIXELS} pixels.",
                        remedy="Save it with tiles of 256 or 512 pixels.",
                    )
                if tags.get(279, tags.get(325, 0)) > MAX_PIXEL_BYTES * width * height + HEAD:
                    raise BadFileError("The TIFF has more data than its header says.", remedy="Save the picture again.")
        except DAMAGE:
            return


def _directories(stream: BinaryIO) -> Iterator[dict[int, int]]:
    """The whole-number tags of each directory in a TIFF's main chain.

    Width 256, height 257, rows of a strip 278 and its bytes 279, width and height of a tile 322 and 323, its bytes 325.

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
            tag, kind, number = struct.unpack_from(order + "HH" + pointer, table, start)
            if kind in (3, 4) and number == 1:
                (tags[tag],) = struct.unpack_from(
                    order + ("H" if kind == 3 else "I"), table, start + (12 if big else 8)
                )
        yield tags
        stream.seek(place + (8 if big else 2) + entry * count)
        (place,) = struct.unpack(order + pointer, stream.read(8 if big else 4))


def check_fits(path: Path, limits: Limits) -> None:
    """More extensions than a reader should list (each begins a block of 2880 bytes), and packed tiles that swell."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = sum(data[start : start + 9] == b"XTENSION=" for start in range(2880, len(data), 2880))
        is_packed = data.find(b"ZCMPTYPE") >= 0
    if found > MAX_EXTENSIONS:
        raise BadFileError(
            f"The FITS file has more than {MAX_EXTENSIONS} extensions.", remedy="Send the images of one exposure."
        )
    if is_packed:
        check_members(path, limits)


def check_hdf5(path: Path, limits: Limits) -> None:
    """More rows than a request may have, each an item when it is listed; and chunks, which are unpacked whole."""
    try:
        h5py = require("h5py", extra="galaxy")
        with h5py.File(path, "r") as file:
            names = list(itertools.islice(file, MAX_NAMES))
            kinds = [file.get(name, getclass=True, getlink=True) for name in names]
            tables = [file[n] for n, kind in zip(names, kinds, strict=True) if kind is h5py.HardLink]
            images = [table for table in tables if isinstance(table, h5py.Dataset) and len(table.shape or ()) > 2]
            rows = [table.shape[0] for table in images]
            chunks = [math.prod(table.chunks or ()) * table.dtype.itemsize for table in images]
    except (*DAMAGE, RuntimeError, KeyError, TypeError):
        return
    if max(rows, default=0) > limits.max_items:
        raise too_many_items(limits)
    if max(chunks, default=0) > MAX_CHUNK_BYTES:
        raise BadFileError(
            f"The HDF5 file has chunks of more than {MAX_CHUNK_BYTES} bytes.",
            remedy="Store the images in chunks of one or a few rows.",
        )


# --- refusals ---------------------------------------------------------------------------------------------------------


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


def too_many_pixels(limits: Limits) -> BadFileError:
    """The refusal of an item of too many pixels or voxels."""
    return BadFileError(
        f"The image has more than {limits.max_pixels} pixels or voxels.",
        remedy="Send a smaller part of it; the operator sets the limit (LEJEPA_MAX_PIXELS).",
    )


def swells() -> BadFileError:
    """The refusal of a bomb."""
    return BadFileError(
        f"The file unpacks to more than {MAX_RATIO} times its size.", remedy="Send an image, or send it uncompressed."
    )
