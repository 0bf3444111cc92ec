"""What crosses the border to a process that reads hostile files: a JSON header and raw bytes, both of bounded length.

Nothing is unpickled. A frame is two little-endian lengths (4 bytes for the header, 8 for the body), then both parts.
"""

import json
import socket
import struct
import time
from dataclasses import dataclass
from typing import Any

LENGTHS = struct.Struct("<IQ")
MAX_HEADER = 16 << 20  # bytes; the tissue map of a large slide takes some 100 KiB


class BrokenFrameError(Exception):
    """The other side ended in the middle of a frame, or sent something else."""


@dataclass(frozen=True)
class Frame:
    """A header, and a body of as many bytes as was agreed on before."""

    header: dict[str, Any]
    size: int = 0  # bytes of the header as it came
    body: bytearray | None = None


def send(sock: socket.socket, header: dict[str, Any], body: "memoryview | None" = None) -> None:
    """Send one frame; `body` is a flat view of bytes.

    Raises:
        OSError: the other side has gone, or the socket's timeout is over.
    """
    text = json.dumps(header, separators=(",", ":")).encode()
    sock.sendall(LENGTHS.pack(len(text), 0 if body is None else body.nbytes) + text)
    if body is not None:
        sock.sendall(body)


def receive(sock: socket.socket, *, max_body: int = 0, seconds: float | None = None) -> Frame:
    """Receive one frame.

    Args:
        sock: a stream socket.
        max_body: bytes that the body may have.
        seconds: within which the whole frame must be here; None waits for ever.

    Raises:
        BrokenFrameError: the end of the stream, no frame, or a longer one than is allowed.
        TimeoutError: it took too long.
    """
    end = None if seconds is None else time.monotonic() + seconds
    lengths = LENGTHS.unpack(_exactly(sock, LENGTHS.size, end))
    if lengths[0] > MAX_HEADER or lengths[1] > max_body:
        raise BrokenFrameError("a frame that is longer than allowed")
    try:
        header = json.loads(_exactly(sock, lengths[0], end))
    except (ValueError, RecursionError) as error:
        raise BrokenFrameError("a header that is no JSON") from error
    if not isinstance(header, dict):
        raise BrokenFrameError("a header that is no object")
    return Frame(header, lengths[0], _exactly(sock, lengths[1], end) if lengths[1] else None)


def _exactly(sock: socket.socket, count: int, end: float | None) -> bytearray:
    data = bytearray(count)
    view = memoryview(data)
    while view:
        if end is not None:
            sock.settimeout(max(end - time.monotonic(), 1e-3))
        got = sock.recv_into(view)
        if got == 0:
            raise BrokenFrameError("the end of the stream")
        view = view[got:]
    return data
