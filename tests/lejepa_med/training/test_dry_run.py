"""pretrain --dry-run through the command line: the plan, its estimates, its refusals, and what it leaves behind."""

import hashlib
import re
from pathlib import Path

import pytest
import yaml

from lejepa_med.cli import main
from lejepa_med.config import ARCHIVE, BUILT_IN, GIVEN, MACHINE, MODALITY, load_config, origins_of, read_settings
from lejepa_med.training import dry_run
from lejepa_med.training.dry_run import Rehearsal
from lejepa_med.training.folder import weight
from lejepa_med.training.loop import pretrain
from tests.conftest import write_pictures
from tests.lejepa_med.cli.test_path import TINY
from tests.lejepa_med.runs import interrupted, losses, tiny
from tests.lejepa_med.training.test_small_archives import WRONG, failed


def command(archive: Path, out: Path, *flags: str) -> list[str]:
    return ["pretrain", str(archive), "--modality", "images", "--out", str(out), *TINY.split(), *flags]


def planned(arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What a dry run prints on a wide terminal."""
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr(dry_run, "MOST_STEPS", 12)
    capsys.readouterr()
    main([*arguments, "--dry-run"])
    return capsys.readouterr().out


def row(shown: str, name: str) -> str:
    """The text beside a name in the plan or in the table of settings."""
    found = re.search(rf"^[│ ]*{re.escape(name)}  *[│ ]*(.*?)[ │]*$", shown, re.MULTILINE)
    assert found, f"{name} is not in {shown}"
    return found[1]


def content(folder: Path) -> dict[str, str]:
    """Every file below a folder with the hash of its content."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_plan_is_that_of_the_run(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every setting with its value and origin; afterwards only the scan is remembered, and the run is as planned."""
    out = tmp_path / "run"
    flags = ["--epochs", "2", "--vector.views", "2", "-o", "hflip=0.25"]
    shown = planned(command(pictures, out, *flags), capsys, monkeypatch)
    assert [path.name for path in out.iterdir()] == [".scan"]
    assert row(shown, "steps") == "12: 2 epochs of 6 steps"
    assert row(shown, "batch") == "8 samples with 2 views each, 16 images a step"
    assert row(shown, "vectors") == "32 px, mean over 2 fixed views: 2 passes an image"
    assert re.match(
        r"about [\d.]+ s after the scan \([\d.]+ s to [\d.]+ s\), estimated from 10 timed", row(shown, "time")
    )
    assert float(re.match(r"([\d,]+) MB at most", row(shown, "memory"))[1].replace(",", "")) > 100  # type: ignore[index]
    expected = {
        "optim.lr": ("0.002", MACHINE),
        "train.precision": (None, MACHINE),
        "objective.lamb": ("0.2", ARCHIVE),
        "train.log_every": ("1", ARCHIVE),
        "data.options.hflip": ("0.25", GIVEN),
        "data.options.recipe": ("moderate", MODALITY),
        "views.n_global": ("2", GIVEN),
        "vector.views": ("2", GIVEN),
        "vector.layers": ("1", MODALITY),
        "optim.clip": ("1", BUILT_IN),
        "archive": ("(a place, not shown)", GIVEN),
    }
    for name, (value, origin) in expected.items():
        text = row(shown, name)
        assert text.endswith(origin) and (value is None or text.split("  ")[0] == value), (name, text)
    assert str(pictures) not in shown
    main(command(pictures, out, *flags))
    heard = capsys.readouterr()
    assert "48 as before" in heard.err and not (out / ".scan").exists()
    saved = yaml.safe_load((out / "config.yaml").read_text())
    for section in ("data", "views", "vector", "model", "objective", "optim", "train", "monitor"):
        for name in saved[section].keys() - {"options", "workers", "threads"}:
            value = saved[section][name]
            text = "–" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
            assert row(shown, f"{section}.{name}").split("  ")[0] == text
    origins = origins_of(read_settings(out / "config.yaml"))
    assert origins is not None and origins["optim.lr"] == MACHINE and origins["views.n_global"] == GIVEN
    assert (origins["vector.views"], origins["vector.size"]) == (GIVEN, MODALITY)
    assert load_config(out / "config.yaml").optim.lr == 2e-3  # where values came from is no setting
    # what was promised for the disk is what the run weighs, but for the report, whose size is a guess
    promised = {
        name: float(size) for name, size in re.findall(r"(checkpoints|encoder) ([\d.]+) MB", row(shown, "disk"))
    }
    weighed = weight(out)
    assert promised == {name: pytest.approx(weighed[name] / 1e6, abs=0.06) for name in ("checkpoints", "encoder")}


def test_refusals_are_those_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_pictures(tmp_path / "a", count=12)
    monkeypatch.chdir(root)
    out = tmp_path / "run"
    for flags, remedy in WRONG.values():
        arguments = command(root, out, "--batch-size", "4", *flags)
        said = [failed([*arguments, *more], capsys).splitlines()[-1] for more in (["--dry-run"], [])]
        assert said[0] == said[1] and remedy in said[0]
        assert not out.exists() or [path.name for path in out.iterdir()] == [".scan"]
    explodes = command(root, out, "--batch-size", "4", "--optim.lr", "1e25", "--optim.warmup", "0")
    assert "stopped being finite" in failed([*explodes, "--dry-run"], capsys)
    assert [path.name for path in out.iterdir()] == [".scan"]


def test_a_run_that_is_there_stays(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --overwrite it is refused as by the run; with it, it is neither changed nor removed."""
    out = tmp_path / "run"
    pretrain(tiny(pictures, out, train={"epochs": 1}))
    before = content(out)
    arguments = command(pictures, out, "--minutes", "2")
    capsys.readouterr()
    assert failed([*arguments, "--dry-run"], capsys) == failed(arguments, capsys)
    shown = planned([*arguments, "--overwrite"], capsys, monkeypatch)
    assert content(out) == before
    steps = re.match(r"about ([\d,]+) \(([\d,]+) to ([\d,]+)\): [\d.]+ epochs of 6 steps", row(shown, "steps"))
    assert steps
    about, low, high = (int(number.replace(",", "")) for number in steps.groups())
    assert 100 < low < about < high
    assert row(shown, "time").startswith("2.0 min after the scan, as asked by --minutes (12 timed steps")
    (out / ".dry-run").mkdir()  # of a dry run that was killed
    (out / ".dry-run" / "local.yaml").write_text("")
    main(command(pictures, out, "--epochs", "1", "--overwrite"))
    assert not (out / ".dry-run").exists() and (out / "report.html").is_file()


def test_with_resume_it_tells_what_is_left(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    pretrain(tiny(pictures, whole))
    interrupted(tiny(pictures, parts, train={"checkpoint_minutes": 0}), monkeypatch, step=7)
    before = content(parts)
    arguments = command(pictures, parts, "--resume")
    shown = planned(arguments, capsys, monkeypatch)
    assert row(shown, "done") == "7 steps; left: 5 steps" and row(shown, "steps") == "12: 2 epochs of 6 steps"
    assert "MB) now; about" in row(shown, "disk")
    assert row(shown, "train.epochs").endswith(GIVEN) and row(shown, "optim.lr").endswith(MACHINE)
    assert content(parts) == before
    main(arguments)
    assert losses(parts) == losses(whole)
    assert row(planned(arguments, capsys, monkeypatch), "done") == "12 steps; left: nothing but the report"
    assert "holds no run to resume" in failed([*command(pictures, tmp_path / "no", "--resume"), "--dry-run"], capsys)


def rehearsal(*, first: int = 0, planned: int, left: float | None, times: list[float]) -> Rehearsal:
    return Rehearsal(
        first=first,
        planned=planned,
        left=left,
        times=times,
        figures=0.5,
        saving=2.0,
        ending=30.0,
        sizes={},
        moments=0,
        sample=0,
        memory="",
    )


def test_the_estimate_counts_steps_records_checkpoints_evaluations_and_the_end(tmp_path: Path) -> None:
    config = tiny(tmp_path, tmp_path, train={"log_every": 10}, monitor={"share": 0.04})
    found = rehearsal(first=100, planned=1060, left=None, times=[0.9, 1.0, 1.0, 1.1])
    mean, fast, slow = found.paces(config)
    assert (mean, fast, slow) == pytest.approx((1.05, 0.95, 1.25))  # a record every 10 steps costs 0.05 s each
    assert found.seconds(config, pace=mean) == pytest.approx(960 * 1.05 / 0.96 + 2.0 * (1 + 3) + 30)
    wide = rehearsal(planned=10, left=None, times=[0.5, 1.0, 1.0, 2.0])
    assert wide.paces(config)[2] - 0.05 == pytest.approx(1.75)  # the quartile, where it is further away


def test_minutes_hold_as_many_steps_as_the_run_itself_would_plan(tmp_path: Path) -> None:
    config = tiny(tmp_path, tmp_path, train={"epochs": None, "minutes": 10, "log_every": 10}, monitor={"online": False})
    found = rehearsal(planned=0, left=600.0, times=[0.95] * 4)
    assert found.steps(config) == 558  # 98 % of 600 s less 30 s for the end, by a step of 1 s
    resumed = rehearsal(first=200, planned=500, left=300.0, times=[0.95] * 4)
    assert resumed.steps(config) == 200 + 258
