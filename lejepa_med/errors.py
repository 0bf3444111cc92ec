"""Errors of the method; all say what to do. The command line and the service print them without a traceback."""

import errno
import os

from data_adapters.errors import BadFileError, MissingExtraError, UserError, system_error

__all__ = ["BadFileError", "ConfigError", "EncoderError", "MissingExtraError", "TrainingError", "UserError"]

SHORTAGES = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.EAGAIN)
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory")  # torch, CUDA
AGAIN = "then repeat the command (pretrain: with --resume). What was saved is kept."
MORE_MEMORY = (
    "Use a smaller --batch-size (embed: --batch-size), fewer workers or smaller views, or give the machine or "
    f"container more memory; {AGAIN}"
)
# What an errno means and what to do, as sentences about a place.
CAUSES = {
    errno.ENOSPC: ("No space is left on the disk of {place}.", f"Free space there, or give another folder; {AGAIN}"),
    errno.EDQUOT: (
        "Your quota on the disk of {place} is used up.",
        f"Delete files there, or give another folder; {AGAIN}",
    ),
    errno.EFBIG: (
        "{place} would become larger than a file may be here.",
        f"Raise the limit with ulimit -f, or give a folder on another disk; {AGAIN}",
    ),
    errno.EROFS: (
        "{place} is on a read-only file system.",
        "Give a folder that can be written, or mount that one for writing.",
    ),
    errno.EACCES: (
        "Access to {place} is denied.",
        "See who owns it with ls -ld, give yourself the permission with chmod, or give another folder.",
    ),
    errno.EPERM: ("Access to {place} is denied.", "See who owns it with ls -ld, or give another folder."),
    errno.EMFILE: ("Too many files are open.", f"Raise the limit with ulimit -n 65536, or use fewer workers; {AGAIN}"),
    errno.ENFILE: ("Too many files are open on this machine.", f"End other programs, or use fewer workers; {AGAIN}"),
    errno.EAGAIN: (
        "No further process or thread can be started.",
        f"Use fewer workers, or raise the limit of processes (ulimit -u, pids_limit of a container); {AGAIN}",
    ),
}


def explained(error: BaseException) -> UserError | None:
    """A fault of the machine (disk, permissions, memory, limits) as an error with a remedy; None for any other fault.

    This is the one place that knows these faults: the command line, loader workers and the service ask it.
    """
    if isinstance(error, UserError):
        return error
    if is_out_of_memory(error):
        return UserError("Memory ran out.", remedy=MORE_MEMORY)
    code = system_error(error)
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        code = errno.EAGAIN
    name = getattr(error, "filename", None)
    if code is None or (name is None and code not in CAUSES):
        return None
    cause, remedy = CAUSES.get(
        code,
        (
            f"{{place}}: {os.strerror(code)}.",
            "Check that this path is right and that its disk or network drive is mounted and whole.",
        ),
    )
    return UserError(cause.format(place=name or "the output or of temporary files"), remedy=remedy)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of the machine or the GPU was short."""
    if isinstance(error, MemoryError) or system_error(error) == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)


def is_shortage(error: BaseException) -> bool:
    """Whether the machine lacks memory, disk, open files or processes, which is no fault of the file being read."""
    return is_out_of_memory(error) or system_error(error) in SHORTAGES


class ConfigError(UserError):
    """Settings that cannot work together."""


class EncoderError(UserError):
    """An encoder folder that cannot be used."""


class TrainingError(UserError):
    """A run that had to stop."""
