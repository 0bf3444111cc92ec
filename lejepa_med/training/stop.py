"""Ctrl-C and SIGTERM end a run after the step in progress, with everything saved; a second Ctrl-C ends it at once."""

import signal
from types import FrameType, TracebackType
from typing import Any

import torch


class StopSignal:
    """A context in which SIGINT and SIGTERM are requests."""

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._handle)
            except ValueError:  # not in the main thread, where Python allows no handlers
                return self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True

    def requested(self, fabric: Any, *, step: int, every: int) -> bool:
        """Whether to stop now. Ranks agree every `every` steps: signals reach them at different steps."""
        if fabric.world_size == 1:
            return self._asked
        if step % every:
            return False
        flag = fabric.all_reduce(torch.tensor(float(self._asked), device=fabric.device), reduce_op="sum")
        return bool(flag.item() > 0)
