"""Ready-made tiles: image files with 8-bit colour, decoded right or refused."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data_adapters.errors import BadFileError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")  # and TIFF, which may be slides
# Only decoders of these formats see the file, whatever its suffix claims.
_FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP")
# Pillow's own limit (a quarter of a GiB of RGB), where Pillow only warns.
MAX_PIXELS = 2**30 // 4 // 3
MIN_SIDE = 32
_ORIENTATION = 274  # EXIF and TIFF
_BITS_PER_SAMPLE = 258  # TIFF
_GREY = ("L", "LA", "La")
_COLOUR = ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "YCbCr")
_REFUSED = {
    "1": "bilevel image",
    "I": "image with 32 bits a channel",
    "F": "floating-point image",
    "CMYK": "CMYK image, whose colours depend on a printing profile",
    "LAB": "CIELAB image",
}
_REMEDY = "Convert it to 8-bit RGB in the program that wrote it."


def tile_size(path: Path, grey: bool) -> tuple[int, int]:
    """Width and height of a tile as it is looked at, after its EXIF orientation, from its header; pixels.

    Args:
        path: of the image file.
        grey: whether 8-bit greyscale is accepted (fluorescence); in a stained archive it is a mistake.

    Raises:
        BadFileError: not an image, or one that has no unambiguous 8-bit colours.
    """
    with _open(path, grey=grey) as image:
        width, height = image.size
        # Pillow has turned a TIFF's size already; a PNG without EXIF ahead of its pixels would be decoded to find it.
        told = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
        if told and image.getexif().get(_ORIENTATION, 1) >= 5:
            width, height = height, width
    return width, height


def read_tile(path: Path, grey: bool) -> np.ndarray:
    """One tile, upright, transparency on white.

    Colour values are as stored: ICC profiles are not applied, as for slides and in published foundation models.

    Args:
        path: of the image file.
        grey: whether 8-bit greyscale is accepted; it gives three equal channels.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        BadFileError: as `tile_size`, and for damaged or truncated pixels.
    """
    with _open(path, grey=grey) as image:
        try:
            image.load()
            upright = ImageOps.exif_transpose(image)
        except (OSError, ValueError, SyntaxError, EOFError, MemoryError, Image.DecompressionBombError) as error:
            raise BadFileError(
                "image whose pixels are damaged or cut off",
                remedy="Copy or export the file again; it is incomplete or corrupt.",
                path=path,
            ) from error
        if upright.has_transparency_data or upright.mode in ("RGBa", "La"):
            rgba = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        return np.array(upright.convert("RGB"))


def _open(path: Path, *, grey: bool) -> Image.Image:
    try:
        image = Image.open(path, formats=_FORMATS)
    except FileNotFoundError as error:
        raise BadFileError("file not found", remedy="Check that the archive is mounted.", path=path) from error
    except Image.DecompressionBombError as error:
        raise _bomb(path) from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError) as error:
        raise BadFileError(
            "not an image that Pillow can read", remedy="Export it as PNG, JPEG, TIFF or WebP.", path=path
        ) from error
    try:
        _check(image, path, grey=grey)
    except BaseException:
        image.close()
        raise
    return image


def _check(image: Image.Image, path: Path, *, grey: bool) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise _bomb(path)
    if min(image.size) < MIN_SIDE:
        raise BadFileError(
            f"tile under {MIN_SIDE} pixels wide or high", remedy="Cut tiles that show several cells.", path=path
        )
    if getattr(image, "n_frames", 1) > 1:
        raise BadFileError(
            "several pages or frames in one image file",
            remedy="Save one picture a file; write a slide as a tiled pyramidal TIFF.",
            path=path,
        )
    bits = _bits(image, path)
    if bits > 8:
        raise BadFileError(f"image with {bits} bits a channel", remedy=_REMEDY, path=path)
    if image.mode in _GREY:
        if not grey:
            raise BadFileError(
                "greyscale image in an archive of stained tissue",
                remedy="Give the colour original, or set stain=any for unstained and fluorescence images.",
                path=path,
            )
        if bits < 8:
            raise BadFileError(f"greyscale image with {bits} bits", remedy=_REMEDY, path=path)
    elif image.mode not in _COLOUR:
        raise BadFileError(_REFUSED.get(image.mode, f"image of mode {image.mode}"), remedy=_REMEDY, path=path)


def _bits(image: Image.Image, path: Path) -> int:
    """Bits per channel as stored; Pillow silently reduces 16-bit RGB to 8."""
    if image.format == "TIFF":
        stored = image.tag_v2.get(_BITS_PER_SAMPLE, (1,))  # type: ignore[attr-defined]
        return int(max(stored if isinstance(stored, tuple) else (stored,)))
    if image.format == "PNG":
        with path.open("rb") as file:
            return file.read(25)[24]  # signature 8, chunk head 8, width 4, height 4, then the bit depth
    return 8


def _bomb(path: Path) -> BadFileError:
    return BadFileError(
        "image file with too many pixels for a tile (decompression bomb)",
        remedy="Write large pictures as tiled pyramidal TIFF, which is read region by region.",
        path=path,
    )
