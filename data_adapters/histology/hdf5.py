"""Tiles in HDF5: PatchCamelyon's `x` (rows, height, width, 3), and bags of patches under `imgs`."""

import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_adapters.base import Record
from data_adapters.cache import ArrayCache, cache_key, default_folder
from data_adapters.errors import BadFileError, UserError
from data_adapters.histology.tiles import MIN_SIDE
from data_adapters.openfiles import damaged_hdf5, open_hdf5, own_dataset
from data_adapters.tables import Table, array_labels

SUFFIXES = (".h5", ".hdf5")
IMAGES = ("x", "imgs")
LABELS = ("y", "label", "labels")
COORDS = "coords"
PCAM = "camelyonpatch"  # begins the names of PatchCamelyon's files
NAMES = {"0": "normal", "1": "tumor"}  # PatchCamelyon's own words for its labels; others' 0 and 1 stay numbers
# PatchCamelyon writes the split into the file's name.
SPLITS = {"_split_train_": "train", "_split_valid_": "val", "_split_test_": "test"}
GROUP_COLUMNS = ("wsi", "patient", "slide_id")  # of the meta table, the first that is there
# Bytes decompressed for a row, over the row's own, above which blocks of rows go to the cache instead.
COSTLY = 8
MAX_BLOCK_BYTES = 2**30
CACHE_VERSION = 1


class TileTable:
    """The tiles of one open file; a row is read without the others where the file's chunks allow it."""

    def __init__(self, path: Path, file: Any, images: Any) -> None:
        self.path, self.images = path, images
        self.rows, self.size = int(images.shape[0]), (int(images.shape[2]), int(images.shape[1]))
        self._file = file  # datasets live as long as their file
        self._row_bytes = math.prod(images.shape[1:])
        # h5py serialises its calls, but a block must not be decoded by two threads at once
        self._lock = threading.Lock()
        self._cache = ArrayCache(default_folder())

    @property
    def _cost(self) -> float:
        """Bytes to decompress for one row, over the row's own."""
        chunks = self.images.chunks
        if chunks is None:
            return 1.0
        touched = math.prod(
            -(-side // chunk) * chunk for side, chunk in zip(self.images.shape[1:], chunks[1:], strict=True)
        )
        return float(chunks[0] * touched / self._row_bytes)

    def read(self, row: int) -> np.ndarray:
        """One tile, (H, W, 3) uint8 RGB.

        Raises:
            BadFileError: the file has no such row, or its data are damaged.
        """
        if not 0 <= row < self.rows:
            raise BadFileError(
                "a row that the HDF5 file does not have", remedy="Scan the archive again.", path=self.path
            )
        try:
            block = 1 if self._cost <= COSTLY else int(self.images.chunks[0])
            if self._cache.folder is None or block * self._row_bytes > MAX_BLOCK_BYTES or block == 1:
                return np.asarray(self.images[row])
            return self._cached(row, block)
        except OSError as error:
            raise damaged_hdf5(self.path) from error

    def labels(self) -> list[str | None] | None:
        """Labels beside the tiles, or None where the file has none.

        Raises:
            BadFileError: they are no labels of these tiles.
        """
        name = next((name for name in LABELS if name in self._file), None)
        if name is None:
            return None
        found = own_dataset(self._file, name)
        if found is None:
            raise BadFileError(
                f"'{name}' is no column of values in this file", remedy="Store one label for each tile in it."
            )
        try:
            return array_labels(np.asarray(found[()]), self.rows, of="tiles")
        except OSError as error:
            raise damaged_hdf5() from error

    def _cached(self, row: int, block: int) -> np.ndarray:
        """A row of a block that was decompressed once and is memory-mapped since."""
        number, place = divmod(row, block)
        recipe = {"kind": "histology-hdf5", "version": CACHE_VERSION, "rows": block, "block": number}
        key = cache_key(files=[str(self.path)], recipe=recipe)
        with self._lock:
            entry = self._cache.find(key)
            if entry is None:
                tiles = np.asarray(self.images[number * block : (number + 1) * block])
                self._cache.write(key, {"tiles": tiles}, meta={})
                return np.ascontiguousarray(tiles[place])
        tile: np.ndarray = entry.rows("tiles")[place : place + 1][0]
        return tile


def open_tiles(path: Path) -> TileTable:
    """The tiles of an HDF5 file.

    Raises:
        BadFileError: no HDF5 file, coordinates without pixels, or tiles that are not 8-bit RGB.
    """
    file = open_hdf5(path, extra="histology")
    images = next((own for own in (own_dataset(file, name) for name in IMAGES) if own is not None), None)
    if images is None:
        if own_dataset(file, COORDS) is not None:
            raise BadFileError(
                "patch coordinates, not images",
                remedy="Scan the slides, and name the folder of these files in the option coords.",
                path=path,
            )
        raise BadFileError(
            "HDF5 file without tiles", remedy="Store tiles as the dataset 'x', (rows, height, width, 3).", path=path
        )
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or not images.shape[0]:
        raise BadFileError(
            "HDF5 tiles that are not 8-bit RGB",
            remedy="Store them as uint8 of shape (rows, height, width, 3).",
            path=path,
        )
    if min(images.shape[1:3]) < MIN_SIDE:
        raise BadFileError(
            f"tile under {MIN_SIDE} pixels wide or high", remedy="Cut tiles that show several cells.", path=path
        )
    return TileTable(path, file, images)


def is_companion(path: Path) -> bool:
    """Whether a file is the labels (`..._y.h5`) or masks (`..._mask.h5`) of tiles that lie beside it."""
    for ending in ("_y", "_mask"):
        if path.stem.endswith(ending):
            return path.with_name(path.stem.removesuffix(ending) + "_x" + path.suffix).is_file()
    return False


def companions(path: Path) -> list[Path]:
    """Where labels and groups of the tiles in `path` may lie."""
    base = path.stem.removesuffix("_x")
    return [path.with_name(base + "_y" + path.suffix), path.with_name(base + "_meta.csv")]


def records(path: Path, table: TileTable, key: str) -> Iterator[Record]:
    """One record a row, with label, split and group as far as the files beside it tell.

    Labels: `..._y.h5`, else `y`, `label` or `labels` beside the tiles. Groups: column wsi, patient or slide_id of
    `..._meta.csv`; without it none, since a row says nothing about its slide.

    Raises:
        BadFileError: labels or meta table have another number of rows than the tiles.
    """
    labels_file, meta_file = companions(path)
    labels, groups = _labels(labels_file, table), _groups(meta_file, table.rows)
    split = next((value for part, value in SPLITS.items() if part in path.name), "")
    meta = {"size": list(table.size), "bits": 8, key: {"kind": "row", "size": list(table.size)}}
    for row in range(table.rows):
        yield Record(
            uri=str(path),
            item=str(row),
            group="" if groups is None else groups[row],
            grouped_by="" if groups is None else "meta table",
            label=None if labels is None else labels[row],
            split=split,
            meta=meta,
        )


def _labels(path: Path, table: TileTable) -> list[str | None] | None:
    """Labels of the file `..._y.h5`, else of the tiles' own file."""
    if not path.is_file() or not path.stem.endswith("_y"):
        return table.labels()
    try:
        with open_hdf5(path, extra="histology") as file:
            found = next((own for own in (own_dataset(file, name) for name in LABELS) if own is not None), None)
            if found is None:
                raise BadFileError("a label file without labels", remedy=f"Store them as the dataset '{LABELS[0]}'.")
            labels = array_labels(np.asarray(found[()]), table.rows, of="tiles")
    except OSError as error:
        raise BadFileError("damaged or truncated HDF5 file", remedy="Copy the label file again.") from error
    return [NAMES.get(label or "", label) for label in labels] if PCAM in path.name else labels


def _groups(path: Path, rows: int) -> list[str] | None:
    if not path.is_file():
        return None
    try:
        table = Table(path, what="The meta table", needs=(), public=True)
        names = {name.lower(): name for name in table.names}
        column = next((names[name] for name in GROUP_COLUMNS if name in names), None)
        if column is None:
            return None
        groups = [table.class_name(column, name) for name in [row.cells[column] for row in table]]
    except UserError as error:
        raise BadFileError(error.cause, remedy=error.remedy) from error
    if len(groups) != rows or not all(groups):
        raise BadFileError(
            "a meta table that does not belong to the tiles",
            remedy=f"Name a slide (column '{column}') for each row of 'x' in the file ..._meta.csv.",
        )
    return groups
