"""Errors that a person can act on: what is wrong, and what to do about it."""

import importlib
from pathlib import Path
from types import ModuleType


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
