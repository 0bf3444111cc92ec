"""Decoded volumes, written once and memory-mapped, so that a training sample costs a slab and not a whole decode.

One safetensors file an entry: several arrays and their metadata in one file, which the reader maps into memory and
whose length it checks against the header, so that a cut-off file is recognised. A file appears under its name only when
it is complete (temporary name, fsync, rename). The folder may be deleted at any time.
"""

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

logger = logging.getLogger(__name__)

VARIABLE = "LEJEPA_CACHE"
OFF = ("", "off")
STALE_SECONDS = 24 * 3600  # a draft this old belongs to a process that was killed


def default_folder() -> Path | None:
    """$LEJEPA_CACHE, else lejepa-med/volumes below $XDG_CACHE_HOME or ~/.cache; None where LEJEPA_CACHE is "off"."""
    given = os.environ.get(VARIABLE)
    if given is not None:
        return None if given.strip().lower() in OFF else Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lejepa-med" / "volumes"


def cache_key(*, files: Iterable[str], recipe: Mapping[str, Any]) -> str:
    """SHA-256 over path, size and mtime (ns) of every file and over `recipe` (adapter, version, item, options).

    Raises:
        OSError: a file is missing.
    """
    stats = [(name, os.stat(name)) for name in files]
    facts = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
    return hashlib.sha256(json.dumps([facts, recipe], sort_keys=True).encode()).hexdigest()


class Entry:
    """One cached item; arrays are read from the mapped file when asked for."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self.meta: dict[str, str] = handle.metadata() or {}

    def array(self, name: str) -> np.ndarray:
        """A whole array, copied into memory."""
        loaded: np.ndarray = self._handle.get_tensor(name)
        return loaded

    def rows(self, name: str) -> Any:
        """An object whose `[a:b]` reads rows a to b-1 and nothing else."""
        return self._handle.get_slice(name)


class ArrayCache:
    """Entries by key in one folder. Safe with any number of processes, and with any of them being killed."""

    def __init__(self, folder: Path | None) -> None:
        """`folder`: where entries lie, or None for no cache at all."""
        self.folder = folder
        self._swept = False
        self._warned = False

    def _file(self, folder: Path, key: str) -> Path:
        return folder / key[:2] / f"{key}.safetensors"

    def find(self, key: str) -> Entry | None:
        """The entry, or None. A damaged file is removed, so that it is written anew."""
        if self.folder is None:
            return None
        file = self._file(self.folder, key)
        try:
            return Entry(safe_open(file, framework="np"))
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            logger.warning("a damaged cache file is removed (%s)", type(error).__name__)
            self._remove(file)
            return None

    def write(self, key: str, arrays: Mapping[str, np.ndarray], *, meta: Mapping[str, str]) -> None:
        """Store an entry. A full or read-only disk costs speed and a warning, never the run."""
        if self.folder is None:
            return
        file = self._file(self.folder, key)
        try:
            # Decoded patient images: for the owner's eyes only.
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            file.parent.mkdir(exist_ok=True, mode=0o700)
            self._sweep(self.folder)
            self._write(file, save(dict(arrays), metadata=dict(meta)))
        except OSError as error:
            if not self._warned:
                logger.warning(
                    "volumes are decoded anew each time, because the cache %s cannot be written: %s. "
                    "Free space there or set %s to another folder.",
                    self.folder,
                    error.strerror or error,
                    VARIABLE,
                )
            self._warned = True

    def _write(self, file: Path, content: bytes) -> None:
        descriptor, draft = tempfile.mkstemp(prefix=".draft-", dir=file.parent)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(draft, file)
        except BaseException:
            self._remove(Path(draft))
            raise

    def _remove(self, file: Path) -> None:
        try:
            file.unlink(missing_ok=True)
        except OSError:
            logger.warning("a useless file in the cache cannot be removed: %s", file)

    def _sweep(self, folder: Path) -> None:
        """Once per process: remove drafts that killed processes left behind."""
        if self._swept:
            return
        self._swept = True
        for draft in folder.glob("*/.draft-*"):
            try:
                old = time.time() - draft.stat().st_mtime > STALE_SECONDS
            except FileNotFoundError:  # its writer has just renamed it
                continue
            if old:
                self._remove(draft)
