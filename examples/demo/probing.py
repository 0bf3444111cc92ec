"""The demo's last steps: a probe trained over HTTP, what to try next, and the service's problems as errors."""

import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from warnings import catch_warnings, simplefilter

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from data_adapters.errors import UserError
from data_adapters.manifest import Manifest
from examples.demo.service import Running

if TYPE_CHECKING:
    from lejepa_med.client import Client, Job

LABELS_PER_CLASS = 50
HELD_OUT = ("val", "test")  # splits whose labels the probe does not see
POLL_SECONDS = 0.3


@dataclass(frozen=True)
class Item:
    """One labelled item of the archive: `id` in the embedding table, and its label."""

    id: str
    label: str


def items_of(manifest: Manifest, *, embedded: set[str]) -> list[Item]:
    """The labelled items that a probe may learn from: embedded, not held out, at least two of a class.

    The list is empty where fewer than two classes remain.
    """
    rows = zip(*(manifest.column(name) for name in ("id", "label", "split")), strict=True)
    items = [Item(id=i, label=label) for i, label, split in rows if label and split not in HELD_OUT and i in embedded]
    counts = Counter(item.label for item in items)
    items = [item for item in items if counts[item.label] >= 2]
    return items if len({item.label for item in items}) >= 2 else []


def draw_labels(items: Sequence[Item], *, per_class: int, seed: int) -> list[Item]:
    """`per_class` items of each class at random, or all of a smaller class."""
    rng = np.random.default_rng(seed)
    chosen: list[Item] = []
    for label in sorted({item.label for item in items}):
        of_class = [item for item in items if item.label == label]
        chosen += [of_class[i] for i in rng.permutation(len(of_class))[:per_class]]
    return chosen


def train_probe(client: "Client", items: Sequence[Item], table: str, *, console: Console) -> tuple[str, str]:
    """Train a probe over HTTP on a few labels per class; returns its address and a sentence about its quality."""
    labelled = draw_labels(items, per_class=LABELS_PER_CLASS, seed=0)
    labels = {item.id: item.label for item in labelled}
    columns = (TextColumn("   {task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(f"{len(labels)} labels", total=1.0)

        def tell(job: "Job") -> None:
            bar.update(task, completed=job.progress)

        job = client.wait(client.train_probe_on(table, labels, name="demo"), progress=tell, poll=POLL_SECONDS)
    linear = client.probe(job.id).metrics["linear"]
    low, high = linear["balanced_accuracy_interval"]
    text = (
        f"trained on {len(labels)} labels of {len(set(labels.values()))} classes; cross-validated balanced accuracy "
        f"{linear['balanced_accuracy']:.2f} (95 % interval {low:.2f} to {high:.2f})"
    )
    return str(job.result), text


@contextmanager
def explained() -> Iterator[None]:
    """Raise a problem of the service as a UserError with the service's own remedy, and ignore cautions.

    Raises:
        UserError: the service refused a request, a job failed, or there was no answer.
    """
    from lejepa_med.client import CautionWarning, JobFailedError, ServiceError, UnreachableError

    try:
        with catch_warnings():
            simplefilter("ignore", CautionWarning)  # the step that embedded the archive has printed them
            yield
    except ServiceError as error:
        raise UserError(f"The service answered {error.status}: {error.detail}", remedy=error.remedy) from error
    except JobFailedError as error:
        problem = error.job.error
        reason, remedy = ("no reason given", "") if problem is None else (problem.detail, problem.remedy)
        raise UserError(f"The probe's job ended as {error.job.state}: {reason}", remedy=remedy) from error
    except UnreachableError as error:
        raise UserError(f"The service stopped answering: {error}", remedy="See its log, service.log.") from error


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
