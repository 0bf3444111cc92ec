"""What a run tells: metrics.jsonl, TensorBoard, and one status line that a tired person can read."""

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

PLAIN_SECONDS = 15  # between two lines where the output is no terminal


class RunLog:
    """Writes each record to metrics.jsonl and TensorBoard and shows it; `quiet` ranks only pass."""

    def __init__(self, folder: Path, *, steps: int, first_step: int, console: Console, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet
        self.steps = steps
        self._last_line = 0.0
        if quiet:
            return
        self._file = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder), purge_step=first_step + 1)
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total} steps"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID = self._bar.add_task("", total=steps, completed=first_step, epoch="", status="starting")

    def __enter__(self) -> "RunLog":
        if not self.quiet:
            self._bar.start()
        self._started = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.quiet:
            self._bar.stop()
            self._file.close()
            self._board.close()

    def step(self, step: int) -> None:
        """Advance the bar."""
        if not self.quiet:
            self._bar.update(self._task, completed=step)

    def record(self, values: dict[str, Any]) -> None:
        """One record; `values` holds step and epoch besides the metrics."""
        if self.quiet:
            return
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()
        for name, value in values.items():
            if name != "step":
                self._board.add_scalar(f"train/{name}", value, values["step"])
        parts = f"SIGReg {values['sigreg']:.2f}  " if "sigreg" in values else ""
        parts += f"invariance {values['invariance']:.4f}  " if "invariance" in values else ""
        status = (
            f"loss {values['loss']:.4f}  {parts}"
            f"rank {values['effective_rank']:.0f}  {values['images_per_second']:.0f} img/s  "
            f"data-wait {values['data_wait']:.0%}"
        )
        self._bar.update(self._task, completed=values["step"], epoch=f"{values['epoch']:.1f}", status=status)
        now = time.perf_counter()
        if not self.console.is_terminal and now - self._last_line > PLAIN_SECONDS:
            self._last_line = now
            eta = (now - self._started) / max(1, values["session_steps"]) * (self.steps - values["step"])
            self.console.print(
                f"epoch {values['epoch']:.1f}  step {values['step']}/{self.steps}  ETA {eta / 60:.1f} min  {status}",
                soft_wrap=True,
                highlight=False,
            )

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if not self.quiet:
            self.console.print(text, soft_wrap=True, highlight=False)
