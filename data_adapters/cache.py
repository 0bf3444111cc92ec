"""Decoded volumes, written once and memory-mapped, so that a training sample costs a slab and not a whole decode.

Entries are found by content and pipeline version. One safetensors file an entry: several arrays and their metadata in
one file, which the reader maps into memory and whose length it checks against the header, so that a cut-off file is
recognised. A file appears under its name only when it is complete (temporary name, fsync, rename). The folder may be
deleted at any time.
"""

import hashlib
import json
import logging
import mmap
import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

logger = logging.getLogger(__name__)

VARIABLE = "LEJEPA_CACHE"
OFF = ("", "off")
DRAFT = ".draft-"
DIGEST_BYTES = 32
CHUNK = 1 << 20
STALE_SECONDS = 24 * 3600  # a draft this old belongs to a process that was killed

_warned = mmap.mmap(-1, 1)  # shared with the processes that are forked from this one, so that only one of them warns


def default_folder() -> Path | None:
    """$LEJEPA_CACHE, else lejepa-med/volumes below $XDG_CACHE_HOME or ~/.cache; None where LEJEPA_CACHE is "off"."""
    given = os.environ.get(VARIABLE)
    if given is not None:
        return None if given.strip().lower() in OFF else Path(given)
    base = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return None if base.parts[:1] == ("~",) else base / "lejepa-med" / "volumes"  # "~": a user without a home


def cache_key(*, files: Iterable[str], recipe: Mapping[str, Any], folder: Path | None = None) -> str:
    """SHA-256 over the content of every file, in order, and over `recipe` (adapter, version, item, options).

    So a renamed, moved or copied file finds its entry, and a changed one never does. Files are read for their hash
    once for each path, size and mtime (ns); the hash is remembered in this process and, given a `folder`, in a small
    file there.

    Raises:
        OSError: a file is missing.
    """
    stats = [(os.path.abspath(name), os.stat(name)) for name in files]
    facts = tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
    return hashlib.sha256(json.dumps([_digest(facts, folder), recipe], sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=1 << 16)
def _digest(facts: tuple[tuple[str, int, int], ...], folder: Path | None) -> str:
    """BLAKE2b-256 of the files' contents; its note in `folder` is named by a hash, so that it tells no path."""
    label = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    note = None if folder is None else folder / label[:2] / f"{label}.digest"
    if note is not None:
        with suppress(OSError, ValueError):  # not there, or damaged: hashed again
            known = note.read_text(encoding="ascii")
            if len(known) == 2 * DIGEST_BYTES and int(known, 16) >= 0:
                return known
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for name, size, _ in facts:
        digest.update(size.to_bytes(8, "little"))
        with open(name, "rb") as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
    if note is not None:
        with suppress(OSError):  # a note saves time and nothing else
            _make_folder(note.parent)
            _replace(note, digest.hexdigest().encode(), durable=False)
    return digest.hexdigest()


def _make_folder(folder: Path) -> None:
    """Decoded patient images: for the owner's eyes only."""
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.mkdir(exist_ok=True, mode=0o700)


def _replace(file: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a file that appears under its name only when it is complete and, if `durable`, on the disk."""
    descriptor, draft = tempfile.mkstemp(prefix=DRAFT, dir=file.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        os.replace(draft, file)
    except BaseException:
        _remove(Path(draft))
        raise


def _remove(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError:
        logger.warning("a useless file in the cache cannot be removed: %s", file)


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
        self._is_writable = True

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
            _remove(file)
            return None

    def write(self, key: str, arrays: Mapping[str, np.ndarray], *, meta: Mapping[str, str]) -> None:
        """Store an entry. A full or read-only disk costs speed and a warning, never the run.

        After the first failure this process stores nothing more; what is stored is found as before.
        """
        if self.folder is None or not self._is_writable:
            return
        file = self._file(self.folder, key)
        try:
            _make_folder(file.parent)
            self._sweep(self.folder)
            _replace(file, save(dict(arrays), metadata=dict(meta)))
        except OSError as error:
            self._is_writable = False
            if not _warned[0]:
                _warned[0] = 1
                logger.warning(
                    "volumes are decoded anew each time, because the cache %s cannot be written: %s. "
                    "Free space there or set %s to another folder.",
                    self.folder,
                    error.strerror or error,
                    VARIABLE,
                )

    def _sweep(self, folder: Path) -> None:
        """Once per process: remove drafts that killed processes left behind."""
        if self._swept:
            return
        self._swept = True
        for draft in folder.glob(f"*/{DRAFT}*"):
            try:
                old = time.time() - draft.stat().st_mtime > STALE_SECONDS
            except FileNotFoundError:  # its writer has just renamed it
                continue
            if old:
                _remove(draft)
