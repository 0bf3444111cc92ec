"""What a run does when things go wrong: bad files, numbers that explode, kills while a folder is replaced."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console

import data_adapters
from data_adapters.atomic import new_folder, recover
from data_adapters.errors import UserError
from data_adapters.scan import scan_archive
from lejepa_med.data.dataset import BadRead
from lejepa_med.errors import ConfigError, TrainingError
from lejepa_med.models.folder import load_encoder
from lejepa_med.training import loop
from lejepa_med.training.checkpoint import checkpoints
from lejepa_med.training.folder import read_lines
from lejepa_med.training.log import BadFiles
from lejepa_med.training.loop import pretrain
from lejepa_med.training.monitor import RunningMean
from tests.conftest import write_pictures
from tests.lejepa_med.runs import tiny


def test_an_exploding_run_stops_and_its_last_checkpoint_is_sound(pictures: Path, tmp_path: Path) -> None:
    config = tiny(pictures, tmp_path / "run", optim={"lr": 1e25, "warmup": 0.0}, train={"checkpoint_minutes": 0})
    with pytest.raises(TrainingError, match=r"--resume.*--optim\.lr"):
        pretrain(config)
    for folder in checkpoints(tmp_path / "run" / "checkpoints"):
        assert (folder / "state.json").is_file()
    assert all(np.isfinite(line["loss"]) for line in read_lines(tmp_path / "run" / "metrics.jsonl"))


def test_few_bad_files_are_noted_and_many_stop_the_run(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "a", count=4)
    manifest = scan_archive(data_adapters.create("images"), root).manifest
    watch = BadFiles(tmp_path / "bad_files.jsonl", manifest, limit=0.01)
    watch.add([], step=0, reads=300)
    assert not watch.file.exists()
    watch.add([BadRead(2, "damaged")], step=7, reads=10)
    assert read_lines(watch.file) == [{"step": 7, "path": "0002.png", "reason": "damaged"}]
    with pytest.raises(TrainingError, match=r"more than 1\.0%; the last: gone"):
        watch.add([BadRead(1, "gone")] * 4, step=8, reads=10)


def test_files_that_break_during_a_run_are_replaced(tmp_path: Path) -> None:
    """The archive loses a file between scan and training; the run goes on and says so in bad_files.jsonl and report."""
    root = write_pictures(tmp_path / "a", count=24)
    out = tmp_path / "run"
    pretrain(tiny(root, out, train={"epochs": 0}))  # scan now, train later
    (root / "0003.png").unlink()
    text = (out / "config.yaml").read_text().replace("epochs: 0", "epochs: 1")
    (out / "config.yaml").write_text(text)
    result = pretrain(tiny(root, out, train={"epochs": 1}), resume=True)
    assert result.finished and result.steps == 3
    assert {line["path"] for line in read_lines(out / "bad_files.jsonl")} == {"0003.png"}
    assert "bad" in (out / "report.html").read_text().lower()


def test_no_epochs_gives_a_random_encoder(pictures: Path, tmp_path: Path) -> None:
    result = pretrain(tiny(pictures, tmp_path / "run", train={"epochs": 0}))
    assert (result.step, result.steps, result.finished) == (0, 0, True)
    encoder = load_encoder(tmp_path / "run")
    assert encoder.dim == 512 and encoder.info["training"]["step"] == 0


@pytest.mark.parametrize(
    ("images", "train", "remedy"),
    [
        (1, {}, "give an archive with at least 2"),
        (1, {"batch_size": 64}, "give an archive with at least 2"),
        (5, {"batch_size": 6}, "Set --batch-size 5 or less"),
        (5, {"batch_size": 64, "accumulate": 2}, "Set --batch-size 4 or a smaller multiple of 2"),
        (3, {"accumulate": 4}, "a smaller --train.accumulate"),
    ],
)
def test_a_batch_larger_than_the_archive_has_a_remedy_that_works(
    tmp_path: Path, images: int, train: dict[str, Any], remedy: str
) -> None:
    root = write_pictures(tmp_path / "a", count=images)
    with pytest.raises(ConfigError, match="fewer than one batch") as raised:
        pretrain(tiny(root, tmp_path / "run", train={"batch_size": None, **train}))
    assert remedy in str(raised.value)
    if advised := re.search(r"--batch-size (\d+)", str(raised.value)):
        given = train | {"batch_size": int(advised[1]), "epochs": 1}
        assert pretrain(tiny(root, tmp_path / "run", train=given)).finished  # in the same folder


def test_the_default_batch_is_no_larger_than_the_archive(tmp_path: Path) -> None:
    shown = io.StringIO()
    root = write_pictures(tmp_path / "a", count=43)
    config = tiny(root, tmp_path / "run", train={"batch_size": None, "accumulate": 2, "epochs": 1})
    assert pretrain(config, console=Console(file=shown, width=200)).steps == 1
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["train"]["batch_size"] == 42
    assert "a batch of 42, since the archive gives 43 samples an epoch" in shown.getvalue()


def test_a_run_that_fails_before_its_first_step_does_not_block_the_next(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the scan found out is kept; a folder of something else, or of a run with steps, is left alone."""
    out = tmp_path / "run"

    def broken(*_arguments: Any, **_named: Any) -> Any:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
        patch.setattr(loop, "train_step", broken)
        pretrain(tiny(pictures, out))
    assert [path.name for path in out.iterdir()] == [".scan"]
    shown = io.StringIO()
    assert pretrain(tiny(pictures, out, train={"epochs": 1}), console=Console(file=shown, width=200)).finished
    assert "48 as before" in shown.getvalue() and not (out / ".scan").exists()
    before = sorted(path.name for path in out.iterdir())
    with pytest.raises(ConfigError, match="not empty"):
        pretrain(tiny(pictures, out))
    assert sorted(path.name for path in out.iterdir()) == before


def test_an_archive_of_another_kind_says_which_modalities_there_are(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.pdf").write_bytes(b"%PDF")
    with pytest.raises(UserError, match="galaxy, histology, images, mri"):
        pretrain(tiny(tmp_path / "a", tmp_path / "run"))


def test_an_archive_without_items_names_a_file_and_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match=r"a holds no files\. Give the folder that holds the images\."):
        pretrain(tiny(tmp_path / "a", tmp_path / "run"))
    Image.new("L", (4, 4)).save(tmp_path / "a" / "small.png")
    with pytest.raises(UserError, match=r"small\.png: Give the full-size picture"):
        pretrain(tiny(tmp_path / "a", tmp_path / "run"))


def test_a_folder_killed_while_replaced_is_whole(tmp_path: Path) -> None:
    """SIGKILL between the two renames leaves the older folder aside; recover brings it back."""
    target = tmp_path / "encoder"
    with new_folder(target) as draft:
        (draft / "a.json").write_text(json.dumps({"version": 1}))
    code = (
        "import os, sys\nfrom pathlib import Path\nimport data_adapters.atomic as atomic\n"
        "real, calls = os.rename, []\n"
        "def rename(a, b):\n"
        "    calls.append(a)\n"
        "    if len(calls) == 2: os.kill(os.getpid(), 9)\n"
        "    real(a, b)\n"
        "os.rename = rename\n"
        f"with atomic.new_folder(Path({str(target)!r})) as draft:\n"
        "    (draft / 'a.json').write_text('half')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert not target.exists()
    recover(target)
    assert json.loads((target / "a.json").read_text()) == {"version": 1}
    assert os.listdir(tmp_path) == ["encoder"]


def test_a_failed_block_leaves_the_older_folder(tmp_path: Path) -> None:
    target = tmp_path / "encoder"
    with new_folder(target) as draft:
        (draft / "a").write_text("1")
    with pytest.raises(RuntimeError), new_folder(target) as draft:
        (draft / "a").write_text("2")
        raise RuntimeError
    assert (target / "a").read_text() == "1" and os.listdir(tmp_path) == ["encoder"]


def test_running_mean_starts_anew() -> None:
    mean = RunningMean()
    for value in (1.0, 2.0, 6.0):
        mean.add(loss=torch.tensor(value))
    assert mean.take() == {"loss": 3.0}
    mean.add(loss=torch.tensor(5.0))
    assert mean.take() == {"loss": 5.0}
