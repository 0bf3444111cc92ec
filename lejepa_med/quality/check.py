"""Check an embedding table for confounders: measure every metadata column beside the labels, and write the report."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from data_adapters.atomic import write_text
from data_adapters.tables import count
from lejepa_med.errors import UserError
from lejepa_med.page import render_page
from lejepa_med.probes.confounders import Check, Value, unseen_groups
from lejepa_med.probes.examples import kind_of
from lejepa_med.probes.probe import fit_probe

PAGE, DOCUMENT = "check.html", "check.json"
SCORE = {"classification": "balanced_accuracy", "regression": "spearman"}
COLOURS = {"confounded": "bad", "tied": "warn", "encoded": "warn", "clear": "", "unknown": "soft"}


def check_columns(
    vectors: NDArray[Any],
    groups: Sequence[str],
    columns: Mapping[str, Sequence[Value]],
    *,
    labels: Sequence[Value] | None = None,
    leave_out: str | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure each column beside the labels; return the report as JSON.

    Args:
        vectors: (n, dim), of one encoder.
        groups: patient, slide or field of each, (n,).
        columns: (n,) values by name.
        labels: class names or numbers, (n,), None where an image has none.
        leave_out: a column; the report then compares the score on groups with that on unseen values of the column.
        seed: of folds, permutations and intervals.
        progress: gets (columns done, columns in all).

    Returns:
        `images`, `groups`, `label` (how well it is predicted; null without labels), `columns` (`Finding.as_json`, the
        most serious first), `leave_out` (null where not asked for), and `confounded` (names of columns).

    Raises:
        UserError: no column, or `leave_out` is none of them, or there are no labels for it.
    """
    if not columns:
        raise UserError(
            "There is no column to check: nothing tells how the images were made.",
            remedy="Give a CSV with columns such as site or scanner beside path and label, or embed the archive with "
            "such a catalogue (lejepa-med embed --catalog FILE).",
        )
    steps = len(columns) + (2 if leave_out is not None else 0)
    if leave_out is not None:
        _check_leave_out(leave_out, columns, labels)
    check = Check(vectors, groups, labels=labels, seed=seed)
    found = check.columns(columns, progress=None if progress is None else lambda done, _: progress(done, steps))
    label = check.label
    report: dict[str, Any] = {
        "images": len(vectors),
        "groups": len(set(groups)),
        "label": None,
        "columns": [one.as_json() for one in found],
        "confounded": [one.column for one in found if one.state == "confounded"],
        "leave_out": None,
    }
    if label is not None:
        told = check.label_prediction
        report["label"] = {
            "images": len(label.rows),
            "values": dict(zip(label.names, np.bincount(label.codes).tolist(), strict=True)),
            "prediction": None if told is None else vars(told),
            "reason": label.reason or ("" if told else "too few groups have each label"),
        }
    if leave_out is not None:
        assert labels is not None
        if progress is not None:
            progress(len(columns), steps)
        report["leave_out"] = score_unseen(vectors, labels, groups, columns[leave_out], column=leave_out, seed=seed)
    if progress is not None:
        progress(steps, steps)
    return report


def _check_leave_out(name: str, columns: Mapping[str, Sequence[Value]], labels: Sequence[Value] | None) -> None:
    if name not in columns:
        raise UserError(
            f"There is no column '{name}' to leave out.", remedy=f"The columns are: {', '.join(sorted(columns))}."
        )
    if labels is None:
        raise UserError("A score on unseen values needs labels.", remedy="Give a CSV with the column 'label'.")
    if len({value for value in columns[name] if value is not None}) < 2:
        raise UserError(
            f"The column '{name}' has a single value, so no unseen one can be asked.",
            remedy="Add images of another one, or name another column.",
        )


def score_unseen(
    vectors: NDArray[Any],
    labels: Sequence[Value],
    groups: Sequence[str],
    values: Sequence[Value],
    *,
    column: str,
    seed: int = 0,
) -> dict[str, Any]:
    """Return a probe's scores on unseen groups, and on unseen values of a column (leave-one-site-out), as JSON.

    Folds keep each value of the column on one side, as scikit-learn's StratifiedGroupKFold does with the column as its
    groups; groups that occur with several values join them.
    """
    rows = [
        row
        for row, (label, value) in enumerate(zip(labels, values, strict=True))
        if label is not None and value is not None
    ]
    known: list[Any] = [labels[row] for row in rows]
    kind = kind_of(known)
    own = [groups[row] for row in rows]
    sites = unseen_groups(own, [values[row] for row in rows])
    found: dict[str, Any] = {
        "column": column,
        "images": len(rows),
        "values": len({values[row] for row in rows}),
        "parts": len(set(sites)),
        "score": SCORE[kind],
    }
    for name, grouping in (("seen", own), ("unseen", sites)):
        metrics = fit_probe(np.asarray(vectors)[rows], known, grouping, seed=seed).metrics
        found[name] = {
            "linear": metrics["linear"],
            "knn": metrics["knn"],
            "folds": metrics["folds"],
            "warnings": metrics["warnings"],
        }
    return found


def leave_out_text(found: Mapping[str, Any]) -> str:
    """The comparison of `score_unseen` as a sentence."""
    name = found["score"].replace("_", " ")
    seen, unseen = (found[side]["linear"] for side in ("seen", "unseen"))
    if unseen is None:
        return f"The score on unseen {found['column']} cannot be measured: {found['unseen']['warnings'][-1]}"
    texts = [_interval_text(side, found["score"]) for side in (seen, unseen) if side is not None]
    if seen is None:
        return f"On unseen {found['column']}: {name} {texts[0]}."
    return f"{name.capitalize()} {texts[0]} on unseen groups, and {texts[1]} on unseen {found['column']}."


def _interval_text(scores: Mapping[str, Any], name: str) -> str:
    interval = scores.get(f"{name}_interval")
    if scores[name] is None:
        return "undefined"
    return f"{scores[name]:.3f}" + ("" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})")


def sentences(report: Mapping[str, Any]) -> list[str]:
    """What a person must know, the most serious first."""
    found = [one["sentence"] for one in report["columns"] if one["state"] in ("confounded", "tied", "encoded")]
    if not found:
        checked = sum(one["state"] == "clear" for one in report["columns"])
        found = [f"No confounder found in {count(checked, 'column')}."]
    if report["leave_out"] is not None:
        found.append(leave_out_text(report["leave_out"]))
    return found


def write_check(report: Mapping[str, Any], out: Path, *, title: str) -> None:
    """Write `check.html` and `check.json` into the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / DOCUMENT, json.dumps(report, ensure_ascii=False, indent=1, allow_nan=False) + "\n")
    page = render_page(
        "lejepa_med.quality",
        "check.html.j2",
        filters={"prediction": prediction_text},
        title=title,
        report=report,
        sentences=sentences(report),
        colours=COLOURS,
    )
    write_text(out / PAGE, page)


def prediction_text(found: Mapping[str, Any] | None) -> str:
    """A score with its interval and chance level, as a table has it."""
    if found is None:
        return "–"
    name, score = ("AUROC", found["auroc"]) if found["auroc"] is not None else ("Spearman", found["spearman"])
    interval = found["interval"]
    width = "" if interval is None else f" ({interval[0]:.2f} to {interval[1]:.2f})"
    return f"{name} {score:.2f}{width}, chance {found['chance']:.2f}"


def print_check(report: Mapping[str, Any], *, console: Console) -> None:
    """Print the table and the sentences."""
    table = Table(
        title=f"{report['images']:,} images in {count(report['groups'], 'group')}: predicted on unseen groups, with "
        "95 % intervals",
        title_justify="left",
    )
    for heading in ("column", "finding", "predicted from the vectors", "with the label", "Robustness Index"):
        table.add_column(heading)
    if report["label"] is not None:
        table.add_row("(label)", "", prediction_text(report["label"]["prediction"]), "", "")
    for one in report["columns"]:
        tie, index = one["association"], one["robustness"]
        table.add_row(
            one["column"],
            one["state"],
            prediction_text(one["prediction"]),
            "–" if tie is None else f"V {tie['v']:.2f} (p {tie['p']:.2g})",
            "–" if index is None else f"{index:.2f} (k {one['neighbours']})",
        )
    console.print(table)
    for text in sentences(report):
        console.print(text, highlight=False, soft_wrap=True, markup=False)
