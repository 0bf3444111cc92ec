"""Who this process is among those that share a data directory, and whether another one is known to have ended."""

import fcntl
import os
import re
import secrets
import shutil
import socket
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path

_ids: dict[int, str] = {}  # by process: a forked child is somebody else


def executor_id() -> str:
    """HOST-PID-RANDOM: the same while this process lives, and never used again by another."""
    pid = os.getpid()
    if pid not in _ids:
        host = re.sub(r"[^a-z0-9]+", "", socket.gethostname().lower())[:30]
        _ids[pid] = f"{host or 'host'}-{pid}-{secrets.token_hex(4)}"
    return _ids[pid]


def temporary(data: Path, name: str) -> Path:
    """A folder for what this process receives, before a job or an answer has it; it goes with its process."""
    return data / "tmp" / f"{executor_id()}.{name}"


class Presence:
    """A locked file that names this process: the kernel takes the lock away at whatever end, kill -9 included."""

    def __init__(self, data: Path) -> None:
        self.executor = executor_id()
        self._path = _path(data, self.executor)
        self._file: TextIOWrapper | None = None

    def take(self) -> None:
        """Say that this process lives, before it makes anything that belongs to it."""
        self._path.parent.mkdir(exist_ok=True)
        while True:
            self._file = self._path.open("w")
            fcntl.lockf(self._file, fcntl.LOCK_EX)  # of the process: a forked child does not inherit it, as with flock
            with suppress(FileNotFoundError):
                if os.path.samestat(self._path.stat(), os.fstat(self._file.fileno())):
                    break  # else another process took the file, not locked yet, for one of the dead, and removed it
            self._file.close()
        self._file.write(_kernel())
        self._file.flush()

    def leave(self) -> None:
        """Say that it ends."""
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            self._file.close()
            self._file = None


def has_ended(data: Path, executor: str) -> bool:
    """Whether a process is known to have ended; False also where that cannot be told, as on another machine."""
    if executor == executor_id():
        return False
    try:
        with _path(data, executor).open("r+") as file:
            if file.read() != _kernel():
                return False
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError:  # locked, or not there
        return False


def is_present(data: Path, executor: str) -> bool:
    """Whether a process holds its lock file, and so surely lives; False also where that cannot be told."""
    if executor == executor_id():
        return True
    try:
        with _path(data, executor).open("r+") as file:
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


def forget(data: Path, executor: str) -> None:
    """Remove what a process that ended left: its lock file and the requests that it was receiving."""
    for entry in _entries(data / "tmp"):
        if entry.name.split(".")[0] == executor:
            shutil.rmtree(entry, ignore_errors=True)
    _path(data, executor).unlink(missing_ok=True)


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _path(data: Path, executor: str) -> Path:
    return data / "workers" / executor


def _kernel() -> str:
    # Locks of another kernel cannot be seen on every network file system. Containers of one machine share its kernel.
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()
