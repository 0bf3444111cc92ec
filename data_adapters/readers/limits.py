"""What a reader process may use, kept by the kernel. Linux keeps all of it; macOS ignores the memory limit."""

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
    """The service's limits on foreign files; its setting LEJEPA_<NAME> is where an operator changes one."""

    max_decode_bytes: int
    max_unzipped_bytes: int
    max_pixels: int
    max_tiles: int
    max_items: int

    def dump(self) -> str:
        """JSON text, to be an argument of a command."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> "Limits":
        """The inverse of `dump`."""
        return cls(**json.loads(text))


def confine() -> None:
    """Take rights from this process for good: it writes no files, has few handles, and ends with its parent.

    Nor does it leave core dumps, which would hold pixels, or gain privileges.
    """
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
    """Return the bytes of this process's address space; 0 where there is no /proc."""
    try:
        handle = os.open("/proc/self/statm", os.O_RDONLY)  # called several times an item: a Python file would be slower
    except OSError:
        return 0
    try:
        return int(os.read(handle, 64).split()[0]) * PAGE_BYTES
    finally:
        os.close(handle)


@contextmanager
def memory_limit(more: int | None) -> Iterator[None]:
    """Let this process grow by no more than `more` bytes of address space: allocation fails beyond it. None: any."""
    used = address_space()
    if more is None or not used:
        yield
        return
    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    granted = used + more
    if hard != resource.RLIM_INFINITY:
        granted = min(granted, hard)
    resource.setrlimit(resource.RLIMIT_AS, (granted, hard))
    try:
        yield
    finally:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (before, hard))


def clean_environment() -> dict[str, str]:
    """The environment of a service's readers: what finds libraries, and no secret of the service but the salt.

    Groups of uploads are hashed with the salt. A process that may write no file cannot make one, and does not know
    where the service keeps it.
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
