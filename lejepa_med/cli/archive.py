"""Commands about an archive and the installation. Heavy imports wait for the command."""

import sys
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, Field
from pydantic_settings import CliPositionalArg, CliSuppress
from rich.markup import escape

from data_adapters.atomic import write_text
from lejepa_med.cli.settings import ABOUT, OPTIONS, CommonSettings, make_console, option_rows, option_values
from lejepa_med.config import Columns, MonitorConfig, ObjectiveConfig, OptimConfig, Section
from lejepa_med.errors import UserError


class Looking(CommonSettings):
    """Settings of commands that read an archive as pretrain will; those without influence are taken, but not listed."""

    objective: CliSuppress[ObjectiveConfig] = ObjectiveConfig()
    optim: CliSuppress[OptimConfig] = OptimConfig()
    monitor: CliSuppress[MonitorConfig] = MonitorConfig()


class ScanCommand(Looking):
    """Look through an archive: write manifest.parquet and rejected.csv, and print what was found.

    Repeated with the same --out it reads only what is new or changed; interrupted, it goes on where it was. It reads as
    pretrain will do on this machine, and takes pretrain's settings, some of which decide how many samples there are.
    """

    archive: CliPositionalArg[Path] = Field(description="folder with the images")
    modality: str = Field(description="mri, mri3d, histology, galaxy, images, a plug-in, or ./file.py:Class")
    out: Path = Field(description="folder for manifest.parquet, rejected.csv and duplicates.csv")
    verify: bool = Field(default=True, description="decode every file once")
    workers: int | None = Field(
        default=None, ge=0, description="reading processes; None: usable cores; 0: this process"
    )
    fresh: bool = Field(default=False, description="read every file again, changed or not")
    file_seconds: float = Field(
        default=300.0, gt=0, description="after so long on one file a reading process is killed and the file refused"
    )

    def cli_cmd(self) -> None:
        """Run the command."""
        from lejepa_med.archive import JOURNAL, scan
        from lejepa_med.training.device import device_of
        from lejepa_med.training.resolve import create_adapter, outlook, resolve_machine

        given, console = self.settings(), make_console()
        config = resolve_machine(given, device=device_of(given))
        found = scan(
            create_adapter(config),
            self.archive,
            **config.data.table(),
            verify=self.verify and config.data.verify,
            workers=self.workers,
            journal=self.out / JOURNAL,
            fresh=self.fresh,
            file_seconds=self.file_seconds,
            split=config.data.split,
            console=console,
        )
        found.write(self.out)
        console.print(outlook(config, found, given=given), soft_wrap=True, highlight=False)
        further = {"duplicates.csv": found.copied.contents, "leaks.csv": found.leak}
        names = ["manifest.parquet", "rejected.csv", *(name for name, there in further.items() if there)]
        print(f"wrote {', '.join(f'{self.out}/{name}' for name in names)}")


class SplitCommand(Columns):
    """Divide an archive into splits: no group and no equal image on two sides, and the same mix of labels on each.

    Writes a catalogue (path, item, group, label, split) that scan, pretrain and embed take as --catalog, and that probe
    takes as labels. The receipt lies beside it.
    """

    source: CliPositionalArg[Path] = Field(description="manifest.parquet of scan, or a folder with images")
    out: Path = Field(description="CSV file to write; the receipt is FILE.receipt.txt")
    fractions: dict[str, float] = Field(
        default={"train": 0.7, "val": 0.15, "test": 0.15}, description="names and parts, such as train=0.8 test=0.2"
    )
    seed: int = Field(default=0, ge=0, description="seed of the order among groups of equal size")
    modality: str | None = Field(default=None, description="of a folder, which is scanned first")
    catalog: Path | None = Field(default=None, description="of a folder: CSV or Parquet with group and label")
    options: dict[str, str] = Field(default={}, validation_alias=OPTIONS, description=f"of a folder: {ABOUT}")
    overwrite: bool = Field(default=False, description="replace a split that is there")

    def cli_cmd(self) -> None:
        """Run the command."""
        from data_adapters.manifest import Manifest
        from lejepa_med.data.split import DISJOINT, check_target, receipt_file, repaired_text, write_split

        check_target(self.out, self.fractions, overwrite=self.overwrite)
        if self.source.suffix == ".parquet":
            if self.modality or self.catalog or self.options or self.group_column or self.label_column:
                raise UserError(
                    "--modality, --catalog, -o, --group-column and --label-column belong to a folder; a "
                    "manifest has been scanned with its own.",
                    remedy="Leave them out, or split the folder itself with them.",
                )
            manifest = Manifest.read(self.source)
        else:
            manifest = self._scanned()
        receipt = write_split(manifest, self.out, fractions=self.fractions, seed=self.seed, overwrite=self.overwrite)
        if receipt["by_folder"]:
            print(f"groups: {receipt['by_folder']}")
        for name, part in receipt["splits"].items():
            labels = ", ".join(f"{label} {count:,}" for label, count in part["labels"].items())
            share = f"{part['fraction']:.1%}, wanted {part['wanted']:.1%}"
            print(f"{name}: {part['items']:,} items in {part['groups']:,} groups ({share}): {labels}")
            if abs(part["fraction"] - part["wanted"]) > 0.05:
                print(f"  {name} is off by more than 5 points: some groups are too large to be divided so")
        if receipt["repaired"] is not None:
            print(f"repaired: {repaired_text(receipt['repaired'])}")
        print(f"wrote {self.out} and {receipt_file(self.out)}; {DISJOINT}")

    def _scanned(self) -> Any:
        from rich.console import Console

        import data_adapters
        from lejepa_med.archive import scan

        if self.modality is None:
            raise UserError(f"{self.source} is no manifest.parquet.", remedy="To split a folder, give its --modality.")
        adapter = data_adapters.create(self.modality, **option_values(self.modality, self.options))
        given = self.model_dump(include={"catalog", *Columns.model_fields})
        return scan(adapter, self.source, console=Console(stderr=True), **given).manifest


class InspectCommand(Looking):
    """Write a contact sheet of what the encoder sees: file, prepared pixels and all views, with facts and warnings.

    It takes pretrain's settings and settles open ones as pretrain does, so the same options show the very views that
    the run will draw in its first epoch.
    """

    archive: CliPositionalArg[Path] = Field(description="folder with the images, or a manifest.parquet of scan")
    out: Path = Field(description="folder for inspect.html and inspect.png")
    modality: str = Field(default="", description="as in scan; needed only without a manifest and without --encoder")
    encoder: Path | None = Field(default=None, description="run folder: inspect with the preprocessing of its encoder")
    records: int = Field(
        default=8,
        ge=1,
        validation_alias=AliasChoices("records", "n"),
        description="how many, drawn evenly over the groups",
    )
    show_names: bool = Field(default=False, description="show file names instead of pseudonyms only")

    def cli_cmd(self) -> None:
        """Run the command."""
        from data_adapters.tables import count
        from lejepa_med.inspection.command import inspect_archive

        sheet = inspect_archive(
            self.settings(), encoder=self.encoder, n=self.records, names=self.show_names, console=make_console()
        )
        has = "has" if sheet.warned == 1 else "have"
        print(f"{sheet.warned} of {count(len(sheet.looks), 'record')} {has} a warning")
        print(f"wrote {sheet.page} and {sheet.picture}")


class NamesCommand(Section):
    """Add file names to a table of ids: the columns path and, where files hold several items, item.

    Prints the table as CSV (an answer of the service as JSON), or writes it to --out. Paths are below the archive.
    """

    table: CliPositionalArg[Path] = Field(
        description="CSV, Parquet or JSON file with ids, or the folder of embed or probe"
    )
    scan: Path = Field(description="folder of the scan or run, or its manifest.parquet, that knows the files")
    out: Path | None = Field(default=None, description="file to write (.csv, .parquet, .json); None: print the table")

    def cli_cmd(self) -> None:
        """Run the command."""
        from lejepa_med.probes.names import add_names

        text, notes = add_names(self.table, self.scan, out=self.out)
        sys.stdout.write(text)
        for note in notes:
            print(note, file=sys.stderr)
        if self.out is not None:
            print(f"wrote {self.out}")


class OptionsCommand(Section):
    """List the options of a modality with values, default and meaning; every command takes them as -o NAME=VALUE."""

    modality: CliPositionalArg[str] = Field(description="mri, mri3d, histology, galaxy, images, a plug-in or file")

    def cli_cmd(self) -> None:
        """Run the command."""
        from rich.console import Console
        from rich.table import Table

        table = Table("-o", "values", "default", "meaning", box=None, pad_edge=False, padding=(0, 2, 1, 0))
        for row in option_rows(self.modality):
            table.add_row(*map(escape, row))
        Console().print(table, highlight=False)


class AugmentCommand(Section):
    """Print the views of a modality as a pipeline file to start from, or check a pipeline file of yours.

    Give such a file to scan, inspect and pretrain as -o augment=FILE. `lejepa-med inspect` shows pictures of its views.
    """

    pipeline: CliPositionalArg[Path | None] = Field(default=None, description="pipeline file to check, step by step")
    modality: str = Field(description="mri, mri3d, histology, galaxy, images, a plug-in or file")
    show: bool = Field(default=False, description="print the modality's own recipe as a pipeline file")
    out: Path | None = Field(default=None, description="with --show: file to write; None: print it")
    options: dict[str, str] = Field(default={}, validation_alias=OPTIONS, description=ABOUT)

    def cli_cmd(self) -> None:
        """Run the command."""
        import numpy as np

        import data_adapters
        from data_adapters.base import BaseAdapter
        from data_adapters.pipeline_file import recipe_text, summary

        if (self.pipeline is None) != self.show:
            raise UserError(
                "Give either a pipeline file to check, or --show.",
                remedy=f"lejepa-med augment --modality {self.modality} --show > my-pipeline.yaml",
            )
        if self.out is not None and (self.pipeline is not None or self.out.exists()):
            raise UserError(
                f"{self.out} exists." if self.pipeline is None else "A check writes no file.",
                remedy="Give another --out." if self.pipeline is None else "Leave out --out.",
            )
        options = option_values(self.modality, self.options)
        if self.pipeline is not None:
            options["augment"] = self.pipeline
        adapter = data_adapters.create(self.modality, **options)
        if not isinstance(adapter, BaseAdapter):
            raise UserError(
                f"The modality '{self.modality}' takes no pipeline.", remedy="Derive its adapter from BaseAdapter."
            )
        if self.pipeline is not None:
            adapter.check_pipeline()
            known = adapter.view_example(adapter.options.global_size, np.random.default_rng(0)) is not None
            later = "" if known else "; its channels are tried when the archive is known"
            print(f"{summary(adapter.options.augment)}: every step works on views of {self.modality}{later}")
            return
        text = recipe_text(adapter.shown_operations(), volumes=adapter.dims == 3, command=self._command())
        if self.out is None:
            print(text, end="")
        else:
            write_text(self.out, text)
            print(f"wrote {self.out}")

    def _command(self) -> str:
        given = "".join(f" -o {name}={value}" for name, value in self.options.items())
        return f"lejepa-med augment --modality {self.modality} --show{given}"


class DoctorCommand(Section):
    """Show what this installation can do: versions, devices, readers of each modality, disk and salt.

    Exit code 1 where the core, or the modality that was asked for, is broken. It asks no network.
    """

    modality: str | None = Field(default=None, description="check this modality alone")

    def cli_cmd(self) -> None:
        """Run the command."""
        from lejepa_med.cli.doctor import examine, failed

        marks = {"ok": "ok     ", "note": "note   ", "missing": "MISSING", "broken": "BROKEN "}
        findings = []
        for found in examine(self.modality):
            findings.append(found)
            remedy = f"\n{' ' * 19}-> {found.remedy}" if found.remedy else ""
            print(f"{marks[found.state]} {found.section:<10} {found.name}: {found.detail}{remedy}", flush=True)
        if failed(findings, modality=self.modality):
            sys.exit(1)
