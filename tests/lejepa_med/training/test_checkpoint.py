"""One checkpoint is kept, a whole one at every instant, and a finished run weighs little."""

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from lejepa_med.cli import main
from lejepa_med.training import checkpoint
from lejepa_med.training.checkpoint import Snapshot, checkpoints, load_checkpoint, save_checkpoint
from lejepa_med.training.folder import weight
from tests.conftest import write_pictures
from tests.lejepa_med.training.test_small_archives import SMALL

# everything that changes the disk while a checkpoint is replaced
CALLS = [(os, "rename"), (os, "mkdir"), (os, "unlink"), (os, "rmdir"), (os, "fsync"), (checkpoint, "save_file")]


def made(step: int) -> Snapshot:
    return Snapshot(
        step=step,
        model={"w": torch.full((4,), float(step))},
        optimizer={"state": {0: {"exp_avg": torch.full((4,), float(step))}}, "param_groups": [{"lr": 0.1}]},
    )


def killed_at(instant: int, folder: Path) -> bool:
    """Whether a process that saves step 2 came to its `instant`-th change of the disk; it is killed there."""
    child = os.fork()
    if child == 0:
        count = 0

        def counting(real):  # type: ignore[no-untyped-def]
            def call(*args, **kwargs):  # type: ignore[no-untyped-def]
                nonlocal count
                count += 1
                if count == instant:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)

            return call

        for module, name in CALLS:
            setattr(module, name, counting(getattr(module, name)))
        save_checkpoint(folder, made(2))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def test_a_kill_at_any_instant_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    instant, steps = 1, []
    while True:
        folder = tmp_path / str(instant)
        save_checkpoint(folder, made(1))
        killed = killed_at(instant, folder)
        found = load_checkpoint(folder)
        assert found is not None and float(found.model["w"][0]) == found.step
        assert float(found.optimizer["state"][0]["exp_avg"][0]) == found.step
        steps.append(found.step)
        save_checkpoint(folder, made(3))  # the next one cleans up
        assert os.listdir(folder) == ["step-00000003"]
        shutil.rmtree(folder)
        if not killed:
            break
        instant += 1
    assert instant > 8 and steps == sorted(steps) and {1, 2} == set(steps)


def test_a_checkpoint_of_the_same_step_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_checkpoint(tmp_path, made(5))
    monkeypatch.setattr(checkpoint, "save_file", None)
    assert save_checkpoint(tmp_path, made(5)) == path and checkpoints(tmp_path) == [path]


def test_a_finished_run_says_what_it_weighs_and_keeps_no_moments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = write_pictures(tmp_path / "a", count=12), tmp_path / "run"
    command = ["pretrain", str(root), "--modality", "images", "--out", str(out), "--epochs", "3", *SMALL]
    main([*command, "--train.checkpoint-minutes", "0"])
    sizes = weight(out)
    disk = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("disk:"))
    assert f"{sum(sizes.values()) / 1e6:,.1f} MB (" in disk and "checkpoints" in disk and "encoder" in disk
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-00000003"]
    found = load_checkpoint(out / "checkpoints")
    assert found is not None and found.step == 3 and found.optimizer["state"] == {}
    # encoder and checkpoint hold the encoder's weights once each; moments would be two more of them
    assert sizes["checkpoints"] < 1.1 * sizes["encoder"]
    main([*command, "--resume"])  # killed while it wrote its report, say
    assert (out / "report.html").is_file()
