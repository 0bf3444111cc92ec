"""--minutes: the promise is kept under other work, and the schedule always ends complete."""

import io
import json
import random
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning_fabric as lightning
import pytest
import torch
from rich.console import Console

import data_adapters
from data_adapters.scan import scan_archive
from lejepa_med.config import OptimConfig
from lejepa_med.errors import ConfigError
from lejepa_med.models.folder import read_info
from lejepa_med.training import loop, state
from lejepa_med.training.checkpoint import checkpoints
from lejepa_med.training.folder import RunFolder, read_lines
from lejepa_med.training.loop import pretrain
from lejepa_med.training.monitor import Monitor
from lejepa_med.training.optimizer import learning_rate
from lejepa_med.training.plan import Plan, Planner, Revision
from lejepa_med.training.report import report_records
from lejepa_med.training.resolve import resolve_archive, resolve_machine
from tests.lejepa_med.runs import interrupted, losses, tiny, weights

OPTIM = OptimConfig(lr=1.0)
END = 4  # steps' time that the end of a simulated run takes


class Clock:
    """Seconds that only move when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def simulate(minutes: float, pace: Callable[[float], float], *, hiccups: dict[int, float]) -> tuple[float, list[float]]:
    """Minutes that a run took, its end included, and the rates of its steps; `pace` gives a step's seconds by time."""
    clock, noise = Clock(), random.Random(0)
    start, plan = clock(), Plan(minutes, clock=clock)
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    planner = Planner(fabric, plan, ending=lambda: END * pace(clock() - start), say=lambda _text: None)
    rates: list[float] = []
    while len(rates) < plan.steps:
        place, length = plan.position(len(rates))
        rates.append(learning_rate(place, steps=length, config=OPTIM))
        cold = 5 if len(rates) == 1 else 1.5 if len(rates) == 2 else 1
        clock.now += cold * pace(clock() - start) * noise.uniform(0.8, 1.2) + hiccups.get(len(rates), 0)
        planner.after(len(rates))
    clock.now += END * pace(clock() - start)
    return (clock() - start) / 60, rates


# The pace by the share of the minutes that has passed.
PACES: dict[str, tuple[Callable[[float], float], dict[int, float]]] = {
    "quiet": (lambda _t: 0.5, {}),
    "a load that goes after the start": (lambda t: 2.5 if t < 0.15 else 0.5, {}),
    "a load that comes after the start": (lambda t: 0.5 if t < 0.15 else 2.0, {}),
    "a load that comes and goes": (lambda t: 2.0 if int(t * 7) % 2 else 0.5, {}),
    "a load that comes and goes fast": (lambda t: 2.0 if int(t * 80) % 2 else 0.5, {}),
    "a load at the end": (lambda t: 1.5 if t > 0.9 else 0.5, {}),
    "hiccups": (lambda _t: 0.5, {50: 10.0, 100: 6.0}),
    "fast steps": (lambda _t: 0.05, {}),
    "slow steps": (lambda _t: 4.0, {}),
}


@pytest.mark.parametrize("minutes", [3, 30])
@pytest.mark.parametrize("name", PACES)
def test_the_minutes_are_kept_and_the_schedule_ends_complete(name: str, minutes: float) -> None:
    pace, hiccups = PACES[name]
    took, rates = simulate(minutes, lambda t: pace(t / (60 * minutes)), hiccups=hiccups)
    assert took == pytest.approx(minutes, rel=0.1)
    assert rates[-1] == OPTIM.lr * OPTIM.final_lr  # exactly
    top = rates.index(max(rates))
    assert rates[:top] == sorted(rates[:top]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert max(rates) > 0.99
    # no fall in one step is larger than that of an even schedule by more than the change of the pace
    falls = [a - b for a, b in zip(rates[top:], rates[top + 1 :], strict=False)]
    assert max(falls) < 10 / len(rates)


def test_time_that_is_over_ends_in_few_steps_without_a_jump() -> None:
    """The machine stands still for the whole time that was left."""
    took, rates = simulate(3, lambda _t: 0.5, hiccups={200: 120.0})
    assert 200 < len(rates) < 210 and took < 4
    assert rates[-1] == OPTIM.lr * OPTIM.final_lr


def test_a_plan_by_epochs_is_the_schedule_itself() -> None:
    plan = Plan()
    plan.fix(12)
    assert [plan.position(step) for step in (0, 5, 11)] == [(0, 12), (5, 12), (11, 12)]
    assert plan.state_dict() == {} and plan.seconds_left is None


def test_a_plan_goes_on_from_its_checkpoint_to_the_last_bit() -> None:
    clock = Clock()
    plan = Plan(2, clock=clock)
    for revision in (Revision(1, 37, 2.0), Revision(3, 91, 3.5), Revision(40, 77, 60.0)):
        plan.revise(revision)
    clock.now += 66
    saved = json.loads(json.dumps(plan.state_dict()))
    clock.now += 5000  # between the sessions
    again = Plan(2, clock=clock)
    again.load_state_dict(saved)
    assert [again.position(step) for step in range(40, 77)] == [plan.position(step) for step in range(40, 77)]
    assert again.revisions == plan.revisions and again.steps == 77
    assert again.seconds == 66 and again.seconds_left == 54


@pytest.fixture
def paced(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """Real runs of a clock of their own: a busy start of 4 steps of 3 s, then 1 s a step."""
    clock = Clock()
    real = loop.train_step

    def step(fabric: Any, config: Any, state: Any, batch: Any) -> Any:
        values = real(fabric, config, state, batch)
        clock.now += 3.0 if state.step <= 4 else 1.0
        return values

    monkeypatch.setattr(state, "Plan", partial(Plan, clock=clock))
    monkeypatch.setattr(loop, "train_step", step)
    monkeypatch.setattr(Monitor, "ending", lambda self: 6.0 if self.state.step <= 4 else 2.0)
    yield clock


def test_a_stopped_run_by_minutes_equals_one_that_was_not(
    pictures: Path, tmp_path: Path, paced: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given the recorded plan: where the pace is that of before, the whole run is the same, bit for bit."""
    train = {"epochs": None, "minutes": 0.6}
    whole = tiny(pictures, tmp_path / "whole", train=train)
    parts = tiny(pictures, tmp_path / "parts", train=train | {"checkpoint_minutes": 0})
    result = pretrain(whole)
    assert result.finished and 23 <= result.steps <= 27  # 4 slow steps, the others fill the minutes
    recorded = losses(whole.out)
    assert recorded[-1]["lr"] == 2e-3 * 1e-3 and recorded[-1]["step"] == result.steps
    interrupted(parts, monkeypatch, step=18)
    plan = json.loads((checkpoints(parts.out / "checkpoints")[-1] / "state.json").read_text())["plan"]
    assert plan["seconds"] == 4 * 3 + 14 and plan["revisions"][0] == [0, 1000, 0.0] and len(plan["revisions"]) > 2
    assert losses(parts.out)[:18] == recorded[:18]
    assert pretrain(parts, resume=True).steps == result.steps
    assert losses(parts.out) == recorded
    assert weights(parts.out) == weights(whole.out)


def test_a_run_killed_in_its_report_is_not_trained_further(
    pictures: Path, tmp_path: Path, paced: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(pictures, tmp_path / "run", train={"epochs": None, "minutes": 0.5})

    def killed(*_arguments: Any, **_named: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "write_run_report", killed)
        pretrain(config)
    before = losses(config.out)
    result = pretrain(config, resume=True)
    assert result.finished and result.steps == before[-1]["step"] and losses(config.out) == before
    assert (config.out / "report.html").is_file()


def test_a_real_run_keeps_its_minutes_and_says_so(pictures: Path, tmp_path: Path) -> None:
    """A quarter of a minute, with other tests beside it; benchmarks/minutes measures the promise itself."""
    shown = io.StringIO()
    config = tiny(pictures, tmp_path / "run", train={"epochs": None, "minutes": 0.25})
    result = pretrain(config, console=Console(file=shown, width=200))
    assert result.finished
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, result.steps + 1))
    assert lines[-1]["lr"] == 2e-3 * 1e-3
    training = read_info(tmp_path / "run" / "encoder")["training"]
    assert training["step"] == training["steps"] == result.steps
    assert training["epochs"] == pytest.approx(result.steps / 6, abs=0.01)
    outcome = re.search(r"planned 0\.25 minutes: [\d,]+ steps; took ([\d.]+) minutes: ([\d,]+) steps", shown.getvalue())
    assert outcome, shown.getvalue()
    assert int(outcome[2].replace(",", "")) == result.steps
    assert 0.12 < float(outcome[1]) < 0.5
    assert pretrain(config, resume=True).finished


def test_the_report_costs_two_passes_and_the_patch_colours(pictures: Path, tmp_path: Path) -> None:
    """8 pictures enlarged to 128 px (in these tests) are as much work as 16 each of 32 px; a ViT's are not enlarged."""
    manifest = scan_archive(data_adapters.create("images"), pictures, verify=False).manifest
    cnn = resolve_machine(tiny(pictures, tmp_path), device="cpu")
    small = tiny(pictures, tmp_path, model={"backbone": "vit_tiny_patch16_224"}, monitor={"sample": 20})
    vit = resolve_machine(small, device="cpu")
    assert report_records(cnn, manifest) == (96, 8 * 16)
    assert report_records(vit, manifest) == (40, 8)


def test_a_run_has_one_length(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Leave out --epochs or --minutes"):
        pretrain(tiny(pictures, tmp_path / "run", train={"epochs": 1, "minutes": 1}))


def test_the_end_of_a_run_on_volumes_is_counted_in_slices(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record of 9 slices costs .9 s to embed, so a coloured picture costs .1 s."""
    adapter = data_adapters.create("images", global_size=32, n_global=2, n_local=0)
    manifest = scan_archive(adapter, pictures, verify=False).manifest
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    config = resolve_archive(
        resolve_machine(tiny(pictures, tmp_path, monitor={"online": False}), device="cpu"), items=len(manifest)
    )
    begun: Any = SimpleNamespace(module=torch.nn.Linear(1, 1))
    monitor = Monitor(fabric, config, RunFolder(tmp_path), begun, manifest=manifest, adapter=adapter)
    monkeypatch.setattr(monitor, "_record_cost", lambda: (0.1, 0.9, 9.0))
    assert monitor.ending() == pytest.approx(96 * (0.1 + 0.9) + 8 * 16 * 0.1)
