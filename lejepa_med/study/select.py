"""Rank runs without labels by C = loss / lambda^alpha, and ask the labels, where there are any, whether that was right.

The score is equation 8 of LeJEPA (arXiv 2511.08544), with the paper's alpha of .4. Since a perfect batch still has a
SIGReg of about 1, a second score takes lambda times that floor off the loss first. The paper's correlations of up to
.99 are over runs of one architecture and one archive with other hyper-parameters; measure yours before you rely on it.
"""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import rankdata

from data_adapters.atomic import write_text
from data_adapters.catalog import Catalog
from data_adapters.identity import group_id
from data_adapters.manifest import Manifest
from data_adapters.tables import count
from lejepa_med.errors import ConfigError
from lejepa_med.evaluation.enough import FEW as ACCURATE
from lejepa_med.evaluation.enough import records_for, too_few
from lejepa_med.models.folder import load_encoder
from lejepa_med.page import figure, render_page
from lejepa_med.plot import Series, plot
from lejepa_med.study.runs import RunSummary, find_runs, read_run
from lejepa_med.training.folder import RunFolder
from lejepa_med.training.report import LEAST_RANK, LEAST_RANK_SHARE
from lejepa_med.training.sample import FixedSample

DRAWS = 5000
FEW = 8  # runs below which the interval itself is hardly worth anything


@dataclass(frozen=True)
class Correlation:
    """Spearman's coefficient over `runs` runs, and its 95 % percentile bootstrap interval, resampling runs."""

    value: float
    low: float
    high: float
    runs: int


def spearman(
    x: NDArray[np.float64], y: NDArray[np.float64], *, strata: Sequence[str] | None = None, seed: int = 0
) -> Correlation | None:
    """Spearman's rank correlation of x and y, (n,); ties get their mean rank.

    With `strata` (n,) only comparisons within a stratum count: ranks are taken there, as shares of its size, and
    centred; the bootstrap resamples there, too. Strata of fewer than 3 runs are left out.

    None where it is undefined: fewer than 3 runs, or one of both constant. Draws of the bootstrap in which one of both
    is constant have no coefficient and are left out.
    """
    names = np.zeros(len(x), dtype=int) if strata is None else np.unique(np.array(strata), return_inverse=True)[1]
    kept = np.isfinite(x) & np.isfinite(y)
    parts = [np.flatnonzero(kept & (names == name)) for name in np.unique(names)]
    parts = [rows for rows in parts if len(rows) >= 3]
    if not parts:
        return None
    value = float(_rows([(x[rows][None], y[rows][None]) for rows in parts])[0])
    if not np.isfinite(value):
        return None
    rng = np.random.default_rng([seed, 95])
    drawn = [rows[rng.integers(0, len(rows), size=(DRAWS, len(rows)))] for rows in parts]
    values = _rows([(x[rows], y[rows]) for rows in drawn])
    low, high = np.quantile(values[np.isfinite(values)], [0.025, 0.975])
    return Correlation(value=value, low=float(low), high=float(high), runs=sum(map(len, parts)))


def _rows(parts: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> NDArray[np.float64]:
    """The coefficient of each row over parts (draws, n) -> (draws,); NaN where a row is constant in every part."""
    a, b = (np.concatenate([_centred(part[side]) for part in parts], axis=1) for side in (0, 1))
    with np.errstate(invalid="ignore"):
        return np.asarray((a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1)))


def _centred(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks of each row, as shares of its length, less their mean."""
    ranks = rankdata(table, axis=1)
    # divided last, so that equal ranks give zeros
    return np.asarray((ranks - ranks.mean(1, keepdims=True)) / table.shape[1])


ACCURACIES = {"linear": "linear probe", "knn": "k-NN"}


@dataclass(frozen=True)
class Score:
    """A label-free score: its name, whether small is good, and its value for a run (None: undefined)."""

    key: str
    name: str
    small_is_good: bool
    of: Callable[[RunSummary], float | None]


Agreement = dict[tuple[str, str], Correlation]


@dataclass(frozen=True)
class Selection:
    """Runs, best first by the first score.

    Attributes:
        runs: in the order of the first score; those without it last.
        scores: the label-free scores.
        agreement: for each score's key and accuracy, Spearman's coefficient; positive where the score points to the
            accurate runs.
        within: the same where only runs of one architecture are compared with each other; empty unless there are
            several with three runs or more.
        warnings: what a reader must know before believing the order.
    """

    runs: Sequence[RunSummary]
    scores: Sequence[Score]
    agreement: Agreement
    within: Agreement
    warnings: Sequence[str]


def scores(alpha: float) -> list[Score]:
    """The scores, the one that ranks first."""

    def scaled(run: RunSummary) -> float | None:
        return _scaled(run.final.get("loss"), run.lamb, alpha)

    def above_floor(run: RunSummary) -> float | None:
        sigreg, above = run.final.get("sigreg"), run.final.get("sigreg_above_floor")
        if run.lamb is None or sigreg is None or above is None or "loss" not in run.final:
            return None
        return _scaled(run.final["loss"] - run.lamb * (sigreg - above), run.lamb, alpha)

    return [
        Score("C", f"loss / lambda^{alpha:g}", True, scaled),
        Score("C_above_floor", f"(loss - lambda floor) / lambda^{alpha:g}", True, above_floor),
        Score("loss", "loss", True, lambda run: run.final.get("loss")),
        Score("rankme", "RankMe", False, lambda run: run.number("backbone/rankme")),
        Score("effective_rank", "effective rank", False, lambda run: run.number("backbone/effective_rank")),
        Score("lidar", "LiDAR", False, lambda run: run.final.get("projector/lidar")),
    ]


def _scaled(loss: float | None, lamb: float | None, alpha: float) -> float | None:
    return None if loss is None or lamb is None or not math.isfinite(loss) else loss / lamb**alpha


def _order(run: RunSummary, first: Score) -> tuple[bool, float]:
    """By the first score; runs without it come last, by their loss."""
    value = first.of(run)
    return (True, run.final.get("loss", math.inf)) if value is None else (False, value)


def select(
    folders: Sequence[Path],
    *,
    alpha: float = 0.4,
    labels: Path | None = None,
    group_column: str | None = None,
    label_column: str | None = None,
    mixed: bool = False,
    device: str = "cpu",
) -> Selection:
    """Rank runs.

    Args:
        folders: run folders, or folders of them.
        alpha: exponent of lambda.
        group_column: of `labels`; None: group.
        label_column: of `labels`; None: label.
        labels: catalogue (path, label, group) from which accuracies are measured now; None: those that the runs
            measured themselves at their end, from the labels of their own manifest.
        mixed: rank runs of different archives or objectives all the same.
        device: where `labels` are evaluated.

    Raises:
        ConfigError: fewer than two runs, or runs whose losses cannot be compared, without `mixed`.
    """
    runs = [read_run(folder) for folder in find_runs(folders)]
    if len(runs) < 2:
        raise ConfigError(f"There is {len(runs)} run to compare.", remedy="Give the folders of at least two runs.")
    warnings = _differences(runs, mixed=mixed)
    if labels is not None:
        catalog = Catalog(labels, group_column=group_column, label_column=label_column)
        runs = [_labelled(run, catalog, device=device) for run in runs]
        if unused := catalog.unused_rows():
            some = ", ".join(str(number) for number, _ in catalog.first_unused())
            warnings.append(
                f"{unused:,} of {count(len(catalog), 'row', 'matches')} no image of the runs; the first: {some}."
            )
        warnings += [f"{note}." for note in catalog.missing.notes(["label", "group"])]
    listed = scores(alpha)
    if all(listed[0].of(run) is None for run in runs):  # a method without lambda is ranked by its loss
        listed = [score for score in listed if not score.key.startswith("C")]
    first = listed[0]
    runs.sort(key=lambda run: _order(run, first))
    agreement = _agreement(runs, listed)
    counts = Counter(run.architecture for run in runs if run.online.get("linear") is not None)
    several = sum(count >= 3 for count in counts.values()) > 1
    within = _agreement(runs, listed, strata=[run.architecture for run in runs]) if several else {}
    if agreement and (most := max(found.runs for found in agreement.values())) < FEW:
        warnings.append(f"{most} runs with an accuracy: below {FEW}, a rank correlation is mostly chance.")
    warnings += _few_records(runs)
    warnings += [f"{run.folder.name} is not finished." for run in runs if not run.finished]
    warnings += [f"{run.folder.name}: {run.verdict.text}." for run in runs if run.verdict.alarming]
    return Selection(runs=runs, scores=listed, agreement=agreement, within=within, warnings=warnings)


def _agreement(
    runs: Sequence[RunSummary], listed: Sequence[Score], *, strata: Sequence[str] | None = None
) -> Agreement:
    agreement = {}
    for score in listed:
        for key in ACCURACIES:
            values = _column(score.of(run) for run in runs)
            found = spearman(values, _column(run.online.get(key) for run in runs), strata=strata)
            if found is not None:
                sign = -1 if score.small_is_good else 1
                low, high = sorted((sign * found.low, sign * found.high))
                agreement[score.key, key] = replace(found, value=sign * found.value + 0.0, low=low, high=high)
    return agreement


def _few_records(runs: Sequence[RunSummary]) -> list[str]:
    """Runs that were evaluated on too few records for what the table shows of them."""
    found = []
    for run in runs:
        records, dim, fewest = (run.online.get(key) for key in ("records", "backbone/dim", "fewest"))
        if records is not None and records < (needed := records_for(max(LEAST_RANK, LEAST_RANK_SHARE * (dim or 0)))):
            found.append(f"{run.folder.name}, ranks: {too_few(records, needed)}.")
        if fewest is not None and fewest < ACCURATE:
            found.append(f"{run.folder.name}, accuracies: {too_few(fewest, ACCURATE, what='image')} of each class.")
    return found


def _differences(runs: Sequence[RunSummary], *, mixed: bool) -> list[str]:
    found = []
    if (count := len({run.archive for run in runs})) > 1:
        found.append(f"The runs were trained on {count} different archives (or splits).")
    if len(texts := {run.objective for run in runs}) > 1:
        trees = [json.loads(text) for text in sorted(texts)]
        names = sorted({k for tree in trees for k in tree if len({json.dumps(t.get(k)) for t in trees}) > 1})
        found.append(f"The runs have different objectives: {', '.join(names)}.")
    if found and not mixed:
        raise ConfigError(
            f"{' '.join(found)} Their losses are not on one scale.",
            remedy="Compare runs of one archive and objective, or give --mixed to rank them all the same.",
        )
    return found


def _labelled(run: RunSummary, catalog: Catalog, *, device: str) -> RunSummary:
    """The run with accuracies from the catalogue's labels, on the sample that training would have taken."""
    folder = RunFolder(run.folder)
    manifest = Manifest.read(folder.manifest)
    labels, groups = [], []
    for record in manifest.records():
        found = catalog.apply(record, manifest.root)
        labels.append(found.label or "")
        groups.append(record.group if found.group == record.group else group_id(found.group))  # sealed as scan does
    rows = manifest.rows
    for name, values in (("label", labels), ("group", groups)):
        rows = rows.set_column(rows.schema.get_field_index(name), name, pa.array(values, pa.string()))
    encoder = load_encoder(run.folder, device=device)
    sample = FixedSample(replace(manifest, rows=rows), encoder.adapter, size=1000, cache_bytes=512 * 2**20)
    sample.fill(len(sample))
    return replace(run, online={**run.online, **sample.accuracies(sample.embed(encoder.module, device=device))})


def _column(values: Any) -> np.ndarray:
    return np.array([np.nan if value is None else float(value) for value in values])


def rows(selection: Selection) -> list[dict[str, Any]]:
    """The table as one dict a run, best first."""
    return [
        {
            "rank": index + 1,
            "run": run.folder.name,
            "lambda": run.lamb,
            **{score.key: score.of(run) for score in selection.scores},
            **{key: run.online.get(key) for key in ACCURACIES},
            "state": run.verdict.state,
            "verdict": run.verdict.text,
        }
        for index, run in enumerate(selection.runs)
    ]


def write_selection(file: Path, selection: Selection) -> None:
    """Write FILE.csv, or FILE.html with scatter plots of each score against each accuracy.

    Raises:
        ConfigError: another suffix.
    """
    if file.suffix not in (".csv", ".html"):
        raise ConfigError(f"{file} is neither .csv nor .html.", remedy="Name the file --out select.csv or select.html.")
    table = rows(selection)
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".csv":
        stream = io.StringIO()
        writer = csv.DictWriter(stream, fieldnames=list(table[0]))
        writer.writeheader()
        writer.writerows(table)
        write_text(file, stream.getvalue())
        return
    plots = [
        (f"{score.name} and {title}", selection.agreement.get((score.key, key)), _scatter(selection, score, key, title))
        for key, title in ACCURACIES.items()
        for score in selection.scores
    ]
    write_text(
        file,
        render_page(
            "lejepa_med.study",
            "select.html.j2",
            title=f"{len(table)} runs, ranked by {selection.scores[0].name}",
            table=table,
            selection=selection,
            accuracies=ACCURACIES,
            plots=[entry for entry in plots if entry[2]],
        ),
    )


def _scatter(selection: Selection, score: Score, key: str, title: str) -> str:
    points, names = [], []
    for run in selection.runs:
        value, accuracy = score.of(run), run.online.get(key)
        if value is not None and accuracy is not None:
            points.append((value, float(accuracy)))
            names.append(run.folder.name)
    positive = bool(points) and score.small_is_good and all(point[0] > 0 for point in points)
    series = [Series(points=points, dots=True, titles=names)]
    return plot(series, x_label=score.name, y_label=f"{title} accuracy", x_log=positive)


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
            _agreement_table("Spearman with accuracy (95 % interval); +1: the score puts the best run first", selection)
        )
        if selection.within:
            console.print(_agreement_table("The same within each architecture", selection, within=True))
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


def _agreement_table(title: str, selection: Selection, *, within: bool = False) -> Table:
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
