"""Every command ends soon after a signal, whatever it waits for, with the documented exit status."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lejepa_med.training.checkpoint import checkpoints
from lejepa_med.training.folder import read_lines
from lejepa_med.training.stop import StopSignal, at_most

BLOCKED = (
    "import hashlib, signal, sys, time\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job is born without it
    "from lejepa_med import ending\n"
    "ending.set_limit(1.0, status=STATUS)\n"
    "try:\n"
    "    with ending.ended_by_signals():\n"
    "        print('ready', flush=True)\n"
    "        WAIT\n"
    "finally:\n"
    "    print('cleaned up', flush=True)\n"
)
NATIVE = "hashlib.pbkdf2_hmac('sha256', b'', b'', 2_000_000_000)"  # minutes inside of a library


@pytest.mark.parametrize(
    ("wait", "number", "own", "status", "cleaned"),
    [
        ("time.sleep(600)", signal.SIGTERM, "None", 143, True),
        ("time.sleep(600)", signal.SIGINT, "None", -signal.SIGINT, True),
        (NATIVE, signal.SIGTERM, "None", 143, False),
        (NATIVE, signal.SIGINT, "3", 3, False),
    ],
)
def test_a_signal_ends_a_process_also_inside_of_a_library(
    wait: str, number: int, own: str, status: int, cleaned: bool
) -> None:
    script = BLOCKED.replace("WAIT", wait).replace("STATUS", own)
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script], stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)  # until it is inside
        process.send_signal(number)
        out, error = process.communicate(timeout=30)
    assert process.returncode == status
    assert ("cleaned up" in out) == cleaned
    assert ("in the middle of its work" in error) != cleaned


PLUGIN = '''
"""Pictures whose reader waits for ever after a number of reads, as on a network drive that went away."""

import os, time
from data_adapters.images.adapter import ImagesAdapter

class Slow(ImagesAdapter):
    name = "slow"

    def read(self, record, rng):
        with open(os.environ["READS"], "ab") as stream:
            stream.write(b".")
            if stream.tell() > 40:  # one worker may be two batches ahead of the first
                time.sleep(600)
        return super().read(record, rng)
'''


@pytest.mark.parametrize("workers", [0, 2])
def test_sigterm_saves_a_run_whose_reader_hangs(workers: int, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(PLUGIN)
    run = tmp_path / "run"
    flags = (
        "--views.n-global 2 --views.n-local 0 --views.global-size 32 --backbone resnet10t --batch-size 8 "
        "--model.projector-hidden 32 --model.projector-dim 8 --epochs 2 --train.log-every 1 --no-monitor.online"
    )
    command = [sys.executable, "-m", "lejepa_med.cli", "pretrain", str(pictures), "--modality"]
    command += [f"{tmp_path}/slow.py:Slow", "--out", str(run), "--data.workers", str(workers), *flags.split()]
    environment = {**os.environ, "READS": str(tmp_path / "reads")}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 120
        while not read_lines(run / "metrics.jsonl") and time.monotonic() < until and process.poll() is None:
            time.sleep(0.2)
        time.sleep(1)  # now it waits for a batch that never comes
        sent = time.monotonic()
        process.terminate()
        _, error = process.communicate(timeout=60)
    assert time.monotonic() - sent < 30
    assert process.returncode == 3, error
    assert "everything is saved" in error and "Traceback" not in error
    steps = len(read_lines(run / "metrics.jsonl"))
    assert [folder.name for folder in checkpoints(run / "checkpoints")] == [f"step-{steps:08d}"]


class _Alone:
    world_size = 1


def test_a_wait_ends_at_a_signal_and_does_not_begin_after_one() -> None:
    with StopSignal() as stop:
        assert stop.at_once(_Alone(), lambda: "done", "stopped") == "done"

        def wait() -> str:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(600)
            return "done"

        assert stop.at_once(_Alone(), wait, "stopped") == "stopped"
        assert stop.asked
        assert stop.at_once(_Alone(), lambda: "done", "stopped") == "stopped"


def test_a_block_with_a_limit() -> None:
    reached = []
    with at_most(0.2):
        time.sleep(600)
        reached.append("never")
    with at_most(60):
        reached.append("short")
    with at_most(None):
        reached.append("unlimited")
    assert reached == ["short", "unlimited"]
