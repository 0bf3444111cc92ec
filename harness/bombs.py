"""Files that are small on the disk and take gigabytes, or for ever, of a reader that believes them. Made by code."""

import bz2
import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import nibabel as nib
import numpy as np

GIB = 1 << 30
BLOCK = 1 << 20
# transfer syntaxes of DICOM
PLAIN, DEFLATED, RLE, JPEG, J2K = (f"1.2.840.10008.1.2.{end}" for end in ("1", "1.99", "5", "4.50", "4.90"))


@dataclass(frozen=True)
class Bomb:
    """`make()` gives the file's content; `modality` is the adapter that is asked to read it."""

    modality: str
    name: str
    make: Callable[[], bytes]


@lru_cache(maxsize=1)
def _block() -> bytes:
    """A MiB of zeros, deflated so that it can be repeated."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(bytes(BLOCK)) + packer.flush(zlib.Z_FULL_FLUSH)


def deflated(size: int, *, head: bytes = b"") -> bytes:
    """A raw deflate stream of `head` and `size` zeros (whole MiB)."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    return start + _block() * (size // BLOCK) + b"\x03\x00"


def zlibbed(size: int) -> bytes:
    """The same of zeros with zlib's header and its Adler-32, which is known without counting."""
    return b"\x78\xda" + deflated(size) + struct.pack(">HH", size % 65521, 1)


def gzipped(size: int, *, head: bytes = b"") -> bytes:
    """A gzip file of `head` and zeros; the checksum is wrong, but whoever comes to it has lost already."""
    return b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03" + deflated(size, head=head) + bytes(8)


def nifti_header(shape: tuple[int, int, int], dtype: type = np.uint8) -> bytes:
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_sform(np.eye(4), 1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    return bytes(header.binaryblock) + bytes(4)


def nrrd_header(shape: tuple[int, int, int]) -> bytes:
    sizes = " ".join(map(str, shape))
    return (
        f"NRRD0004\ntype: uint8\ndimension: 3\nspace: RAS\nsizes: {sizes}\nencoding: gzip\n"
        "space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\n\n"
    ).encode()


# --- pictures -------------------------------------------------------------------------------------------------------


def png(
    width: int, height: int, *, pixels: bytes = b"", colour: int = 2, extra: tuple[bytes, bytes] | None = None
) -> bytes:
    """A PNG of 8-bit grey (0) or RGB (2) with a ready IDAT and perhaps one more chunk before it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    body = pixels or zlib.compress(bytes((1 + width * (3 if colour == 2 else 1)) * height))
    return b"\x89PNG\r\n\x1a\n" + head + (chunk(*extra) if extra else b"") + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def tiff(tags: dict[int, tuple[int, int]], *, data: bytes = b"", pages: int = 1, ring: bool = False) -> bytes:
    """A little-endian TIFF whose pages all have the same `tags` (tag -> type, value); `data` begins at byte 8."""
    out, size = bytearray(b"II*\x00" + struct.pack("<I", 8 + len(data)) + data), 2 + 12 * len(tags) + 4
    first = len(out)
    for page in range(pages):
        entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, (kind, value) in sorted(tags.items()))
        last = page == pages - 1
        follows = (first if ring else 0) if last else first + (page + 1) * size
        out += struct.pack("<H", len(tags)) + entries + struct.pack("<I", follows)
    return bytes(out)


def tags(width: int, height: int, *, count: int, compression: int = 8, **more: int) -> dict[int, tuple[int, int]]:
    """Of a grey picture in one strip of `count` bytes, or in tiles of `tile` pixels."""
    found = {256: (4, width), 257: (4, height), 258: (3, 8), 259: (3, compression), 262: (3, 1), 277: (3, 1)}
    if "tile" in more:
        return found | {322: (4, more["tile"]), 323: (4, more["tile"]), 324: (4, 8), 325: (4, count)}
    return found | {273: (4, 8), 278: (4, height), 279: (4, count)}


def jpeg_of_many_scans(scans: int = 20_000) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    import cv2

    picture = np.random.default_rng(0).integers(0, 255, (1024, 1024, 3), dtype=np.uint8)
    content = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    last = content.rfind(b"\xff\xda")
    return content[:last] + content[last : last + 64] * scans + content[last:]


# --- DICOM ----------------------------------------------------------------------------------------------------------


def dicom(syntax: str, *, pixels: bytes, rows: int = 64, columns: int = 64, frames: int = 1) -> bytes:
    """An MR image with encapsulated pixels, or with native ones."""
    from pydicom import dcmwrite
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID, MRImageStorage, generate_uid

    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID = MRImageStorage, generate_uid()
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = (generate_uid() for _ in range(3))
    data.PatientID, data.PatientName = "P1", "Doe^Jane"
    data.Modality, data.ImageType, data.Manufacturer = "MR", ["ORIGINAL", "PRIMARY", "M"], "Made"
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.InstanceNumber = 1
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = UID(syntax)
    data.Rows, data.Columns = rows, columns
    if frames > 1:
        data.NumberOfFrames = frames
    data.PixelData = encapsulate([pixels]) if UID(syntax).is_encapsulated else pixels
    data["PixelData"].VR = "OB"
    data["PixelData"].is_undefined_length = UID(syntax).is_encapsulated
    buffer = io.BytesIO()
    dcmwrite(buffer, data, enforce_file_format=True)
    return buffer.getvalue()


def deflated_dicom(size: int) -> bytes:
    """A small image and then a private value of zeros, in one deflate stream."""
    plain = dicom(PLAIN, pixels=bytes(64 * 64 * 2))
    end = 144 + int.from_bytes(plain[140:144], "little")
    meta = plain[:end].replace(_uid(PLAIN), _uid(DEFLATED))
    assert len(meta) > end  # the longer UID: the group's length follows
    meta = meta[:140] + struct.pack("<I", len(meta) - 144) + meta[144:]
    value = struct.pack("<HH2sHI", 0x7FE1, 0x1010, b"OB", 0, size)
    return meta + deflated(size, head=plain[end:] + value)


def _uid(syntax: str) -> bytes:
    text = syntax.encode() + b"\x00" * (len(syntax) % 2)
    return struct.pack("<HH2sH", 2, 0x10, b"UI", len(text)) + text


def jpeg2000_of(side: int) -> bytes:
    """The head of a codestream that declares `side` x `side` pixels."""
    import cv2

    content = cv2.imencode(".jp2", np.zeros((64, 64), np.uint8))[1].tobytes()
    stream = bytearray(content[content.index(b"\xff\x4f\xff\x51") :])
    stream[8:16] = struct.pack(">II", side, side)
    stream[24:32] = struct.pack(">II", side, side)
    return bytes(stream)


def jpeg_of(side: int) -> bytes:
    """A baseline JPEG of 64 x 64 that declares `side` x `side` pixels."""
    import cv2

    content = bytearray(cv2.imencode(".jpg", np.zeros((64, 64), np.uint8))[1].tobytes())
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = struct.pack(">HH", side, side)
    return bytes(content)


def run_lengths(size: int) -> bytes:
    """A DICOM RLE frame of one segment that unpacks to `size` bytes."""
    return struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\x00" * (size // 128)


# --- FITS and HDF5 --------------------------------------------------------------------------------------------------


def fits_header(**cards: object) -> bytes:
    text = "".join(f"{key:<8}= {_value(value):>20}".ljust(80) for key, value in cards.items()) + "END".ljust(80)
    return text.ljust(-(-len(text) // 2880) * 2880).encode()


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "T" if value else "F"
    return f"'{value:<8}'" if isinstance(value, str) else str(value)


def fits(side: int, *, data: bytes = b"") -> bytes:
    return fits_header(SIMPLE=True, BITPIX=8, NAXIS=3, NAXIS1=side, NAXIS2=side, NAXIS3=3, BANDS="grz") + data


def fits_extensions(count: int) -> bytes:
    empty = fits_header(XTENSION="IMAGE", BITPIX=8, NAXIS=0, PCOUNT=0, GCOUNT=1)
    return fits_header(SIMPLE=True, BITPIX=8, NAXIS=0, EXTEND=True) + empty * count


def fits_compressed_tile(size: int) -> bytes:
    """A tile-compressed image of 64 x 64 in three bands whose one gzip tile holds `size` bytes."""
    heap = gzipped(size)
    table = struct.pack(">ii", len(heap), 0)
    header = fits_header(
        XTENSION="BINTABLE", BANDS="grz", BITPIX=8, NAXIS=2, NAXIS1=8, NAXIS2=1, PCOUNT=len(heap), GCOUNT=1, TFIELDS=1,
        TTYPE1="COMPRESSED_DATA", TFORM1="1PB", ZIMAGE=True, ZBITPIX=8, ZNAXIS=3, ZNAXIS1=64, ZNAXIS2=64,
        ZNAXIS3=3, ZTILE1=64, ZTILE2=64, ZTILE3=3, ZCMPTYPE="GZIP_1",
    )  # fmt: skip
    body = table + heap
    return fits_header(SIMPLE=True, BITPIX=8, NAXIS=0, EXTEND=True) + header + body + bytes(-len(body) % 2880)


def hdf5(shape: tuple[int, ...], chunks: tuple[int, ...], *, chunk: bytes = b"") -> bytes:
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        images = file.create_dataset(
            "images", shape, np.float32, chunks=chunks, maxshape=(None,) * len(shape), compression="gzip"
        )
        images.attrs["bands"] = "grz"
        if chunk:
            images.id.write_direct_chunk((0,) * len(shape), chunk)
    return buffer.getvalue()


# --- zip ------------------------------------------------------------------------------------------------------------


def zipped(entries: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in entries.items():
            target.writestr(name, content)
    return packed.getvalue()


def zip_of_raw(stream: bytes, size: int, *, entries: int, count: int | None = None) -> bytes:
    """A zip whose `entries` directory entries all point at one local entry: they overlap (D. Fifield, WOOT 2019)."""
    name = b"000.png"
    local = struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 0, 8, 0, 0, 0, len(stream), size, len(name), 0) + name + stream
    directory = b"".join(
        struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 8, 0, 0, 0, len(stream), size, 7, 0, 0, 0, 0, 0, 0) + name
        for _ in range(entries)
    )
    told = entries & 0xFFFF if count is None else count
    return local + directory + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, told, told, len(directory), len(local), 0)


def nested_zip() -> bytes:
    inner = zipped({"0.png": bytes(8 * BLOCK)})
    for _ in range(4):
        inner = zipped({f"{n}.zip": inner for n in range(16)})
    return inner


def bombs() -> Iterator[Bomb]:
    """All of them; the content is made when it is asked for."""
    small, large, within = (32, 32, 32), (1024, 1024, 512), (640, 640, 600)
    rows: list[tuple[str, str, Callable[[], bytes]]] = [
        ("mri", "gzip_volume_of_half_a_gigavoxel.nii.gz", lambda: gzipped(GIB // 2, head=nifti_header(large))),
        ("mri", "gzip_volume_with_a_tail_of_1_GiB.nii.gz", lambda: gzipped(GIB, head=nifti_header(small))),
        ("mri", "gzip_volume_of_zeros_within_the_limits.nii.gz", lambda: gzipped(236 << 20, head=nifti_header(within))),
        ("mri", "volume_that_declares_2_TiB.nii", lambda: nifti_header((12000, 12000, 15000))),
        ("mri", "nrrd_with_a_stream_of_1_GiB.nrrd", lambda: nrrd_header(small) + gzipped(GIB)),
        ("mri", "nrrd_of_half_a_gigavoxel.nrrd", lambda: nrrd_header(large) + gzipped(GIB // 2)),
        ("images", "png_of_30000_x_30000.png", lambda: png(30_000, 30_000, pixels=zlibbed(858 << 20), colour=0)),
        ("images", "png_of_zeros_within_the_limits.png", lambda: png(9400, 9400, pixels=zlibbed(253 << 20))),
        ("images", "png_with_a_text_of_1_GiB.png", lambda: png(64, 64, extra=(b"zTXt", b"k\0\0" + zlibbed(GIB)))),
        ("images", "png_with_a_profile_of_1_GiB.png", lambda: png(64, 64, extra=(b"iCCP", b"k\0\0" + zlibbed(GIB)))),
        ("images", "gif_of_65535_x_65535.gif", lambda: b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b";"),
        ("images", "jpeg_of_20000_scans.jpg", jpeg_of_many_scans),
        ("images", "tiff_of_100000_x_100000.tif", lambda: tiff(tags(100_000, 100_000, count=1000), data=bytes(1000))),
        ("images", "tiff_of_zeros_within_the_limits.tif", lambda: _tiff_strip(9400, 9400, 88 << 20)),
        ("images", "tiff_with_a_strip_of_1_GiB.tif", lambda: _tiff_strip(64, 64, GIB)),
        ("images", "tiff_whose_pages_form_a_ring.tif", lambda: _tiff_strip(64, 64, BLOCK, pages=3, ring=True)),
        ("images", "tiff_of_20000_pages.tif", lambda: _tiff_strip(64, 64, BLOCK, pages=20_000)),
        ("histology", "slide_with_a_tile_of_64000_pixels.tif", lambda: _tiff_strip(64_000, 64_000, GIB, tile=64_000)),
        ("images", "npy_of_2_TiB.npy", _npy),
        ("mri", "dicom_of_65535_x_65535.dcm", lambda: dicom(RLE, pixels=run_lengths(4096), rows=65535, columns=65535)),
        ("mri", "dicom_of_a_million_frames.dcm", lambda: dicom(RLE, pixels=run_lengths(4096), frames=1_000_000)),
        ("mri", "dicom_deflated_1_GiB.dcm", lambda: deflated_dicom(GIB)),
        ("mri", "dicom_with_run_lengths_of_1_GiB.dcm", lambda: dicom(RLE, pixels=run_lengths(GIB))),
        ("mri", "dicom_with_jpeg_2000_of_60000.dcm", lambda: dicom(J2K, pixels=jpeg2000_of(60_000))),
        ("mri", "dicom_with_jpeg_of_65500.dcm", lambda: dicom(JPEG, pixels=jpeg_of(65_500))),
        ("galaxy", "fits_of_100000_x_100000.fits", lambda: fits(100_000)),
        ("galaxy", "fits_with_a_gzip_tail_of_1_GiB.fits.gz", lambda: gzipped(GIB, head=fits(48, data=bytes(8640)))),
        ("galaxy", "fits_in_bzip2_of_1_GiB.fits", lambda: bz2.compress(fits(48) + bytes(64 * BLOCK)) * 16),
        ("galaxy", "fits_in_xz_of_1_GiB.fits", lambda: lzma.compress(fits(48) + bytes(64 * BLOCK), preset=0) * 16),
        ("galaxy", "fits_with_a_compressed_tile_of_1_GiB.fits", lambda: fits_compressed_tile(GIB)),
        ("galaxy", "fits_of_5000_extensions.fits", lambda: fits_extensions(5000)),
        ("galaxy", "hdf5_of_a_billion_rows.h5", lambda: hdf5((1 << 30, 64, 64, 3), (64, 64, 64, 3))),
        ("galaxy", "hdf5_with_a_chunk_of_1_GiB.h5", lambda: _hdf5_chunk()),
        ("images", "zip_of_1_GiB.zip", lambda: zip_of_raw(deflated(GIB), GIB, entries=1)),
        ("images", "zip_of_overlapping_entries.zip", lambda: zip_of_raw(deflated(16 * BLOCK), 16 * BLOCK, entries=900)),
        ("images", "zip_that_says_a_lie_about_its_size.zip", lambda: zip_of_raw(deflated(GIB), 1000, entries=1)),
        ("images", "zip_of_200000_entries.zip", lambda: zip_of_raw(deflated(BLOCK), BLOCK, entries=200_000, count=5)),
        ("images", "zip_in_zip_in_zip.zip", nested_zip),
        ("images", "zip_with_a_png_of_30000_x_30000.zip", _zipped_png),
        ("mri", "zip_with_a_gzip_bomb.zip", lambda: zipped({"a.nii.gz": gzipped(GIB, head=nifti_header(small))})),
    ]  # fmt: skip
    for modality, name, make in rows:
        yield Bomb(modality, name, make)


def _tiff_strip(width: int, height: int, size: int, **more: int) -> bytes:
    data = zlibbed(size)
    layout = {key: more.pop(key) for key in ("tile",) if key in more}
    return tiff(tags(width, height, count=len(data), **layout), data=data, **more)  # type: ignore[arg-type]


def _zipped_png() -> bytes:
    return zipped({"a.png": png(30_000, 30_000, pixels=b"x", colour=0)})


def _npy() -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "|u1", "fortran_order": False, "shape": (1 << 20, 1 << 20, 2)}
    )
    return buffer.getvalue()


def _hdf5_chunk() -> bytes:
    return hdf5((1, 64, 64, 3), (1, 9500, 9500, 3), chunk=zlibbed(1033 << 20))
