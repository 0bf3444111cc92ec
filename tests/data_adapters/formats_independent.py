"""The pixels that a file of the formats folder must give: other readers, and the documented mapping in plain NumPy."""

import warnings
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import nibabel as nib
import numpy as np
import pydicom
import tifffile
from astropy.io import fits
from PIL import Image

GDCM_DTYPES = {"UINT8": np.uint8, "INT16": np.int16, "UINT16": np.uint16}


def volume(path: Path, choice: Any) -> tuple[np.ndarray, tuple[float, ...]]:
    """RAS voxels with the header's scaling as float64, and mm, by nibabel; `choice` is the option volume."""
    image = nib.load(path)
    data = np.asanyarray(image.dataobj, dtype=np.float64)
    if data.ndim == 4 and data.shape[3] > 1:
        data = data.mean(axis=3) if choice == "mean" else data[..., 0 if choice == "first" else choice]
    data = data.reshape(data.shape[:3])
    canonical = nib.as_closest_canonical(nib.Nifti1Image(data, image.affine))
    return np.asarray(canonical.dataobj), tuple(float(v) for v in nib.affines.voxel_sizes(canonical.affine))


def dicom_slice(path: Path) -> np.ndarray:
    """(H, W) float64 after slope and intercept, by GDCM, which leaves padding as it is: that becomes the background."""
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    image = reader.GetImage()
    dtype = GDCM_DTYPES[image.GetPixelFormat().GetScalarTypeAsString()]
    raw = np.frombuffer(image.GetBuffer().encode("utf-8", errors="surrogateescape"), dtype)
    header = pydicom.dcmread(path, stop_before_pixels=True)
    if "PixelPaddingValue" in header:
        padded = raw == header.PixelPaddingValue
        raw = np.where(padded, raw[~padded].min(), raw)
    return raw.reshape(image.GetDimension(1), image.GetDimension(0)) * image.GetSlope() + image.GetIntercept()


def mri_mapping(values: np.ndarray) -> np.ndarray:
    """docs/adapters.md: .5 and 99.5 percentile of the foreground become 0 and 1."""
    low, high = np.percentile(values, (0.5, 99.5))
    foreground = values[values > low + 0.05 * (high - low)]
    floor, ceiling = np.percentile(foreground, (0.5, 99.5))
    return np.clip((values - floor) / (ceiling - floor), 0, 1)


def mri_squares(values: np.ndarray, spacing: tuple[float, ...] | None) -> np.ndarray:
    """(n, S, S): axial slices as radiologists see them (or one 2-D slice), on a black square, with square pixels."""
    stack = mri_mapping(values)
    stack = stack[None] if spacing is None else stack.transpose(2, 1, 0)[:, ::-1, ::-1]
    if spacing is not None and abs(spacing[0] / spacing[1] - 1) > 0.01:
        fine = min(spacing[:2])
        size = (round(stack.shape[2] * spacing[0] / fine), round(stack.shape[1] * spacing[1] / fine))
        stack = np.stack([cv2.resize(np.ascontiguousarray(image), size) for image in stack])
    _, height, width = stack.shape
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    return np.pad(stack, ((0, 0), (top, side - height - top), (left, side - width - left)))


def flux(path: Path) -> np.ndarray:
    """(H, W, bands) float32 by astropy: the file's only image, bands last."""
    with warnings.catch_warnings(), fits.open(path, memmap=False) as hdus:
        warnings.simplefilter("ignore")
        (data,) = [hdu.data for hdu in hdus if hdu.is_image and hdu.data is not None and hdu.data.ndim >= 2]
    return (data[..., None] if data.ndim == 2 else np.moveaxis(data, 0, -1)).astype(np.float32)


def picture(path: Path) -> np.ndarray:
    """(H, W) or (H, W, C) upright, as stored: tifffile for TIFF, imagecodecs and OpenCV for the rest."""
    suffix = path.suffix.lower()
    if suffix == ".tif" and "ojpeg" not in path.name:
        with tifffile.TiffFile(path) as tiff:
            pixels = tiff.pages[0].asarray()
            axes, separated = tiff.pages[0].axes, tiff.pages[0].photometric == tifffile.PHOTOMETRIC.SEPARATED
        if separated:  # CMYK without a profile, as ideal inks
            paper = 255.0 - pixels
            return np.rint(paper[..., :3] * paper[..., 3:] / 255).astype(np.uint8)
        return np.moveaxis(pixels, 0, -1) if axes == "SYX" else pixels
    if suffix in (".gif", ".jp2", ".avif"):
        decode = {".gif": imagecodecs.gif_decode, ".jp2": imagecodecs.jpeg2k_decode, ".avif": imagecodecs.avif_decode}
        return np.asarray(decode[suffix](path.read_bytes()))
    if suffix == ".tif":  # old-style JPEG: Pillow's libtiff is the only reader here, so this is no second opinion
        return np.asarray(Image.open(path))
    how = cv2.IMREAD_UNCHANGED if suffix == ".png" else cv2.IMREAD_COLOR  # COLOR turns by EXIF
    pixels = cv2.imread(str(path), how)
    return pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]


def on_white(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 of grey, RGB or RGBA, transparency on white as Pillow composes it."""
    if pixels.shape[2] == 3:
        return pixels
    image = Image.fromarray(pixels)
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))
