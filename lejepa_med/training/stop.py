"""Ctrl-C and SIGTERM end a run after the step in progress, with everything saved; a second Ctrl-C ends it at once.

Whatever a process waits for then, it ends within 30 seconds of the first signal (`lejepa_med.ending`).
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, TypeVar

import torch

from lejepa_med import ending

T = TypeVar("T")
REPORT_SECONDS = 10.0  # for the report of a run that was stopped


class _Interrupted(BaseException):
    """Ends a wait at once."""


class StopSignal:
    """A context in which SIGINT and SIGTERM are requests. Of two, one inside of the other, what one hears both know."""

    def __init__(self) -> None:
        self.asked = False
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._handle)
            except ValueError:  # not in the main thread, where Python allows no handlers
                return self
        self.asked |= any(outer.asked for outer in self._outer())
        ending.set_limit(status=ending.STOPPED)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._outer():
            ending.set_limit()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for outer in self._outer():
            outer.asked |= self.asked

    def _outer(self) -> "list[StopSignal]":
        handlers = (getattr(handler, "__self__", None) for handler in self._before.values())
        return [owner for owner in handlers if isinstance(owner, StopSignal)]

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        if self._at_once:
            self._at_once = False
            raise _Interrupted

    def at_once(self, fabric: Any, action: Callable[[], T], otherwise: T) -> T:
        """What `action` returns, or `otherwise` as soon as a signal comes. `action` must not change the run's state.

        With several processes it is not cut short, since the others would wait for this one in their next collective
        operation.
        """
        try:
            try:
                self._at_once = fabric.world_size == 1
                return otherwise if self._at_once and self.asked else action()
            finally:
                self._at_once = False
        except _Interrupted:  # also from inside of `finally`
            return otherwise

    def requested(self, fabric: Any, *, step: int, every: int) -> bool:
        """Whether to stop now. Ranks agree every `every` steps: signals reach them at different steps."""
        if fabric.world_size == 1:
            return self.asked
        if step % every:
            return False
        flag = fabric.all_reduce(torch.tensor(float(self.asked), device=fabric.device), reduce_op="sum")
        return bool(flag.item() > 0)


@contextmanager
def at_most(seconds: float | None) -> Iterator[None]:
    """A block that ends without an error after `seconds`; None, or outside of the main thread: without a limit."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise _Interrupted

    try:
        before = signal.signal(signal.SIGALRM, end) if seconds else None
    except ValueError:  # not in the main thread
        seconds = None
    if not seconds:
        yield
        return
    try:
        timer = signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, *timer)
    except _Interrupted:
        pass
    finally:
        signal.signal(signal.SIGALRM, before)
