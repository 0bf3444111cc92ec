import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, ImageOps

from data_adapters.errors import BadFileError
from data_adapters.raster import oriented, raster_info, read_raster
from tests.data.images import cmyk_profile, scene, write_deep_png, write_image, write_tiff


def check(path, expected):
    """The pixels, and a header that tells the same."""
    pixels = read_raster(path)
    info = raster_info(path)
    assert pixels.dtype == expected.dtype
    np.testing.assert_array_equal(pixels, expected)
    assert (info.height, info.width) == pixels.shape[:2]
    assert info.channels == (pixels.shape[2] if pixels.ndim == 3 else 1)
    assert info.dtype == pixels.dtype


def refused(path, cause):
    with pytest.raises(BadFileError, match=cause) as caught:
        read_raster(path)
    assert str(path.name) not in caught.value.cause + caught.value.remedy


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "gif"])
def test_lossless_formats_give_the_saved_values(tmp_path, suffix):
    image = scene()
    if suffix == "gif":
        image = image // 64 * 64  # few enough colours for an exact palette
        Image.fromarray(image).quantize(256).save(tmp_path / "x.gif")
        check(tmp_path / "x.gif", np.asarray(Image.open(tmp_path / "x.gif").convert("RGB")))
    else:
        check(write_image(tmp_path / f"x.{suffix}", image), image)
        check(write_image(tmp_path / f"grey.{suffix}", scene(channels=1)), scene(channels=1)[..., 0])


@pytest.mark.parametrize("suffix", ["jpg", "webp", "avif"])
def test_lossy_formats_equal_pillow(tmp_path, suffix):
    path = write_image(tmp_path / f"x.{suffix}", scene())
    check(path, np.asarray(Image.open(path)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "tif", "png"])
def test_exif_orientation_is_applied(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write_image(tmp_path / f"x.{suffix}", scene(), exif=exif)
    stored = np.asarray(Image.fromarray(scene())) if suffix != "jpg" else None
    upright = read_raster(path)
    assert upright.shape[:2] == ((40, 56) if orientation < 5 else (56, 40))
    check(path, upright)
    if stored is not None:
        plain = Image.fromarray(scene())
        plain.getexif()[0x0112] = orientation
        np.testing.assert_array_equal(upright, np.asarray(ImageOps.exif_transpose(plain)))


def test_oriented_undoes_every_stored_turn():
    image = scene()
    # TIFF 6.0, tag 274: where row 0 and column 0 of the stored array lie in the upright picture.
    stored = {
        2: image[:, ::-1],
        3: image[::-1, ::-1],
        4: image[::-1],
        5: image.swapaxes(0, 1),
        6: np.rot90(image),
        7: image[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(image, -1),
    }
    for number, turned in stored.items():
        np.testing.assert_array_equal(oriented(turned, number), image)


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_survive(tmp_path, channels):
    image = scene(channels=channels, dtype=np.uint16)
    expected = image[..., 0] if channels == 1 else image
    assert (image % 256).any()  # the low byte is what an 8-bit decoder loses
    check(write_tiff(tmp_path / "x.tif", expected), expected)
    path = tmp_path / "x.png"
    if channels == 1:
        Image.fromarray(expected).save(path)
    else:
        write_deep_png(path, image)
    check(path, expected)


def test_deep_png_with_alpha(tmp_path):
    image = np.concatenate([scene(dtype=np.uint16), np.full((40, 56, 1), 65535, np.uint16)], axis=2)
    check(write_deep_png(tmp_path / "opaque.png", image), image[..., :3])
    image[3, 4, 3] = 7
    refused(write_deep_png(tmp_path / "clear.png", image), "transparent")


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.uint32, np.float32, np.float64])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_many_channels_keep_dtype(tmp_path, dtype, planar):
    image = scene(channels=6, dtype=dtype)
    stored = image if planar == "contig" else np.ascontiguousarray(np.moveaxis(image, 2, 0))
    path = write_tiff(
        tmp_path / "x.tif", stored, planarconfig=planar, photometric="minisblack", extrasamples=["unspecified"] * 5
    )
    check(path, image)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("uint16", "65535"), ("int16", "-9999"), ("float32", "-9999"), ("uint8", "255"), ("int32", "x")],
)
def test_missing_pixels_of_a_tiff_are_dark(tmp_path, dtype, value):
    pixels = np.random.default_rng(0).integers(1, 200, (40, 50)).astype(dtype)
    mask = np.zeros(pixels.shape, bool)
    mask[:9, :9] = True
    pixels[mask] = -1 if value == "x" else float(value)
    tifffile.imwrite(tmp_path / "a.tif", pixels, extratags=[(42113, "s", 0, value, True)])
    expected = pixels if dtype == "uint8" or value == "x" else np.where(mask, pixels[~mask].min(), pixels)
    np.testing.assert_array_equal(read_raster(tmp_path / "a.tif"), expected)


def test_signed_grey_tiff_is_not_taken_as_unsigned(tmp_path):
    image = (scene(channels=1, dtype=np.int16) - 20000)[..., 0]
    check(write_tiff(tmp_path / "x.tif", image), image)


def test_palette_and_bits_expand(tmp_path):
    bits = scene(channels=1)[..., 0] > 127
    Image.fromarray(bits).save(tmp_path / "one.png")
    check(tmp_path / "one.png", bits.astype(np.uint8) * 255)
    palette = Image.fromarray(scene()).quantize(16)
    palette.save(tmp_path / "palette.png")
    check(tmp_path / "palette.png", np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped_only_where_it_says_nothing(tmp_path, mode):
    opaque = Image.fromarray(scene()).convert(mode)
    opaque.save(tmp_path / "opaque.png")
    check(tmp_path / "opaque.png", np.asarray(opaque.convert(mode[:-1])))
    clear = opaque.copy()
    clear.putpixel((3, 3), (9,) * (len(mode) - 1) + (200,))
    clear.save(tmp_path / "clear.png")
    refused(tmp_path / "clear.png", "transparent")


def test_transparent_colour_is_refused_only_where_it_occurs(tmp_path):
    image = Image.fromarray(scene())
    image.save(tmp_path / "used.png", transparency=image.getpixel((0, 0)))
    refused(tmp_path / "used.png", "transparent")
    image.save(tmp_path / "unused.png", transparency=(1, 254, 3))
    check(tmp_path / "unused.png", scene())


@pytest.mark.parametrize("mode", ["YCbCr", "LAB"])
def test_profile_dependent_colours_are_refused(tmp_path, mode):
    Image.new(mode, (32, 32)).save(tmp_path / "x.tif")
    refused(tmp_path / "x.tif", "colour profile")


def inks():
    return scene(channels=4)


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_without_a_profile_takes_ideal_inks(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(inks(), "CMYK").save(path, **({"quality": 95} if suffix == "jpg" else {}))
    # Adobe's JPEG is stored inverted, which this decoder leaves so
    stored = 255 - imagecodecs.jpeg8_decode(path.read_bytes()) if suffix == "jpg" else tifffile.imread(path)
    paper = 255.0 - stored
    expected = paper[..., :3] * paper[..., 3:] / 255
    assert np.abs(read_raster(path) - expected).max() <= 1.5
    info = raster_info(path)
    assert (info.channels, info.dtype) == (3, np.uint8)


def srgb(lab):
    """CIELAB (D50) to sRGB by CIE 15 and IEC 61966-2-1, with Bradford's adaptation to D65 in the matrix."""
    fy = (lab[0] + 16) / 116
    f = np.asarray([fy + lab[1] / 500, fy, fy - lab[2] / 200])
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * (0.9642, 1, 0.8249)
    matrix = [[3.1339, -1.6169, -0.4906], [-0.9788, 1.9161, 0.0335], [0.0719, -0.2290, 1.4052]]
    linear = np.clip(np.asarray(matrix) @ xyz, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_with_a_profile_becomes_srgb(tmp_path, suffix):
    printed = {
        (0, 0, 0, 0): (100, 0, 0),
        (1, 0, 0, 0): (60, -20, -30),
        (0, 1, 0, 0): (50, 40, 5),
        (0, 0, 1, 0): (90, 0, 50),
    }
    path = tmp_path / f"x.{suffix}"
    for ink, colour in printed.items():
        flat = np.full((32, 32, 4), 255 * np.asarray(ink), np.uint8)
        Image.fromarray(flat, "CMYK").save(path, icc_profile=cmyk_profile(printed))
        out = read_raster(path)
        assert out.shape == (32, 32, 3)
        np.testing.assert_allclose(out[9, 9], srgb(colour), atol=3)
    plain = 255 - flat[..., :3]
    assert np.abs(out.astype(int) - plain).max() > 20  # the formula would give other colours


def test_cmyk_that_cannot_be_told_is_refused(tmp_path):
    image = Image.fromarray(inks(), "CMYK")
    image.save(tmp_path / "a.tif", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    refused(tmp_path / "a.tif", "profile of another kind")
    image.save(tmp_path / "b.tif", icc_profile=b"no profile at all")
    refused(tmp_path / "b.tif", "damaged colour profile")
    image.save(tmp_path / "c.jpg")
    data = (tmp_path / "c.jpg").read_bytes()
    start = data.index(b"\xff\xee")  # APP14, which Adobe's programs write
    length = int.from_bytes(data[start + 2 : start + 4], "big")
    (tmp_path / "c.jpg").write_bytes(data[:start] + data[start + 2 + length :])
    refused(tmp_path / "c.jpg", "inverted")
    tifffile.imwrite(tmp_path / "d.tif", inks(), photometric="separated", extratags=[(332, "H", 1, 2, True)])
    refused(tmp_path / "d.tif", "inks other than CMYK")


def test_several_frames_are_refused(tmp_path):
    frames = [Image.fromarray(scene(seed=k)) for k in range(3)]
    for name in ("x.gif", "x.png", "x.webp", "x.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        refused(tmp_path / name, "several frames")
    tifffile.imwrite(tmp_path / "stack.tif", scene(channels=5).transpose(2, 0, 1), imagej=True)
    refused(tmp_path / "stack.tif", "several frames")


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "bmp", "ppm", "gif", "jp2", "avif"])
def test_truncated_files_are_refused(tmp_path, suffix):
    path = write_image(tmp_path / f"x.{suffix}", scene(200, 200))
    data = path.read_bytes()
    for part in (0.97, 0.5, 0.1):
        path.write_bytes(data[: int(len(data) * part)])
        with pytest.raises(BadFileError):
            read_raster(path)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
def test_truncated_deep_tiff_is_refused_not_filled(tmp_path, compression):
    path = write_tiff(
        tmp_path / "x.tif",
        scene(200, 200, dtype=np.uint16),
        photometric="rgb",
        compression=compression,
        rowsperstrip=20,
    )
    data = path.read_bytes()
    for part in (0.99, 0.5):
        path.write_bytes(data[: int(len(data) * part)])
        with pytest.raises(BadFileError):
            read_raster(path)


def test_truncated_deep_png_is_refused(tmp_path):
    path = write_deep_png(tmp_path / "x.png", scene(100, 100, dtype=np.uint16))
    path.write_bytes(path.read_bytes()[:-5000])
    refused(path, "truncated")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused_before_decoding(tmp_path):
    for side in (9_500, 20_000):  # above this module's limit, and above Pillow's own
        chunks = [b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(bytes(99))]
        framed = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in [*chunks, b"IEND"]]
        (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(framed))
        refused(tmp_path / "bomb.png", "million pixels")
    with pytest.raises(BadFileError, match="million pixels"):
        raster_info(tmp_path / "bomb.png")


def test_jpeg2000_depths(tmp_path):
    check(write_image(tmp_path / "8.jp2", scene(), irreversible=False), scene())
    deep = scene(channels=1, dtype=np.uint16)[..., 0]
    Image.fromarray(deep).save(tmp_path / "16.jp2", irreversible=False)
    check(tmp_path / "16.jp2", deep)
    import imagecodecs

    twelve = scene(channels=3, dtype=np.uint16) // 16
    (tmp_path / "12.jp2").write_bytes(
        imagecodecs.jpeg2k_encode(twelve, bitspersample=12, reversible=True, codecformat="jp2")
    )
    refused(tmp_path / "12.jp2", "sample depth")


def test_ten_bit_avif_is_refused(tmp_path):
    import imagecodecs

    image = scene(dtype=np.uint16) >> 6
    (tmp_path / "x.avif").write_bytes(imagecodecs.avif_encode(image, bitspersample=10))
    refused(tmp_path / "x.avif", "sample depth")


def test_deep_pnm(tmp_path):
    deep = scene(channels=1, dtype=np.uint16)[..., 0]
    header = b"P5 56 40 65535\n"
    (tmp_path / "x.pgm").write_bytes(header + deep.astype(">u2").tobytes())
    check(tmp_path / "x.pgm", deep)
    (tmp_path / "x.ppm").write_bytes(b"P6 56 40 65535\n" + scene(dtype=np.uint16).astype(">u2").tobytes())
    refused(tmp_path / "x.ppm", "sample depth")
    (tmp_path / "y.pgm").write_bytes(b"P5 56 40 100\n" + bytes(40 * 56))
    refused(tmp_path / "y.pgm", "sample depth")


@pytest.mark.parametrize("content", [b"", b"II", b"II*\0", b"hello", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0\n"])
def test_what_is_no_picture_is_refused(tmp_path, content):
    path = tmp_path / "x.tif"
    path.write_bytes(content)
    with pytest.raises(BadFileError):
        read_raster(path)
    with pytest.raises(BadFileError):
        raster_info(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(BadFileError):
        read_raster(tmp_path / "none.png")
