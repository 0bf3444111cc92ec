"""From the archive to a manifest and an adapter: for runs and for every command that reads an archive."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

import data_adapters
from data_adapters.base import Adapter, BaseAdapter, mixed
from data_adapters.catalog import Catalog, participants_of
from data_adapters.exclusion import without
from data_adapters.leaks import NO_GROUPS, Leak, alike
from data_adapters.manifest import Manifest
from data_adapters.record import BY_FILE, BY_ROW
from data_adapters.scan import FILE_SECONDS, Scan, scan_archive
from data_adapters.scan.result import Figures
from data_adapters.tables import count
from lejepa_med.config import LOCAL, DataConfig, load_config
from lejepa_med.errors import ConfigError, UserError

JOURNAL = ".scan"  # inside --out: what the next scan need not read again


def check_exists(archive: Path, catalog: Path | None = None) -> None:
    """Refuse an archive or a catalogue that is not there, before anything else is done.

    Raises:
        UserError: with what to give.
    """
    if not archive.exists():
        raise UserError(f"The archive {archive} does not exist.", remedy="Give the folder that holds the images.")
    if catalog is not None and not catalog.is_file():
        Catalog(catalog)  # its own error


def progress_bar(console: Console, text: str) -> Progress:
    """The one look of a counted job: bar, count, elapsed, ETA."""
    return Progress(
        TextColumn(text),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def scan(
    adapter: Adapter,
    archive: Path,
    *,
    catalog: Path | None = None,
    group_column: str | None = None,
    label_column: str | None = None,
    verify: bool = True,
    workers: int | None = None,
    journal: Path | None = None,
    fresh: bool = False,
    file_seconds: float = FILE_SECONDS,
    of_encoder: bool = False,
    split: str | None = None,
    console: Console,
) -> Scan:
    """Scan with a progress bar and a summary table; see `data_adapters.scan.scan_archive`.

    With `of_encoder` the adapter is that of a trained encoder, so the modality is no choice. `split` is the one that
    the command is about to use.

    Raises:
        UserError: the archive does not exist, or nothing in it can be read.
    """
    if catalog is None and (group_column or label_column):
        raise UserError(
            f"--{'group' if group_column else 'label'}-column names a column of a catalogue, and none is given.",
            remedy="Give the table, too: --catalog FILE (of pretrain: --catalog FILE).",
        )
    table = None if catalog is None else Catalog(catalog, group_column=group_column, label_column=label_column)
    with progress_bar(console, "scan") as bar:
        task = bar.add_task("", total=None)
        result = scan_archive(
            adapter,
            archive,
            catalog=table,
            verify=verify,
            workers=workers,
            journal=journal,
            fresh=fresh,
            file_seconds=file_seconds,
            progress=lambda seen, total: bar.update(task, completed=seen, total=total),
        )
    console.print(summary(result, remembered=journal is not None, split=split))
    for note in result.catalog_notes:
        console.print(f"[yellow]catalogue:[/] {escape(note)}", highlight=False, soft_wrap=True)
    participants = participants_of(archive)
    if catalog is None and participants is not None:
        console.print(
            f"[yellow]catalogue:[/] the archive has a participants.tsv, which is not used: --catalog "
            f"{escape(str(participants))} --label-column COLUMN takes its labels, and its participants as groups",
            highlight=False,
            soft_wrap=True,
        )
    if not len(result):
        raise _nothing(archive, result, of_encoder=of_encoder)
    return result


def _nothing(archive: Path, result: Scan, *, of_encoder: bool) -> UserError:
    """Why an archive gives no item: no files, or the reasons with the remedy of the first file."""
    if not result.refused:
        return UserError(f"{archive} holds no files.", remedy="Give the folder that holds the images.")
    reasons = "; ".join(f"{reason} ({number:,})" for reason, number in result.reasons()[:4])
    first = result.refused[0]
    if of_encoder:
        return UserError(
            f"Nothing in {archive} can be read as the encoder needs it: {reasons}.",
            remedy=f"For {first.uri}: {first.remedy}",
        )
    return UserError(
        f"Nothing in {archive} can be read as this modality: {reasons}.",
        remedy=f"For {first.uri}: {first.remedy} Or choose the modality that fits the files: "
        f"{', '.join(data_adapters.names())}.",
    )


FEW = 10  # groups below which folders may be classes
# rules that join equal names of several folders
BY_NAME = ("slide name", "BIDS subject", "file name without its contrast")
FACTS = (
    ("size", "size", ""),
    ("spacing", "spacing", " mm"),
    ("mpp", "resolution", " um/px"),
    ("bands", "bands", ""),
    ("bits", "bit depth", ""),
)


def summary(result: Scan, *, remembered: bool = False, split: str | None = None) -> Table:
    """What scan found, as a table; with what changed since the last scan where that is `remembered`.

    `split`: that is about to be used; its samples are those of an epoch.
    """
    figures = result.figures(key for key, _, _ in FACTS)
    table = Table(title="archive", show_header=False, title_justify="left")
    table.add_row("items", f"{figures.items:,} in {count(figures.groups, 'group')}, {figures.bytes / 2**20:,.1f} MiB")
    _add_groups(table, result)
    if remembered:
        c = result.changes
        table.add_row("files", f"{c.new:,} new, {c.changed:,} changed, {c.same:,} as before, {c.removed:,} removed")
    table.add_row("samples an epoch", escape(_samples(figures, split)))
    for key, title, unit in FACTS:
        counts: Counter[str] = Counter()
        for value, number in figures.facts[key].items():
            counts[_text(json.loads(value))] += number
        if counts:
            shown = ", ".join(f"{value}{unit} ({number:,})" for value, number in counts.most_common(4))
            table.add_row(title, shown + (f", and {len(counts) - 4} more" if len(counts) > 4 else ""))
    for name, values in (("label", figures.labels), ("split", figures.splits)):
        if values:
            table.add_row(name, ", ".join(f"{value} ({number:,})" for value, number in values.most_common(8)))
    _add_duplicates(table, result)
    _add_leak(table, result, figures.splits)
    table.add_row("refused", f"{sum(number for _, number in result.reasons()):,}")
    for reason, number in result.reasons()[:12]:
        table.add_row("", f"{number:,} x {reason}")
    if result.passed:
        beside = sorted(result.passed.items(), key=lambda one: (-one[1], one[0]))
        table.add_row("beside images", ", ".join(f"{number:,} {what}" for what, number in beside) + " (not read)")
    return table


def _samples(figures: Figures, split: str | None) -> str:
    """What an epoch of training draws: of the whole archive, or of the split that is used."""
    if split is not None:
        return f"{figures.parts[split]:,} of the split {split} ({figures.samples:,} in all)"
    parts = ", ".join(f"{name} {number:,}" for name, number in figures.parts.most_common(8))
    return f"{figures.samples:,}" + (f" ({parts})" if parts else "")


def _add_groups(table: Table, result: Scan) -> None:
    """By which rules the groups were made, and what is likely to be wrong about them."""
    found = result.grouping()
    own = {BY_FILE: "each file its own, as nothing says which belong together", BY_ROW: "each row of a file its own"}
    told = []
    for one in found:
        if one.rule in own:
            told.append(f"{one.groups:,} {own[one.rule]}")
        elif one.by_folder:
            told.append(one.by_folder)
        else:
            told.append(f"{one.groups:,} by {one.rule or 'the rule of the modality'} ({count(one.items, 'item')})")
    table.add_row("groups", "; ".join(told))
    for one in found:
        if len(found) == one.groups == 1 < one.items:
            text = "all items are one group, so none can be held out; a catalogue with a column 'group' divides them"
            table.add_row("[yellow]groups", text)
        elif one.by_folder and one.groups < FEW and one.items >= 5 * one.groups:
            below = int(one.rule.partition(":")[2]) + 1
            table.add_row(
                "[yellow]groups",
                "few, by folder: where folders are classes or sites and not patients, give a catalogue with a column "
                f"'group' (or name the column: --group-column), or set the option group_by: folder:{below} takes the "
                "folders below, file each file by itself",
            )
        if (one.rule in BY_NAME or one.by_folder) and one.apart:
            table.add_row(
                "[yellow]groups",
                f"{count(one.apart, 'group', 'has')} items in several folders (by {one.rule}). Where equal names are "
                "different patients, give a catalogue with a column 'group'",
            )


def _add_duplicates(table: Table, result: Scan) -> None:
    copied = result.copied
    if copied.contents:
        table.add_row(
            "[yellow]duplicates", f"{count(copied.contents, 'image', 'lies')} in several groups (duplicates.csv)"
        )
    if copied.within:
        text = f"{count(copied.within, 'image', 'is')} there more than once in one group, as copies or by links"
        table.add_row("[yellow]duplicates", text)


def _add_leak(table: Table, result: Scan, splits: Iterable[str]) -> None:
    if result.leak is not None:
        table.add_row("[bold red]LEAK", f"[bold red]{escape(leak_text(result.leak))}")
    for names in alike(splits):
        written = ", ".join(repr(name) for name in names)
        table.add_row("[yellow]splits", escape(f"{written} are taken as different splits, as they are written"))


def leak_text(leak: Leak) -> str:
    """What a user must hear of a leak, with pseudonyms: the output of a command that succeeds names no file."""
    return (
        f"{leak}. The first groups: {', '.join(leak.first)}; leaks.csv of scan lists all with their paths. "
        f"Scores on such a split are too high. Make a clean one with: lejepa-med split{NO_GROUPS}"
    )


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list | tuple):
        return " x ".join(_text(part) for part in value)
    return str(value)


def run_catalog(encoder: Path, archive: Path) -> dict[str, Any]:
    """Catalogue and columns of the run that an encoder folder lies in, where it was trained on this `archive`.

    Raises:
        UserError: the catalogue is gone.
    """
    run = encoder if (encoder / "config.yaml").is_file() else encoder.parent
    if not ((run / "config.yaml").is_file() and (run / LOCAL).is_file()):
        return {}
    try:
        config = load_config(run / "config.yaml")
    except ConfigError:  # of another release: nothing that embedding needs
        return {}
    manifest = run / "manifest.parquet"  # it has the archive's whole path, local.yaml what was typed
    if config.data.catalog is None or not manifest.is_file() or Manifest.root_of(manifest) != archive.resolve():
        return {}
    if not config.data.catalog.is_file():
        raise UserError(
            f"The run {run} was trained with the catalogue {config.data.catalog}, which is not there any more.",
            remedy=f"Give its new place as --catalog, or embed {run}/manifest.parquet in place of the archive.",
        )
    return config.data.table()


def refusal(adapter: Adapter, result: Scan, *, split: str | None) -> UserError | None:
    """Why training will not start on what was scanned, as far as the modality knows it from headers."""
    uniform = adapter.uniform if isinstance(adapter, BaseAdapter) else {}
    counts = result.figures(uniform, split=split).facts if uniform else {}
    return mixed(uniform, {key: {str(json.loads(v)): n for v, n in found.items()} for key, found in counts.items()})


def of_split(manifest: Manifest, data: DataConfig) -> Manifest:
    """The rows that a run is to use: all, or those of the settings' split, without those that are excluded.

    Raises:
        UserError: the list of excluded images fits no row or all of them, no row has this split, or a group or an equal
            image of it lies in another one, which is not allowed.
    """
    if data.exclude:
        manifest = without(manifest, data.exclude)
    if data.split is None:
        return manifest
    chosen = manifest.of_split(data.split)
    leak = manifest.leak(of=data.split)
    if leak is not None:
        leak.check(allow=data.allow_leak, flag="--allow-leak")
    return chosen


def open_archive(manifest_file: Path) -> tuple[Manifest, Adapter]:
    """A manifest and the adapter that wrote it."""
    manifest = Manifest.read(manifest_file)
    return manifest, data_adapters.from_description(manifest.adapter)
