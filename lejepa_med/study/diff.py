"""What differs between two runs: settings, data, software and curves, from whatever their folders hold."""

import csv
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data_adapters.atomic import write_text
from data_adapters.errors import UserError
from data_adapters.manifest import Manifest
from data_adapters.tables import count
from lejepa_med.config import ORIGINS, ObjectiveConfig, flat, origins_of, read_settings, setting_text
from lejepa_med.errors import ConfigError
from lejepa_med.methods.registry import own_settings
from lejepa_med.models.embed import archive_digest
from lejepa_med.models.folder import read_info
from lejepa_med.page import figure, render_page
from lejepa_med.plot import compared
from lejepa_med.study.runs import final_means
from lejepa_med.training.folder import RunFolder, read_lines
from lejepa_med.training.report import CURVES, ONLINE
from lejepa_med.training.verdict import judge

Row = tuple[str, str, str]  # what, and its values in the first and in the second run
Records = list[dict[str, Any]]
Found = TypeVar("Found")
WINDOW = 0.05  # part of the common steps before an equal step over which records are averaged: single ones are noisy
RANKS = {"backbone/effective_rank": "effective rank, backbone", "projector/effective_rank": "effective rank, projector"}
ACCURACIES = {"knn": "k-NN accuracy", "linear": "linear probe accuracy"}
ABSENT = "(not there)"


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a run folder says, as far as it says it.

    Attributes:
        name: of the folder.
        settings: by their names; empty where config.yaml cannot be read.
        origins: where they came from; None where it is not recorded.
        data: of the archive, with the adapter's options.
        contents: of the items, to count those of both runs; None without a manifest.
        software: versions, device and threads.
        course: how far it came, and its verdict.
        history: records of metrics.jsonl.
        online: records of online.jsonl.
        notes: what is missing or cannot be read.
    """

    name: str
    settings: Mapping[str, Any]
    origins: Mapping[str, str] | None
    data: Mapping[str, Any]
    contents: frozenset[tuple[str, str]] | None
    software: Mapping[str, Any]
    course: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    online: Sequence[Mapping[str, Any]]
    notes: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two runs side by side; the rows of settings, data and software are those that differ."""

    runs: tuple[RunFacts, RunFacts]
    settings: Sequence[Row]
    same: int
    data: Sequence[Row]
    software: Sequence[Row]
    course: Sequence[Row]
    equal_steps: Sequence[tuple[int, Sequence[Row]]]
    end: Sequence[Row]
    notes: Sequence[str]

    @property
    def names(self) -> tuple[str, str]:
        """Of both runs, distinct also where their folders have one name."""
        return f"A: {self.runs[0].name}", f"B: {self.runs[1].name}"


def read_facts(folder: Path) -> RunFacts:
    """Read a run folder, with a note for each file that is missing, damaged or of an earlier release.

    Raises:
        ConfigError: the folder holds nothing of a run.
    """
    run = RunFolder(folder)
    if not any(path.exists() for path in (run.config, run.metrics, run.encoder)):
        raise ConfigError(f"{folder} holds no run.", remedy="Give two run folders of: lejepa-med pretrain")
    notes: list[str] = []

    def tried(what: str, action: Callable[[], Found], otherwise: Found, *, lost: str) -> Found:
        try:
            return action()
        except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
            notes.append(f"{what} is missing, damaged or of another release: {lost} cannot be compared.")
            return otherwise

    tree: dict[str, Any] = tried("config.yaml", lambda: dict(read_settings(run.config)), {}, lost="settings")
    origins = origins_of(tree)
    with suppress(ValidationError):
        if isinstance(tree.get("objective"), dict):
            tree["objective"] = own_settings(ObjectiveConfig.model_validate(tree["objective"]))
    if tree and origins is None:
        notes.append("config.yaml is of a release that did not record where settings came from.")
    settings = {name: value for name, value in flat(tree).items() if not name.startswith(f"{ORIGINS}.")}
    info: dict[str, Any] = tried("encoder/", lambda: read_info(run.encoder), {}, lost="the release and the last step")
    manifest = tried("manifest.parquet", lambda: Manifest.read(run.manifest), None, lost="groups and splits")
    data: dict[str, Any] = tried("manifest.parquet", lambda: _data(run, manifest, info), {}, lost="the archive")
    history: Records = tried("metrics.jsonl", lambda: _records(run.metrics), [], lost="curves")
    online: Records = tried("online.jsonl", lambda: _records(run.online), [], lost="accuracies")
    if not history:
        notes.append("metrics.jsonl has no record: there are no curves.")
    if not online:
        notes.append("online.jsonl has no record: there are no accuracies.")
    if absent := [key for key in ("loss", *RANKS) if history and all(row.get(key) is None for row in history)]:
        notes.append(f"metrics.jsonl has no {', '.join(absent)}: it is of another release, or damaged.")
    if online and all(row.get(key) is None for row in online for key in ACCURACIES):
        notes.append("Its evaluations have no accuracies: its archive had no labels, or too few.")
    software = {"lejepa-med": info.get("version"), **info.get("software", {})}
    if info and "software" not in info:
        notes.append("Its encoder folder is of a release that did not record the versions of its software.")
    if history:
        software["CPU threads at the end"] = history[-1].get("threads")
    batch = settings.get("train.batch_size")
    course: dict[str, Any] = tried(
        "metrics.jsonl", lambda: _course(info, history, online, batch=batch), {}, lost="pace and verdict"
    )
    if "finished" not in str(course.get("steps", "finished")):
        notes.append(f"It is not finished: {course['steps']}.")
    return RunFacts(
        name=folder.resolve().name,
        settings=settings,
        origins=origins,
        data=data,
        contents=None
        if manifest is None
        else frozenset(zip(*(manifest.column(k) for k in ("digest", "item")), strict=True)),
        software=software,
        course=course,
        history=history,
        online=online,
        notes=notes,
    )


def _records(file: Path) -> Records:
    return [row for row in read_lines(file) if isinstance(row, dict) and isinstance(row.get("step"), int)]


def _data(run: RunFolder, manifest: Manifest | None, info: Mapping[str, Any]) -> dict[str, Any]:
    """What was trained on: from the manifest, or as far as the encoder folder says it."""
    counts = info.get("data", {})
    found: dict[str, Any] = {
        "archive digest": str(counts["fingerprint"])[:12] if counts else None,
        "items": counts.get("records"),
        "groups": counts.get("groups"),
    }
    adapter: Mapping[str, Any] = info.get("adapter", {})
    if manifest is not None:
        adapter = manifest.adapter
        found |= {
            "archive digest": archive_digest(manifest)[:12],
            "items": len(manifest),
            "groups": len(set(manifest.column("group"))),
            "samples an epoch": sum(manifest.column("samples")),
            "labels": _counted(manifest.column("label")),
            "splits": _counted(manifest.column("split")),
        }
    rejected = run.root / "rejected.csv"
    if rejected.is_file():
        with rejected.open(newline="", encoding="utf-8") as stream:
            reasons = [row["reason"] for row in csv.DictReader(stream)]
        found |= {"rejected files": len(reasons), "reasons": _counted(reasons)}
    found["reads that failed while training"] = len(read_lines(run.bad_files))
    found |= {"adapter": adapter.get("adapter"), "adapter version": adapter.get("version")}
    return found | {f"data.options.{name}": value for name, value in adapter.get("options", {}).items()}


def _counted(values: Sequence[str | None]) -> str:
    counts = Counter(value for value in values if value)
    return ", ".join(f"{name} {number:,}" for name, number in counts.most_common(8)) or "none"


def _course(
    info: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    online: Sequence[Mapping[str, Any]],
    *,
    batch: int | None,
) -> dict[str, Any]:
    """How far a run came; minutes and pace are of its steps, without evaluations and the report."""
    training = info.get("training", {})
    step, steps = training.get("step"), training.get("steps")
    last = history[-1]["step"] if history else 0
    found: dict[str, Any] = {
        "steps": f"at least {last:,} done" if step is None else f"stopped at {step:,} of {steps:,}"
    }
    if step is not None and step == steps:
        found["steps"] = f"finished: {steps:,}"
    found["epochs"] = history[-1].get("epoch") if history else None
    before, seconds, samples = 0, 0.0, 0
    for row in history if batch else ():
        if row.get("images_per_second"):
            images = (row["step"] - before) * (batch or 0)
            samples, seconds = samples + images, seconds + images / row["images_per_second"]
        before = row["step"]
    if seconds:
        found |= {"minutes in steps": round(seconds / 60, 2), "images per second": round(samples / seconds, 1)}
    if history:
        found["verdict"] = judge(history, online).text
    return found


def diff(one: Path, other: Path) -> Difference:
    """Compare two run folders.

    Raises:
        ConfigError: a folder holds nothing of a run.
    """
    a, b = read_facts(one), read_facts(other)
    notes = [f"{label} ({run.name}): {note}" for label, run in (("A", a), ("B", b)) for note in run.notes]
    if a.contents is not None and b.contents is not None and a.contents != b.contents:
        both = len(a.contents & b.contents)
        notes.append(
            f"{count(both, 'item')} with equal content in both runs, of {len(a.contents):,} and {len(b.contents):,}."
        )
    names = [n for n in {**a.settings, **b.settings} if n != "out" and not _is_option(n, a, b)]
    settings = [] if not (a.settings and b.settings) else _setting_rows(a, b, names)
    batches = [run.settings.get("train.batch_size") for run in (a, b)]
    if batches[0] != batches[1] and None not in batches:
        notes.append(f"Equal steps are not equally many samples: the batches are {batches[0]} and {batches[1]}.")
    differing = {name for name, _, _ in settings if name.startswith("objective.")} - {"objective.slices"}
    if differing == {"objective.lamb"}:
        notes.append("Lambda differs, so compare the parts of the loss rather than the loss itself.")
    elif differing:
        notes.append("The objectives differ, so their losses are not on one scale.")
    terms = list(dict.fromkeys([*_terms(a.history), *_terms(b.history)]))
    return Difference(
        runs=(a, b),
        settings=settings,
        same=len(names) - len(settings) if a.settings and b.settings else 0,
        data=_rows(a.data, b.data, origins=(a.origins, b.origins)),
        software=_rows(a.software, b.software),
        course=_rows(a.course, b.course, all_of_them=True),
        equal_steps=[(step, rows) for step in _equal_steps(a, b) if (rows := _at(a, b, step, terms))],
        end=_end(a, b, terms),
        notes=notes,
    )


def _is_option(name: str, a: RunFacts, b: RunFacts) -> bool:
    """Whether a setting stands among the adapter's options of both runs, with its default where nobody gave it."""
    return name in a.data and name in b.data


def _setting_rows(a: RunFacts, b: RunFacts, names: Sequence[str]) -> list[Row]:
    found = []
    for name in names:
        if a.settings.get(name, ABSENT) != b.settings.get(name, ABSENT):
            found.append((name, _with_origin(a.settings, name, a.origins), _with_origin(b.settings, name, b.origins)))
    return found


def _with_origin(values: Mapping[str, Any], name: str, origins: Mapping[str, str] | None) -> str:
    if name not in values:
        return ABSENT
    text = setting_text(name, values[name])
    origin = "modality's default" if name.startswith("data.options.") else None
    origin = None if origins is None else origins.get(name, origin)
    return f"{text} ({origin})" if origin else text


def _rows(
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    *,
    origins: tuple[Mapping[str, str] | None, Mapping[str, str] | None] = (None, None),
    all_of_them: bool = False,
) -> list[Row]:
    """What differs, or everything."""
    found = []
    for name in {**a, **b}:
        if all_of_them or a.get(name) != b.get(name):
            values = (_with_origin(side, name, known) for side, known in zip((a, b), origins, strict=True))
            found.append((name, *values))
    return [(name, one, other) for name, one, other in found]


def _terms(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """The loss and its parts, which stand before the learning rate in a record."""
    found: list[str] = []
    for name in history[-1] if history else ():
        if name == "lr":
            break
        if name not in ("step", "epoch", "gradient_norm", "skipped"):
            found.append(name)
    return found


def _equal_steps(a: RunFacts, b: RunFacts) -> list[int]:
    """Quarters of the steps that both runs have recorded."""
    if not (a.history and b.history):
        return []
    common = min(a.history[-1]["step"], b.history[-1]["step"])
    return sorted({max(1, math.ceil(common * part / 4)) for part in (1, 2, 3, 4)})


def _at(a: RunFacts, b: RunFacts, step: int, terms: Sequence[str]) -> list[Row]:
    """Means of the records shortly before a step, and the last evaluation until then."""
    common = min(a.history[-1]["step"], b.history[-1]["step"])
    found = []
    for key, title in {**{term: term for term in terms}, **RANKS}.items():
        values = [_before(run.history, key, step, span=WINDOW * common) for run in (a, b)]
        found.append((title, figure(values[0]), figure(values[1])))
    for key, title in ACCURACIES.items():
        rows = [[row for row in run.online if row["step"] <= step and row.get(key) is not None] for run in (a, b)]
        found.append((title, *(figure(row[-1][key] if row else None) for row in rows)))  # type: ignore[arg-type]
    return [row for row in found if set(row[1:]) != {"–"}]


def _before(history: Sequence[Mapping[str, Any]], key: str, step: int, *, span: float) -> float | None:
    until = [
        (row["step"], row[key]) for row in history if row["step"] <= step and isinstance(row.get(key), int | float)
    ]
    return float(np.mean([value for at, value in until if at > until[-1][0] - span])) if until else None


def _end(a: RunFacts, b: RunFacts, terms: Sequence[str]) -> list[Row]:
    """Means over the last tenth of the records, and the last evaluation with its interval."""
    means = [final_means(run.history) if run.history else {} for run in (a, b)]
    keys = {**{term: term for term in terms}, **RANKS, "images_per_second": "images per second, last records"}
    found = [(title, figure(means[0].get(key)), figure(means[1].get(key))) for key, title in keys.items()]
    last = [run.online[-1] if run.online else {} for run in (a, b)]
    found += [(f"{title}, whole sample", *(figure(row.get(key)) for row in last)) for key, title in RANKS.items()]  # type: ignore[misc]
    for key, title in ACCURACIES.items():
        found.append((title, *(_with_interval(row, key) for row in last)))  # type: ignore[arg-type]
    return [row for row in found if set(row[1:]) != {"–"}]


def _with_interval(row: Mapping[str, Any], key: str) -> str:
    value, interval = row.get(key), row.get(f"{key}_interval")
    return f"{value:.3f} ({interval[0]:.2f} to {interval[1]:.2f})" if value is not None and interval else figure(value)


def print_diff(found: Difference, *, console: Console | None = None) -> None:
    """Print what differs."""
    console = console or Console()
    if found.runs[0].settings and found.runs[1].settings:
        _table(console, f"settings that differ ({found.same} are the same)", found, found.settings)
    _table(console, "data that differ", found, found.data)
    _table(console, "software and machine that differ", found, found.software)
    _table(console, "course", found, found.course)
    for step, rows in found.equal_steps:
        _table(console, f"at step {step:,}", found, rows)
    _table(console, "at the end", found, found.end)
    for note in found.notes:
        console.print(f"[yellow]note:[/] {escape(note)}", highlight=False, soft_wrap=True)


def _table(console: Console, title: str, found: Difference, rows: Sequence[Row]) -> None:
    if not rows:
        console.print(f"{escape(title)}: nothing", highlight=False)
        return
    table = Table(title=escape(title), title_justify="left")
    for name in ("", *found.names):
        table.add_column(escape(name), overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table, highlight=False)


def check_page(file: Path) -> None:
    """Refuse a file that is no page, before anything is read.

    Raises:
        ConfigError: another suffix than .html.
    """
    if file.suffix != ".html":
        raise ConfigError(f"{file} is no .html file.", remedy="Name the page --out diff.html.")


def write_diff(file: Path, found: Difference) -> None:
    """Write the page: the tables, and the curves of both runs in one plot each."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(
        file,
        render_page(
            "lejepa_med.study",
            "diff.html.j2",
            title=f"{found.runs[0].name} and {found.runs[1].name}",
            found=found,
            plots=_plots(found),
        ),
    )


def _plots(found: Difference) -> list[tuple[str, str, str]]:
    """Heading, how to read it, and SVG of each curve that a run has."""
    histories, online = (
        {k: getattr(run, what) for k, run in zip(found.names, found.runs, strict=True)}
        for what in ("history", "online")
    )
    plots = []
    drawn: set[str] = set()
    for records, wanted, where in ((histories, CURVES, ""), (online, ONLINE, " (evaluations)")):
        for name, keys, scale, note in wanted:
            for key, label in keys.items():
                plots.append(
                    (f"{name}{f', {label}' if label else ''}{where}", note, compared(records, key, scale=scale))
                )
                drawn.add(key)
    further = dict.fromkeys(term for run in found.runs for term in _terms(run.history) if term not in drawn)
    plots += [(name, "A part of the loss.", compared(histories, name)) for name in further]
    return [entry for entry in plots if entry[2]]
