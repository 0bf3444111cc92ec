"""Picture files (JPEG, PNG, TIFF, WebP, BMP, GIF, PNM, JPEG 2000, AVIF) as arrays with their true values and dtype.

Rules, one for each way in which a picture can be misread:

- EXIF and TIFF orientation is applied; colour profiles and PNG gamma are not (values are as stored).
- A damaged or truncated file, and one above `MAX_PIXELS`, is refused.
- Several frames or pages are refused; of an MPO (camera) file the first frame is the picture.
- A palette is expanded to RGB; samples of 1, 2 and 4 bits are spread evenly over 0 to 255.
- An alpha channel that is opaque everywhere is dropped; any transparent pixel is refused.
- CMYK becomes sRGB by the embedded profile, or by the formula for ideal inks where there is none.
- YCbCr (other than in JPEG) and Lab pixels are refused: their RGB values depend on a profile.
- More than 8 bits, or more than four channels, keep their dtype and values; where a decoder would cut them to 8 bits,
  another one is used, and where there is none the file is refused.
- Pixels that a deep TIFF marks as missing (GDAL_NODATA) get the lowest of the other values.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from data_adapters.errors import BadFileError, MissingExtraError, require
from data_adapters.sentinels import darkened, marked

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".webp", ".bmp", ".gif"),
    *(".ppm", ".pgm", ".pnm", ".jp2", ".j2k", ".avif"),
)
MAX_PIXELS = 89_478_485  # Pillow's own warning level: 256 MiB of RGB
# Only decoders of real picture formats: EPS, PDF and the like start other programs.
Image.init()
DECODERS: list[str] = [
    name
    for name in ("JPEG", "MPO", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")
    if name in Image.OPEN  # a Pillow built without a codec lacks its entry
]
CHANNELS = {
    **{"1": 1, "L": 1, "LA": 1, "I;16": 1, "I;16B": 1, "I;16L": 1, "I": 1, "F": 1},
    **{"P": 3, "RGB": 3, "RGBA": 3, "CMYK": 3},
}
ORIENTATION = 274  # the tag of EXIF and TIFF
MULTISAMPLE_MODES = ("RGBX",)  # a fourth sample that is declared to be no alpha: a channel
GREY_MODES = ("I;16", "I;16B", "F")  # deep grey pictures that Pillow reads unchanged
MIN_IS_WHITE, MIN_IS_BLACK, RGB = 0, 1, 2  # values of the tag PhotometricInterpretation
BITS, DESCRIPTION, PHOTOMETRIC, SAMPLE_FORMAT = 258, 270, 262, 339
NODATA = 42113  # GDAL_NODATA: a number as text, which microscopes and satellites write for pixels without data
DTYPES = ("uint8", "uint16", "uint32", "int16", "int32", "float32", "float64")
INK_SET, CMYK_INKS = 332, 1  # the TIFF tag and its value for cyan, magenta, yellow, black
TO_RGB = "Convert the picture to RGB with the profile that it was made with."


@dataclass(frozen=True, kw_only=True)
class RasterInfo:
    """What `read_raster` will return, from the header: pixels after orientation, channels without alpha, dtype."""

    width: int
    height: int
    channels: int
    dtype: np.dtype[np.generic]

    @property
    def bits(self) -> int:
        """Bits of one value as stored in the array."""
        return int(self.dtype.itemsize * 8)


def raster_info(path: Path | str) -> RasterInfo:
    """Size, channels and dtype of a picture without decoding it.

    Raises:
        BadFileError: the header already shows that a rule of this module refuses the file.
    """
    with _opened(path) as image:
        if image is None or beyond_pillow(image):
            layout = tiff_layout(path)
            _check_size(layout.width, layout.height, path)
            width, height = layout.width, layout.height
            if layout.orientation in (5, 6, 7, 8):
                width, height = height, width
            return RasterInfo(width=width, height=height, channels=layout.channels - layout.alpha, dtype=layout.dtype)
        width, height = image.size
        dtype = _dtype(image)  # before getexif(), which decodes a PNG to find the chunk after its pixels
        if image.format != "TIFF" and image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8):
            width, height = height, width
        return RasterInfo(width=width, height=height, channels=CHANNELS[image.mode], dtype=dtype)


def read_raster(path: Path | str) -> np.ndarray:
    """Decode a picture: (height, width) or (height, width, channels), in its own dtype.

    Raises:
        BadFileError: a rule of this module refuses the file.
    """
    with _opened(path) as image:
        if image is None or beyond_pillow(image):
            layout = tiff_layout(path)
            _check_size(layout.width, layout.height, path)
            pixels = read_tiff(path)
            return oriented(without_alpha(pixels) if layout.alpha else pixels, layout.orientation)
        deep, grey = _is_deep_colour(image), "LA" in _raw_mode(image)
        image.load()  # raises on truncated data, which cv2 would fill with grey
        orientation = 1 if image.format == "TIFF" else image.getexif().get(ORIENTATION, 1)  # Pillow turns TIFF itself
        if deep:
            pixels = _read_deep_png(path, grey=grey)
        else:
            pixels = without_nodata(_array(image), getattr(image, "tag_v2", {}).get(NODATA))
        return oriented(pixels, orientation)


def oriented(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn stored (height, width, ...) pixels upright by the EXIF orientation 1-8; other numbers mean upright."""
    swapped = pixels.swapaxes(0, 1)
    turned = {
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: swapped,
        6: swapped[:, ::-1],
        7: swapped[::-1, ::-1],
        8: swapped[::-1],
    }.get(orientation, pixels)
    return np.ascontiguousarray(turned)


@contextmanager
def _opened(path: Path | str) -> Iterator[Image.Image | None]:
    """The checked, not yet decoded picture; None for a TIFF whose layout Pillow does not know."""
    try:
        with open(path, "rb") as stream:
            head = stream.read(4)
            stream.seek(0)
            try:
                image = Image.open(stream, formats=DECODERS)
            except UnidentifiedImageError:
                if head[:2] not in (b"II", b"MM"):
                    raise
                yield None
                return
            with image:
                _check_header(image, path)
                yield image
    except (BadFileError, MissingExtraError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(path) from error
    except UnidentifiedImageError as error:
        raise BadFileError(
            "not a picture in a known format, or a damaged header",
            remedy="Copy the file again from its source, or save it as PNG or TIFF.",
            path=path,
        ) from error
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error ... on damaged files
        raise BadFileError(
            "damaged or truncated picture", remedy="Copy the file again from its source.", path=path
        ) from error


def _check_header(image: Image.Image, path: Path | str) -> None:
    _check_size(*image.size, path)
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise _several_pages(path)
    if image.format == "TIFF":
        check_tiff(image, path)
    if image.mode not in CHANNELS and image.mode not in MULTISAMPLE_MODES:
        raise BadFileError(
            f"{image.mode} pixels, whose RGB values depend on a colour profile",
            remedy=TO_RGB,
            path=path,
        )
    if image.mode == "CMYK":
        check_cmyk(image, path)
    _check_depth(image, path)


def _check_size(width: int, height: int, path: Path | str) -> None:
    if width * height > MAX_PIXELS:
        raise _too_large(path)


def _several_pages(path: Path | str) -> BadFileError:
    return BadFileError(
        "several frames or pages in one file",
        remedy="Save each as a file of its own, or the channels as samples of one page.",
        path=path,
    )


def _too_large(path: Path | str) -> BadFileError:
    return BadFileError(
        f"more than {MAX_PIXELS / 1e6:.0f} million pixels",
        remedy="Cut it into tiles, or use the histology modality for slides.",
        path=path,
    )


def _raw_mode(image: Image.Image) -> str:
    """How the file stores its samples, such as "RGB;16B"."""
    args = _tile(image)[3]
    return str(args[0] if isinstance(args, tuple) and args else args)


def _tile(image: Image.Image) -> Any:
    """Pillow's plan for decoding, (codec, box, offset, arguments); it is gone after load()."""
    tiles = getattr(image, "tile", None)
    return tiles[0] if tiles else ("", None, 0, "")


def _is_deep_colour(image: Image.Image) -> bool:
    return image.format == "PNG" and image.mode in ("RGB", "RGBA") and ";16" in _raw_mode(image)


def _dtype(image: Image.Image) -> np.dtype[np.generic]:
    if image.mode == "F":
        return np.dtype(np.float32)
    return np.dtype(np.uint16 if image.mode.startswith("I") or _is_deep_colour(image) else np.uint8)


def _check_depth(image: Image.Image, path: Path | str) -> None:
    """Refuse what Pillow would silently scale to 8 or 16 bits."""
    codec = _tile(image)[0]
    scaled = image.format == "PPM" and (codec not in ("raw", "ppm_plain") or image.mode in ("F", "I"))
    scaled = scaled and not (codec == "raw" and _raw_mode(image).startswith("I;16"))
    if image.format == "JPEG2000":
        depths = _jp2_depths(path)
        scaled = depths != {8} and not (depths == {16} and image.mode.startswith("I"))
    if image.format == "AVIF":
        with open(path, "rb") as stream:
            head = stream.read(65536)
        box = head.find(b"av1C")
        scaled = box >= 0 and bool(head[box + 6] & 0x40)  # the high_bitdepth flag of AV1CodecConfigurationBox
    if scaled:
        raise BadFileError(
            f"a sample depth that cannot be read unchanged from {image.format}",
            remedy="Save the picture as TIFF or PNG with 8 or 16 bits.",
            path=path,
        )


def _jp2_depths(path: Path | str) -> set[int]:
    """Bits of each component from the SIZ marker of a JPEG 2000 codestream (ISO/IEC 15444-1, A.5.1); signed < 0."""
    data = Path(path).read_bytes()
    start = data.find(b"\xff\x4f\xff\x51")
    count = int.from_bytes(data[start + 40 : start + 42], "big")
    sizes = [data[start + 42 + 3 * k] for k in range(count)]
    return {-1 if size & 0x80 else size + 1 for size in sizes}


def _array(image: Image.Image) -> np.ndarray:
    if image.mode == "1":
        return np.asarray(image.convert("L"))
    if image.mode == "CMYK":
        return cmyk_to_srgb(image)
    if image.mode.startswith("I"):  # 16 bits: the header checks refused the rest
        return np.asarray(image).astype(np.uint16)
    if "transparency" in image.info:  # a palette entry or one colour (PNG tRNS, GIF) stands for transparent
        image = image.convert("LA" if image.mode == "L" else "RGBA")
    elif image.mode == "P":
        image = image.convert("RGB")
    pixels = np.asarray(image)
    if image.mode in ("LA", "RGBA"):
        return without_alpha(pixels)
    return pixels


def without_alpha(pixels: np.ndarray) -> np.ndarray:
    """Drop the last channel, an alpha channel, if it is opaque everywhere; refuse the picture otherwise."""
    opaque = np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else 1
    if not (pixels[..., -1] == opaque).all():
        raise BadFileError(
            "transparent pixels", remedy="Flatten the picture on the background colour that belongs behind it."
        )
    rest = pixels[..., :-1]
    return rest[..., 0] if rest.shape[-1] == 1 else rest


def _read_deep_png(path: Path | str, *, grey: bool) -> np.ndarray:
    """16-bit colour PNG, which Pillow would cut to 8 bits; the caller has proved the file whole."""
    pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        raise BadFileError("damaged 16-bit PNG", remedy="Copy the file again from its source.", path=path)
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        pixels = without_alpha(pixels)
    if pixels.ndim == 3:
        pixels = pixels[..., 0] if grey else pixels[..., ::-1]  # OpenCV's order is blue, green, red
    return pixels


@dataclass(frozen=True, kw_only=True)
class TiffLayout:
    """The stored picture: size before orientation, channels with alpha."""

    width: int
    height: int
    channels: int
    alpha: bool
    orientation: int
    dtype: np.dtype[np.generic]


def check_tiff(image: Image.Image, path: Path | str) -> None:
    """Refuse an ImageJ stack behind one page, and deep samples whose zero means white.

    Raises:
        BadFileError: one of the two.
    """
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    description = str(tags.get(DESCRIPTION, ""))
    stack = re.search(r"^images=(\d+)", description, re.MULTILINE)
    if description.startswith("ImageJ=") and stack and int(stack[1]) > 1:
        raise _several_pages(path)
    if tags.get(PHOTOMETRIC) == MIN_IS_WHITE and max(tags.get(BITS, (1,))) > 8:
        raise _unsupported("samples of more than 8 bits in which zero means white", path)


def without_nodata(pixels: np.ndarray, tag: object) -> np.ndarray:
    """Deep pixels with the lowest value where the tag GDAL_NODATA says so; 8 bits, display colours, stay as stored."""
    try:
        value = float(str(tag).strip("\x00 "))
    except ValueError:  # there is no such tag
        return pixels
    return pixels if pixels.dtype == np.uint8 else darkened(pixels, marked(pixels, [value]))


def beyond_pillow(image: Image.Image) -> bool:
    """Whether Pillow would cut or reinterpret the samples of this TIFF, so that tifffile must read it."""
    if image.format != "TIFF":
        return False
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    deep = max(tags.get(BITS, (1,))) > 8 and image.mode not in GREY_MODES
    formats = set(tags.get(SAMPLE_FORMAT, (1,)))
    signed = not formats <= {1, 4} and image.mode != "F"  # 1: unsigned, 4: undefined, taken as unsigned
    return deep or signed or image.mode in MULTISAMPLE_MODES


def tiff_layout(path: Path | str) -> TiffLayout:
    """The header as tifffile sees it.

    Raises:
        BadFileError: several pages, or samples that are no plain intensities.
        MissingExtraError: tifffile is not installed.
    """
    tifffile = require("tifffile", extra="histology")
    with tifffile.TiffFile(path) as tiff:
        if len(tiff.pages) > 1:
            raise _several_pages(path)
        page = tiff.pages[0]
        if page.axes not in ("YX", "YXS", "SYX"):
            raise _unsupported(f"axes {page.axes}", path)
        if page.photometric not in (MIN_IS_BLACK, RGB) or page.dtype is None or page.dtype.name not in DTYPES:
            raise _unsupported("samples that are no plain intensities", path)
        orientation = page.tags.get(ORIENTATION)
        return TiffLayout(
            width=page.imagewidth,
            height=page.imagelength,
            channels=page.samplesperpixel,
            alpha=bool(page.extrasamples) and page.extrasamples[-1] in (1, 2),  # associated or separate alpha
            orientation=1 if orientation is None else int(orientation.value),
            dtype=np.dtype(page.dtype.newbyteorder("=")),
        )


def read_tiff(path: Path | str) -> np.ndarray:
    """Decode the one page of a file that `tiff_layout` accepted: (H, W) or (H, W, C), native byte order.

    Raises:
        BadFileError: pixel data are missing.
    """
    tifffile = require("tifffile", extra="histology")
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        end = tiff.filehandle.size
        # tifffile fills segments that lie outside the file with zeros.
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            if offset <= 0 or count <= 0 or offset + count > end:
                raise BadFileError("damaged or truncated picture", remedy="Copy the file again.", path=path)
        pixels: np.ndarray = page.asarray()
        if page.axes == "SYX":
            pixels = np.moveaxis(pixels, 0, -1)
        nodata = page.tags.get(NODATA)
        native = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
        return without_nodata(native, None if nodata is None else nodata.value)


def _unsupported(what: str, path: Path | str) -> BadFileError:
    return BadFileError(
        f"a TIFF with {what}",
        remedy="Save it as grey or RGB with one page, channels as samples, and zero as black.",
        path=path,
    )


def check_cmyk(image: Image.Image, path: Path | str) -> None:
    """Refuse four samples that need not be CMYK, or that may be stored inverted.

    Raises:
        BadFileError: a TIFF of other inks; a JPEG without Adobe's marker, which alone says what 0 stands for.
    """
    if image.format == "TIFF":
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        if tags.get(INK_SET, CMYK_INKS) != CMYK_INKS:
            raise BadFileError("a TIFF of inks other than CMYK", remedy=TO_RGB, path=path)
    if image.format in ("JPEG", "MPO") and "adobe" not in image.info:
        raise BadFileError("a CMYK JPEG that does not say whether its inks are inverted", remedy=TO_RGB, path=path)


def cmyk_to_srgb(image: Image.Image) -> np.ndarray:
    """A decoded CMYK picture as (H, W, 3) uint8 sRGB.

    With an embedded ICC profile: relative colorimetric with black-point compensation, which is what picture editors
    do. Without one: R = 255 (1 - C)(1 - K) and so on, as for device CMYK in PDF (ISO 32000-1, 10.3.5); such colours
    are comparable among pictures of one source only.

    Raises:
        BadFileError: the profile is damaged or is none of CMYK.
    """
    embedded = image.info.get("icc_profile")
    if not embedded:
        return np.asarray(image.convert("RGB"))
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(embedded))
    except (OSError, ImageCms.PyCMSError) as error:
        raise BadFileError("CMYK pixels with a damaged colour profile", remedy=TO_RGB) from error
    if profile.profile.xcolor_space.strip() != "CMYK":
        raise BadFileError("CMYK pixels with a colour profile of another kind", remedy=TO_RGB)
    try:
        converted = ImageCms.profileToProfile(
            image,
            profile,
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except ImageCms.PyCMSError as error:
        raise BadFileError("CMYK pixels with a colour profile that cannot be applied", remedy=TO_RGB) from error
    return np.asarray(converted)
