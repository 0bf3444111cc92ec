"""Commands about embeddings: embed, probe, predict, search. Heavy imports wait for the command."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field
from pydantic_settings import CliPositionalArg

from lejepa_med.cli.settings import make_console
from lejepa_med.config import Columns, Section
from lejepa_med.errors import UserError


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
    exclude: Path | None = Field(default=None, description="CSV with ids of images to leave out, such as outliers.csv")
    device: str = Field(default="cpu", description="cpu or cuda")
    random: bool = Field(default=False, description="use fresh random weights instead: the control for every probe")
    views: int | None = Field(
        default=None,
        description="fixed views that are averaged, in place of the encoder's own; 1: one pass an image. The table is "
        "then that of another encoder",
    )
    per_tile: bool = Field(
        default=False,
        description="a row for each tissue tile of a slide, with the columns whole (the slide's id), x, y and side in "
        "level-0 pixels, level0_mpp and tile_mpp, in place of one row a slide",
    )
    columns: list[str] = Field(
        default=[], description="facts to search by, kept as they are: split, samples, or the catalogue's mpp, ra, ..."
    )
    thumbnails: bool = Field(
        default=False,
        description="keep a picture of 96 px of what the encoder saw of each image beside the table, for the lab page; "
        "docs/privacy.md says what it reveals",
    )

    def cli_cmd(self) -> None:
        """Run the command."""
        from rich.markup import escape

        from data_adapters.exclusion import read_exclusion, without
        from data_adapters.manifest import Manifest
        from lejepa_med.archive import leak_text, progress_bar, run_catalog, scan
        from lejepa_med.cpu import loader_workers
        from lejepa_med.models.embed import embed_archive, in_parts
        from lejepa_med.models.folder import load_encoder, randomised

        console = make_console()
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
        excluded = [] if self.exclude is None else read_exclusion(self.exclude)
        if excluded:
            items = len(manifest)
            manifest = without(manifest, excluded)
            print(f"excluded: {items - len(manifest):,} of {items:,} items, by {self.exclude}")
        columns = list(self.columns)
        if self.per_tile:
            items = len(manifest)
            manifest, found_columns = in_parts(encoder.adapter, manifest)
            columns += [name for name in found_columns if name not in columns]
            console.print(f"tiles: {len(manifest):,} of {items:,} items", highlight=False)
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
                excluded=excluded,
                columns=columns,
                thumbnails=self.thumbnails,
                caution=lambda text: console.print(
                    f"[yellow]note:[/] {escape(text)}.", highlight=False, soft_wrap=True
                ),
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        print(
            f"wrote {info['embedded']:,} vectors of {info['dim']} numbers to {self.out} ({info['failed']:,} failed), "
            f"computed in {encoder.precision}"
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
    exclude: Path | None = Field(default=None, description="CSV with ids of images to leave out, such as outliers.csv")
    photo_z: bool = Field(
        default=False,
        description="of redshifts: also sigma NMAD, the share of outliers and the bias of the out-of-fold values",
    )
    allow_leak: bool = Field(default=False, description="go on although a group or an equal image lies in two splits")

    def cli_cmd(self) -> None:
        """Run the command."""
        from data_adapters.exclusion import read_exclusion
        from lejepa_med.archive import progress_bar
        from lejepa_med.models.embed import EmbeddingTable
        from lejepa_med.probes.confounders import acquisition_columns
        from lejepa_med.probes.label_table import further_columns, join, read_labels
        from lejepa_med.probes.output import out_of_fold_photo_z, print_probe
        from lejepa_med.probes.probe import fit_probe

        console = make_console()
        table = EmbeddingTable.open(self.embeddings)
        columns = self.model_dump(include=set(Columns.model_fields))
        labels = read_labels(self.labels, split=self.split, **columns)
        given = join(table, labels, archive=self.archive or self.labels.parent, kind=self.kind)
        if self.exclude is not None:
            given = given.without(read_exclusion(self.exclude))
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
                columns=acquisition_columns(
                    {
                        **{name: [values[row] for row in given.rows] for name, values in table.context.items()},
                        **further_columns(labels, given.numbers),
                    }
                ),
            )
        told = {} if given.leak is None else {"leak": given.leak.report()}
        told |= {"cautions": cautions} if (cautions := table.info.get("cautions")) else {}
        if self.photo_z:
            told |= {"photo_z": out_of_fold_photo_z(probe)}
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
        from lejepa_med.models.embed import EmbeddingTable, whole_ids
        from lejepa_med.probes.names import Names
        from lejepa_med.probes.output import write_predictions
        from lejepa_med.probes.probe import Probe

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
        named = None if names is None else whole_ids(self.embeddings)
        write_predictions(self.out, table.ids, found, probe, names=names, named=named)
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
        from lejepa_med.probes.names import Names
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
