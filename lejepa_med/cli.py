"""The command line: `lejepa-med COMMAND --help` lists its settings. Heavy imports wait for the command."""

import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliPositionalArg,
    CliSubCommand,
    CliSuppress,
    SettingsConfigDict,
    SettingsError,
)

from data_adapters.quiet import quiet_readers
from lejepa_med.cli_data import AugmentCommand, DoctorCommand, NamesCommand, OptionsCommand, SplitCommand
from lejepa_med.cli_keys import KeyCommand
from lejepa_med.cli_service import BackupCommand, RestoreCommand, ServeCommand, WorkCommand
from lejepa_med.cli_settings import CommonSettings, join_options
from lejepa_med.cli_study import DiffCommand, SelectCommand, StabilityCommand
from lejepa_med.config import Columns, MonitorConfig, ObjectiveConfig, OptimConfig, Section, issues
from lejepa_med.ending import STOPPED, ended_by_signals
from lejepa_med.errors import UserError, explained


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
        from lejepa_med.training.archive import JOURNAL, scan
        from lejepa_med.training.resolve import create_adapter, device_of, outlook, resolve_machine

        given, console = self.settings(), _console()
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


class InspectCommand(Looking):
    """Write a contact sheet of what the encoder sees: file, prepared pixels and all views, with facts and warnings.

    It takes pretrain's settings and settles open ones as pretrain does, so the same options show the very views that
    the run will draw in its first epoch.
    """

    archive: CliPositionalArg[Path] = Field(description="folder with the images, or a manifest.parquet of scan")
    out: Path = Field(description="folder for inspect.html and inspect.png")
    modality: str = Field(default="", description="as in scan; a manifest or --encoder tells it otherwise")
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
            self.settings(), encoder=self.encoder, n=self.records, names=self.show_names, console=_console()
        )
        has = "has" if sheet.warned == 1 else "have"
        print(f"{sheet.warned} of {count(len(sheet.looks), 'record')} {has} a warning")
        print(f"wrote {sheet.page} and {sheet.picture}")


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


class EmbedCommand(Columns):
    """Embed an archive: a Parquet table of ids, groups and vectors. Repeated, it goes on after an interruption."""

    encoder: CliPositionalArg[Path] = Field(description="run folder, or its encoder folder")
    archive: CliPositionalArg[Path] = Field(description="folder with the images, or a manifest.parquet of scan")
    out: Path = Field(description="folder of the table")
    catalog: Path | None = Field(default=None, description="CSV or Parquet: path, group, label, mpp, ra, dec")
    verify: bool = Field(default=False, description="decode every file once before embedding")
    batch_size: int = Field(default=64, ge=1, description="slices or tiles in one forward pass")
    workers: int | None = Field(
        default=None, ge=0, description="processes that read and prepare; None: by the free cores"
    )
    threads: int | None = Field(default=None, ge=1, description="CPU threads that compute; None: as cores are free")
    device: str = Field(default="cpu", description="cpu or cuda")
    random: bool = Field(default=False, description="use fresh random weights instead: the control for every probe")
    views: int | None = Field(
        default=None,
        description="fixed views that are averaged, in place of the encoder's own; 1: one pass an image. The table is "
        "then that of another encoder",
    )
    columns: list[str] = Field(
        default=[], description="facts to search by, kept as they are: split, samples, or the catalogue's mpp, ra, ..."
    )

    def cli_cmd(self) -> None:
        """Run the command."""
        from rich.markup import escape

        from data_adapters.manifest import Manifest
        from lejepa_med.embed import embed_archive
        from lejepa_med.models.folder import load_encoder, randomised
        from lejepa_med.threads import loader_workers
        from lejepa_med.training.archive import leak_text, progress_bar, run_catalog, scan

        console = _console()
        table = self.model_dump(include={"catalog", *Columns.model_fields})
        if self.archive.suffix == ".parquet" and any(table.values()):
            raise UserError(
                "--catalog, --group-column and --label-column belong to a folder; a manifest has been scanned with its "
                "own.",
                remedy="Leave them out, or embed the folder itself with them.",
            )
        if self.archive.suffix != ".parquet" and self.catalog is None:
            of_run = run_catalog(self.encoder, self.archive)
            table = {**of_run, **{name: value for name, value in table.items() if value is not None}}
            if of_run:
                said = f"catalogue: {of_run['catalog']}, the run's own; --catalog FILE gives another one"
                console.print(escape(said), highlight=False, soft_wrap=True)
        encoder = load_encoder(self.encoder, device=self.device, views=self.views)
        console.print(f"vectors: {encoder.formation.text(dims=encoder.module.dims)}", highlight=False)
        if self.random:
            encoder = randomised(encoder)
        if self.archive.suffix == ".parquet":
            manifest = Manifest.read(self.archive)
            leak = manifest.leak()
            if leak is not None:
                console.print(f"[bold red]LEAK[/] {escape(leak_text(leak))}", highlight=False, soft_wrap=True)
        else:
            found = scan(encoder.adapter, self.archive, **table, verify=self.verify, of_encoder=True, console=console)
            manifest = found.manifest
        if self.archive.suffix == ".parquet" and manifest.by_folder:  # of a folder, the scan has said it
            console.print(f"groups: {manifest.by_folder}", highlight=False, soft_wrap=True)
        with progress_bar(console, "embed") as bar:
            task = bar.add_task("", total=len(manifest))
            info = embed_archive(
                encoder,
                manifest,
                self.out,
                batch_size=self.batch_size,
                workers=loader_workers(self.workers, on_gpu=self.device != "cpu"),
                threads=self.threads,
                columns=self.columns,
                caution=lambda text: console.print(
                    f"[yellow]note:[/] {escape(text)}.", highlight=False, soft_wrap=True
                ),
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        print(
            f"wrote {info['embedded']:,} vectors of {info['dim']} numbers to {self.out} ({info['failed']:,} failed), "
            f"computed in {encoder.precision}"
        )


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
        _console(stderr=False).print(table, highlight=False)
        if changed := encoder.formation.differs(before):
            back = " ".join(f"--{name} {old}" for name, (_, old) in changed.items())
            print(
                f"{folder} forms its vectors so from now on. Tables and probes that were made before do not fit it any "
                f"more: embed the archive again, or go back with: lejepa-med vectors {self.encoder} {back}"
            )


class ProbeCommand(Columns):
    """Train a probe on embeddings and a few labels: a linear model and k-NN, cross-validated by group."""

    embeddings: CliPositionalArg[Path] = Field(description="embedding table of: lejepa-med embed")
    labels: CliPositionalArg[Path] = Field(
        description="CSV or Parquet with columns path or id, and label; or BIDS participants.tsv"
    )
    archive: Path | None = Field(default=None, description="the archive's folder, where labels name files by path")
    kind: Literal["classification", "multilabel", "regression"] = Field(
        default="classification",
        description="what 'label' holds: one class, several labels with ';' between them ([] for none), or a number",
    )
    out: Path = Field(description="folder of the probe")
    folds: int = Field(default=5, ge=2, description="folds of the cross-validation")
    seed: int = Field(default=0, ge=0, description="seed of the folds and the interval")
    split: str | None = Field(default=None, description="use only the rows of this split of the CSV")
    allow_leak: bool = Field(default=False, description="go on although a group or an equal image lies in two splits")

    def cli_cmd(self) -> None:
        """Run the command."""
        from lejepa_med.embed import EmbeddingTable
        from lejepa_med.evaluation.fit import fit_probe
        from lejepa_med.evaluation.labels import join, read_labels
        from lejepa_med.evaluation.show import print_probe
        from lejepa_med.training.archive import progress_bar

        console = _console()
        table = EmbeddingTable.open(self.embeddings)
        columns = self.model_dump(include=set(Columns.model_fields))
        labels = read_labels(self.labels, split=self.split, **columns)
        given = join(table, labels, archive=self.archive or self.labels.parent, kind=self.kind)
        for note in given.notes:  # before the fit, which may refuse what is left
            print(f"labels: {note}")
        for caution in table.info.get("cautions", []):
            print(f"note: {caution}.")
        if "by_folder" in table.info and given.groups == [table.groups[row] for row in given.rows]:
            print(f"groups: {table.info['by_folder']}")
        if given.leak is not None:
            given.leak.check(allow=self.allow_leak, flag="--allow-leak")
            print(f"LEAK: {given.leak}; allowed")
        with progress_bar(console, "probe") as bar:
            task = bar.add_task("", total=100)
            probe = fit_probe(
                table.vectors[given.rows],
                given.labels,
                given.groups,
                ids=given.ids,
                seed=self.seed,
                folds=self.folds,
                encoder=table.encoder,
                progress=lambda fraction, _stage: bar.update(task, completed=round(100 * fraction)),
                table_groups=[table.groups[row] for row in given.rows],
                relatives=given.relatives,
            )
        told = {} if given.leak is None else {"leak": given.leak.report()}
        told |= {"cautions": cautions} if (cautions := table.info.get("cautions")) else {}
        probe = replace(probe, metrics={**probe.metrics, "table": given.report, **told})
        probe.save(self.out)
        print_probe(probe.metrics)
        print(f"wrote {self.out}")


class PredictCommand(Section):
    """Apply a probe to an embedding table: a CSV of ids, predictions, probabilities, novelty and uncertainty.

    Rows that the probe learnt from, and rows of their groups, are marked (seen) and get out-of-fold predictions.
    """

    probe: CliPositionalArg[Path] = Field(description="probe folder of: lejepa-med probe")
    embeddings: CliPositionalArg[Path] = Field(description="embedding table of: lejepa-med embed")
    out: Path = Field(description="CSV file to write")
    names: Path | None = Field(
        default=None, description="folder of a scan or run whose manifest adds the columns path and item"
    )

    def cli_cmd(self) -> None:
        """Run the command."""
        from lejepa_med.embed import EmbeddingTable
        from lejepa_med.evaluation.labels import write_predictions
        from lejepa_med.evaluation.probe import Probe
        from lejepa_med.names import Names

        probe, table = Probe.load(self.probe), EmbeddingTable.open(self.embeddings)
        if probe.encoder != table.encoder:
            raise UserError(
                f"The probe {self.probe} was trained on the vectors of another encoder than {self.embeddings} holds.",
                remedy="Train a probe on this table (lejepa-med probe), or embed the archive with the probe's encoder "
                "(lejepa-med embed), its vectors formed and computed as they were then (lejepa-med vectors and "
                "precision).",
            )
        for caution in table.info.get("cautions", []):
            print(f"note: {caution}.")
        names = None if self.names is None else Names(self.names)
        found = probe.predict(table.vectors, ids=table.ids, groups=table.groups)
        write_predictions(self.out, table.ids, found, probe, names=names)
        for remark in probe.remarks(found):
            print(f"note: {remark}")
        if names is not None:
            print(f"names: {names.note}")
        print(f"wrote {len(table.ids):,} predictions to {self.out}")


class SearchCommand(Section):
    """Find the items of an embedding table that are most like an image, or like another item of the table.

    Prints the nearest items with their score, the cosine of the two vectors: 1 is the most alike, -1 the least. An item
    of the table is not its own neighbour; a file that was embedded is found again with a score of 1.
    """

    query: CliPositionalArg[list[str]] = Field(
        min_length=1,
        description="image files (or folders of them) that the encoder takes, or ids of the table; with --names also "
        "paths below the archive",
    )
    table: Path = Field(description="embedding table of: lejepa-med embed")
    encoder: Path | None = Field(
        default=None, description="run folder of the encoder that made the table; needed for files, not for ids"
    )
    neighbours: int = Field(
        default=10, ge=1, validation_alias=AliasChoices("neighbours", "k"), description="how many for each query"
    )
    where: list[str] = Field(
        default=[],
        description="only items that meet this, and each further --where: 'label=spiral', 'label=spiral,merger' (one "
        "of them), 'label!=merger', 'mpp>=0.4', 'mpp<=0.6'; of label, group and what embed --columns kept",
    )
    leave_out_own_group: bool = Field(
        default=False, description="no neighbours of the query's own patient, slide or field"
    )
    names: Path | None = Field(
        default=None,
        validation_alias=AliasChoices("names", "scan"),
        description="folder of a scan or run whose manifest adds the columns path and item",
    )
    catalog: Path | None = Field(default=None, description="CSV or Parquet with facts of the files: path, mpp, bands")
    out: Path | None = Field(default=None, description="CSV file to write; None: print the table")
    device: str = Field(default="cpu", description="of the encoder: cpu or cuda")

    def cli_cmd(self) -> None:
        """Run the command."""
        from data_adapters.atomic import write_text
        from lejepa_med.names import Names
        from lejepa_med.search.find import find_neighbours

        names = None if self.names is None else Names(self.names)

        def tell(text: str) -> None:
            print(f"note: {text}", file=sys.stderr)

        found = find_neighbours(
            self.query,
            self.table,
            encoder=self.encoder,
            k=self.neighbours,
            where=self.where,
            leave_out_own_group=self.leave_out_own_group,
            names=names,
            catalog=self.catalog,
            device=self.device,
            tell=tell,
        )
        if names is not None:
            print(f"names: {names.note}", file=sys.stderr)
        if self.out is None:
            print(found.as_text(), end="")
            return
        self.out.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.out, found.as_csv())
        print(f"wrote {len(found.rows):,} neighbours to {self.out}")


class Cli(BaseSettings):
    """In-domain self-supervised pretraining (LeJEPA) on your own archive, embeddings and small-label probes."""

    model_config = SettingsConfigDict(
        cli_prog_name="lejepa-med",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_use_class_docs_for_groups=True,
        cli_exit_on_error=False,
        env_prefix="LEJEPA_CLI_UNUSED_",  # settings come from flags and files only
    )

    scan: CliSubCommand[ScanCommand]
    split: CliSubCommand[SplitCommand]
    inspect: CliSubCommand[InspectCommand]
    augment: CliSubCommand[AugmentCommand]
    pretrain: CliSubCommand[PretrainCommand]
    embed: CliSubCommand[EmbedCommand]
    precision: CliSubCommand[PrecisionCommand]
    vectors: CliSubCommand[VectorsCommand]
    probe: CliSubCommand[ProbeCommand]
    predict: CliSubCommand[PredictCommand]
    search: CliSubCommand[SearchCommand]
    names: CliSubCommand[NamesCommand]
    select: CliSubCommand[SelectCommand]
    diff: CliSubCommand[DiffCommand]
    stability: CliSubCommand[StabilityCommand]
    serve: CliSubCommand[ServeCommand]
    work: CliSubCommand[WorkCommand]
    backup: CliSubCommand[BackupCommand]
    restore: CliSubCommand[RestoreCommand]
    key: CliSubCommand[KeyCommand]
    options: CliSubCommand[OptionsCommand]
    doctor: CliSubCommand[DoctorCommand]

    def cli_cmd(self) -> None:
        """Run the chosen command."""
        CliApp.run_subcommand(self)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `lejepa-med`. What a user can put right is printed in one line; exit code 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    quiet_readers()
    hook, threading.excepthook = threading.excepthook, _in_thread
    try:
        with ended_by_signals():
            try:
                CliApp.run(Cli, cli_args=_joined(join_options(arguments)) or ["--help"])
            finally:
                _flush()
    except ValidationError as error:
        _fail(f"{issues(error)}. See {_help(arguments)}.")
    except SettingsError as error:
        _fail(f"{error}. See {_help(arguments)}.")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has ended, as `head` does
        sys.exit(141)
    except Exception as error:
        known = explained(error)
        if known is None:
            raise
        _fail(str(known))
    finally:
        threading.excepthook = hook


def _flush() -> None:
    """Flush standard output here, where an error of the disk behind it can still be explained."""
    try:
        sys.stdout.flush()
    except OSError:
        # Python flushes what is left once more when it ends, and would turn our exit code into 120
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _in_thread(failed: threading.ExceptHookArgs) -> None:
    """Print no traceback for a fault of the machine in a thread, such as TensorBoard's: the command meets it, too."""
    if failed.exc_value is None or explained(failed.exc_value) is None:
        threading.__excepthook__(failed)


def _help(arguments: list[str]) -> str:
    """The command that explains what was asked for: that of the command where there is such a one."""
    known = [name for name in arguments[:1] if name in Cli.model_fields]
    return " ".join(["lejepa-med", *known, "--help"])


def _joined(arguments: list[str]) -> list[str]:
    """`--fractions train=.8 test=.2` as the one value that the parser takes, `train=.8,test=.2`.

    In a search a name of a file, or a condition, may have commas and brackets, which the parser takes for lists.
    """
    if arguments[:1] == ["search"]:
        flags = ("--where", "--leave-out-own-group", "--no-leave-out-own-group")
        alone = [not before.startswith("-") or before in flags for before in ["", *arguments[:-1]]]
        return [
            f'"{text}"' if whole and not text.startswith("-") and set(text) & set(",[]{}") else text
            for text, whole in zip(arguments, alone, strict=True)
        ]
    if "--fractions" not in arguments:
        return arguments
    first = arguments.index("--fractions") + 1
    last = first
    while last < len(arguments) and "=" in arguments[last] and not arguments[last].startswith("-"):
        last += 1
    return [*arguments[:first], ",".join(arguments[first:last]), *arguments[last:]] if last > first else arguments


def _fail(message: str) -> None:
    print(f"lejepa-med: {message}", file=sys.stderr)
    sys.exit(2)


def _console(*, stderr: bool = True) -> Any:
    from rich.console import Console

    return Console(stderr=stderr)


if __name__ == "__main__":
    main()
