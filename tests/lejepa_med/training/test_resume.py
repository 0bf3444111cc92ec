"""A run is a function of its settings: interruptions, worker counts and restarts leave it bit-identical."""

import os
import shutil
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from lejepa_med.config import save_config
from lejepa_med.errors import ConfigError
from lejepa_med.training.checkpoint import checkpoints
from lejepa_med.training.folder import read_lines
from lejepa_med.training.loop import pretrain
from tests.lejepa_med.runs import interrupted, losses, tiny, weights


@pytest.fixture(scope="module")
def whole(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    os.environ["LEJEPA_SALT"] = "test"  # module-wide fixtures run before the per-test ones
    out = tmp_path_factory.mktemp("runs") / "whole"
    result = pretrain(tiny(pictures, out))
    assert result.finished
    return out


def test_run_folder_holds_exactly_what_is_promised(whole: Path) -> None:
    names = sorted(path.name for path in whole.iterdir())
    events = [name for name in names if name.startswith("events.out.tfevents")]
    assert len(events) == 1
    assert [name for name in names if name not in events] == [
        "checkpoints",
        "config.yaml",
        "encoder",
        "local.yaml",
        "manifest.parquet",
        "metrics.jsonl",
        "online.jsonl",
        "rejected.csv",
        "report.html",
    ]
    files = sorted(path.name for path in (whole / "encoder").iterdir())
    assert files == ["README.md", "config.json", "lejepa_med.json", "model.safetensors"]


def test_saved_settings_have_no_open_value(whole: Path) -> None:
    saved = yaml.safe_load((whole / "config.yaml").read_text())
    for section in ("views", "model", "objective", "optim"):
        assert None not in saved[section].values(), section
    assert saved["train"]["epochs"] == 2


@pytest.mark.parametrize("step", [pytest.param(step, marks=pytest.mark.slow) for step in (1, 5, 11)] + [7])
def test_killed_and_resumed_equals_uninterrupted(whole: Path, pictures: Path, tmp_path: Path, step: int) -> None:
    """SIGKILL after any step, in the first or second epoch, then --resume."""
    out = tmp_path / "killed"
    config = tiny(pictures, out, train={"checkpoint_minutes": 0})
    save_config(config, tmp_path / "config.yaml")
    code = (
        "import os, sys\n"
        "import lejepa_med.training.loop as loop\n"
        "from lejepa_med.config import load_config\n"
        "from pathlib import Path\n"
        "real = loop.train_step\n"
        "def step(fabric, config, state, *args, **kwargs):\n"
        f"    if state.step == {step}: os.kill(os.getpid(), 9)\n"
        "    return real(fabric, config, state, *args, **kwargs)\n"
        "loop.train_step = step\n"
        f"loop.pretrain(load_config(Path({str(tmp_path / 'config.yaml')!r})))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path.cwd(), capture_output=True, timeout=200)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    assert len(checkpoints(out / "checkpoints")) == 1
    result = pretrain(config, resume=True)
    assert result.finished
    assert losses(out) == losses(whole)
    assert weights(out) == weights(whole)


@pytest.mark.slow
def test_sigterm_saves_and_resumes(whole: Path, pictures: Path, tmp_path: Path) -> None:
    """SIGTERM to the whole process group, loader workers included: exit code 3, nothing lost."""
    out = tmp_path / "stopped"
    flags = "--data.workers 2 --views.n-global 2 --views.n-local 0 --views.global-size 32 --backbone resnet10t"
    flags += " --model.projector-hidden 32 --model.projector-dim 8 --objective.slices 16 --epochs 2"
    flags += " --batch-size 8 --train.log-every 1 --train.accelerator cpu"
    command = [sys.executable, "-m", "lejepa_med.cli", "pretrain", str(pictures), "--modality", "images"]
    command += ["--out", str(out), *flags.split()]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while len(read_lines(out / "metrics.jsonl")) < 2 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    if process.returncode == 0:
        pytest.skip("the run was over before the signal came")
    assert process.returncode == 3, errors.decode()[-2000:]
    assert b"--resume" in errors
    done = subprocess.run([*command, "--resume"], capture_output=True, timeout=200)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert losses(out) == losses(whole)
    assert weights(out) == weights(whole)


def test_loader_workers_change_nothing(whole: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "two"
    pretrain(tiny(pictures, out, data={"workers": 2}))
    assert losses(out) == losses(whole)
    assert weights(out) == weights(whole)


def test_another_seed_is_another_run(whole: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "seed"
    pretrain(tiny(pictures, out, train={"seed": 1, "epochs": 1}))
    assert losses(out)[0]["loss"] != losses(whole)[0]["loss"]


def test_a_folder_in_use_is_not_overwritten(whole: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--resume.*--overwrite"):
        pretrain(tiny(pictures, whole))
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="holds no run"):
        pretrain(tiny(pictures, other), overwrite=True)
    assert (other / "chapter.txt").read_text() == "years of work"


def test_resume_refuses_other_settings(whole: Path, pictures: Path) -> None:
    with pytest.raises(ConfigError, match=r"optim\.lr: given 0\.5"):
        pretrain(tiny(pictures, whole, optim={"lr": 0.5}), resume=True)


def test_resume_says_what_to_give_for_settings_that_cannot_be_left_out(
    whole: Path, pictures: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    config = tiny(elsewhere, whole, optim={"lr": 0.5}).model_copy(update={"modality": "galaxy"})
    with pytest.raises(ConfigError) as refused:
        pretrain(config, resume=True)
    said = refused.value.remedy
    assert f"give the run's archive {pictures.resolve()}" in said and "give --modality images" in said
    assert "leave out --optim.lr," in said and "leave out --archive" not in said
    with pytest.raises(ConfigError) as refused:
        pretrain(tiny(elsewhere, whole), resume=True)
    assert "leave out" not in refused.value.remedy


def test_a_renamed_run_resumes_and_its_archive_may_be_given_relatively(
    whole: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed = shutil.copytree(whole, tmp_path / "renamed")
    monkeypatch.chdir(pictures.parent)
    assert pretrain(tiny(Path(pictures.name), renamed), resume=True).folder == renamed
    assert losses(renamed) == losses(whole)


def test_resume_of_nothing_says_so(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run to resume"):
        pretrain(tiny(pictures, tmp_path / "none"), resume=True)


def test_a_resumed_run_says_that_the_number_of_threads_is_another_one(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(pictures, tmp_path / "run", data={"workers": None}, train={"checkpoint_minutes": 0})
    interrupted(config, monkeypatch, step=3)
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["train"]["threads"] is None and saved["data"]["workers"] is None  # they belong to the machine
    metrics = tmp_path / "run" / "metrics.jsonl"
    assert [line["threads"] for line in read_lines(metrics)] == [1, 1, 1]  # OMP_NUM_THREADS of the tests
    metrics.write_text(metrics.read_text().replace('"threads": 1', '"threads": 2'))
    console = Console(file=StringIO(), width=200)
    given = tiny(pictures, tmp_path / "run", data={"workers": None}, train={"checkpoint_minutes": 0, "threads": 1})
    pretrain(given, resume=True, console=console)  # a number may be given anew
    said = console.file.getvalue()
    assert (
        "CPU threads: 1. The interrupted part ended with 2, so results agree with it only up to float rounding." in said
    )
    assert [line["threads"] for line in read_lines(metrics)] == [2] * 3 + [1] * 9
