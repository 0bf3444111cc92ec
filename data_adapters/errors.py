"""Errors that a person can act on: what is wrong, and what to do about it."""

import errno
import importlib
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from safetensors import SafetensorError

WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
SQLITE_ERRORS = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
    # the file that readers and writers of a database share cannot grow
    sqlite3.SQLITE_IOERR_SHMSIZE: errno.ENOSPC,
    sqlite3.SQLITE_IOERR_SHMMAP: errno.ENOSPC,
}
CHECK_FILE = "Check that the file is complete and of the format that its suffix says."


class UserError(Exception):
    """Something the user can put right. `cause` says what is wrong, `remedy` what to do."""

    def __init__(self, cause: str, *, remedy: str = "") -> None:
        self.cause = cause
        self.remedy = remedy
        super().__init__(cause, remedy)

    def __str__(self) -> str:
        return f"{self.cause} {self.remedy}".strip()


class BadFileError(UserError):
    """One file (or one item in it) that cannot be read right.

    `cause` and `remedy` never contain the path or an identifier, so a service may show them to a client; `path` is for
    the person who owns the archive and appears only in local output.
    """

    def __init__(self, cause: str, *, remedy: str = "", path: str | Path = "") -> None:
        super().__init__(cause, remedy=remedy)
        self.path = str(path)

    def __str__(self) -> str:
        head = f"{self.path}: " if self.path else ""
        return head + super().__str__()

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders (loader workers); the default would lose the keyword arguments.
        return (_rebuild_bad_file, (self.cause, self.remedy, self.path))


def _rebuild_bad_file(cause: str, remedy: str, path: str) -> BadFileError:
    return BadFileError(cause, remedy=remedy, path=path)


class MissingExtraError(UserError):
    """A reader's library is not installed."""


@contextmanager
def naming(place: str | Path) -> Iterator[None]:
    """Put the name of a file or folder into errors of writing that name none, so that a message can say where.

    A failed open() names its file. A failed write(), SQLite and safetensors do not; all become an OSError here.
    """
    try:
        yield
    except (OSError, sqlite3.Error, SafetensorError) as error:
        code = system_error(error)
        if isinstance(error, OSError):
            if error.filename is None and code in WRITE_ERRORS:
                error.filename = str(place)
            raise
        if code is None:
            raise
        raise OSError(code, os.strerror(code), str(place)) from error


def system_error(error: BaseException) -> int | None:
    """The errno behind an error of the system, of SQLite (also inside of SQLAlchemy's) or of safetensors, or None."""
    if isinstance(error, OSError):
        return error.errno
    inner = getattr(error, "orig", error)
    if isinstance(inner, sqlite3.Error):
        code = getattr(inner, "sqlite_errorcode", 0)
        return SQLITE_ERRORS.get(code, SQLITE_ERRORS.get(code & 0xFF))  # an extended code, or its kind
    found = re.search(r"\(os error (\d+)\)", str(error)) if isinstance(error, SafetensorError) else None
    return int(found[1]) if found else None


def require(module: str, *, extra: str) -> ModuleType:
    """Import `module`, or say which extra of lejepa-med brings it.

    Raises:
        MissingExtraError: the module cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"Reading this archive needs the Python package '{module.split('.')[0]}' ({error}).",
            remedy=f"Install it with: pip install 'lejepa-med[{extra}]'",
        ) from error
