"""What a worker may use, and how the kernel is told so. Linux keeps all of it; macOS ignores the memory limit."""

import ctypes
import json
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

from data_adapters.identity import salt

BASE_BYTES = 320 << 20  # of memory that any file may take: readers' buffers, tiles of slides, small images
OPEN_FILES = 256
PAGE_BYTES = resource.getpagesize()
NO_NEW_PRIVILEGES, DIE_WITH_PARENT = 38, 1  # of prctl(2)
SIGKILL = 9


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The service's limits as far as a worker needs them; see app.settings for each."""

    max_decode_bytes: int
    max_unzipped_bytes: int
    max_pixels: int
    max_tiles: int
    max_items: int

    def dump(self) -> str:
        """As an argument of a command."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> "Limits":
        """The inverse of `dump`."""
        return cls(**json.loads(text))


def confine() -> None:
    """No files written, no core dumps (they would hold pixels), few handles, no new rights, and no life of its own."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = OPEN_FILES if most == resource.RLIM_INFINITY else min(OPEN_FILES, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, few))
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        prctl(DIE_WITH_PARENT, SIGKILL, 0, 0, 0)


def address_space() -> int:
    """Bytes of this process's address space; 0 where /proc does not tell."""
    try:
        handle = os.open("/proc/self/statm", os.O_RDONLY)  # several times an item, so without Python's layers of files
    except OSError:
        return 0
    try:
        return int(os.read(handle, 64).split()[0]) * PAGE_BYTES
    finally:
        os.close(handle)


@contextmanager
def allowance(extra: int, most: int) -> Iterator[None]:
    """Memory for one piece of work: BASE_BYTES and `extra`, up to `most`. Beyond it, allocation fails.

    `extra` is in proportion to what the item's header declares, so a file cannot take more than its size excuses,
    whatever its reader does with it: a small image whose stream swells to gigabytes fails at the base.
    """
    used = address_space()
    if not used:
        yield
        return
    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    granted = used + min(most, BASE_BYTES + extra)
    if hard != resource.RLIM_INFINITY:
        granted = min(granted, hard)
    resource.setrlimit(resource.RLIMIT_AS, (granted, hard))
    try:
        yield
    finally:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (before, hard))


def clean_environment() -> dict[str, str]:
    """The environment of the processes: what finds libraries, and no secret of the service but the salt.

    The salt is given, since groups of uploads are hashed with it: a process that may write no file cannot make one, and
    does not know where the service has it.
    """
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "SYSTEMROOT")
    return {name: os.environ[name] for name in kept if name in os.environ} | {
        "LEJEPA_SALT": salt().decode(),
        "LEJEPA_CACHE": "off",  # decoded uploads must not stay on disk
        "PYTHONWARNINGS": "ignore",  # they quote names and header values
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        # one core a worker; and arenas of malloc would each reserve 64 MiB of the address space
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "MALLOC_ARENA_MAX"), "1"),
    }
