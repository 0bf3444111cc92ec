"""Commands about an encoder's safety and an archive's order: check, outliers. Heavy imports wait for the command."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg

from lejepa_med.cli.settings import make_console
from lejepa_med.config import Columns
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
