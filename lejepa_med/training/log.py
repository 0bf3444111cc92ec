"""What a run tells: metrics.jsonl, TensorBoard, a status line that a tired person can read, and bad_files.jsonl."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from data_adapters.manifest import Manifest
from lejepa_med.data.dataset import BadRead
from lejepa_med.errors import TrainingError
from lejepa_med.evaluation.enough import most_directions
from lejepa_med.training.plan import Plan
from lejepa_med.training.verdict import Verdict, online_text

PLAIN_SECONDS = 15  # between two lines where the output is no terminal
# Shown in the status line where a record has them: key, format.
STATUS = (
    ("loss", "loss {:.4f}"),
    ("sigreg", "SIGReg {:.2f}"),
    ("invariance", "invariance {:.4f}"),
    ("images_per_second", "{:.0f} img/s"),
    ("data_wait", "data-wait {:.0%}"),
)


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """A record as JSON can hold it: a number that is not finite becomes None (null), never a bare NaN."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


class RunLog:
    """Writes each record to metrics.jsonl and TensorBoard and shows it; `quiet` ranks only pass."""

    def __init__(self, folder: Path, *, plan: Plan, first_step: int, console: Console, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet
        self.plan = plan
        self._last_line = 0.0
        self._verdict = self._alarm = ""
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
        self._task: TaskID = self._bar.add_task("", total=plan.steps, completed=first_step, epoch="", status="starting")

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
            self._bar.update(self._task, completed=step, total=self.plan.steps)

    def record(self, values: dict[str, Any], *, verdict: Verdict | None = None) -> None:
        """One record; `values` holds step and epoch besides the metrics. A changed verdict goes to TensorBoard, too."""
        if self.quiet:
            return
        self._file.write(json.dumps(plain(values), allow_nan=False) + "\n")
        self._file.flush()
        self._scalars("train", values)
        parts = [form.format(values[key]) for key, form in STATUS if values.get(key) is not None]
        if values.get("backbone/effective_rank") is not None:
            most = most_directions(values["backbone/rows"], values["backbone/dim"])
            parts.insert(-2, f"rank {values['backbone/effective_rank']:.0f} of at most {most}")  # of one batch: rough
        status = "  ".join(parts)
        if verdict is not None:
            status += f"  {verdict.text}"
            if verdict.text != self._verdict:
                self._verdict = verdict.text
                self._board.add_text("verdict", "\n\n".join([verdict.text, *verdict.notes]), values["step"])
        self._bar.update(self._task, completed=values["step"], epoch=f"{values['epoch']:.1f}", status=status)
        now = time.perf_counter()
        if not self.console.is_terminal and now - self._last_line > PLAIN_SECONDS:
            self._last_line = now
            steps, eta = self.plan.steps, self.plan.seconds_left
            if eta is None:
                eta = (now - self._started) / max(1, values["session_steps"]) * (steps - values["step"])
            self.console.print(
                f"epoch {values['epoch']:.1f}  step {values['step']}/{steps}  ETA {max(0, eta) / 60:.1f} min  {status}",
                soft_wrap=True,
                highlight=False,
            )
        if verdict is not None and verdict.alarming and verdict.state != self._alarm:
            self._alarm = verdict.state
            self.say(f"epoch {values['epoch']:.1f}: {verdict.text}. {verdict.advice}")

    def online(self, values: dict[str, Any]) -> None:
        """An evaluation of the encoder during training, to TensorBoard and, where labels gave accuracies, a line."""
        if self.quiet:
            return
        self._scalars("online", values)
        if values.get("knn") is not None:
            self.say(f"epoch {values['epoch']:.1f}: {online_text(values)}")

    def _scalars(self, group: str, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if name != "step" and isinstance(value, int | float):
                self._board.add_scalar(f"{group}/{name}", value, values["step"])

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if not self.quiet:
            self.console.print(text, soft_wrap=True, highlight=False)


MIN_READS = 200  # below this a fraction says nothing


class BadFiles:
    """Appends to bad_files.jsonl (step, path, reason) and watches the fraction of failed reads."""

    def __init__(self, file: Path, manifest: Manifest, *, limit: float) -> None:
        self.file, self.manifest, self.limit = file, manifest, limit
        self.reads = 0
        self.failed = 0

    def add(self, bad: Sequence[BadRead], *, step: int, reads: int) -> None:
        """Note the failed reads of a step.

        Raises:
            TrainingError: more than `limit` of all reads failed.
        """
        self.reads += reads + len(bad)
        self.failed += len(bad)
        if not bad:
            return
        with self.file.open("a", encoding="utf-8") as stream:
            for read in bad:
                path = self.manifest.value("path", read.row)
                stream.write(json.dumps({"step": step, "path": path, "reason": read.reason}) + "\n")
        if self.reads >= MIN_READS and self.failed > self.limit * self.reads:
            raise TrainingError(
                f"{self.failed} of {self.reads} reads failed, more than {self.limit:.1%}; the last: {bad[-1].reason}.",
                remedy=f"See {self.file}. Repair or remove those files and scan again, or raise --data.bad-limit.",
            )
