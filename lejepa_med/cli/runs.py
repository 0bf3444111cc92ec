"""Commands about runs and their encoders. Heavy imports wait for the command."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg

from lejepa_med.cli.settings import CommonSettings, make_console
from lejepa_med.config import Columns, Section
from lejepa_med.ending import STOPPED


class PretrainCommand(CommonSettings):
    """Pretrain an encoder on an unlabelled archive. Settings left out are chosen, printed and saved."""

    archive: CliPositionalArg[Path] = Field(description="folder with the images")
    resume: bool = Field(default=False, description="continue the run in --out: repeat the command with this flag")
    overwrite: bool = Field(default=False, description="delete the run in --out first")
    dry_run: bool = Field(
        default=False,
        description="train nothing: print every setting with its origin, steps, expected time, memory and disk, from a "
        "few timed steps; the scan is remembered for the run; with --resume, what is left",
    )

    def cli_cmd(self) -> None:
        """Run the command; exit code 3 says that the run was stopped and can be resumed."""
        from lejepa_med.training.folder import weight_text
        from lejepa_med.training.loop import pretrain

        result = pretrain(self.settings(), resume=self.resume, overwrite=self.overwrite, dry_run=self.dry_run)
        if self.dry_run:
            return
        if not result.finished:
            sys.exit(STOPPED)
        print(f"encoder: {result.folder}/encoder\nreport:  {result.folder}/report.html")
        print(f"disk:    {weight_text(result.folder)}")


class PrecisionCommand(Section):
    """Record in which precision an encoder computes its vectors; `embed`, probes, search and the service all follow.

    float32 is the default on every machine. bfloat16 is faster on GPUs from Ampere on and on CPUs with AVX512-BF16 or
    AMX, and rougher: see docs/service.md.
    """

    encoder: CliPositionalArg[Path] = Field(description="run folder, or its encoder folder")
    precision: CliPositionalArg[Literal["float32", "bfloat16"]] = Field(description="arithmetic of the vectors")

    def cli_cmd(self) -> None:
        """Run the command."""
        from lejepa_med.models.folder import record_precision

        folder = record_precision(self.encoder, self.precision)
        print(
            f"{folder} now computes in {self.precision}. Tables and probes that were made in another precision do not "
            "fit it any more: embed the archive again."
        )


class VectorsCommand(Section):
    """Show how an encoder forms its vectors and what an image costs; with a setting, record another way.

    `embed`, probes, search and the service all follow. Tables and probes of the old way are then those of another
    encoder: embed the archive again, or record the old way again.
    """

    encoder: CliPositionalArg[Path] = Field(description="run folder, or its encoder folder")
    views: int | None = Field(
        default=None, description="fixed views that are averaged: 1, 2, 4 or 8, as far as the modality allows"
    )
    size: int | None = Field(default=None, ge=16, description="side of the image that the encoder gets, pixels")
    layers: int | None = Field(default=None, description="1: the pooled output; 2: joined with the layer before it")
    device: str = Field(default="cpu", description="cpu or cuda, where the cost is measured")

    def cli_cmd(self) -> None:
        """Run the command."""
        from rich.table import Table

        from lejepa_med.models.folder import encoder_folder, formation_rows, load_encoder, read_info, record_formation
        from lejepa_med.models.formation import formation_of

        before = formation_of(read_info(encoder_folder(self.encoder)))
        folder = record_formation(self.encoder, size=self.size, views=self.views, layers=self.layers)
        encoder = load_encoder(folder, device=self.device)
        table = Table(show_header=False, box=None, pad_edge=False)
        for row in formation_rows(encoder):
            table.add_row(*row)
        make_console(stderr=False).print(table, highlight=False)
        if changed := encoder.formation.differs(before):
            back = " ".join(f"--{name} {old}" for name, (_, old) in changed.items())
            print(
                f"{folder} forms its vectors so from now on. Tables and probes that were made before do not fit it any "
                f"more: embed the archive again, or go back with: lejepa-med vectors {self.encoder} {back}"
            )


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


class CompareCommand(Columns):
    """Compare a run's encoder with what you could use instead, on your labels, and say in words which is better.

    Always beside random weights and 8 x 8 pixels. Repeated with the same --out it keeps finished rows and goes on.
    """

    run: CliPositionalArg[Path] = Field(description="run folder")
    archive: Path | None = Field(default=None, description="folder with the labelled images; None: the run's archive")
    catalog: Path | None = Field(
        default=None, description="CSV or Parquet: path, label, group, split; None: the run's own"
    )
    weights: list[str] = Field(
        default=[],
        description="these weights, too, frozen, parted by commas: timm folder, .safetensors file, timm:NAME, run",
    )
    methods: list[str] = Field(
        default=[], description="also encoders that are now trained by simclr,vicreg,barlow,byol,dino or others"
    )
    minutes: float | None = Field(
        default=None, gt=0, description="of each of these trainings; None: as many epochs as the run"
    )
    supervised: bool = Field(
        default=False,
        description="also a small network trained on the labels alone, from 10 a class on (some minutes)",
    )
    kind: Literal["classification", "regression", "multilabel"] = Field(
        default="classification", description="of the labels: classes, numbers, or several an image, written a;b"
    )
    on: str | None = Field(
        default=None,
        description="split to score on; probes learn from 'train'; None: val, else test, else part of the groups",
    )
    shots: list[int] = Field(default=[1, 2, 5, 10, 50, 100], min_length=1, description="labels per class, then all")
    draws: int = Field(default=20, ge=2, description="draws of labels for each number")
    allow_leak: bool = Field(default=False, description="go on although a group or an equal image lies in two splits")
    device: str = Field(default="cpu", description="cpu or cuda")
    out: Path = Field(description="folder of the comparison: compare.html, compare.csv, rows/, runs/")

    def cli_cmd(self) -> None:
        """Run the command; exit code 3 says that it was stopped and can be repeated."""
        from lejepa_med.study.compare import compare, print_comparison

        given = self.model_dump(exclude={"run", "out"})
        try:
            print_comparison(compare(self.run, self.out, **given))
        except KeyboardInterrupt:
            print("Stopped. The same command goes on from here.", file=sys.stderr)
            sys.exit(STOPPED)
        print(f"wrote {self.out}/compare.html and {self.out}/compare.csv")


class EvaluateCommand(Columns):
    """Evaluate encoders on your labels, from few to all: linear probes, k-NN, and fine-tuning where you ask for it.

    Repeated with the same --out it keeps finished parts and goes on.
    """

    encoders: CliPositionalArg[list[Path]] = Field(min_length=1, description="run folders, or encoder folders")
    archive: Path | None = Field(default=None, description="folder with the labelled images; None: the run's archive")
    catalog: Path | None = Field(
        default=None, description="CSV or Parquet: path, label, group, split; None: the run's own"
    )
    kind: Literal["classification", "regression", "multilabel"] = Field(
        default="classification", description="of the labels: classes, numbers, or several an image, written a;b"
    )
    on: str | None = Field(
        default=None,
        description="split to score on; probes learn from 'train'; None: val, else test, else part of the groups",
    )
    shots: list[int] = Field(
        default=[1, 2, 5, 10, 50, 100],
        min_length=1,
        description="labels per class (numbers, several labels: labelled images), then all",
    )
    draws: int = Field(default=5, ge=2, description="draws of labels for each number")
    fine_tune: Literal["no", "last", "full", "both"] = Field(
        default="no", description="also train the last blocks, or all layers, on 50 labels per class and on all"
    )
    blocks: int = Field(default=2, ge=1, description="blocks of a ViT, stages of a CNN, that `last` trains")
    minutes: float = Field(default=3.0, gt=0, description="of each of up to 4 such trainings, at most; or 1,000 steps")
    rate: float | None = Field(default=None, gt=0, description="learning rate of fine-tuning; None: 5e-4")
    layer_decay: float | None = Field(
        default=None, gt=0, le=1, description="factor of the rate from each layer to the one below it; None: 0.75"
    )
    smoothing: float = Field(default=0.1, ge=0, lt=1, description="label smoothing of fine-tuning")
    mixup: float = Field(default=0.2, ge=0, description="mixup of fine-tuning, parameter of the Beta distribution")
    allow_leak: bool = Field(default=False, description="go on although a group or an equal image lies in two splits")
    device: str = Field(default="cpu", description="cpu or cuda")
    out: Path = Field(description="folder of the evaluation: evaluate.html, evaluate.json, parts/")

    def cli_cmd(self) -> None:
        """Run the command; exit code 3 says that it was stopped and can be repeated."""
        from lejepa_med.study.evaluate import Tuning, evaluate, print_evaluation

        own = {"blocks", "minutes", "rate", "layer_decay", "smoothing", "mixup"}
        depths: Any = {"no": (), "both": ("last", "full")}.get(self.fine_tune, (self.fine_tune,))
        tuned = Tuning(depths=depths, **self.model_dump(include=own))
        given = self.model_dump(exclude={"encoders", "out", "fine_tune", *own})
        try:
            print_evaluation(evaluate(self.encoders, self.out, tuned=tuned, **given))
        except KeyboardInterrupt:
            print("Stopped. The same command goes on from here.", file=sys.stderr)
            sys.exit(STOPPED)
        print(f"wrote {self.out}/evaluate.html and {self.out}/evaluate.json")


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
