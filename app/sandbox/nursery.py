"""A process with all readers imported and without threads, from which workers are forked in milliseconds.

It never reads a file itself. It is a new Python process and no fork of the service: no thread, lock, CUDA state, secret
or open file of the service comes along. When the service ends, however it ends, so do the nursery and all workers.
"""

import os
import signal
import socket
import struct
from contextlib import suppress
from importlib import import_module

from app.sandbox import worker
from app.sandbox.limits import Limits
from data_adapters.quiet import quiet_readers

FORK, END = b"F", b"E"
COMMAND = struct.Struct("<cq")  # what, and a process id
ANSWER = struct.Struct("<q")  # a process id, or an exit status
READERS = (
    *("torch", "data_adapters.images.adapter", "data_adapters.galaxy.adapter", "data_adapters.histology.adapter"),
    *("data_adapters.mri.adapter", "data_adapters.mri.cube_adapter", "data_adapters.scan.codec"),
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
    control.sendall(ANSWER.pack(os.getpid()))  # the readers are there
    try:
        while True:
            data, handles, _, _ = socket.recv_fds(control, COMMAND.size, 1)
            if len(data) != COMMAND.size:
                return  # the service has ended
            command, pid = COMMAND.unpack(data)
            if command == FORK:
                pid = _fork(control, handles[0], allowed)
                children.add(pid)
                control.sendall(ANSWER.pack(pid))
            elif pid in children:
                children.remove(pid)
                control.sendall(ANSWER.pack(_end(pid)))
    except ConnectionError:
        return
    finally:
        for pid in children:
            _end(pid)


def _fork(control: socket.socket, handle: int, limits: Limits) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            control.close()
            worker.main(socket.socket(fileno=handle), limits)
            status = 0
        finally:
            os._exit(status)
    os.close(handle)
    return pid


def _end(pid: int) -> int:
    """Kill a child, which may have died by itself, and tell its exit status (negative: the signal)."""
    os.kill(pid, signal.SIGKILL)  # it is not reaped yet, so the id is still its own
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
