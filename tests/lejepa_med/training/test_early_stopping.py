"""--train.stop-early: the score, the encoder that is kept, when a run ends; an interruption changes nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lejepa_med.archive import open_archive
from lejepa_med.config import PretrainConfig
from lejepa_med.data.dataset import EpochBatches, ViewDataset, collate
from lejepa_med.errors import ConfigError
from lejepa_med.methods.base import Method
from lejepa_med.methods.lejepa import SettledLeJEPA
from lejepa_med.models.folder import INFO, load_encoder
from lejepa_med.training import early_stopping as best
from lejepa_med.training import loop
from lejepa_med.training.device import make_fabric
from lejepa_med.training.folder import read_lines
from lejepa_med.training.loop import pretrain
from lejepa_med.training.save import Saver
from lejepa_med.training.state import build_state
from tests.lejepa_med.runs import interrupted, losses, tiny, weights

SCORES = {6: 3.0, 12: 2.0, 18: 2.5, 24: 2.2}  # the best at step 12; two in turn are no better


@pytest.fixture(autouse=True)
def every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small an archive would be evaluated every 40 steps."""
    monkeypatch.setattr(best, "COST", 10.0)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> dict[int, dict[str, Tensor]]:
    """Scores by step, whatever the encoder; gives the encoder's weights at each evaluation."""
    seen: dict[int, dict[str, Tensor]] = {}
    real = loop.train_step
    step = 0

    def count(fabric: Any, config: Any, state: Any, batch: Any) -> dict[str, Any]:
        nonlocal step
        values = real(fabric, config, state, batch)
        step = state.step
        return values

    def score(_self: best.Score, method: Method) -> float:
        seen[step] = {name: value.clone() for name, value in method.encoder.backbone.state_dict().items()}
        return SCORES[step]

    monkeypatch.setattr(loop, "train_step", count)
    monkeypatch.setattr(best.Score, "of", score)
    return seen


def settings(pictures: Path, out: Path, **train: Any) -> PretrainConfig:
    return tiny(pictures, out, train={"epochs": 10, "stop_early": 2, **train}, monitor={"online": False})


def test_a_run_stops_and_keeps_its_best_encoder(
    scripted: dict[int, dict[str, Tensor]], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    result = pretrain(settings(pictures, run))
    assert result.finished and result.step == result.steps == 24
    kept = load_file(run / "encoder" / "model.safetensors")
    assert kept.keys() == scripted[12].keys()
    assert all(torch.equal(kept[name], value) for name, value in scripted[12].items())
    assert any(not torch.equal(kept[name], value) for name, value in scripted[24].items())
    training = load_encoder(run).info["training"]
    assert training["best"] == {"step": 12, "score": 2.0, "evaluations": 4, "since": 2, "planned": 60}
    assert (training["step"], training["steps"]) == (24, 24)
    sentence = (
        "Kept the encoder of step 12, whose label-free score 2 is the best of 4 evaluations. Stopped at step 24 of 60, "
        "after 2 in turn that were no better."
    )
    assert sentence in capsys.readouterr().err and sentence in (run / "report.html").read_text()
    card = (run / "encoder" / "README.md").read_text()
    assert "encoder of step 12" in card and "stopped early, of 60 planned steps" in card
    assert {row["step"]: row["score"] for row in read_lines(run / "metrics.jsonl") if "score" in row} == SCORES
    again = pretrain(settings(pictures, run), resume=True)  # nothing is left to do
    assert again.finished and again.step == 24 and load_encoder(run).info["training"]["best"]["step"] == 12


@pytest.mark.parametrize("checkpoint", [5, 10, 15, 20])
def test_a_killed_run_goes_on_to_the_same_end(
    checkpoint: int,
    scripted: dict[int, dict[str, Tensor]],
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretrain(settings(pictures, tmp_path / "whole"))
    monkeypatch.setattr(Saver, "due", lambda self, _fabric: self.state.step == checkpoint)
    config = settings(pictures, tmp_path / "part")
    interrupted(config, monkeypatch, step=22)
    training = json.loads((tmp_path / "part" / "encoder" / INFO).read_text())["training"]
    if checkpoint > 6:  # the best so far is on the disk, whatever comes
        assert training["best"]["step"] == (6 if checkpoint < 12 else 12)
        on_disk = load_file(tmp_path / "part" / "encoder" / "model.safetensors")
        best_so_far = scripted[training["best"]["step"]]
        assert all(torch.equal(on_disk[name], value) for name, value in best_so_far.items())
    else:
        assert "best" not in training
    assert pretrain(config, resume=True).step == 24
    assert losses(tmp_path / "part") == losses(tmp_path / "whole")
    assert weights(tmp_path / "part") == weights(tmp_path / "whole")
    one, other = (load_encoder(tmp_path / name).info["training"]["best"] for name in ("part", "whole"))
    assert one == other


def test_the_score_is_the_loss_on_fixed_views_and_leaves_no_trace(pictures: Path, tmp_path: Path) -> None:
    plain = tiny(pictures, tmp_path / "plain", monitor={"online": False})
    watched = tiny(pictures, tmp_path / "watched", monitor={"online": False}, train={"stop_early": 1000})
    pretrain(plain)
    pretrain(watched)
    found = [{k: v for k, v in row.items() if k != "score"} for row in losses(tmp_path / "watched")]
    assert found == losses(tmp_path / "plain")
    rows = [row for row in losses(tmp_path / "watched") if "score" in row]
    assert [row["step"] for row in rows] == [6, 12] and rows[1]["score"] < rows[0]["score"]
    assert weights(tmp_path / "plain") == weights(tmp_path / "watched")  # the last one is the best here

    config = loop.RunFolder(tmp_path / "watched").reopen(watched)
    manifest, adapter = open_archive(tmp_path / "watched" / "manifest.parquet")
    fabric = make_fabric(config)
    state = build_state(fabric, config, adapter)
    before = {name: value.clone() for name, value in state.module.state_dict().items()}
    score = best.Score(fabric, config, manifest, adapter)
    value = score.of(state.module)
    assert value == score.of(state.module) and state.module.training
    assert all(torch.equal(before[name], now) for name, now in state.module.state_dict().items())
    batches = EpochBatches(manifest.column("samples"), batch_size=8, epochs=1, seed=best.SEED)
    dataset = ViewDataset(manifest, adapter, seed=best.SEED)
    with torch.no_grad():
        state.module.eval()
        each = [
            float(
                state.module(
                    collate([dataset[key] for key in keys], n_global=2).global_views, None, seed=best.SEED, step=k
                ).loss
            )
            for k, keys in enumerate(batches)
        ]
    assert len(each) == 6 and isinstance(config.objective, SettledLeJEPA)
    assert value == pytest.approx(sum(each) / 6 / config.objective.lamb**0.4, rel=1e-5)


def test_evaluations_are_about_an_epoch_apart_and_cheap(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(pictures, tmp_path / "run", train={"epochs": 0, "stop_early": 1, "log_every": 4})
    pretrain(config)
    config = loop.RunFolder(tmp_path / "run").reopen(config)
    manifest, adapter = open_archive(tmp_path / "run" / "manifest.parquet")
    score = best.Score(make_fabric(config), config, manifest, adapter)
    assert (score.count, score.every) == (6, 8)  # 6 steps an epoch, at a record
    monkeypatch.setattr(best, "COST", 0.05)
    assert (
        best.Score(make_fabric(config), config, manifest, adapter).every == 40
    )  # 6 batches of a third of a step's cost
    assert score.due(8, last=False) and not score.due(9, last=False) and score.due(9, last=True)


def test_a_method_without_lambda_is_refused(pictures: Path, tmp_path: Path) -> None:
    config = tiny(pictures, tmp_path / "run", train={"stop_early": 3}, objective={"method": "simclr"})
    with pytest.raises(ConfigError, match="needs the loss of LeJEPA, and simclr has another one"):
        pretrain(config)
