"""Commands about many runs: select, diff and stability. Heavy imports wait for the command."""

import sys
from importlib import import_module
from pathlib import Path

from pydantic import Field
from pydantic_settings import CliPositionalArg

from lejepa_med.cli_settings import CommonSettings
from lejepa_med.config import Columns, Section


class SelectCommand(Columns):
    """Rank finished runs without labels, by loss / lambda^alpha, and ask the labels whether that was right.

    Prints the table, and where runs measured an accuracy, how each score agrees with it (Spearman, with its interval).
    """

    runs: CliPositionalArg[list[Path]] = Field(description="run folders, or folders of them")
    alpha: float = Field(default=0.4, ge=0, description="exponent of lambda")
    labels: Path | None = Field(
        default=None, description="catalogue (path, label, group) to measure accuracies now; None: as the runs did"
    )
    mixed: bool = Field(default=False, description="rank runs of different archives or objectives all the same")
    device: str = Field(default="cpu", description="cpu or cuda, for --labels")
    out: Path | None = Field(default=None, description="also write a table (.csv), or a page with plots (.html)")

    def cli_cmd(self) -> None:
        """Run the command."""
        from lejepa_med.study.select import print_selection, select, write_selection

        given = self.model_dump(include={"alpha", "labels", *Columns.model_fields, "mixed", "device"})
        found = select(self.runs, **given)
        print_selection(found)
        if self.out is not None:
            write_selection(self.out, found)
            print(f"wrote {self.out}")


class DiffCommand(Section):
    """Show what differs between two runs: settings and their origins, data, software, and curves at equal steps."""

    one: CliPositionalArg[Path] = Field(description="run folder, finished or not")
    other: CliPositionalArg[Path] = Field(description="the run folder to compare it with")
    out: Path | None = Field(default=None, description="also write a page with the curves (.html)")

    def cli_cmd(self) -> None:
        """Run the command."""
        from lejepa_med.study.diff import check_page, diff, print_diff, write_diff

        if self.out is not None:
            check_page(self.out)
        found = diff(self.one, self.other)
        print_diff(found)
        if self.out is not None:
            write_diff(self.out, found)
            print(f"wrote {self.out}")


class StabilityCommand(CommonSettings):
    """Pretrain shortly with every combination of lambda, batch, views and architecture, and draw where it collapses.

    Repeated with the same --out it keeps finished cells and goes on. All other settings are those of pretrain.
    """

    archive: CliPositionalArg[Path] = Field(description="folder with the images")
    out: Path = Field(description="folder of the grid: cells/, stability.csv, stability.html")
    lambdas: list[float] = Field(default=[0.01, 0.05, 0.2], min_length=1, description="such as 0.01,0.05,0.2")
    batches: list[int] = Field(default=[32, 128], min_length=1, description="such as 32,128")
    n_views: list[int] = Field(default=[2, 4], min_length=1, description="such as 2,4,8")
    backbones: list[str] | None = Field(default=None, description="such as resnet18,vit_tiny_patch16_224")
    steps: int | None = Field(default=None, ge=1, description="steps of a cell at least, in whole epochs")
    minutes_each: float | None = Field(default=None, gt=0, description="minutes of a cell, in place of steps")
    records: int | None = Field(default=None, ge=2, description="train on so many records; None: all")
    retry: bool = Field(default=False, description="run failed cells again")

    def cli_cmd(self) -> None:
        """Run the command; exit code 3 says that it was stopped and can be repeated."""
        from rich.console import Console

        run_grid = import_module("lejepa_med.research.stability").run_grid  # by name, as all of research
        axes = {name: getattr(self, name) for name in ("lambdas", "batches", "n_views", "backbones")}
        given = {"steps": self.steps, "minutes": self.minutes_each, "records": self.records, "retry": self.retry}
        if not run_grid(self.settings(), axes, console=Console(stderr=True), **given):
            sys.exit(3)
        print(f"wrote {self.out}/stability.csv and {self.out}/stability.html")
