"""Compressed streams, counted on their real bytes before a reader unpacks them."""

import bz2
import gzip
import io
import lzma
import mmap
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from data_adapters.errors import BadFileError
from data_adapters.readers.limits import Limits
from data_adapters.readers.refusals import MAX_RATIO, RATIO_FROM, swells

PIECE = 1 << 20
BITE = 1 << 16  # packed bytes at once: what is read ahead blurs the ratio
WINDOW = 64 << 20  # bytes of a stream over which its ratio is judged: some empty slices may follow each other
OPENERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
GZIP_MEMBER, GZIP_WBITS = b"\x1f\x8b\x08", 31
DAMAGE = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, struct.error)


def count(inside: Any, packed: BinaryIO, limits: Limits) -> int:
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
            total += count(Inflated(packed, wbits=GZIP_WBITS), packed, limits)
            if total > max(RATIO_FROM, MAX_RATIO * size):
                raise swells()
            place = data.find(GZIP_MEMBER, place + len(GZIP_MEMBER))
