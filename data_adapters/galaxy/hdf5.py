"""HDF5 tables of cut-outs in the manner of Galaxy10: `images` with one row a galaxy, and columns beside it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_adapters.errors import BadFileError, require
from data_adapters.galaxy.cutout import MAX_BLANK, too_blank
from data_adapters.galaxy.metadata import Bands, Cutout, CutoutFile, Kind, choose
from data_adapters.galaxy.options import MIN_SIDE, PICTURE_BANDS
from data_adapters.openfiles import OpenFiles, damaged_hdf5, open_hdf5, own_dataset
from data_adapters.sentinels import blanked, marked
from data_adapters.tables import array_labels

SUFFIXES = (".h5", ".hdf5")
IMAGES = ("images", "image")
LABELS = ("ans", "label", "labels")
COLUMNS = {"ra": "ra", "dec": "dec", "pxscale": "pixel_scale", "redshift": "redshift"}  # column -> key of meta
FILL_VALUES = ("_FillValue", "missing_value")  # attributes of netCDF's conventions: values that are no data


@dataclass(frozen=True, kw_only=True)
class CutoutTable:
    """The layout of one file: rows, the image's axes, and the planes to use in channel order."""

    dataset: str
    rows: int
    axes: str  # of one row: "HW", "HWC" or "CHW"
    width: int
    height: int
    kind: Kind
    bits: int
    bands: tuple[str, ...]
    found: tuple[str, ...] | None  # the names of all planes, where the file gives them
    count: int  # of all planes
    chosen: tuple[int, ...]
    sentinels: tuple[int | float, ...] = ()  # stored values that are no data


OPEN_FILES = OpenFiles(limit=8)


def inspect(path: Path, wanted: Bands) -> CutoutFile:
    """Layout of a file, with label and measured values of each row.

    Raises:
        BadFileError: see `table_layout` and `columns`.
    """
    file = OPEN_FILES.get(path, open_hdf5)
    table = table_layout(file, wanted)
    rows = enumerate(zip(*columns(file, table), strict=True))
    return CutoutFile(
        kind=table.kind,
        planes=table.found,
        count=table.count,
        width=table.width,
        height=table.height,
        bits=table.bits,
        images=[Cutout(item=str(row), label=label, facts=facts) for row, (label, facts) in rows],
    )


def read(path: Path, item: str, wanted: Bands, named: Bands) -> np.ndarray:
    """One row of a file, see `read_row`; the file itself names its planes."""
    file = OPEN_FILES.get(path, open_hdf5)
    return read_row(file, table_layout(file, wanted), int(item))


def table_layout(file: Any, wanted: tuple[str, ...] | None) -> CutoutTable:
    """How the rows of an open file are to be read.

    Raises:
        BadFileError: no dataset of images, an unclear layout, or other bands than `wanted`.
    """
    name = next((key for key in IMAGES if key in file), "")
    images = own_dataset(file, name) if name else None
    if images is None:
        raise BadFileError("no dataset 'images' in the file", remedy="Store the cut-outs as 'images', one row each.")
    if images.dtype.kind not in "uif":
        raise BadFileError("images that are no numbers", remedy="Store integers or floats.")
    axes = _axes(images.shape)
    size = dict(zip(axes, images.shape[1:], strict=True))
    picture = images.dtype == np.uint8
    count = size.get("C", 1)
    if picture and count not in PICTURE_BANDS:
        raise BadFileError(f"8-bit pictures with {count} channels", remedy="Store grey or RGB, or flux as floats.")
    found = PICTURE_BANDS[count] if picture else _named(images, file, count)
    chosen, bands = choose(found, count, wanted)
    return CutoutTable(
        dataset=name,
        rows=images.shape[0],
        axes=axes,
        width=size["W"],
        height=size["H"],
        kind="picture" if picture else "flux",
        bits=images.dtype.itemsize * 8,
        bands=tuple(bands),
        found=found,
        count=count,
        chosen=tuple(chosen),
        sentinels=_sentinels(images, picture=picture),
    )


def read_row(file: Any, table: CutoutTable, row: int) -> np.ndarray:
    """One image, (height, width, bands): uint8 for pictures, native float32 for flux with NaN for fill values.

    Raises:
        BadFileError: the row is not there, its data are damaged, or fill values cover more than 10 % of a picture.
    """
    if not 0 <= row < table.rows:
        raise BadFileError("a row that the HDF5 file does not have", remedy="Scan the archive again.")
    try:
        pixels = np.asarray(file[table.dataset][row])
    except Exception as error:  # h5py raises OSError or RuntimeError on damaged chunks
        raise damaged_hdf5() from error
    if table.axes == "HW":
        pixels = pixels[..., None]
    elif table.axes == "CHW":
        pixels = np.moveaxis(pixels, 0, -1)
    pixels = pixels[..., list(table.chosen)]
    mask = marked(pixels, table.sentinels)
    if table.kind == "flux":
        return np.ascontiguousarray(blanked(pixels, mask))
    if mask is not None:
        if mask.mean(axis=(0, 1)).max() > MAX_BLANK:
            raise too_blank()
        pixels = np.where(mask, np.uint8(0), pixels)
    return np.ascontiguousarray(pixels)


def _sentinels(images: Any, *, picture: bool) -> tuple[int | float, ...]:
    """Fill values by attribute, and of flux the one the dataset was made with: 255 may well be a bright pixel."""
    found = [value for name in FILL_VALUES for value in np.ravel(images.attrs.get(name, ())).tolist()]
    user_defined = require("h5py", extra="galaxy").h5d.FILL_VALUE_USER_DEFINED
    made_with = images.id.get_create_plist().fill_value_defined() == user_defined
    if not picture and made_with and images.fillvalue != 0:
        found.append(images.fillvalue.item())
    return tuple(value for value in found if isinstance(value, int | float))


def columns(file: Any, table: CutoutTable) -> tuple[list[str | None], list[dict[str, float]]]:
    """Label and measured values of every row, as far as the file has them.

    Raises:
        BadFileError: a column of another number of rows, or of values that are no labels or measurements.
    """
    labels: list[str | None] = [None] * table.rows
    key = next((name for name in LABELS if name in file), None)
    if key is not None:
        labels = array_labels(_column(file, key), table.rows)
    meta: list[dict[str, float]] = [{} for _ in range(table.rows)]
    for column, target in COLUMNS.items():
        if column not in file:
            continue
        values = _column(file, column)
        if values.size != table.rows or values.dtype.kind not in "uif":
            raise BadFileError(
                f"a column '{column}' of {values.dtype} {values.shape} for {table.rows} images",
                remedy="Write one number for each image, in the order of the images.",
            )
        for row, value in zip(meta, values.reshape(-1).tolist(), strict=True):
            if np.isfinite(value):
                row[target] = float(value)
    return labels, meta


def _column(file: Any, name: str) -> np.ndarray:
    column = own_dataset(file, name)
    if column is None:
        raise BadFileError(
            f"'{name}' is no column of values in this file", remedy="Store one value for each image in the file itself."
        )
    try:
        return np.asarray(column[()])
    except Exception as error:  # h5py raises OSError or RuntimeError on damaged chunks
        raise damaged_hdf5() from error


def _axes(shape: tuple[int, ...]) -> str:
    """Axes of one row. The channel axis is the one shorter than any side may be."""
    if len(shape) == 3:
        return "HW"
    if len(shape) == 4 and shape[3] < MIN_SIDE <= min(shape[1:3]):
        return "HWC"
    if len(shape) == 4 and shape[1] < MIN_SIDE <= min(shape[2:]):
        return "CHW"
    raise BadFileError(
        "images whose axes are unclear", remedy="Store (rows, height, width, channels), sides of at least 16 pixels."
    )


def _named(images: Any, file: Any, count: int) -> tuple[str, ...] | None:
    """Band names in the attribute `bands` of the dataset or the file: 'g,r,z', 'grz' or a list."""
    for holder in (images, file):
        value = holder.attrs.get("bands")
        if value is None:
            continue
        if isinstance(value, bytes):
            value = value.decode()
        names = (value.split(",") if "," in value else list(value)) if isinstance(value, str) else np.ravel(value)
        text = tuple(n.decode() if isinstance(n, bytes) else str(n).strip() for n in names)
        if len(text) == count and len(set(text)) == count:
            return text
    return None
