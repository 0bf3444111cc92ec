"""A file as a plain viewer shows it, read without the adapter, so that the adapter's own doing can be seen."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_adapters.base import Record
from data_adapters.errors import require
from data_adapters.raster import SUFFIXES as PICTURES
from data_adapters.raster import read_raster
from lejepa_med.inspection.display import Pixels, choose_channels, stretched

NIFTI = (".nii", ".nii.gz", ".mgh", ".mgz", ".img", ".hdr", ".mnc")
FITS = (".fits", ".fit", ".fts", ".fits.gz", ".fit.gz", ".fits.fz")
SLIDES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".tif", ".tiff", ".dcm", ".vms", ".svslide")
OVERVIEW = 512  # pixels; longest side of a slide's overview
MAX_TIFF = 4096  # pixels; a larger TIFF is shown by its overview


def raw_picture(record: Record, bands: Sequence[str] = ()) -> tuple[Pixels | None, str]:
    """The record's file as uint8 and how it was shown; None where no plain viewer knows the format.

    A volume is shown by its middle slice as stored (not turned to a canonical orientation), a slide by its smallest
    level (never its label), a series by its middle file, a table of images by the record's row.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # headers that readers comment on are judged by the adapter, not here
            return _read(record, bands)
    except (
        Exception
    ):  # whatever a foreign reader says: the adapter's own reading is what counts, and is shown beside it
        return None, "no plain viewer reads this file"


def _read(record: Record, bands: Sequence[str]) -> tuple[Pixels | None, str]:
    files = [str(name) for name in record.meta.get("files", ())] or [record.uri]
    path, name = Path(record.uri), Path(record.uri).name.lower()
    if name.endswith(NIFTI):
        return _volume(np.asanyarray(require("nibabel", extra="mri").load(path).dataobj))
    if name.endswith(FITS):
        return _fits(path, bands)
    if name.endswith((".h5", ".hdf5")):
        with require("h5py", extra="galaxy").File(path, "r") as file:
            row = np.asarray(file["images" if "images" in file else "x"][int(record.item)])
        return _slices(row, "row of the table")
    if name.endswith(".npy"):
        return _slices(np.load(path, mmap_mode="r", allow_pickle=False), "")
    if name.endswith(SLIDES) and (slide := _slide(path)) is not None:
        return slide, "overview of the slide"
    if name.endswith(PICTURES):
        return stretched(read_raster(path))
    return _dicom(Path(files[len(files) // 2]))


def _slices(array: NDArray[Any], what: str, bands: Sequence[str] = ()) -> tuple[Pixels, str]:
    """(H, W), (H, W, C) or (C, H, W): the shortest of the outer axes holds the channels."""
    if array.ndim == 3 and array.shape[0] < min(array.shape[1:]):
        array = np.moveaxis(array, 0, -1)
    pixels, how = stretched(array, bands)
    shown = choose_channels(array.shape[2], bands).words if array.ndim == 3 else ""
    return pixels, ", ".join(part for part in (what, how, shown) if part)


def _volume(array: NDArray[Any]) -> tuple[Pixels, str]:
    array = np.squeeze(array)
    while array.ndim > 3:
        array = array[..., 0]
    if array.ndim < 3:
        return stretched(np.rot90(array))
    middle = array.shape[2] // 2
    pixels, how = stretched(np.rot90(np.asarray(array[:, :, middle])))
    return pixels, f"slice {middle + 1} of {array.shape[2]} along the third axis as stored, {how}"


def _fits(path: Path, bands: Sequence[str]) -> tuple[Pixels, str]:
    with require("astropy.io.fits", extra="galaxy").open(path, memmap=False) as hdus:
        data = next(np.squeeze(hdu.data) for hdu in hdus if hdu.is_image and hdu.data is not None)
    pixels, how = _slices(data, "first image of the file", bands)
    # the first row on top, as in the prepared pixels beside it; astronomers' viewers show it lowest
    return pixels, f"{how}, first row on top"


def _slide(path: Path) -> Pixels | None:
    """The overview, made from the pyramid alone; None for a picture that is no slide."""
    openslide = require("openslide", extra="histology")
    if openslide.OpenSlide.detect_format(str(path)) is None:
        return None
    with openslide.OpenSlide(str(path)) as slide:
        if path.suffix.lower() in (".tif", ".tiff") and max(slide.dimensions) <= MAX_TIFF and slide.level_count == 1:
            return None
        return np.asarray(slide.get_thumbnail((OVERVIEW, OVERVIEW)).convert("RGB"))


def _dicom(path: Path) -> tuple[Pixels, str]:
    """The middle frame with the file's own window, where it has one."""
    pydicom = require("pydicom", extra="mri")
    pixel = require("pydicom.pixels", extra="mri")
    data = pydicom.dcmread(path)
    frames = data.pixel_array
    several = int(data.get("NumberOfFrames", 1) or 1) > 1
    image = frames[len(frames) // 2] if several else frames
    what = f"frame {len(frames) // 2 + 1} of {len(frames)}" if several else "one DICOM image"
    if image.ndim == 3:
        return stretched(image)
    image = np.asarray(pixel.apply_rescale(image, data), np.float64)
    if "WindowCenter" in data:
        windowed = pixel.apply_voi_lut(image, data)
        low, high = float(windowed.min()), float(windowed.max())
        shown = np.rint((windowed - low) / (high - low or 1) * 255).astype(np.uint8)
        how = "with the window of its header"
    else:
        shown, how = stretched(image)
    inverted = data.get("PhotometricInterpretation") == "MONOCHROME1"
    return (255 - shown if inverted else shown), f"{what}, {how}"
