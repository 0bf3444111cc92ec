"""A process with all readers imported and without threads, from which a service forks readers in milliseconds.

It never reads a file itself. It is a new Python process and no fork of the service: no thread, lock, CUDA state, secret
or open file of the service comes along. When the service ends, however it ends, so do this process and all readers.
"""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib import import_module

from data_adapters.quiet import quiet_readers
from data_adapters.readers import worker
from data_adapters.readers.limits import Limits, clean_environment, confine
from data_adapters.readers.process import START_SECONDS, ReaderProcess, StartError, socket_pair
from data_adapters.registry import BUILT_IN

BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[3]); "
    "from data_adapters.readers.fork_server import main; main(int(sys.argv[1]), sys.argv[2])"
)
COMMAND = struct.Struct("<q")  # the id of a process to end; or one of these, with the socket of the new process
FORK, FORK_FOR_SCAN = 0, -1
ANSWER = struct.Struct("<q")  # a process id, or an exit status
END_SECONDS = 2.0  # for a killed process to end; it takes milliseconds
LIBRARIES = (
    *("torch", "nibabel", "pydicom.pixels", "highdicom", "astropy.io.fits", "h5py", "openslide", "tifffile"),
    *("imagecodecs", "simplejpeg", "PIL.Image"),
)


# --- in the service -------------------------------------------------------------------------------------------------


class ForkServer:
    """Starts readers by forking; used by any thread. The kernel may end the server: then another one is started."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._server: _Server | None = None
        self.is_closed = False

    def fork(self, *, for_scan: bool = False) -> ReaderProcess:
        """Start a reader that may write no files; one that is not `for_scan` screens files within the limits.

        Raises:
            StartError: it cannot be started, or the server is closed.
        """
        with self._lock:
            for _ in range(2):
                if self.is_closed:
                    break
                try:
                    server = self._server = self._server or _Server(self._limits)
                    ours, theirs = socket_pair()
                    with theirs:
                        pid = server.call(FORK_FOR_SCAN if for_scan else FORK, theirs)
                    return ReaderProcess(ours, _Forked(self, server, pid))
                except (OSError, EOFError):
                    if self._server is not None:
                        self._server.close()
                    self._server = None
        raise StartError("the fork server has ended")

    def end(self, server: "_Server", pid: int) -> int:
        """Kill a reader; its exit status."""
        with self._lock, suppress(OSError, EOFError):
            if self._server is server:
                return server.call(pid)
        return -signal.SIGKILL  # with its server

    def close(self) -> None:
        """End the server and all readers."""
        with self._lock:
            self.is_closed = True
            if self._server is not None:
                self._server.close()


class _Server:
    """The process itself; used under the lock of `ForkServer`."""

    def __init__(self, limits: Limits) -> None:
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", BOOT, str(theirs.fileno()), limits.dump(), json.dumps(sys.path)],
                pass_fds=(theirs.fileno(),),
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # libtiff and others print file names
                start_new_session=True,  # Ctrl-C is for the service; this process ends when the service has
            )
        self._control.settimeout(START_SECONDS)
        try:
            self._answer()
        except (OSError, EOFError):
            self.close()
            raise

    def call(self, command: int, sock: socket.socket | None = None) -> int:
        """Give a command; its answer.

        Raises:
            OSError, EOFError: the process has gone.
        """
        socket.send_fds(self._control, [COMMAND.pack(command)], [] if sock is None else [sock.fileno()])
        return self._answer()

    def close(self) -> None:
        """End it, and with it all readers."""
        self._control.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self) -> int:
        data = b""
        while len(data) < ANSWER.size:
            piece = self._control.recv(ANSWER.size - len(data))
            if not piece:
                raise EOFError
            data += piece
        (answer,) = ANSWER.unpack(data)
        return int(answer)


class _Forked:
    """The handle of a forked reader. It is ended at once, so that its id is never another process's."""

    def __init__(self, owner: ForkServer, server: _Server, pid: int) -> None:
        self._owner, self._server, self._pid = owner, server, pid
        self._lock = threading.Lock()
        self._status: int | None = None

    def kill(self) -> None:
        """End it at once."""
        self.wait(0)

    def wait(self, timeout: float) -> int:
        """Its exit status; one that has not ended by itself is killed."""
        with self._lock:
            if self._status is None:
                self._status = self._owner.end(self._server, self._pid)
            return self._status


# --- in the fork server ---------------------------------------------------------------------------------------------


def main(descriptor: int, limits: str) -> None:
    """Serve the commands that come over the socket `descriptor`; `limits` are a dumped `Limits`."""
    quiet_readers()
    for name in (*LIBRARIES, *(target.partition(":")[0] for target in BUILT_IN.values())):
        with suppress(ImportError):  # an extra that is not installed; using it says so
            import_module(name)
    allowed, control = Limits.load(limits), socket.socket(fileno=descriptor)
    children: set[int] = set()
    ended: set[int] = set()  # killed, but held up by the kernel
    control.sendall(ANSWER.pack(os.getpid()))  # the readers are imported
    try:
        while True:
            data, handles, _, _ = socket.recv_fds(control, COMMAND.size, 1)
            if len(data) != COMMAND.size:
                return  # the service has ended
            (command,) = COMMAND.unpack(data)
            if command in (FORK, FORK_FOR_SCAN):
                pid = _fork(control, handles[0], allowed if command == FORK else None)
                children.add(pid)
                control.sendall(ANSWER.pack(pid))
            elif command in children:
                children.remove(command)
                status = _end(command)
                if status is None:
                    ended.add(command)
                control.sendall(ANSWER.pack(-signal.SIGKILL if status is None else status))
            ended = {pid for pid in ended if os.waitpid(pid, os.WNOHANG)[0] == 0}
    except ConnectionError:
        return
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)


def _fork(control: socket.socket, handle: int, limits: Limits | None) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            control.close()
            confine()
            worker.main(handle, limits)
            status = 0
        finally:
            os._exit(status)
    os.close(handle)
    return pid


def _end(pid: int) -> int | None:
    """Kill a child, which may have died by itself, and tell its exit status (negative: the signal).

    None where it does not end in time: the kernel waits for a dead network drive, and the other readers must not.
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
