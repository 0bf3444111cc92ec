"""stability: the same archive pretrained with every combination of lambda, batch, views and architecture.

Cells run one after the other. OUT/cells.json is replaced as a whole before and after each, so a grid that was killed at
any moment goes on with the cell that was running (from its last checkpoint), and a cell that takes the process down
three times is given up.
"""

import csv
import dataclasses
import gc
import io
import itertools
import json
import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from data_adapters.atomic import write_text
from data_adapters.manifest import Manifest
from data_adapters.scan import Scan
from lejepa_med.archive import JOURNAL, of_split, scan
from lejepa_med.config import PretrainConfig, Section, load_config, save_config, short_name
from lejepa_med.errors import ConfigError, UserError
from lejepa_med.models.architectures import is_convolutional
from lejepa_med.page import render_page
from lejepa_med.plot import FONT, INK, svg
from lejepa_med.study.runs import read_run
from lejepa_med.training.device import make_fabric
from lejepa_med.training.folder import RunFolder
from lejepa_med.training.loop import pretrain
from lejepa_med.training.resolve import create_adapter, fitted_adapter, resolve_archive, resolve_machine
from lejepa_med.training.stop import StopSignal

RECORDS = 20  # of a run at least, where it has so many steps: fewer give no verdict
OFTEN = 2  # steps between two records of a cell by minutes, whose steps are not known before


@dataclass(frozen=True)
class Axes:
    """What is varied."""

    lambdas: Sequence[float]
    batches: Sequence[int]
    n_views: Sequence[int]
    backbones: Sequence[str]

    def cells(self) -> list["Cell"]:
        """Every combination; cells of one architecture and number of views follow each other."""
        product = itertools.product(self.backbones, self.n_views, self.lambdas, self.batches)
        return [Cell(*values) for values in product]


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    backbone: str
    n_views: int
    lamb: float
    batch: int

    @property
    def name(self) -> str:
        """The run's folder."""
        plain = "".join(c if c.isalnum() or c in "._" else "-" for c in short_name(self.backbone))
        return f"{plain}-views{self.n_views}-lambda{self.lamb:g}-batch{self.batch}"

    def config(self, base: PretrainConfig, out: Path) -> PretrainConfig:
        """`base` with this cell's settings. All views of a CNN are global; a ViT has 2 global ones, the rest local."""
        n_global = self.n_views if is_convolutional(self.backbone) else min(2, self.n_views)
        changes: dict[str, dict[str, Any]] = {
            "views": {"n_global": n_global, "n_local": self.n_views - n_global},
            "model": {"backbone": self.backbone},
            "objective": {"lamb": self.lamb},
            "train": {"batch_size": self.batch},
        }
        sections: dict[str, Section] = {
            name: getattr(base, name).model_copy(update=values) for name, values in changes.items()
        }
        return base.model_copy(update={"out": out, **sections})


def subset(manifest: Manifest, records: int | None, *, seed: int) -> Manifest:
    """At most `records` rows drawn by `seed`, in the manifest's order: the same for every cell."""
    if records is None or records >= len(manifest):
        return manifest
    return manifest.select(sorted(np.random.default_rng([seed, 21]).permutation(len(manifest))[:records].tolist()))


def set_up(
    config: PretrainConfig, found: Scan, manifest: Manifest, *, steps: int | None, minutes: float | None
) -> None:
    """Write the run folder as `pretrain` does after its scan, so that `pretrain(config, resume=True)` takes it up.

    Args:
        config: of the cell.
        found: the scan of the archive, for rejected.csv.
        manifest: the rows to train on.
        steps: train for at least so many steps, in whole epochs; None: for `minutes`.
        minutes: where `steps` is None.
    """
    machine = resolve_machine(config, device=make_fabric(config).device.type)
    adapter = fitted_adapter(machine, manifest)
    manifest = dataclasses.replace(manifest, adapter=adapter.describe())
    run_config = resolve_archive(machine, items=len(manifest))
    epoch = max(1, sum(manifest.column("samples")) // run_config.train.batch_size)  # in steps
    if steps is not None:
        epochs = math.ceil(steps / epoch)
        length = {"epochs": epochs, "minutes": None}
        often = max(1, min(run_config.train.log_every, epochs * epoch // RECORDS))
    else:
        length = {"epochs": None, "minutes": minutes}
        often = min(run_config.train.log_every, OFTEN)
    run_config = run_config.model_copy(
        update={"train": run_config.train.model_copy(update={**length, "log_every": often})}
    )
    run = RunFolder(run_config.out)
    run.root.mkdir(parents=True, exist_ok=True)
    found.write(run.root, manifest=manifest)
    save_config(run_config, run.config)


ALARM = "#cf3f4f"
WIDTH, HEIGHT, LEFT, TOP = 96.0, 52.0, 92.0, 46.0


@dataclass(frozen=True)
class HeatCell:
    """One cell: its number (None: not run, or undefined), a word below it, and whether that is an alarm."""

    value: float | None
    text: str
    word: str = ""
    alarm: bool = False
    title: str = ""


def heat_map(
    cells: Mapping[tuple[str, str], HeatCell],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    row_label: str,
    column_label: str,
    low: float,
    high: float,
) -> str:
    """SVG of `cells[row, column]`; values from `low` (clear) to `high` (full colour) of one scale, so maps compare."""
    width, height = LEFT + WIDTH * len(columns) + 8, TOP + HEIGHT * len(rows) + 8
    parts = [_text(LEFT + WIDTH * len(columns) / 2, 16, column_label), _text(LEFT - 10, 36, row_label, anchor="end")]
    parts += [_text(LEFT + WIDTH * (k + 0.5), 36, name) for k, name in enumerate(columns)]
    for i, row in enumerate(rows):
        top = TOP + HEIGHT * i
        parts.append(_text(LEFT - 10, top + HEIGHT / 2 + 0.35 * FONT, row, anchor="end"))
        for k, column in enumerate(columns):
            parts.append(_cell(cells.get((row, column)), LEFT + WIDTH * k, top, low=low, high=high))
    return svg(parts, width=width, height=height)


def _cell(cell: HeatCell | None, x: float, y: float, *, low: float, high: float) -> str:
    share = 0.0
    if cell is not None and cell.value is not None and high > low:
        share = min(1.0, max(0.0, (cell.value - low) / (high - low)))
    alarm = cell is not None and cell.alarm
    frame = f'stroke="{ALARM}" stroke-width="3"' if alarm else f'stroke="{INK}" stroke-opacity=".2"'
    # at most .75, so that the text stays readable in light and in dark mode
    box = (
        f'<rect x="{x + 3:.1f}" y="{y + 3:.1f}" width="{WIDTH - 6:g}" height="{HEIGHT - 6:g}" rx="4" fill="#2f7fd1" '
        f'fill-opacity="{0.75 * share:.2f}" {frame}>'
    )
    middle = x + WIDTH / 2
    if cell is None:
        return f"{box}</rect>" + _text(middle, y + HEIGHT / 2 + 0.35 * FONT, "–")
    title = f"<title>{escape(cell.title)}</title>" if cell.title else ""
    texts = _text(middle, y + (HEIGHT / 2 - 2 if cell.word else HEIGHT / 2 + 0.35 * FONT), cell.text)
    if cell.word:
        texts += _text(middle, y + HEIGHT / 2 + 14, cell.word)
    return f"{box}{title}</rect>{texts}"


def _text(x: float, y: float, text: str, *, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{INK}">{escape(text)}</text>'


RANK, STD = "projector/effective_rank", "projector/std"
FIGURES = {RANK: "Effective rank of the projector", STD: "Standard deviation of the projector (aim: 1)"}
Results = Mapping[str, Mapping[str, Any]]


def write_pages(root: Path, axes: Axes, results: Results) -> None:
    """Write both files, also of a grid that is not finished."""
    columns = list(dict.fromkeys(name for result in results.values() for name in result))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=["cell", *columns])
    writer.writeheader()
    writer.writerows({"cell": name, **result} for name, result in results.items())
    write_text(root / "stability.csv", stream.getvalue())
    cells = axes.cells()
    mine = [results[cell.name] for cell in cells if cell.name in results]
    done = [result for result in mine if result["state"] in ("finished", "failed")]
    sections = []
    for backbone in axes.backbones:
        for views in axes.n_views:
            maps = [
                (title, _map(axes, results, backbone, views, key, low=0.0, high=1.0)) for key, title in FIGURES.items()
            ]
            for key, title in (("knn", "k-NN accuracy"), ("linear", "Linear probe accuracy")):
                found = [r[key] for r in mine if r.get(key) is not None]
                if found:
                    chance = min(r["chance"] for r in mine if r.get("chance") is not None)
                    picture = _map(axes, results, backbone, views, key, low=chance, high=max(found))
                    maps.append((f"{title} (balanced, chance {chance:.3f})", picture))
            sections.append((f"{backbone}, {views} views", maps))
    alarming = [r for r in done if r.get("verdict") in ("collapsing", "diverging")]
    failed = [(name, result["reason"]) for name, result in results.items() if result["state"] == "failed"]
    write_text(
        root / "stability.html",
        render_page(
            "lejepa_med.research.stability",
            "stability.html.j2",
            title=f"Stability: {len(done)} of {len(cells)} cells",
            collapsed=sum(r["verdict"] == "collapsing" for r in alarming),
            diverged=sum(r["verdict"] == "diverging" for r in alarming),
            failed=failed,
            finished=sum(r["state"] == "finished" for r in mine),
            sections=sections,
        ),
    )


def _map(axes: Axes, results: Results, backbone: str, views: int, key: str, *, low: float, high: float) -> str:
    cells = {}
    for cell in axes.cells():
        if (cell.backbone, cell.n_views) == (backbone, views) and cell.name in results:
            cells[f"{cell.lamb:g}", str(cell.batch)] = _heat_cell(results[cell.name], key)
    return heat_map(
        cells,
        rows=[f"{value:g}" for value in axes.lambdas],
        columns=[str(value) for value in axes.batches],
        row_label="lambda",
        column_label="batch",
        low=low,
        high=high,
    )


def _heat_cell(result: Mapping[str, Any], key: str) -> HeatCell:
    if result["state"] == "failed":
        return HeatCell(None, "failed", "see below", alarm=True, title=str(result["reason"]))
    if result["state"] != "finished":
        return HeatCell(None, str(result["state"]))
    verdict = str(result["verdict"])
    alarm = verdict in ("collapsing", "diverging")
    word = {"collapsing": "collapsed", "diverging": "diverged"}.get(verdict, "")
    value = _rank_share(result) if key == RANK else result.get(key)
    if value is None or not math.isfinite(value):
        return HeatCell(None, "–", word, alarm=alarm, title=str(result["text"]))
    rank = f"{result[RANK]:.1f} of {result['projector/dim']:.0f}" if key == RANK else ""
    text = rank or f"{value:.3f}"
    return HeatCell(float(value), text, word, alarm=alarm, title=str(result["text"]))


def _rank_share(result: Mapping[str, Any]) -> float | None:
    rank = result.get(RANK)
    return None if rank is None else rank / max(1, min(result["projector/dim"], result["projector/rows"] - 1))


STATE = "cells.json"
MOST_ATTEMPTS = 3
ONLINE = ("knn", "linear", "chance", "queries", "backbone/effective_rank", "backbone/rankme", "backbone/dim")
FINAL = ("loss", "invariance", "sigreg", "sigreg_above_floor", "sigreg_per_sample", "projector/std", "projector/lidar",
         "projector/effective_rank", "projector/dim", "projector/rows")  # fmt: skip


class Grid:
    """A grid in its folder.

    Args:
        base: settings of every cell but for what the axes vary; `base.out` is the grid's folder.
        axes: what is varied. More values may be added in a later call; finished cells are kept.
        steps: training steps of a cell at least, in whole epochs; None: `minutes`.
        minutes: training time of a cell, where `steps` is None.
        records: train on so many records of the archive; None: all.
        retry: run failed cells again.
        console: where progress is shown.
    """

    def __init__(
        self,
        base: PretrainConfig,
        axes: Axes,
        *,
        steps: int | None = None,
        minutes: float | None = None,
        records: int | None = None,
        retry: bool = False,
        console: Console,
    ) -> None:
        if (steps is None) == (minutes is None):
            raise ConfigError("The length of a cell is not clear.", remedy="Give either --steps or --minutes-each.")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError("stability runs in one process.", remedy="Start it without torchrun.")
        if base.views.n_global is not None or base.views.n_local is not None:
            raise ConfigError("The number of views is an axis of the grid.", remedy="Give --n-views instead.")
        for value in axes.n_views:
            if value < 2:
                raise ConfigError(f"{value} view cannot be compared with another.", remedy="Give --n-views from 2 on.")
        self.axes, self.steps, self.minutes, self.records = axes, steps, minutes, records
        self.console = console
        self.root = base.out
        self.base = self._sized(base)
        self.results = self._open(retry=retry)

    def run(self) -> bool:
        """Run every cell that is not done; False where it was stopped by Ctrl-C or SIGTERM.

        Raises:
            UserError: the archive cannot be read.
        """
        cells = self.axes.cells()
        todo = [cell for cell in cells if self._state(cell) not in ("finished", "failed")]
        self.console.print(f"{len(cells)} cells, {len(cells) - len(todo)} of them done before", highlight=False)
        found, manifest = self._scan() if todo else (None, None)
        seconds: list[float] = []
        with StopSignal() as stop:
            for index, cell in enumerate(todo):
                assert found is not None and manifest is not None
                started = time.perf_counter()
                finished = self._cell(cell, found, manifest)
                if not finished or (stop.asked and cell is not todo[-1]):
                    self.console.print("Stopped. Repeat the command to go on.", highlight=False)
                    return False
                seconds.append(time.perf_counter() - started)
                left = (len(todo) - index - 1) * sum(seconds) / len(seconds)
                done = len(cells) - len(todo) + index + 1
                text = _line(self.results[cell.name])
                self.console.print(
                    f"{done}/{len(cells)}  {cell.name}  {text}  {seconds[-1]:.0f} s, ETA {left / 60:.1f} min",
                    highlight=False,
                    soft_wrap=True,
                )
                write_pages(self.root, self.axes, self.results)
        write_pages(self.root, self.axes, self.results)
        return True

    def _cell(self, cell: Cell, found: Scan, manifest: Manifest) -> bool:
        """Run one cell and note how it ended; False where the user stopped it."""
        run = RunFolder(self.root / "cells" / cell.name)
        attempts = int(self.results.get(cell.name, {}).get("attempts", 0)) + 1
        if attempts > MOST_ATTEMPTS:
            reason = f"the process ended {MOST_ATTEMPTS} times in this cell without an error (killed for memory?)"
            self._note(cell, state="failed", reason=reason)
            return True
        self._note(cell, state="running", attempts=attempts)
        started = time.perf_counter()
        try:
            if not run.config.is_file():
                shutil.rmtree(run.root, ignore_errors=True)
                set_up(cell.config(self.base, run.root), found, manifest, steps=self.steps, minutes=self.minutes)
            result = pretrain(load_config(run.config), resume=True, console=Console(quiet=True))
            if not result.finished:
                self._note(cell, state="stopped")
                return False
            self._note(cell, state="finished", seconds=round(time.perf_counter() - started, 1), **_figures(run.root))
            shutil.rmtree(run.checkpoints)  # several times the encoder's size, in every cell
        except UserError as error:
            self._note(cell, state="failed", reason=str(error))
        except Exception as error:  # whatever a combination breaks, the grid goes on and says so
            self._note(cell, state="failed", reason=f"{type(error).__name__}: {error}")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return True

    def _state(self, cell: Cell) -> str:
        return str(self.results.get(cell.name, {}).get("state", ""))

    def _note(self, cell: Cell, **values: Any) -> None:
        self.results[cell.name] = {
            "backbone": cell.backbone, "n_views": cell.n_views, "lambda": cell.lamb, "batch": cell.batch, **values
        }  # fmt: skip
        tree = {"settings": self._settings(), "cells": self.results}
        write_text(self.root / STATE, json.dumps(tree, indent=1, allow_nan=False) + "\n")

    def _open(self, *, retry: bool) -> dict[str, dict[str, Any]]:
        """The results so far.

        Raises:
            ConfigError: the folder holds something else, or a grid with other settings.
        """
        file = self.root / STATE
        if not file.is_file():
            if self.root.exists() and any(self.root.iterdir()):
                raise ConfigError(f"{self.root} is not empty and holds no grid.", remedy="Give another --out.")
            self.root.mkdir(parents=True, exist_ok=True)
            return {}
        saved = json.loads(file.read_text(encoding="utf-8"))
        now = json.loads(json.dumps(self._settings()))
        if saved["settings"] != now:
            changed = sorted(k for k in now if now[k] != saved["settings"].get(k))
            raise ConfigError(
                f"{self.root} holds a grid with other settings ({', '.join(changed)}).",
                remedy="Repeat the command as it was (the axes may grow), or give another --out.",
            )
        kept: dict[str, dict[str, Any]] = saved["cells"]
        if retry:
            for name in [name for name, values in kept.items() if values["state"] == "failed"]:
                del kept[name]
                shutil.rmtree(self.root / "cells" / name, ignore_errors=True)
        return kept

    def _settings(self) -> dict[str, Any]:
        tree = self.base.model_dump(mode="json", exclude={"out"})
        return {**tree, "steps": self.steps, "minutes": self.minutes, "records": self.records}

    def _sized(self, base: PretrainConfig) -> PretrainConfig:
        """With sizes of views: those that the first architecture would get, so that all cells see the same images."""
        first = self.axes.cells()[0].config(base, base.out)
        resolved = resolve_machine(first, device=make_fabric(first).device.type)
        sizes = {name: getattr(resolved.views, name) for name in ("global_size", "local_size")}
        return base.model_copy(update={"views": base.views.model_copy(update=sizes)})

    def _scan(self) -> tuple[Scan, Manifest]:
        """The archive, once for all cells; a repeated command reads what has changed."""
        config = self.base
        found = scan(
            create_adapter(self.axes.cells()[0].config(config, config.out)),
            config.archive,
            **config.data.table(),
            verify=config.data.verify,
            journal=self.root / JOURNAL,
            console=self.console,
        )
        return found, subset(of_split(found.manifest, config.data), self.records, seed=config.train.seed)


def _figures(folder: Path) -> dict[str, Any]:
    """What the grid keeps of a finished run."""
    run = read_run(folder)
    found: dict[str, Any] = {key: run.final.get(key) for key in FINAL}
    found |= {key: run.online.get(key) for key in ONLINE}
    return {**found, "verdict": run.verdict.state, "text": run.verdict.text}


def _line(result: dict[str, Any]) -> str:
    if result["state"] == "failed":
        return f"FAILED: {result['reason']}"
    parts: Sequence[str] = (
        f"rank {result['projector/effective_rank']:.1f} of {result['projector/dim']:.0f}"
        if result["projector/effective_rank"] is not None
        else "rank unknown",
        "" if result["knn"] is None else f"k-NN {result['knn']:.3f}",
        result["text"],
    )
    return "  ".join(part for part in parts if part)
