"""stability: the same archive pretrained with every combination of lambda, batch, views and architecture.

Cells run one after the other. OUT/cells.json is replaced as a whole before and after each, so a grid that was killed at
any moment goes on with the cell that was running (from its last checkpoint), and a cell that takes the process down
three times is given up.
"""

import gc
import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from data_adapters.atomic import write_text
from data_adapters.manifest import Manifest
from data_adapters.scan import Scan
from lejepa_med.archive import JOURNAL, of_split, scan
from lejepa_med.config import PretrainConfig, load_config
from lejepa_med.errors import ConfigError, UserError
from lejepa_med.research.stability.cells import Axes, Cell, set_up, subset
from lejepa_med.research.stability.page import write_pages
from lejepa_med.study.runs import read_run
from lejepa_med.training.device import make_fabric
from lejepa_med.training.folder import RunFolder
from lejepa_med.training.loop import pretrain
from lejepa_med.training.resolve import create_adapter, resolve_machine
from lejepa_med.training.stop import StopSignal

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
