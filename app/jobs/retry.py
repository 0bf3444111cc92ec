"""Retries of what fails for a passing reason: a full disk, a database that restarts, too little memory."""

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
    """A fault did not pass within the limit; its cause is the fault."""


class Stopped(BaseException):
    """An attempt ends without an outcome: the job was cancelled or taken over, or the process stops.

    No Exception, so that nothing between the job and its worker handles or records it.
    """


def why_passing(error: BaseException) -> str | None:
    """In words without paths, why the same may succeed later; None for what would only fail again."""
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
    """What `call` returns, tried again after 1, 2, 4, ... seconds while its faults are passing ones.

    Args:
        call: may be repeated.
        retries: how often it is tried again.
        note: is called with a sentence about each fault; it returns False when the work has lost its purpose.
        halt: ends the waiting.

    Raises:
        GaveUp: the last try failed, too.
        Stopped: `halt` was set, or `note` returned False.
        Exception: a fault of `call` that does not pass.
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
            raise Stopped
