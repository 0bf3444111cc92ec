"""A probe's scores on the terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table


def print_probe(metrics: dict[str, Any], *, console: Console | None = None) -> None:
    """Print scores, confusion matrix and warnings; `metrics` is `Probe.metrics`."""
    console = console or Console()
    scores = Table(
        title=f"{metrics['examples']:,} labelled items in {metrics['groups']:,} groups, "
        f"{metrics['folds']}-fold cross-validation by group",
        title_justify="left",
    )
    for heading in ("probe", "balanced accuracy", "95 % interval", "accuracy", "macro F1", "AUROC"):
        scores.add_column(heading)
    for key, title in (("linear", "logistic regression"), ("knn", f"{metrics['k']}-NN (cosine)")):
        found = metrics[key]
        if found is None:
            scores.add_row(title, "cannot be estimated: too few groups")
            continue
        low, high = found["balanced_accuracy_interval"]
        area = "" if found["auroc"] is None else f"{found['auroc']:.3f}"
        scores.add_row(
            title,
            f"{found['balanced_accuracy']:.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{found['accuracy']:.3f}",
            f"{found['macro_f1']:.3f}",
            area,
        )
    console.print(scores)
    console.print(f"chance: {metrics['chance']:.3f}", highlight=False)
    if metrics["linear"] is not None:
        console.print(_confusion(metrics))
        console.print(f"split receipt: {metrics['split_receipt']}", highlight=False)
    for warning in metrics["warnings"]:
        console.print(f"[yellow]note:[/] {warning}", highlight=False)


def _confusion(metrics: dict[str, Any]) -> Table:
    table = Table(title="confusion (rows: given label, columns: predicted)", title_justify="left")
    table.add_column("")
    for name in metrics["classes"]:
        table.add_column(name, justify="right")
    for name, row in zip(metrics["classes"], metrics["linear"]["confusion_matrix"], strict=True):
        table.add_row(name, *(f"{count:,}" for count in row))
    return table
