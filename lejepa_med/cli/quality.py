"""Commands about an encoder's safety and an archive's order: check, outliers. Heavy imports wait for the command."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg

from lejepa_med.cli.settings import make_console
from lejepa_med.config import Columns, Section
from lejepa_med.errors import UserError


class CheckCommand(Columns):
    """Check whether the vectors give away site, scanner or survey, and whether the labels go with them (confounders).

    Columns come from headers and catalogue (as the table keeps them), from the CSV, and from --scan. Exit code 1 where
    the labels are confounded with a column.
    """

    embeddings: CliPositionalArg[Path] = Field(description="embedding table of: lejepa-med embed")
    labels: CliPositionalArg[Path | None] = Field(
        default=None, description="CSV or Parquet with path or id, label and columns; None: the table's own labels"
    )
    archive: Path | None = Field(default=None, description="the archive's folder, where the CSV names files by path")
    columns: list[str] = Field(default=[], description="check these only; left out: every column that is there")
    leave_out: str | None = Field(
        default=None, description="a column such as site: also give the probe's score on sites that it has not seen"
    )
    kind: Literal["classification", "regression"] = Field(
        default="classification", description="what 'label' holds: a class, or a number"
    )
    split: str | None = Field(default=None, description="use only the rows of this split of the CSV")
    scan: Path | None = Field(default=None, description="folder of a scan or run whose manifest adds header facts")
    out: Path | None = Field(default=None, description="folder for check.html and check.json; None: print only")
    seed: int = Field(default=0, ge=0, description="seed of folds, permutations and intervals")

    def cli_cmd(self) -> None:
        """Run the command."""
        import sys

        from rich.console import Console

        from lejepa_med.archive import progress_bar
        from lejepa_med.quality.check import check_columns, print_check, write_check
        from lejepa_med.quality.inputs import read_inputs

        console = make_console()
        given = read_inputs(
            self.embeddings,
            self.labels,
            archive=self.archive,
            kind=self.kind,
            split=self.split,
            scan=self.scan,
            **self.model_dump(include=set(Columns.model_fields)),
        )
        for note in given.notes:
            print(f"labels: {note}")
        columns = given.columns
        unknown = [name for name in self.columns if name not in columns]
        if unknown:
            raise UserError(
                f"There is no column '{unknown[0]}'.",
                remedy=f"The columns are: {', '.join(sorted(columns)) or 'none'}.",
            )
        chosen = {name: columns[name] for name in self.columns or columns}
        with progress_bar(console, "check") as bar:
            task = bar.add_task("", total=len(chosen))
            report = check_columns(
                given.vectors,
                given.groups,
                chosen,
                labels=given.labels,
                leave_out=self.leave_out,
                seed=self.seed,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        print_check(report, console=Console())
        if self.out is not None:
            write_check(report, self.out, title=f"Confounders: {given.name}")
            print(f"wrote {self.out}/check.html and {self.out}/check.json")
        if report["confounded"]:
            sys.exit(1)


class OutliersCommand(Section):
    """List images to look at: odd ones, copies across groups, pen marks, empty ones, unusual headers, doubtful labels.

    It needs no labels. Pictures are compared where the table has thumbnails (embed --thumbnails); labels are doubted
    where a --probe is given. Fill the column `exclude` of outliers.csv, and give it to pretrain, embed or probe as
    --exclude.
    """

    embeddings: CliPositionalArg[Path] = Field(description="embedding table of: lejepa-med embed --thumbnails")
    probe: Path | None = Field(default=None, description="classification probe of this table, whose labels are doubted")
    share: float = Field(default=0.01, gt=0, le=1, description="share of the images that are listed as odd")
    scan: Path | None = Field(
        default=None, description="folder of a scan or run whose manifest adds paths and header facts"
    )
    out: Path = Field(description="folder for outliers.csv and outliers.html")

    def cli_cmd(self) -> None:
        """Run the command."""
        from lejepa_med.archive import progress_bar
        from lejepa_med.probes.names import Names
        from lejepa_med.probes.probe import Probe
        from lejepa_med.quality.inputs import read_inputs, read_thumbnails
        from lejepa_med.quality.outliers import describe_pictures, find_outliers
        from lejepa_med.quality.sheet import rows_of, shown_ids, summary, write_outliers

        console = make_console()
        given = read_inputs(self.embeddings, None, scan=self.scan)
        probe = None if self.probe is None else Probe.load(self.probe)
        if probe is not None and probe.encoder != given.encoder:
            raise UserError(
                f"The probe {self.probe} was trained on the vectors of another encoder than {self.embeddings} holds.",
                remedy="Train a probe on this table: lejepa-med probe",
            )
        thumbnails = read_thumbnails(self.embeddings)
        notes = []
        if thumbnails is None:
            notes.append(
                "The table has no thumbnails, so copies, pen marks and empty images were not looked for. Embed again "
                "with --thumbnails."
            )
        pictures = None
        with progress_bar(console, "pictures") as bar:
            task = bar.add_task("", total=len(given.ids))
            if thumbnails is not None:
                pictures = describe_pictures(
                    thumbnails,
                    progress=lambda done, total: bar.update(task, completed=done, total=total),
                )
        found = find_outliers(
            given.vectors,
            given.groups,
            ids=given.ids,
            pictures=pictures,
            columns=given.columns,
            probe=probe,
            share=self.share,
        )
        rows = rows_of(found, ids=given.ids, groups=given.groups, labels=given.labels)
        shown = shown_ids(rows)
        names = None
        if self.scan is not None:
            known = Names(self.scan)
            names = {
                name: "/".join(filter(None, cell)) for name, cell in zip(given.ids, known.cells(given.ids), strict=True)
            }
            notes.append(f"names: {known.note}") if "no path" in known.note else None
        small = {name: thumbnails[row] for row, name in enumerate(given.ids) if name in shown} if thumbnails else None
        write_outliers(
            rows,
            self.out,
            title=f"To look at: {given.name}",
            images=len(given.ids),
            notes=notes,
            thumbnails=small,
            names=names,
        )
        for text in (*notes, *summary(rows, images=len(given.ids))):
            print(text)
        print(f"wrote {self.out}/outliers.csv and {self.out}/outliers.html")


class RetrievalCommand(Columns):
    """Measure how often the nearest neighbours share the label: recall@k and mAP by cosine, Euclid and whitened cosine.

    By label the query's own patient, slide or field is left out. By group it shows how far the vectors tell patients
    apart.
    """

    embeddings: CliPositionalArg[Path] = Field(description="embedding table of: lejepa-med embed")
    labels: CliPositionalArg[Path | None] = Field(
        default=None, description="CSV or Parquet with path or id, and label; None: the table's own labels"
    )
    archive: Path | None = Field(default=None, description="the archive's folder, where the CSV names files by path")
    split: str | None = Field(default=None, description="use only the rows of this split of the CSV")
    out: Path | None = Field(default=None, description="JSON file to write; None: print only")
    seed: int = Field(default=0, ge=0, description="seed of the queries and intervals")

    def cli_cmd(self) -> None:
        """Run the command."""
        import json

        from rich.console import Console

        from data_adapters.atomic import write_text
        from lejepa_med.archive import progress_bar
        from lejepa_med.quality.inputs import read_inputs
        from lejepa_med.quality.retrieval import measure_retrieval, print_retrieval

        columns = self.model_dump(include=set(Columns.model_fields))
        given = read_inputs(self.embeddings, self.labels, archive=self.archive, split=self.split, **columns)
        if given.labels is None:
            raise UserError(
                f"The table {self.embeddings} has no labels.", remedy="Give a CSV with path (or id) and label."
            )
        with progress_bar(make_console(), "retrieval") as bar:
            task = bar.add_task("", total=3)
            report = measure_retrieval(
                given.vectors,
                given.labels,
                given.groups,
                seed=self.seed,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        print_retrieval(report, console=Console())
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.out, json.dumps(report, ensure_ascii=False, indent=1, allow_nan=False) + "\n")
            print(f"wrote {self.out}")
