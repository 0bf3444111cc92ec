"""A probe's scores on the terminal, and its predictions as CSV."""

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from data_adapters.atomic import write_text
from data_adapters.errors import UserError
from data_adapters.tables import NO_LABELS
from lejepa_med.probes.examples import Kind
from lejepa_med.probes.probe import Prediction, Probe
from lejepa_med.probes.scores import photo_z

SCORES = {
    "classification": (
        ("balanced_accuracy", "balanced accuracy"),
        ("accuracy", "accuracy"),
        ("macro_f1", "macro F1"),
        ("auroc", "AUROC"),
    ),
    "multilabel": (
        ("auroc", "macro AUROC"),
        ("average_precision", "macro average precision"),
        ("macro_f1", "macro F1"),
    ),
    "regression": (("r2", "R2"), ("mae", "mean absolute error"), ("spearman", "Spearman")),
}
"""Columns of each kind; one with an interval shows it."""
LINEAR = {
    "classification": "logistic regression",
    "multilabel": "logistic regressions",
    "regression": "ridge regression",
}
PHOTO_Z = {"sigma_nmad": "sigma NMAD", "outlier_rate": "outliers above 0.15", "bias": "bias"}
SINGULAR = {"probabilities": "probability"}
COLUMNS: dict[Kind, tuple[str, ...]] = {
    "classification": ("label", "knn_label"),
    "multilabel": ("labels", "knn_labels"),
    "regression": ("value", "low", "high", "knn_value"),
}


class Names(Protocol):
    """What `lejepa_med.probes.names.Names` knows of ids: further columns, and their cells for each id."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that are added."""

    def cells(self, ids: Sequence[str]) -> list[tuple[str, ...]]:
        """The cells of `columns` for each id."""


def print_probe(metrics: dict[str, Any], *, console: Console | None = None) -> None:
    """Print scores, confusion matrix and warnings; `metrics` is `Probe.metrics`."""
    console = console or Console()
    kind = metrics["kind"]
    scores = Table(
        title=f"{metrics['examples']:,} labelled items in {metrics['groups']:,} groups, "
        f"{metrics['folds']}-fold cross-validation by group (95 % intervals)",
        title_justify="left",
    )
    for heading in ("probe", *(title for _, title in SCORES[kind])):
        scores.add_column(heading)
    for key, title in (("linear", LINEAR[kind]), ("knn", f"{metrics['k']}-NN (cosine)")):
        found = metrics[key]
        if found is None:
            scores.add_row(title, "cannot be estimated: too few groups")
            continue
        scores.add_row(title, *(_cell(found, name) for name, _ in SCORES[kind]))
    console.print(scores)
    if kind == "classification":
        console.print(f"chance: {metrics['chance']:.3f}", highlight=False)
        if metrics["linear"] is not None:
            console.print(_confusion(metrics))
    if metrics.get("calibration"):
        before, after = (metrics["calibration"][side]["ece"] for side in ("before", "after"))
        console.print(f"calibration error: {after:.3f} ({before:.3f} before calibration)", highlight=False)
    if metrics.get("interval") and metrics["interval"]["half_width"] is not None:
        found = metrics["interval"]
        measured = found["measured_coverage"]
        held = "" if measured is None else f" (held-out images: {measured:.0%})"
        console.print(f"{found['coverage']:.0%} of predictions within {found['half_width']:.4g}{held}", highlight=False)
    for name, title in PHOTO_Z.items() if metrics.get("photo_z") else ():
        console.print(f"{title}: {_cell(metrics['photo_z'], name)}", highlight=False)
    if metrics["split_receipt"] is not None:
        console.print(f"split receipt: {_receipt(metrics['split_receipt'])}", highlight=False, soft_wrap=True)
    for warning in metrics["warnings"]:
        console.print(f"[yellow]note:[/] {warning}", highlight=False)


def _receipt(receipt: dict[str, Any]) -> str:
    """Describe the folds in a sentence."""
    folds = [
        f"fold {number}: {fold['train']:,} items of {fold['train_groups']:,} groups to learn from, "
        f"{fold['validation']:,} of {fold['validation_groups']:,} to score"
        for number, fold in enumerate(receipt["folds"], start=1)
    ]
    return f"no group on two sides; {'; '.join(folds)}; SHA-256 of groups and folds {receipt['sha256']}"


def _cell(found: dict[str, Any], name: str) -> str:
    if found[name] is None:
        return ""
    interval = found.get(f"{name}_interval")
    return f"{found[name]:.3f}" + ("" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})")


def _confusion(metrics: dict[str, Any]) -> Table:
    table = Table(title="confusion (rows: given label, columns: predicted)", title_justify="left")
    table.add_column("")
    for name in metrics["classes"]:
        table.add_column(name, justify="right")
    for name, row in zip(metrics["classes"], metrics["linear"]["confusion_matrix"], strict=True):
        table.add_row(name, *(f"{count:,}" for count in row))
    return table


def write_predictions(
    file: Path,
    ids: Sequence[str],
    predictions: Sequence[Prediction],
    probe: Probe,
    *,
    names: Names | None = None,
    named: Sequence[str] | None = None,
) -> None:
    """Write a CSV of ids, the fields of the probe's kind, what it has seen, novelty, uncertainty and probabilities.

    With `names`, their columns stand behind the id; `named` are the ids that they know, by default `ids`.

    Raises:
        UserError: `names` knows none of the ids.
    """
    places = [()] * len(ids) if names is None else names.cells(ids if named is None else named)
    stream = io.StringIO()
    writer = csv.writer(stream)
    columns = COLUMNS[probe.kind]
    added = () if names is None else names.columns
    scored = ["seen", "in_sample", "novelty", "uncertainty", *(f"probability {name}" for name in probe.classes)]
    writer.writerow(["id", *added, *columns, *scored])
    for name, place, p in zip(ids, places, predictions, strict=True):
        low, high = p.interval or ("", "")
        every = {
            "label": p.label,
            "knn_label": p.knn_label,
            "labels": ";".join(p.labels or ()) or NO_LABELS,
            "knn_labels": ";".join(p.knn_labels or ()) or NO_LABELS,
            "value": p.value,
            "low": low,
            "high": high,
            "knn_value": p.knn_value,
        }
        own = [*(every[column] for column in columns), p.seen, str(p.in_sample).lower()]
        scores = (p.novelty, p.uncertainty, *((p.probabilities or {})[c] for c in probe.classes))
        writer.writerow([name, *place, *own, *(f"{score:.6f}" for score in scores)])
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, stream.getvalue())


def prediction_columns(found: Sequence[Prediction]) -> dict[str, pa.Array]:
    """Fields of predictions as columns, whatever the kind of the probe.

    A field with a value a class becomes one column a class, `probability CLASS`, and an interval becomes `low` and
    `high`: the names of `lejepa-med predict`. Fields without any value are left out.
    """
    given: dict[str, pa.Array] = {}
    for one in dataclasses.fields(Prediction):
        values = [getattr(prediction, one.name) for prediction in found]
        known = next((value for value in values if value is not None), None)
        if isinstance(known, dict):
            for name in known:
                given[f"{SINGULAR.get(one.name, one.name)} {name}"] = pa.array([value[name] for value in values])
        elif one.name == "interval" and known is not None:
            for place, name in enumerate(("low", "high")):
                given[name] = pa.array([None if value is None else value[place] for value in values], pa.float64())
        elif known is not None:
            given[one.name] = pa.array([list(v) if isinstance(v, tuple) else v for v in values])
    return given


def out_of_fold_photo_z(probe: Probe) -> dict[str, Any]:
    """`scores.photo_z` of a number probe's examples, each answered by the fold that has not seen its group.

    Raises:
        UserError: another kind of probe, or one without folds.
    """
    if probe.kind != "regression" or probe.held_out is None:
        raise UserError(
            "Photometric-redshift figures need redshifts as labels, from two groups at least.",
            remedy="Add --kind regression, or label items of further groups.",
        )
    own = probe.examples
    found = probe.predict(own.vectors, ids=own.ids)
    codes = np.unique(np.array(own.groups), return_inverse=True)[1]
    values = np.array([one.value for one in found], np.float64)
    return photo_z(np.array(own.labels, np.float64), values, codes, seed=int(probe.metrics["seed"]))
