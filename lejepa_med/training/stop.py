"""Ctrl-C and SIGTERM end a run after the step in progress, with everything saved; a second Ctrl-C ends it at once."""

import signal
from types import FrameType, TracebackType
from typing import Any

import torch


class StopSignal:
    """A context in which SIGINT and SIGTERM are requests. Of two, one inside of the other, what one hears both know."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._handle)
            except ValueError:  # not in the main thread, where Python allows no handlers
                return self
        self.asked |= any(outer.asked for outer in self._outer())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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

    def requested(self, fabric: Any, *, step: int, every: int) -> bool:
        """Whether to stop now. Ranks agree every `every` steps: signals reach them at different steps."""
        if fabric.world_size == 1:
            return self.asked
        if step % every:
            return False
        flag = fabric.all_reduce(torch.tensor(float(self.asked), device=fabric.device), reduce_op="sum")
        return bool(flag.item() > 0)
