"""A selection on the terminal."""

from rich.console import Console
from rich.table import Table

from lejepa_med.study.page import figure
from lejepa_med.study.select import ACCURACIES, Selection, rows

# What fits into 80 columns; a file of --out has every score.
COLUMNS = {
    "run": "run", "lambda": "lambda", "C": "C", "loss": "loss", "rankme": "RankMe",
    "linear": "linear", "knn": "k-NN", "state": "verdict",
}  # fmt: skip


def print_selection(selection: Selection, *, console: Console | None = None) -> None:
    """Print the ranking, the agreement of each score with accuracy, and the warnings."""
    console = console or Console()
    found = rows(selection)
    table = Table(title=f"{len(found)} runs, best first by {selection.scores[0].name}", title_justify="left")
    columns = {key: title for key, title in COLUMNS.items() if key in found[0]}
    for key, title in columns.items():
        table.add_column(title, overflow="fold", min_width=16 if key == "run" else len(title), no_wrap=key != "run")
    for row in found:
        table.add_row(*(figure(row[key]) for key in columns))
    console.print(table)
    if selection.agreement:
        console.print(
            _agreement("Spearman with accuracy (95 % interval); +1: the score puts the best run first", selection)
        )
        if selection.within:
            console.print(_agreement("The same within each architecture", selection, within=True))
    else:
        measured = any(run.online.get(key) is not None for run in selection.runs for key in ACCURACIES)
        console.print(
            "A correlation with accuracy needs three runs with an accuracy."
            if measured
            else "No accuracy to compare with: give --labels, or train with a catalogue that has labels."
        )
    console.print(
        f"disk: {', '.join(f'{run.folder.name} {run.bytes / 1e6:,.0f} MB' for run in selection.runs)}", highlight=False
    )
    for warning in selection.warnings:
        console.print(f"[yellow]note:[/] {warning}", highlight=False)


def _agreement(title: str, selection: Selection, *, within: bool = False) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("score")
    for name in ACCURACIES.values():
        table.add_column(name)
    for score in selection.scores:
        cells = []
        for key in ACCURACIES:
            c = (selection.within if within else selection.agreement).get((score.key, key))
            cells.append("–" if c is None else f"{c.value:+.2f} ({c.low:+.2f} to {c.high:+.2f}), {c.runs} runs")
        table.add_row(score.name, *cells)
    return table
