"""Damaged files of every format: read or refused with a reason; never a dead process, an endless one or a traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROUNDS = 4  # damaged copies of each file


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LEJEPA_CACHE": "off", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.data_adapters.fuzz", str(tmp_path), str(ROUNDS)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    *wrong, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert wrong == []
    counts = last["counts"]
    assert counts["read"] > 50 and counts["refused"] > 50
