"""What the demo shows at its end: pretrained against random features at a few labels, and how to go on."""

import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from data_adapters.manifest import Manifest
from examples.demo.common import VAL_FRACTION
from examples.demo.probing import Item, balanced_accuracy, budgets, draw_labels
from examples.demo.service import Running

if TYPE_CHECKING:
    from lejepa_med.client import Client, Job

LABELS_PER_CLASS = (10, 50)
DRAWS = 3
POLL_SECONDS = 0.3


def items_of(manifest: Manifest, *, embedded: set[str]) -> list[Item]:
    """Labelled rows of a manifest in the splits train and val.

    Without these splits in the catalogue, a quarter of the groups validates. Classes that one of the splits lacks are
    left out; the list is empty where fewer than two remain.
    """
    columns = [manifest.column(name) for name in ("id", "path", "label", "split", "group")]
    rows = [row for row in zip(*columns, strict=True) if row[2] and row[0] in embedded]
    splits = {row[3] for row in rows}
    if {"train", "val"} <= splits:
        items = [Item(id=i, path=p, label=c, split=s) for i, p, c, s, _ in rows if s in ("train", "val")]
    else:
        groups = np.random.default_rng(0).permutation(sorted({row[4] for row in rows}))
        held_out = set(groups[: round(VAL_FRACTION * len(groups))].tolist())
        items = [Item(id=i, path=p, label=c, split="val" if g in held_out else "train") for i, p, c, _, g in rows]
    train = Counter(item.label for item in items if item.split == "train")
    val = Counter(item.label for item in items if item.split == "val")
    usable = {label for label in train if train[label] >= 2 and val[label] >= 1}
    return [item for item in items if item.label in usable] if len(usable) >= 2 else []


def compare(client: "Client", items: Sequence[Item], tables: Mapping[str, str], *, console: Console) -> str:
    """Train probes at each number of labels on each table, score them on `val`, print the scores.

    `tables` maps a title to an embedding table's name; the first is the pretrained encoder's. Returns the address of
    its probe with the most labels.
    """
    train = [item for item in items if item.split == "train"]
    val = [item for item in items if item.split == "val"]
    truth = [item.label for item in val]
    levels = budgets(train, LABELS_PER_CLASS)
    scores: dict[tuple[str, int], list[float]] = {}
    best = ""
    columns = (TextColumn("   {task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=len(tables) * len(levels) * DRAWS)
        for level in levels:
            for draw in range(DRAWS):
                labelled = draw_labels(train, per_class=level, seed=draw)
                for title, table in tables.items():
                    bar.update(task, description=f"{level} labels per class, {title}, draw {draw + 1}")
                    done = bar.tasks[0].completed

                    def tell(job: "Job", done: float = done) -> None:
                        bar.update(task, completed=done + job.progress)

                    name = f"{level} labels per class, {title}, draw {draw + 1}"
                    labels = {item.id: item.label for item in labelled}
                    job = client.wait(client.train_probe_on(table, labels, name=name), progress=tell, poll=POLL_SECONDS)
                    found = client.predict_items(job.id, table, [item.id for item in val])
                    score = balanced_accuracy(truth, [str(one.label) for one in found])
                    scores.setdefault((title, level), []).append(score)
                    best = str(job.result) if table == next(iter(tables.values())) else best
    console.print(_table(scores, tables, levels, classes=len(set(truth)), val=len(val)))
    return best


def _table(
    scores: Mapping[tuple[str, int], list[float]],
    tables: Mapping[str, str],
    levels: Sequence[int],
    *,
    classes: int,
    val: int,
) -> Table:
    table = Table(
        title="Balanced accuracy on the validation split",
        caption=f"{val} items, {classes} classes, chance {1 / classes:.2f}; "
        f"mean of {DRAWS} draws of the labels, lowest to highest",
    )
    table.add_column("encoder")
    for level in levels:
        table.add_column(f"{level} labels per class", justify="right")
    for title in tables:
        shown = [scores[title, level] for level in levels]
        table.add_row(title, *(f"{np.mean(s):.3f} ({min(s):.3f} to {max(s):.3f})" for s in shown))
    return table


def show_next(console: Console, running: Running, *, home: Path, manifest: Manifest, table: Path, probe: str) -> None:
    """The address, a line to try, and how to stop."""
    paths, splits = manifest.column("path"), manifest.column("split")
    example = manifest.root / paths[splits.index("val") if "val" in splits else 0]
    file = shlex.quote(f"files=@{example}")
    console.print("\nThe service is up:", style="bold green", end=" ")
    lines = [f"{running.url}   (documentation: {running.url}/docs)"]
    if probe:
        lines += ["Predict the class of a file:", f"  curl -F {file} {running.url}{probe}/predictions"]
    else:
        command = f"{_program()} probe {shlex.quote(str(table))} labels.csv"
        lines += [
            "Embed a file:",
            f"  curl -F {file} {running.url}/v1/embeddings",
            "Train a probe: write labels.csv with the columns path,label (path as in the archive), then",
            f"  {command} --archive {shlex.quote(str(manifest.root))} --out {shlex.quote(str(home / 'probe'))}",
            "or send labelled files:",
            f'  curl -F files=@A -F files=@B ... -F \'labels=["one", "other", ...]\' {running.url}/v1/probes',
        ]
    lines += ["Stop it:", f"  kill $(cat {shlex.quote(str(home / 'service.pid'))})"]
    for line in lines:
        # Commands are to be copied: no line may be broken or coloured.
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _program() -> str:
    return "lejepa-med" if shutil.which("lejepa-med") else f"{shlex.quote(sys.executable)} -m lejepa_med.cli"
