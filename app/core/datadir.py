"""The data directory: its lock, the name by which the database knows it, and the processes that share it.

Each process that uses it holds a locked file in workers/ and receives files in folders of its own in tmp/.
"""

import fcntl
import os
import re
import secrets
import shutil
import socket
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path

from data_adapters.errors import UserError

NAME = "database"  # file with the name by which the database knows the directory
_processes: dict[int, str] = {}  # names by pid: a forked child is another process


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


def check_database(data: Path, belongs_to: Callable[[str], bool]) -> None:
    """Refuse a database that belongs to another data directory: files without a row would be taken for leftovers.

    Args:
        data: the data directory.
        belongs_to: whether the database belongs to the directory of this name.

    Raises:
        UserError: they do not belong together.
    """
    file = data / NAME
    name, is_new = _name(file)
    if belongs_to(name):
        return
    if is_new:
        file.unlink(missing_ok=True)
    raise UserError(
        f"The data directory {data} belongs to another database.",
        remedy="Give the --database-url and --data-dir that were used together before (also to workers), "
        "or start with a new folder and a new database.",
    )


def _name(file: Path) -> tuple[str, bool]:
    """The name in the file, and whether it was given just now; processes that start together agree on one."""
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


# --- its processes ----------------------------------------------------------------------------------------------------


def this_process() -> str:
    """HOST-PID-RANDOM: the same while this process lives, and never used again by another."""
    pid = os.getpid()
    if pid not in _processes:
        host = re.sub(r"[^a-z0-9]+", "", socket.gethostname().lower())[:30]
        _processes[pid] = f"{host or 'host'}-{pid}-{secrets.token_hex(4)}"
    return _processes[pid]


def temporary(data: Path, name: str) -> Path:
    """A folder for what this process receives, before a job or an answer has it; removed when the process is dead."""
    return data / "tmp" / f"{this_process()}.{name}"


class ProcessLock:
    """A locked file that names this process: the kernel releases the lock at whatever end, kill -9 included."""

    def __init__(self, data: Path) -> None:
        self.process = this_process()
        self._path = _lock_file(data, self.process)
        self._file: TextIOWrapper | None = None

    def acquire(self) -> None:
        """Show that this process lives, before it makes anything that belongs to it."""
        self._path.parent.mkdir(exist_ok=True)
        while True:
            self._file = self._path.open("w")
            fcntl.lockf(self._file, fcntl.LOCK_EX)  # of the process: a forked child does not inherit it, as with flock
            with suppress(FileNotFoundError):
                if os.path.samestat(self._path.stat(), os.fstat(self._file.fileno())):
                    break  # else another process took the file, not locked yet, for a dead one's and removed it
            self._file.close()
        self._file.write(_kernel())
        self._file.flush()

    def release(self) -> None:
        """Remove the file, at the end of this process."""
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            self._file.close()
            self._file = None


def has_ended(data: Path, process: str) -> bool:
    """Whether a process is known to have ended; False also where that cannot be told, as on another machine."""
    if process == this_process():
        return False
    try:
        with _lock_file(data, process).open("r+") as file:
            if file.read() != _kernel():
                return False
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError:  # locked, or not there
        return False


def is_locked(data: Path, process: str) -> bool:
    """Whether a process holds its lock file, and so surely lives; False also where that cannot be told."""
    if process == this_process():
        return True
    try:
        with _lock_file(data, process).open("r+") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return True
    except OSError:
        pass
    return False


def owners(data: Path) -> set[str]:
    """Processes that have, or left, a lock file or temporary folders."""
    found = {entry.name.split(".")[0] for entry in _entries(data / "tmp")}
    return found | {entry.name for entry in _entries(data / "workers")}


def forget(data: Path, process: str) -> None:
    """Remove what a process that ended left: its lock file and the requests that it was receiving."""
    for entry in _entries(data / "tmp"):
        if entry.name.split(".")[0] == process:
            shutil.rmtree(entry, ignore_errors=True)
    _lock_file(data, process).unlink(missing_ok=True)


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _lock_file(data: Path, process: str) -> Path:
    return data / "workers" / process


def _kernel() -> str:
    # Locks of another kernel cannot be seen on every network file system. Containers of one machine share its kernel.
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()
