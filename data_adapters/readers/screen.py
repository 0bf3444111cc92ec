"""What is checked of a file before a reader sees it, and of an item before its pixels are decoded.

The checks are for what a reader would only notice after it has unpacked, listed or allocated it. Whatever else a file
may do to its reader ends at the worker's memory and time.
"""

import math
from pathlib import Path

from data_adapters.base import Adapter, BaseAdapter, Record
from data_adapters.readers import formats, streams
from data_adapters.readers.limits import Limits
from data_adapters.readers.refusals import MAX_RATIO, RATIO_FROM, swells, too_many_pixels

BYTES_A_VALUE = 40  # that decoding takes at its peak: as stored, as float64 for scaling, and three float32 copies
TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")


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
        head = stream.read(formats.HEAD)
    for magic, opener in streams.OPENERS.items():
        if head.startswith(magic):
            with path.open("rb") as packed, opener(packed) as inside:
                streams.count(inside, packed, limits)
    if head[128:132] == b"DICM":
        formats.check_dicom(path, head, limits, whole=whole)
    elif head[:4] == b"\x89PNG":
        if formats.png_size(head) > max(RATIO_FROM, MAX_RATIO * path.stat().st_size):
            raise swells()
    elif head[:2] == b"\xff\xd8":
        formats.check_scans(path)
    elif head[:4] in TIFF:
        formats.check_tiff(path, limits)
    elif head.startswith(b"SIMPLE  ="):
        formats.check_fits(path, limits)
    elif head.startswith(b"\x89HDF"):
        formats.check_hdf5(path, limits)


def listing_bytes(path: Path) -> int:
    """Memory that a picture's reader takes before it tells what it holds: of a PNG, whose EXIF may come last, all."""
    with path.open("rb") as stream:
        size = formats.png_size(stream.read(26))
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
    packed = sum(Path(name).stat().st_size for name in meta.get("files", [record.uri]))
    if unpacked > RATIO_FROM and unpacked > MAX_RATIO * packed:
        raise swells()
    return BYTES_A_VALUE * values + packed  # the files themselves may be mapped into memory


def tile_bytes(adapter: Adapter) -> int:
    """Memory that the prepared tiles of a slide take, beyond the base."""
    tiles, side = adapter.most_images if isinstance(adapter, BaseAdapter) else 1, adapter.spec.embed_size
    return 4 * tiles * adapter.spec.channels * side * side
