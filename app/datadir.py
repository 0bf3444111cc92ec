"""The data directory: made, taken, and checked to belong to the database that is used with it."""

import fcntl
import os
import secrets
from io import TextIOWrapper
from pathlib import Path

from app.store import Store
from data_adapters.errors import UserError

PAIR = "database"  # file with the name that the database has, too


def take(data: Path, *, shared: bool) -> TextIOWrapper:
    """Make the directory and lock it for a service; the lock ends with the returned file, or with the process.

    Args:
        data: the data directory.
        shared: several services may share it, since a server holds their metadata.

    Raises:
        UserError: it cannot be written, or another service works on it.
    """
    try:
        make(data)
        lock = (data / "service.lock").open("w")
        fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"Another service works on the data directory {data}.",
            remedy="Stop it, or give this one another --data-dir. For more jobs at a time start workers: "
            "lejepa-med work. Only with PostgreSQL may several services share a data directory.",
        ) from None
    except OSError as error:
        raise _unwritable(data, error) from error
    return lock


def make(data: Path) -> None:
    """Make the directory, readable for this user only: uploads of waiting jobs lie in it.

    Raises:
        UserError: it cannot be written.
    """
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        (data / "workers").mkdir(exist_ok=True)
    except OSError as error:
        raise _unwritable(data, error) from error


def check_pair(data: Path, store: Store) -> None:
    """Refuse a database that belongs to another data directory: files without a row would be taken for leftovers.

    Raises:
        UserError: they do not belong together.
    """
    file = data / PAIR
    name, is_new = _name(file)
    if store.pair(name):
        return
    if is_new:
        file.unlink(missing_ok=True)
    raise UserError(
        f"The data directory {data} belongs to another database.",
        remedy="Give the --database-url and --data-dir that were used together before (also to workers), "
        "or start with a new folder and a new database.",
    )


def _name(file: Path) -> tuple[str, bool]:
    """The name that the file holds, and whether it was given just now; processes that start together agree on one."""
    with file.open("a+", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.seek(0)
        if name := stream.read():
            return name, False
        name = secrets.token_hex(16)
        stream.write(name)
        stream.flush()
        os.fsync(stream.fileno())
        return name, True


def _unwritable(data: Path, error: OSError) -> UserError:
    return UserError(
        f"The data directory {data} cannot be written ({error.strerror}).",
        remedy="Give a writable folder with --data-dir (LEJEPA_DATA_DIR).",
    )
