"""The service's end of the nursery and of its workers: start, ask, end."""

import json
import select
import socket
import subprocess
import sys
from typing import Any

from app.errors import CHECK_FILE
from app.sandbox.nursery import ANSWER, COMMAND, END, FORK, SCAN
from data_adapters.errors import BadFileError, MissingExtraError, UserError
from data_adapters.readers import frames
from data_adapters.readers.limits import Limits, clean_environment

BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[3]); "
    "from app.sandbox.nursery import main; main(int(sys.argv[1]), sys.argv[2])"
)
START_SECONDS = 120.0  # importing all readers takes some 4 s, and far longer from a cold network drive
BUFFER = 1 << 20  # bytes in flight: the pixels of one image cross in one go
MAX_SAID = 256 << 20  # bytes of one answer's headers
MAX_TEXT = 500  # characters of a cause or remedy


class LostError(Exception):
    """A worker can do no more: "time", "memory" or "died"."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class Nursery:
    """The process that forks workers, started by this object; used under the sandbox's lock."""

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
                start_new_session=True,  # Ctrl-C is the service's; the nursery ends when the service has
            )
        self._control.settimeout(START_SECONDS)
        try:
            self._answer()
        except (OSError, EOFError):
            self.close()
            raise

    def fork(self, seconds: float) -> "Worker":
        """A new worker.

        Raises:
            OSError, EOFError: the nursery has gone.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            for sock in (ours, theirs):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
            socket.send_fds(self._control, [COMMAND.pack(FORK, 0)], [theirs.fileno()])
        return Worker(ours, self._answer(), self, seconds)

    def fork_scan(self, pipe: int, beat: int) -> int:
        """A new process of `data_adapters.scan`; its id.

        Raises:
            OSError, EOFError: the nursery has gone.
        """
        socket.send_fds(self._control, [COMMAND.pack(SCAN, 0)], [pipe, beat])
        return self._answer()

    def end(self, pid: int) -> int:
        """Kill a worker; its exit status."""
        self._control.sendall(COMMAND.pack(END, pid))
        return self._answer()

    def close(self) -> None:
        """End the nursery, and with it all workers."""
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


class Worker:
    """One worker process, to be asked one thing at a time."""

    def __init__(self, sock: socket.socket, pid: int, nursery: Nursery, seconds: float) -> None:
        self.sock, self.pid, self.nursery = sock, pid, nursery
        self._seconds = seconds
        self.is_fit = True  # it waits for the next question

    def has_died(self) -> bool:
        """Whether it ended while it waited (the kernel may need memory): an idle worker says nothing else."""
        readable, _, _ = select.select([self.sock], [], [], 0)
        return bool(readable)

    def ask(self, request: dict[str, Any], *, max_body: int = 0) -> tuple[list[dict[str, Any]], frames.Frame]:
        """What it says to a request, without beats, and its last word.

        Raises:
            UserError: what went wrong, in the adapter's words.
            LostError: it died, took too long, or did not keep to the protocol.
        """
        self.is_fit = False
        said: list[dict[str, Any]] = []
        left = MAX_SAID
        try:
            self.sock.settimeout(self._seconds)
            frames.send(self.sock, request)
            while left > 0:
                frame = frames.receive(self.sock, max_body=max_body, seconds=self._seconds)
                left -= frame.size
                if frame.header.get("end"):
                    self.is_fit = not frame.header.get("tired")
                    if (error := failure(frame.header)) is not None:
                        raise error
                    return said, frame
                if "beat" not in frame.header:
                    said.append(frame.header)
        except TimeoutError:
            raise LostError("time") from None
        except (frames.BrokenFrameError, OSError):
            pass
        raise LostError("died")


def failure(header: dict[str, Any]) -> Exception | None:
    """The failure that a worker tells of: a UserError in the adapter's words, or LostError("memory")."""
    kind = header.get("error")
    cause, remedy = (str(header.get(key, ""))[:MAX_TEXT] for key in ("cause", "remedy"))
    match kind:
        case None:
            return None
        case "memory":
            return LostError("memory")
        case "missing-extra":
            return MissingExtraError(cause, remedy=remedy)
        case "user":
            return UserError(cause, remedy=remedy)
        case "foreign":  # foreign readers raise what they like on damaged files; only the type's name is told
            name = cause if cause.isidentifier() else "error"
            return BadFileError(f"The image cannot be decoded ({name}).", remedy=CHECK_FILE)
    return BadFileError(cause, remedy=remedy or CHECK_FILE)
