"""select: the ranking, its agreement with accuracy and the interval, on run folders with known answers."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from lejepa_med.cli import main
from lejepa_med.config import PretrainConfig, save_config
from lejepa_med.errors import ConfigError
from lejepa_med.study.runs import final_means, find_runs
from lejepa_med.study.select import select, spearman

FLOOR = 1.06


def write_run(
    folder: Path,
    *,
    loss: float,
    lamb: float | None,
    accuracy: float | None,
    archive: str = "a",
    backbone: str = "resnet18",
    **objective: Any,
) -> Path:
    """A run folder of 40 records whose last tenth has this loss; only what select reads."""
    folder.mkdir(parents=True)
    chosen = {"model": {"backbone": backbone}, "objective": {"lamb": lamb, **objective}}
    config = PretrainConfig(archive=folder, out=folder, modality="images", **chosen)
    save_config(config, folder / "config.yaml")
    records = []
    for k in range(40):
        value = loss + (0.0 if k >= 36 else 5.0)
        figures = {"sigreg": 2 * FLOOR, "sigreg_above_floor": FLOOR, "projector/lidar": 5.0}
        records.append({"step": k, "epoch": k / 4, "loss": value, **figures})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    online = {
        "step": 40,
        "epoch": 10.0,
        "backbone/rankme": 20.0 + loss,
        "backbone/effective_rank": 30.0,
        "queries": 500,
    }
    online |= {"knn": accuracy, "linear": accuracy, "chance": 0.5}
    (folder / "online.jsonl").write_text(json.dumps(online) + "\n")
    (folder / "encoder").mkdir()
    info = {"format": 1, "training": {"step": 40, "steps": 40}, "data": {"fingerprint": archive}}
    (folder / "encoder" / "lejepa_med.json").write_text(json.dumps(info))
    return folder


def grid(root: Path, count: int = 10) -> list[Path]:
    """Runs whose accuracy falls as loss / lambda^.4 grows, though the loss itself says otherwise."""
    runs = []
    for k in range(count):
        lamb = 0.01 * 2 ** (k % 4)
        score = 1.0 + 0.1 * ((7 * k) % count)
        accuracy = 0.95 - 0.03 * score
        runs.append(write_run(root / f"run{k}", loss=score * lamb**0.4, lamb=lamb, accuracy=accuracy))
    return runs


def test_spearman_is_scipys_and_its_interval_covers_it() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=30)
    y = x + rng.normal(size=30)
    y[:4] = y[0]  # ties
    found = spearman(x, y)
    assert found is not None and found.runs == 30
    assert found.value == pytest.approx(spearmanr(x, y).statistic)
    assert found.low < found.value < found.high and 0.2 < found.high - found.low < 0.8
    perfect = spearman(x, np.exp(x))
    assert perfect is not None and (perfect.low, perfect.value, perfect.high) == pytest.approx((1, 1, 1))
    assert spearman(x[:2], y[:2]) is None and spearman(x, np.ones(30)) is None
    y[5] = np.nan
    assert spearman(x, y).runs == 29  # type: ignore[union-attr]


def test_within_strata_only_their_own_runs_are_compared() -> None:
    """Two strata in which y rises with x, the second one far below: together they say the opposite."""
    x, y = np.arange(12.0), np.r_[np.arange(6) + 100.0, np.arange(6.0)]
    strata = [*"aaaaaabbbbbb"]
    assert spearman(x, y).value < 0  # type: ignore[union-attr]
    found = spearman(x, y, strata=strata)
    assert found is not None and (found.value, found.low, found.high, found.runs) == pytest.approx((1, 1, 1, 12))
    whole, one = spearman(x, y), spearman(x, y, strata=["a"] * 12)
    assert one == whole, "a single stratum is the plain coefficient"
    small = spearman(np.r_[x, 99.0, 98.0], np.r_[y, 1.0, 2.0], strata=[*strata, "c", "c"])
    assert small is not None and small.runs == 12, "two runs say nothing of a stratum"
    assert spearman(x, np.repeat([1.0, 2.0], 6), strata=strata) is None


def test_agreement_within_architectures(tmp_path: Path) -> None:
    runs = []
    for k in range(8):
        lamb, deep = 0.01 * 2 ** (k % 4), k >= 4
        score = 1.0 + 0.1 * (k % 4)
        loss = score * lamb**0.4 / (3 if deep else 1)
        accuracy = 0.9 - 0.1 * score - (0.3 if deep else 0)
        backbone = "resnet50" if deep else "resnet18"
        runs.append(write_run(tmp_path / f"run{k}", loss=loss, lamb=lamb, accuracy=accuracy, backbone=backbone))
    found = select(runs)
    assert found.within["C", "linear"].value == pytest.approx(1)
    assert found.agreement["C", "linear"].value < 0.5, "the architecture with the smaller loss is the worse one"
    assert not select(runs[:4]).within


def test_the_scaled_loss_ranks_and_agrees(tmp_path: Path) -> None:
    found = select(grid(tmp_path))
    accuracy = [run.online["linear"] for run in found.runs]
    assert accuracy == sorted(accuracy, reverse=True)
    best = found.agreement["C", "linear"]
    assert (best.value, best.low, best.high, best.runs) == pytest.approx((1, 1, 1, 10))
    assert found.agreement["loss", "linear"].value < 0.9
    assert ("effective_rank", "linear") not in found.agreement  # the same for all: no correlation
    assert not found.warnings
    first = found.runs[0]
    values = {score.key: score.of(first) for score in found.scores}
    assert values["C"] == pytest.approx(first.final["loss"] / first.lamb**0.4)
    assert values["C_above_floor"] == pytest.approx((first.final["loss"] - first.lamb * FLOOR) / first.lamb**0.4)


def test_few_runs_are_warned_of(tmp_path: Path) -> None:
    found = select(grid(tmp_path, 4))
    assert any("below 8" in warning for warning in found.warnings)
    with pytest.raises(ConfigError, match="at least two"):
        select([tmp_path / "run0"])


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", loss=1.0, lamb=0.1, accuracy=0.5)
    other = write_run(tmp_path / "other", loss=1.0, lamb=0.1, accuracy=0.5, archive="b")
    with pytest.raises(ConfigError, match=r"2 different archives.*--mixed"):
        select([one, other])
    knots = write_run(tmp_path / "knots", loss=1.0, lamb=0.2, accuracy=0.5, knots=33)
    with pytest.raises(ConfigError, match=r"different objectives: knots"):
        select([one, knots])
    assert any("different archives" in warning for warning in select([one, other], mixed=True).warnings)
    slices = write_run(tmp_path / "slices", loss=1.0, lamb=0.2, accuracy=0.5, slices=64)
    assert len(select([one, slices]).runs) == 2  # lambda and slices leave the loss on one scale


def test_runs_of_a_method_without_lambda_are_ranked_by_their_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, loss in (("worse", 2.0), ("better", 1.0), ("middle", 1.5)):
        write_run(tmp_path / "runs" / name, loss=loss, lamb=None, accuracy=0.5, method="byol")
    found = select([tmp_path / "runs"])
    assert [run.folder.name for run in found.runs] == ["better", "middle", "worse"]
    assert found.scores[0].key == "loss" and found.scores[0].of(found.runs[0]) == 1.0
    main(["select", str(tmp_path / "runs"), "--out", str(tmp_path / "select.html")])
    assert "better" in capsys.readouterr().out


def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid(tmp_path / "runs")
    main(["select", str(tmp_path / "runs"), "--out", str(tmp_path / "select.csv")])
    shown = capsys.readouterr().out
    assert "+1.00" in shown and "Spearman" in shown
    with (tmp_path / "select.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert len(table) == 10 and table[0]["rank"] == "1" and float(table[0]["linear"]) == pytest.approx(0.92)
    runs = [str(path) for path in find_runs([tmp_path / "runs"])]
    main(["select", *runs, "--alpha", "0", "--out", str(tmp_path / "select.html")])
    page = (tmp_path / "select.html").read_text()
    assert page.count("<svg") == 12 and "run3" in page and "loss / lambda^0" in page
    with pytest.raises(SystemExit):
        main(["select", *runs, "--out", str(tmp_path / "select.txt")])
    assert ".csv" in capsys.readouterr().err


def test_final_means_leave_out_what_is_undefined() -> None:
    rows = [{"loss": float(k), "rank": None if k % 2 else 4.0} for k in range(30)]
    assert final_means(rows) == {"loss": 28.0, "rank": 4.0}
    assert final_means(rows[:1]) == {"loss": 0.0, "rank": 4.0}
