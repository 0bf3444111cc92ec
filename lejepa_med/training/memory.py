"""What the C library does with freed memory during training on a CPU."""

import ctypes
import sys

# mallopt's numbers in glibc's malloc.h, and sizes that no activation reaches
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
TRIM, MMAP = 2**31 - 1, 2**30  # bytes


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed blocks for the next step, and say whether it will.

    By default it returns blocks above 32 MiB to the system and asks for them again at every step, which then fills each
    page with zeros: 90,000 page faults a step of resnet18 at 4 x 64 views of 64 px (benchmarks/cpu_settings.py).
    Training needs its peak memory again at each step anyway. Elsewhere than on Linux with glibc nothing is done.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_THRESHOLD, MMAP) and mallopt(M_TRIM_THRESHOLD, TRIM))
