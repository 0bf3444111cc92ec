"""A process with all readers imported and without threads, from which workers are forked in milliseconds.

It never reads a file itself. It is a new Python process and no fork of the service: no thread, lock, CUDA state, secret
or open file of the service comes along. When the service ends, however it ends, so do the nursery and all workers.
"""

import os
import signal
import socket
import struct
import time
from contextlib import suppress
from importlib import import_module

from app.sandbox import worker
from data_adapters.quiet import quiet_readers
from data_adapters.readers.limits import Limits, confine
from data_adapters.scan.worker import main as scan_files

FORK, SCAN, END = b"F", b"S", b"E"
COMMAND = struct.Struct("<cq")  # what, and a process id; with FORK a socket, with SCAN the pipe and the beat of a scan
ANSWER = struct.Struct("<q")  # a process id, or an exit status
END_SECONDS = 2.0  # for a killed process to end; it takes milliseconds
READERS = (
    *("torch", "data_adapters.images.adapter", "data_adapters.galaxy.adapter", "data_adapters.histology.adapter"),
    *("data_adapters.mri.adapter", "data_adapters.mri.cube_adapter", "data_adapters.scan.worker"),
    *("nibabel", "pydicom.pixels", "highdicom", "astropy.io.fits", "h5py", "openslide", "tifffile", "imagecodecs"),
    *("simplejpeg", "PIL.Image"),
)


def main(descriptor: int, limits: str) -> None:
    """Serve the commands that come over the socket `descriptor`; `limits` are a dumped `Limits`."""
    quiet_readers()
    for name in READERS:
        with suppress(ImportError):  # an extra that is not installed; using it says so
            import_module(name)
    allowed, control = Limits.load(limits), socket.socket(fileno=descriptor)
    children: set[int] = set()
    ended: set[int] = set()  # killed, but held up by the kernel
    control.sendall(ANSWER.pack(os.getpid()))  # the readers are there
    try:
        while True:
            data, handles, _, _ = socket.recv_fds(control, COMMAND.size, 2)
            if len(data) != COMMAND.size:
                return  # the service has ended
            command, pid = COMMAND.unpack(data)
            if command in (FORK, SCAN):
                pid = _fork(control, handles, allowed, is_scan=command == SCAN)
                children.add(pid)
                control.sendall(ANSWER.pack(pid))
            elif pid in children:
                children.remove(pid)
                status = _end(pid)
                if status is None:
                    ended.add(pid)
                control.sendall(ANSWER.pack(-signal.SIGKILL if status is None else status))
            ended = {pid for pid in ended if os.waitpid(pid, os.WNOHANG)[0] == 0}
    except ConnectionError:
        return
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)


def _fork(control: socket.socket, handles: list[int], limits: Limits, *, is_scan: bool) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            control.close()
            if is_scan:
                confine()
                scan_files(*handles)
            else:
                worker.main(socket.socket(fileno=handles[0]), limits)
            status = 0
        finally:
            os._exit(status)
    for handle in handles:
        os.close(handle)
    return pid


def _end(pid: int) -> int | None:
    """Kill a child, which may have died by itself, and tell its exit status (negative: the signal).

    None where it does not end in time: the kernel waits for a dead network drive, and the other workers must not.
    """
    os.kill(pid, signal.SIGKILL)  # it is not reaped yet, so the id is still its own
    end = time.monotonic() + END_SECONDS
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.0005)
