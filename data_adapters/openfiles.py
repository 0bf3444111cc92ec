"""Files that are slow to open, kept open: slides, tiled TIFF pyramids and HDF5 files."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_adapters.errors import BadFileError, require

Key = tuple[str, str, int, int]
CHUNK_CACHE = 64 * 2**20  # bytes a file: a scan in order decompresses each chunk once (h5py's 1 MiB may hold no chunk)


class OpenFiles:
    """Least-recently-used handles, opened lazily, never carried across a process border.

    Handles are let go, not closed, so one that another thread still reads from lives until that read ends.
    """

    def __init__(self, limit: int) -> None:
        """Keep at most `limit` handles."""
        self.limit = limit
        self._lock = threading.Lock()
        self._open: OrderedDict[Key, Any] = OrderedDict()
        self._pid = os.getpid()
        self._inherited: list[Any] = []

    def __len__(self) -> int:
        return len(self._open)

    def get(self, path: Path, opener: Callable[[Path], Any], *, reader: str = "") -> Any:
        """The handle that `opener` gave for `path`; a file that changed on disk is opened anew.

        Args:
            path: of the file.
            opener: path -> handle.
            reader: tells the openers of one file apart.

        Raises:
            BadFileError: the opener refuses the file, or it is gone.
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
        handle = opener(path)
        with self._lock:
            self._open[key] = handle
            while len(self._open) > self.limit:
                self._open.popitem(last=False)
        return handle

    def drop(self, path: Path) -> None:
        """Forget the handles of `path`: after one error openslide answers every call with that error."""
        with self._lock:
            for key in [k for k in self._open if k[0] == str(path)]:
                del self._open[key]

    def _leave_parent(self) -> None:
        # After a fork the parent still uses its handles; keeping the references closes nothing behind its back.
        if self._pid != os.getpid():
            self._inherited.append(self._open)
            self._open, self._pid = OrderedDict(), os.getpid()


def open_hdf5(path: Path, *, extra: str = "galaxy") -> Any:
    """An open HDF5 file; `extra` is what `pip install` needs to bring h5py.

    Raises:
        BadFileError: it is no HDF5 file or is damaged.
        MissingExtraError: h5py is not installed.
    """
    h5py = require("h5py", extra=extra)
    try:
        return h5py.File(path, "r", rdcc_nbytes=CHUNK_CACHE, rdcc_nslots=10007)
    except Exception as error:
        raise damaged_hdf5(path) from error


def own_dataset(file: Any, name: str) -> Any:
    """The dataset `name` of an open HDF5 file, or None.

    Only what lies in this very file: a link or virtual dataset could point at any file of the machine.
    """
    h5py = require("h5py", extra="galaxy")
    if name not in file or not isinstance(file.get(name, getlink=True), h5py.HardLink):
        return None
    found = file[name]
    return found if isinstance(found, h5py.Dataset) and not found.external and not found.is_virtual else None


def damaged_hdf5(path: Path | str = "") -> BadFileError:
    """The error for an HDF5 file that cannot be read to its end."""
    return BadFileError("damaged or truncated HDF5 file", remedy="Copy the file again.", path=path)
