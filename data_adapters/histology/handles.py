"""A few open files per process: slides, tiled TIFF pyramids and HDF5 files."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from data_adapters.errors import BadFileError, require
from data_adapters.histology import hdf5
from data_adapters.histology.canvas import Canvas
from data_adapters.histology.slide import open_slide, read_field, read_source
from data_adapters.histology.tiledtiff import TiledTiff

CACHE_BYTES = 64 * 2**20  # decoded tiles, shared by all openslide handles: about 1 MB a handle instead of 10
OPENERS: dict[str, Callable[[Path], Any]] = {"openslide": open_slide, "tiles": TiledTiff.open, "hdf5": hdf5.open_tiles}
Key = tuple[str, str, int, int]
FieldPixels = TypeVar("FieldPixels", bound=np.ndarray | Canvas)


class Handles:
    """Least-recently-used handles, opened lazily, never carried across a process border.

    Handles are let go, not closed, so one that another thread still reads from lives until that read ends.
    """

    def __init__(self, limit: int = 32) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._open: OrderedDict[Key, Any] = OrderedDict()
        self._pid = os.getpid()
        self._inherited: list[Any] = []
        self._cache: Any = None

    def __reduce__(self) -> tuple[type["Handles"], tuple[int]]:
        return Handles, (self.limit,)

    def __len__(self) -> int:
        return len(self._open)

    def get(self, path: Path, reader: str = "openslide") -> Any:
        """The handle of `path` under one of OPENERS; a file that changed on disk is opened anew.

        Raises:
            BadFileError: the reader cannot open the file, or it is gone.
        """
        try:
            stat = path.stat()
        except OSError as error:
            raise BadFileError(
                "file not found or not readable", remedy="Check that the archive is mounted.", path=path
            ) from error
        key = (str(path), reader, stat.st_mtime_ns, stat.st_size)
        with self._lock:
            self._leave_parent()
            if key in self._open:
                self._open.move_to_end(key)
                return self._open[key]
        handle = OPENERS[reader](path)
        with self._lock:
            if reader == "openslide":
                if self._cache is None:
                    self._cache = require("openslide", extra="histology").OpenSlideCache(CACHE_BYTES)
                handle.set_cache(self._cache)
            self._open[key] = handle
            while len(self._open) > self.limit:
                self._open.popitem(last=False)
        return handle

    def drop(self, path: Path) -> None:
        """Forget the handles of `path`: after one error openslide answers every call with that error."""
        with self._lock:
            for key in [k for k in self._open if k[0] == str(path)]:
                del self._open[key]

    def read(
        self,
        path: Path,
        *,
        corner: tuple[float, float],
        extent: tuple[float, float],
        out: tuple[int, int],
        reader: str = "openslide",
    ) -> np.ndarray:
        """`read_field` of the slide at `path`: (out height, out width, 3) uint8 RGB.

        Raises:
            BadFileError: the slide cannot be opened or the region cannot be decoded.
        """
        return self._guarded(path, reader, lambda slide: read_field(slide, corner=corner, extent=extent, out=out))

    def source(
        self, path: Path, *, corner: tuple[float, float], side: float, out: int, reader: str
    ) -> np.ndarray | Canvas:
        """`read_source` of the slide at `path`: (n, n, 3) uint8 RGB.

        Raises:
            BadFileError: the slide cannot be opened or the region cannot be decoded.
        """
        return self._guarded(path, reader, lambda slide: read_source(slide, corner=corner, side=side, out=out))

    def _guarded(self, path: Path, reader: str, read: Callable[[Any], FieldPixels]) -> FieldPixels:
        slide = self.get(path, reader)
        try:
            return read(slide)
        except BadFileError:
            self.drop(path)
            raise
        except require("openslide", extra="histology").OpenSlideError as error:
            self.drop(path)
            raise undecodable(path) from error

    def _leave_parent(self) -> None:
        # After a fork the parent still uses its handles; keeping the references closes nothing behind its back.
        if self._pid != os.getpid():
            self._inherited += [self._open, self._cache]
            self._open, self._cache, self._pid = OrderedDict(), None, os.getpid()


def undecodable(path: Path) -> BadFileError:
    """The error for slide data that openslide opens but cannot decode."""
    return BadFileError(
        "slide whose pixels cannot be decoded",
        remedy="The file is damaged or incomplete; copy it again from the scanner or archive.",
        path=path,
    )
