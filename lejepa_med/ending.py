"""Every command ends within 30 seconds of Ctrl-C or SIGTERM, whatever it waits for at that moment.

Python runs a signal handler only between two steps of the main thread, which may be inside of a library that waits for
a dead network drive. So a thread receives the signal, too, and ends the process when nothing else did.
"""

import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

LIMIT_SECONDS = 25.0
STOPPED = 3  # exit status of a run that was stopped and can be resumed
SIGNALS = (signal.SIGINT, signal.SIGTERM)

_seconds: float = LIMIT_SECONDS
_status: int | None = None


def set_limit(seconds: float = LIMIT_SECONDS, *, status: int | None = None) -> None:
    """Choose how long this process may live after a signal, and its exit status then; None: 128 + the signal."""
    global _seconds, _status
    _seconds, _status = seconds, status


def _end(number: int) -> None:
    for child in multiprocessing.active_children():
        child.kill()
    print(
        f"lejepa-med: ended {_seconds:.0f} s after {signal.Signals(number).name}, in the middle of its work. What was "
        "saved is kept: repeat the command (pretrain: with --resume).",
        file=sys.stderr,
        flush=True,
    )
    os._exit(128 + number if _status is None else _status)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """A block that SIGTERM ends as Ctrl-C does, with exit status 143, and both end it within the limit.

    Whoever sets handlers of its own inside of the block is bound by the limit only. Outside of the main thread, where
    Python allows no handlers, the block is left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    before = signal.signal(signal.SIGTERM, _exit)
    descriptor = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(ours,), name="signals", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(descriptor)
        signal.signal(signal.SIGTERM, before)
        theirs.close()  # ends the thread


def _exit(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _listen(signals: socket.socket) -> None:
    timer: threading.Timer | None = None
    with signals:
        while heard := signals.recv(1):  # other signals with a handler come, too
            if heard[0] in SIGNALS and timer is None:
                timer = threading.Timer(_seconds, _end, (heard[0],))
                timer.daemon = True
                timer.start()
