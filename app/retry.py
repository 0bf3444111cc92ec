"""Temporary faults (a full disk, a database that restarts, too little memory), and retrying up to a limit."""

from collections.abc import Callable
from threading import Event
from typing import TypeVar

import torch
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from app.errors import ProblemError

T = TypeVar("T")
PASSING_STATUS = (503, 507)  # a full queue, a database that is away, a full disk


class GaveUp(Exception):
    """A fault lasted through all retries; it is this error's cause."""


class Halted(BaseException):
    """Work ends without an outcome: the process stops, or another process has the job now. Nothing may record it."""


def why_passing(error: BaseException) -> str | None:
    """Return why the same call may succeed later, in words without paths; None where it would only fail again."""
    if isinstance(error, ProblemError):
        return error.problem.detail.rstrip(".") if error.problem.status in PASSING_STATUS else None
    if isinstance(error, OSError):
        return error.strerror or "a file cannot be read or written"
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return "memory is short"
    if isinstance(error, OperationalError | InterfaceError | PoolTimeoutError):
        return "the database cannot be reached or written"
    return None


def persevere(call: Callable[[], T], *, retries: int, note: Callable[[str], bool], halt: Event) -> T:
    """Return the result of `call`, retried after 1, 2, 4, ... seconds while its faults are temporary.

    Args:
        call: the work, which may be repeated.
        retries: number of tries after the first.
        note: called with a message about each fault; returns False when the work has lost its purpose.
        halt: ends the waiting.

    Raises:
        GaveUp: the last try failed as well.
        Halted: `halt` was set, or `note` returned False.
        Exception: a fault of `call` that is not temporary.
    """
    tried = 0
    while True:
        try:
            return call()
        except Exception as error:
            reason = why_passing(error)
            if reason is None:
                raise
            if tried == retries:
                raise GaveUp from error
        seconds = 2.0**tried
        tried += 1
        try:
            is_wanted = note(f"{reason}: trying again in {seconds:.0f} s ({tried} of {retries})")
        except ProblemError:
            is_wanted = True  # the store itself is away
        if not is_wanted or halt.wait(seconds):
            raise Halted
