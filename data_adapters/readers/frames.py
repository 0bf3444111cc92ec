"""Messages to and from a process that reads foreign files: a JSON header and raw bytes, both of bounded length.

Nothing is unpickled. A frame is two little-endian lengths (4 bytes for the header, 8 for the body), then both parts.
"""

import json
import math
import socket
import struct
import time
from dataclasses import dataclass
from typing import Any

LENGTHS = struct.Struct("<IQ")
MAX_HEADER = 64 << 20  # bytes; the tissue map of a large slide takes some 100 KiB
BUFFER = 1 << 14  # bytes; most answers of a scan are shorter, so that one call receives several
PAUSE_SECONDS = 1.0


class BrokenFrameError(Exception):
    """The other side ended in the middle of a frame, or sent something else."""


@dataclass(frozen=True)
class Frame:
    """A header, and a body of as many bytes as was agreed on before."""

    header: dict[str, Any]
    size: int = 0  # bytes of the header as it came
    body: bytearray | None = None


class Channel:
    """One end of a stream of frames. One thread at a time may use it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._received = bytearray()  # and not yet used
        self._buffer = memoryview(bytearray(BUFFER))
        self._left = math.inf
        self._pause: float | None = None

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()

    def has_input(self) -> bool:
        """Return whether something was sent, or the other side has ended."""
        self.sock.settimeout(0)
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return bool(self._received)
        except OSError:
            pass
        return True

    def send(
        self, header: dict[str, Any], body: "memoryview | bytes | None" = None, *, seconds: float | None = None
    ) -> None:
        """Send one frame; `body` is a flat view of bytes.

        Raises:
            OSError: the other side has gone, or does not take it within `seconds`.
        """
        text = json.dumps(header, separators=(",", ":")).encode()
        head = LENGTHS.pack(len(text), len(body or b"")) + text
        self.sock.settimeout(seconds)
        if body is None or len(body) <= BUFFER:
            self.sock.sendall(head + bytes(body or b""))
        else:  # not copied
            self.sock.sendall(head)
            self.sock.sendall(body)

    def receive(self, *, max_body: int = 0, seconds: float | None = None) -> Frame:
        """Receive one frame.

        Args:
            max_body: bytes that the body may have.
            seconds: within which the whole frame must be here; None waits for ever. Time in which this process itself
                was stopped (Ctrl-Z, a suspended machine) does not count.

        Raises:
            BrokenFrameError: the end of the stream, no frame, or a longer one than is allowed.
            TimeoutError: it took too long.
        """
        self._left = math.inf if seconds is None else seconds
        self._pause = None if seconds is None else min(PAUSE_SECONDS, seconds / 4)
        self.sock.settimeout(self._pause)
        self._fill(LENGTHS.size)
        header_size, body_size = LENGTHS.unpack_from(self._received)
        if header_size > MAX_HEADER or body_size > max_body:
            raise BrokenFrameError("a frame that is longer than allowed")
        end = LENGTHS.size + header_size
        self._fill(end)
        try:
            header = json.loads(self._received[LENGTHS.size : end])
        except (ValueError, RecursionError) as error:
            raise BrokenFrameError("a header that is no JSON") from error
        if not isinstance(header, dict):
            raise BrokenFrameError("a header that is no object")
        del self._received[:end]
        return Frame(header, header_size, self._body(body_size) if body_size else None)

    def _fill(self, size: int) -> None:
        while len(self._received) < size:
            self._received += self._buffer[: self._receive_into(self._buffer)]

    def _body(self, size: int) -> bytearray:
        body, here = bytearray(size), min(size, len(self._received))
        body[:here] = self._received[:here]
        del self._received[:here]
        view = memoryview(body)[here:]
        while view:
            view = view[self._receive_into(view) :]
        return body

    def _receive_into(self, view: memoryview) -> int:
        while True:
            began = time.monotonic()
            try:
                count = self.sock.recv_into(view)
            except TimeoutError:
                count = -1
            if self._pause is not None:
                # While this process is stopped the clock goes on: one wait counts for no more than two pauses.
                self._left -= min(time.monotonic() - began, 2 * self._pause)
            if count == 0:
                raise BrokenFrameError("the end of the stream")
            if self._left <= 0:
                raise TimeoutError
            if count > 0:
                return count
