"""JPEG tiles of a TIFF: decoded whole or refused, and smaller where a coarser picture is wanted.

libjpeg fills up what a damaged stream lacks with grey and goes on; here each of its warnings is an error (openslide
does the same). What no decoder can see is a changed bit that leaves another valid stream: most bits of a JPEG are
amplitudes, and there is no checksum.
"""

import numpy as np

from data_adapters.errors import require

REDUCTIONS = (4, 2)  # libjpeg's scaled inverse transforms, an average over 4 x 4 or 2 x 2 pixels but for rounding
_START = b"\xff\xd8"
_JFIF = b"\xff\xe0"
# libjpeg takes the colours of a stream from these marks, a TIFF from its own tag: the tag's word is put before.
_YCBCR = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"


def reduction(tile: tuple[int, int], wanted: float) -> int:
    """By how much a tile of this width and height may be reduced while it is decoded: at most `wanted`; 1, 2 or 4."""
    return next((by for by in REDUCTIONS if by <= wanted and not any(side % by for side in tile)), 1)


def decode(
    stream: bytes, *, tables: bytes | None, ycbcr: bool, tile: tuple[int, int], reduce: int = 1
) -> np.ndarray | None:
    """One tile.

    Args:
        stream: of the tile, perhaps without tables.
        tables: the level's JPEGTables, a stream of its own.
        ycbcr: the TIFF's photometric interpretation; else RGB.
        tile: width and height in full.
        reduce: 1, 2 or 4, see `reduction`.

    Returns:
        (height, width, 3) uint8 RGB; None where the stream is damaged, cut off, or of another size.
    """
    simplejpeg = require("simplejpeg", extra="histology")
    body = stream[2:]
    if not stream.startswith(_START):
        return None
    if not ycbcr and body.startswith(_JFIF):
        body = body[2 + int.from_bytes(body[2:4], "big") :]  # JFIF claims YCbCr
    whole = _START + (_YCBCR if ycbcr else _RGB) + (tables[2:-2] if tables else b"") + body
    width, height = (side // reduce for side in tile)
    out = np.empty((height, width, 3), np.uint8)
    try:
        size = simplejpeg.decode_jpeg_header(whole)[:2]
        if size != (tile[1], tile[0]):  # a stream of another size: nothing is decoded into the wrong place
            return None
        simplejpeg.decode_jpeg(whole, min_height=height, min_width=width, buffer=out, strict=True)
    except ValueError:
        return None
    return out
