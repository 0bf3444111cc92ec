"""Archives smaller than one batch, runs that fail early, and the folders that they leave, through the command line."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from lejepa_med.cli import main
from lejepa_med.config import PretrainConfig
from lejepa_med.errors import ConfigError
from lejepa_med.training.folder import RunFolder, read_lines
from lejepa_med.training.resolve import check_batch, resolve_machine, resolve_samples
from tests.conftest import write_pictures

SMALL = (
    "--views.global-size 32 --backbone resnet10t --model.projector-hidden 32 --model.projector-dim 8 "
    "--objective.slices 16 --train.accelerator cpu --data.workers 0 --no-monitor.online"
).split()


def command(archive: Path, out: Path, *flags: str) -> list[str]:
    return ["pretrain", str(archive), "--modality", "images", "--out", str(out), *SMALL, *flags]


def failed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command that must fail says."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("count", [2, 3, 5, 10, 42])
def test_an_archive_of_a_few_samples_trains_and_says_how(
    count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_pictures(tmp_path / "a", count=count)
    main(command(root, tmp_path / "run", "--epochs", "2"))
    shown = " ".join(capsys.readouterr().err.split())
    assert f"a batch of {count}, since the archive gives {count} samples an epoch" in shown
    assert "an encoder that is worth using needs some hundreds" in shown
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["train"]["batch_size"] == count and saved["views"]["n_global"] == (8 if count <= 32 else 4)
    assert ("8 views of each (usually 4)" in shown) == (count <= 32)
    assert len(read_lines(tmp_path / "run" / "metrics.jsonl")) == 2  # a record a step, since there are only two


def test_one_sample_is_refused_plainly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_pictures(tmp_path / "a", count=1)
    assert "give an archive with at least 2, better some hundreds" in failed(command(root, tmp_path / "run"), capsys)
    main(["scan", str(root), "--modality", "images", "--out", str(tmp_path / "scan")])
    shown = " ".join(capsys.readouterr().err.split())
    assert "pretrain will refuse this" in shown and "1 item" not in shown.replace("1 in 1 group", "")


def given(**sections: Any) -> PretrainConfig:
    return PretrainConfig(archive=Path("a"), out=Path("b"), modality="images", **sections)


@pytest.mark.parametrize(
    ("samples", "sections", "batch", "views", "epochs"),
    [
        (42, {}, 42, 4, 300),
        (150, {}, 64, 4, 150),
        (5000, {}, 64, 4, 100),
        (20, {}, 20, 8, 300),
        (20, {"views": {"n_global": 2}}, 20, 2, 300),
        (20, {"data": {"options": {"n_global": 4}}}, 20, 4, 300),
        (20, {"train": {"batch_size": 10, "epochs": 7}}, 10, 4, 7),
        (20, {"train": {"minutes": 3}}, 20, 8, None),
        (20, {"model": {"backbone": "vit_tiny_patch16_224"}}, 20, 8, 300),
        (20, {"objective": {"method": "vicreg"}}, 20, 4, 300),
        (5000, {"train": {"accumulate": 3}}, 63, 4, 100),
    ],
)
def test_only_what_nobody_chose_follows_the_archive(
    samples: int, sections: dict[str, Any], batch: int, views: int, epochs: int | None
) -> None:
    asked = given(**sections)
    config, said = resolve_samples(resolve_machine(asked, device="cpu"), given=asked, samples=samples, processes=1)
    seen = (config.views.n_global or 0) + (config.views.n_local or 0)
    assert (config.train.batch_size, seen, config.train.epochs) == (batch, views, epochs)
    assert bool(said) == (samples < 200 and "epochs" not in sections.get("train", {}))


def test_a_chosen_batch_that_cannot_be_divided_is_refused_before_the_scan() -> None:
    with pytest.raises(ConfigError, match=r"--batch-size 62, or another multiple of 2"):
        check_batch(given(train={"batch_size": 63, "accumulate": 2}), processes=1)
    with pytest.raises(ConfigError, match=r"--batch-size 4, or another multiple of 4"):
        check_batch(given(train={"batch_size": 3}), processes=4)
    check_batch(given(), processes=4)


WRONG: dict[str, tuple[list[str], str]] = {
    "backbone": (["--backbone", "resnet10x"], "resnet10t"),
    "option": (["-o", "intensty=full"], "Did you mean intensity?"),
    "batch": (["--batch-size", "13"], "--batch-size 12 or less"),
    "parts": (["--batch-size", "7", "--train.accumulate", "2"], "--batch-size 6"),
    "length": (["--minutes", "1", "--epochs", "1"], "Leave out --epochs"),
    "catalogue": (["--catalog", "nowhere.csv"], "nowhere.csv"),
    "split": (["--catalog", "labels.csv", "--split", "tset"], "Use one of its splits: train, val"),
    "start": (["--init", "nowhere"], "nowhere"),
    "precision": (["--train.precision", "16-mixed"], "needs a GPU"),
}


def test_no_early_failure_blocks_the_corrected_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_pictures(tmp_path / "a", count=12)
    monkeypatch.chdir(root)
    out = tmp_path / "run"
    for flags, remedy in WRONG.values():
        assert remedy in failed(command(root, out, *flags), capsys).replace("\n", " ")
        assert not out.exists() or [path.name for path in out.iterdir()] == [".scan"]
    assert "does not exist" in failed(command(tmp_path / "b", out), capsys)
    main(command(root, out, "--epochs", "1", "--batch-size", "12"))
    assert (out / "report.html").is_file() and not (out / ".lock").exists()
    # a wrong setting does not cost the run that is to be replaced
    for name in ("backbone", "option", "parts", "length", "catalogue", "precision"):
        failed(command(root, out, "--overwrite", *WRONG[name][0]), capsys)
    assert (out / "report.html").is_file()
    assert "--resume" in failed(command(root, out), capsys)


KILLED = """
import os, sys
from lejepa_med.cli import main
import {module} as module
real = {owner}.{name}
def die(*args, **kwargs):
    {first}
    os.kill(os.getpid(), {number})
    import time; time.sleep(60)
{owner}.{name} = die
main(sys.argv[1:])
"""
PLACES = {
    "before the scan": ("lejepa_med.training.loop", "module", "scan", "pass"),
    "after the scan": ("lejepa_med.training.loop", "module", "scan", "real(*args, **kwargs)"),
    "beside the manifest": ("data_adapters.scan.result", "module.Scan", "write", "real(*args, **kwargs)"),
    "at the first step": ("lejepa_med.training.loop", "module", "train_step", "pass"),
    "in the first checkpoint": (
        "lejepa_med.training.checkpoint", "module", "save_file", "os.makedirs(f'{args[1].parent}/half')"
    ),
}  # fmt: skip


FEW = ("after the scan", "in the first checkpoint")


@pytest.mark.parametrize("place", [pytest.param(n, marks=() if n in FEW else pytest.mark.slow) for n in PLACES])
def test_a_run_that_was_killed_early_does_not_block_the_corrected_command(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_pictures(tmp_path / "a", count=12)
    module, owner, name, first = PLACES[place]
    script = KILLED.format(module=module, owner=owner, name=name, first=first, number=9)
    out = tmp_path / "run"
    flags = ["--epochs", "1", "--train.log-every", "10"]
    done = subprocess.run([sys.executable, "-c", script, *command(root, out, *flags)], capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert (out / "local.yaml").is_file()
    main(command(root, out, *flags, "--batch-size", "6"))
    assert "ended before its first checkpoint" in " ".join(capsys.readouterr().err.split())
    kept = {path.name.split(".0")[0] for path in out.iterdir()} - {".scan"}
    assert (out / "report.html").is_file() and not [name for name in kept if name.startswith(".")]
    assert yaml.safe_load((out / "config.yaml").read_text())["train"]["batch_size"] == 6
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-00000002"]


SLOW = '''
"""Pictures whose first read for training says so, and waits for ever."""

import os, time
from data_adapters.images.adapter import ImagesAdapter

class Slow(ImagesAdapter):
    name = "slow"

    def read(self, record, rng):
        if "READS" in os.environ:
            open(os.environ["READS"], "w").close()
            time.sleep(600)
        return super().read(record, rng)
'''


def test_ctrl_c_before_the_first_step_blocks_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out, reads = write_pictures(tmp_path / "a", count=12), tmp_path / "run", tmp_path / "reads"
    (tmp_path / "slow.py").write_text(SLOW)
    arguments = command(root, out, "--epochs", "1")
    arguments[arguments.index("images")] = f"{tmp_path}/slow.py:Slow"
    environment = {**os.environ, "READS": str(reads)}
    with subprocess.Popen(
        [sys.executable, "-m", "lejepa_med.cli", *arguments], env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        until = time.monotonic() + 120
        while not reads.exists() and process.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 3 and "Stopped before the first step; nothing is lost" in error
    again = shutil.copytree(out, tmp_path / "again")
    main([*arguments, "--batch-size", "6"])  # corrected
    assert yaml.safe_load((out / "config.yaml").read_text())["train"]["batch_size"] == 6
    arguments[arguments.index(str(out))] = str(again)
    main([*arguments, "--resume"])  # or as it was
    assert (again / "report.html").is_file()
    assert "ended before its first checkpoint" in " ".join(capsys.readouterr().err.split())


def test_folders_of_others_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_pictures(tmp_path / "a", count=12)
    main(["scan", str(root), "--modality", "images", "--out", str(tmp_path / "scan")])
    for flags in ([], ["--overwrite"]):
        said = failed(command(root, tmp_path / "scan", *flags), capsys)
        assert "--out" in said and ("holds a scan" in said or "--overwrite will not delete it" in said)
    assert (tmp_path / "scan" / "manifest.parquet").is_file()
    begun = tmp_path / "begun"
    begun.mkdir()
    for name in ("local.yaml", "config.yaml", "manifest.parquet"):
        (begun / name).write_text("x")
    (begun / "checkpoints" / "step-00000010").mkdir(parents=True)
    for name in ("state.json", "tensors.safetensors"):
        (begun / "checkpoints" / "step-00000010" / name).write_text("x")
    assert "--resume" in failed(command(root, begun), capsys)
    shutil.rmtree(begun / "checkpoints")
    (begun / "notes.txt").write_text("years of work")
    failed(command(root, begun), capsys)
    assert (begun / "notes.txt").read_text() == "years of work"


def test_a_folder_in_which_another_process_trains_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = write_pictures(tmp_path / "a", count=12), tmp_path / "run"
    script = (
        "import sys\nfrom pathlib import Path\nfrom lejepa_med.training.folder import RunFolder\n"
        "run = RunFolder(Path(sys.argv[1]))\nrun.lock()\nprint('locked', flush=True)\nsys.stdin.read()\n"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script, str(out)], stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == "locked\n"
        assert "Another command is at work" in failed(command(root, out, "--epochs", "0"), capsys)
        other.kill()  # no trace of it is left that would block
        other.wait()
    main(command(root, out, "--epochs", "0"))
    assert (out / "report.html").is_file() and not (out / ".lock").exists()


def test_a_lock_leaves_no_folder(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "runs" / "a")
    run.lock()
    assert os.listdir(run.root) == [".lock"]
    run.release()
    assert not run.root.exists()
