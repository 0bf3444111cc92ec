"""stability: cells run, fail and are resumed; the page shows it."""

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lejepa_med.cli import main
from lejepa_med.config import load_config
from lejepa_med.errors import ConfigError
from lejepa_med.research.stability import grid as stability
from lejepa_med.research.stability.grid import Axes, Cell, Grid, subset
from lejepa_med.training.stop import StopSignal
from tests.lejepa_med.runs import tiny

SMALL: dict[str, dict[str, Any]] = {
    "views": {"n_global": None, "n_local": None, "global_size": 32},
    "monitor": {"sample": 16},
}


def cell(lamb: float = 0.1, batch: int = 8) -> Cell:
    return Cell(backbone="resnet10t", n_views=2, lamb=lamb, batch=batch)


def make(pictures: Path, out: Path, *, batches: tuple[int, ...] = (8,), **changes: Any) -> Grid:
    axes = Axes(lambdas=(0.1,), batches=batches, n_views=(2,), backbones=("resnet10t",))
    base = tiny(pictures, out, **{**SMALL, "data": {"workers": 0, "catalog": pictures / "labels.csv"}})
    return Grid(base, axes, console=Console(quiet=True), **{"steps": 2, "records": 24, **changes})


def test_cells_by_minutes_train_for_so_long(pictures: Path, tmp_path: Path) -> None:
    assert make(pictures, tmp_path / "grid", steps=None, minutes=0.05).run()
    state = json.loads((tmp_path / "grid" / "cells.json").read_text())["cells"][cell().name]
    assert state["state"] == "finished" and state["loss"] > 0
    train = load_config(tmp_path / "grid" / "cells" / cell().name / "config.yaml").train
    assert (train.epochs, train.minutes, train.log_every) == (None, 0.05, 1)


def test_cells_are_named_by_their_settings(pictures: Path, tmp_path: Path) -> None:
    axes = Axes(lambdas=(0.01, 0.1), batches=(8, 16), n_views=(2, 4), backbones=("resnet10t", "vit_tiny_patch16_224"))
    cells = axes.cells()
    assert len({c.name for c in cells}) == 16 and cells[0].name == "resnet10t-views2-lambda0.01-batch8"
    base = tiny(pictures, tmp_path, **SMALL)
    cnn, vit = (Cell(b, 6, 0.03, 16).config(base, tmp_path / "x") for b in axes.backbones)
    assert (cnn.views.n_global, cnn.views.n_local) == (6, 0) and (vit.views.n_global, vit.views.n_local) == (2, 4)
    assert (cnn.objective.lamb, cnn.train.batch_size, cnn.model.backbone) == (0.03, 16, "resnet10t")
    assert cnn.model.projector_hidden == 32 and cnn.out == tmp_path / "x"
    assert "/" not in Cell("monai:resnet18", 2, 0.1, 8).name


def test_a_grid_runs_records_a_failure_and_is_not_run_twice(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "grid"
    assert make(pictures, out, batches=(8, 64)).run()
    state = json.loads((out / "cells.json").read_text())["cells"]
    done, failed = state[cell().name], state[cell(batch=64).name]
    assert done["state"] == "finished" and done["projector/dim"] == 8 and 0 <= done["knn"] <= 1
    assert failed["state"] == "failed" and "fewer than one batch of 64" in failed["reason"]
    run = out / "cells" / cell().name
    settings = load_config(run / "config.yaml")
    assert (settings.train.epochs, settings.train.log_every) == (1, 1)  # 3 steps an epoch; all are recorded
    assert (run / "encoder" / "model.safetensors").is_file() and not (run / "checkpoints").exists()
    with (out / "stability.csv").open(newline="") as stream:
        rows = {row["cell"]: row for row in csv.DictReader(stream)}
    assert rows[cell().name]["lambda"] == "0.1" and rows[cell(batch=64).name]["state"] == "failed"
    page = (out / "stability.html").read_text()
    assert page.count("<svg") == 4 and "fewer than one batch" in page and "of 8<" in page

    monkeypatch.setattr(stability, "pretrain", None)  # a second call has nothing to run
    assert make(pictures, out, batches=(8, 64)).run()
    with pytest.raises(ConfigError, match=r"other settings \(steps\)"):
        make(pictures, out, steps=3)


def test_a_killed_cell_goes_on_and_a_deadly_one_is_given_up(pictures: Path, tmp_path: Path) -> None:
    """SIGKILL leaves a cell 'running', with a run folder or a part of one."""
    grid = make(pictures, tmp_path / "grid", batches=(8, 12))
    half = tmp_path / "grid" / "cells" / cell().name
    half.mkdir(parents=True)
    (half / "rejected.csv").write_text("path,reas")  # killed while it was set up
    grid._note(cell(), state="running", attempts=1)
    grid._note(cell(batch=12), state="running", attempts=3)
    again = make(pictures, tmp_path / "grid", batches=(8, 12))
    assert again.run()
    assert again.results[cell().name]["state"] == "finished"
    assert "3 times" in again.results[cell(batch=12).name]["reason"]
    retried = make(pictures, tmp_path / "grid", batches=(8, 12), retry=True)
    assert retried._state(cell(batch=12)) == "" and retried._state(cell()) == "finished"


def test_an_unexpected_error_does_not_end_the_grid(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_arguments: Any, **_named: Any) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(stability, "pretrain", broken)
    grid = make(pictures, tmp_path / "grid", batches=(8, 12))
    assert grid.run()
    assert {r["reason"] for r in grid.results.values()} == {"RuntimeError: CUDA out of memory"}
    assert "out of memory" in (tmp_path / "grid" / "stability.html").read_text()


def test_a_signal_is_heard_also_in_a_cell_that_fails(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_arguments: Any, **_named: Any) -> None:
        with StopSignal():  # as a run has its own
            os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("CUDA out of memory")

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(stability, "pretrain", broken)
    grid = make(pictures, tmp_path / "grid", batches=(8, 12))
    assert not grid.run()
    assert (grid._state(cell()), grid._state(cell(batch=12))) == ("failed", "")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_before_a_cell_trains_stops_it(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = stability.set_up

    def signalled(*arguments: Any, **named: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        real(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(stability, "set_up", signalled)
        grid = make(pictures, tmp_path / "grid")
        assert not grid.run() and grid._state(cell()) == "stopped"
    again = make(pictures, tmp_path / "grid")
    assert again.run() and again._state(cell()) == "finished"


def test_wrong_requests_are_refused(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--steps or --minutes-each"):
        make(pictures, tmp_path / "a", steps=None)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="holds no grid"):
        make(pictures, tmp_path / "b")


def test_the_command_passes_its_flags(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    class Capture:
        def __init__(self, base: Any, axes: Axes, **given: Any) -> None:
            seen.update(base=base, axes=axes, **given)

        def run(self) -> bool:
            return True

    monkeypatch.setattr(stability, "Grid", Capture)
    flags = "--modality images --lambdas 0.01,0.05 --batches 8,16 --n-views 2,4 --backbones resnet10t,resnet18"
    flags += " --steps 20 --records 30 --views.global-size 32 --train.accelerator cpu --monitor.sample 64"
    main(["stability", str(pictures), "--out", str(tmp_path), *flags.split()])
    axes = Axes(lambdas=[0.01, 0.05], batches=[8, 16], n_views=[2, 4], backbones=["resnet10t", "resnet18"])
    assert seen["axes"] == axes and (seen["steps"], seen["minutes"], seen["records"]) == (20, None, 30)
    assert seen["base"].views.global_size == 32 and seen["base"].monitor.sample == 64


def test_a_subset_is_the_same_for_every_cell(pictures: Path) -> None:
    import data_adapters
    from data_adapters.scan import scan_archive

    manifest = scan_archive(data_adapters.create("images"), pictures, verify=False).manifest
    first, second = (subset(manifest, 10, seed=0).column("id") for _ in range(2))
    assert first == second and len(set(first)) == 10
    assert subset(manifest, None, seed=0) is manifest and len(subset(manifest, 1000, seed=0)) == 48
