"""From the archive to a manifest and an adapter: for runs and for every command that reads an archive."""

from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

import data_adapters
from data_adapters.base import Adapter
from data_adapters.catalog import Catalog
from data_adapters.manifest import Manifest, Scan, scan_archive
from lejepa_med.errors import UserError


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
    adapter: Adapter, archive: Path, *, catalog: Path | None = None, verify: bool = True, console: Console
) -> Scan:
    """Scan with a progress bar and a summary table.

    Raises:
        UserError: the archive does not exist, or nothing in it can be read.
    """
    table = Catalog(catalog) if catalog is not None else None
    with progress_bar(console, "scan") as bar:
        task = bar.add_task("", total=None)
        result = scan_archive(
            adapter,
            archive,
            catalog=table,
            verify=verify,
            progress=lambda seen, total: bar.update(task, completed=seen, total=total),
        )
    console.print(summary(result))
    if not len(result.manifest):
        reasons = "; ".join(f"{reason} ({count})" for reason, count in result.reasons()[:4]) or "no files found"
        raise UserError(
            f"Nothing in {archive} can be read as this modality: {reasons}.",
            remedy=f"Choose the modality that fits the files: {', '.join(data_adapters.names())}.",
        )
    return result


def summary(result: Scan) -> Table:
    """What scan found, as a table."""
    manifest = result.manifest
    table = Table(title="archive", show_header=False, title_justify="left")
    metas = [record.meta for record in manifest.records()]
    groups = len(set(manifest.column("group")))
    table.add_row("items", f"{len(manifest):,} in {groups:,} groups, {sum(manifest.column('bytes')) / 2**20:,.1f} MiB")
    table.add_row("samples an epoch", f"{sum(manifest.column('samples')):,}")
    for key, title, unit in (
        ("size", "size", ""),
        ("spacing", "spacing", " mm"),
        ("mpp", "resolution", " um/px"),
        ("bands", "bands", ""),
        ("bits", "bit depth", ""),
    ):
        counts = Counter(_text(meta[key]) for meta in metas if key in meta)
        if counts:
            shown = ", ".join(f"{value}{unit} ({count:,})" for value, count in counts.most_common(4))
            table.add_row(title, shown + (f", and {len(counts) - 4} more" if len(counts) > 4 else ""))
    for name in ("label", "split"):
        values = Counter(value for value in manifest.column(name) if value)
        if values:
            table.add_row(name, ", ".join(f"{value} ({count:,})" for value, count in values.most_common(8)))
    duplicates = manifest.duplicates()
    if duplicates:
        table.add_row("[yellow]duplicates", f"{len(duplicates):,} files lie in several groups with equal content")
    table.add_row("refused", f"{len(result.refused):,}")
    for reason, count in result.reasons()[:12]:
        table.add_row("", f"{count:,} x {reason}")
    if result.unused:
        table.add_row("[yellow]catalogue", f"{len(result.unused):,} rows match no file; are paths relative to it?")
    return table


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list | tuple):
        return " x ".join(_text(part) for part in value)
    return str(value)


def open_archive(manifest_file: Path) -> tuple[Manifest, Adapter]:
    """A manifest and the adapter that wrote it."""
    manifest = Manifest.read(manifest_file)
    return manifest, data_adapters.from_description(manifest.adapter)
