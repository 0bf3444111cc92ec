"""Starts and kills real services and workers. Imports are paid once: each process is a fork of one that has them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# One line in, one line out: {"run": module, "options": {...}, "log": file} gives a pid, {"reap": pid} its exit status.
CHILD = """
import importlib, json, os, sys
import app.main, app.worker
for line in sys.stdin:
    order = json.loads(line)
    if "reap" in order:
        print(os.waitstatus_to_exitcode(os.waitpid(order["reap"], 0)[1]), flush=True)
        continue
    pid = os.fork()
    if pid == 0:
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(log, 1), os.dup2(log, 2)
        os.close(0)
        importlib.import_module(order["run"]).run(**order["options"])
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(0)
    print(pid, flush=True)
"""


class Process:
    """One service or worker."""

    def __init__(self, launcher: "Launcher", pid: int, log: Path) -> None:
        self.launcher, self.pid, self.log = launcher, pid, log
        self.address = ""

    def end(self, number: int = signal.SIGKILL) -> int:
        """Send a signal and wait; the exit status."""
        os.kill(self.pid, number)
        return self.wait()

    def wait(self) -> int:
        """Wait for its end; the exit status."""
        self.launcher.living.remove(self)
        return int(self.launcher.ask({"reap": self.pid}))

    def wait_for(self, pattern: str, *, seconds: float = 120) -> str:
        """What matches in the log, as soon as it is there."""
        end = time.monotonic() + seconds
        while True:
            text = self.log.read_text() if self.log.exists() else ""
            if found := re.search(pattern, text):
                return found.group()
            if time.monotonic() > end:
                raise TimeoutError(f"{pattern} did not appear in: {text}")
            time.sleep(0.02)

    def memory(self) -> int:
        """Bytes that the process holds in memory."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


class Launcher:
    """A context: the processes end with it."""

    options: dict[str, Any]
    """Settings of every process."""
    logs: Path

    def __init__(self, *, environment: Mapping[str, str] | None = None) -> None:
        self.living: list[Process] = []
        self._count = 0
        self._child = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Launcher":
        return self

    def __exit__(self, *_: object) -> None:
        self.end_all()
        self._child.kill()
        self._child.wait()

    def use(self, runs: Path, data: Path, logs: Path, **options: Any) -> None:
        """What the processes from here on work with, beside one thread each; logs get a file a process."""
        self.options = {"runs_dir": str(runs), "data_dir": str(data), "threads": 1, **options}
        self.logs = logs

    def end_all(self) -> None:
        """Kill -9 of everything."""
        for process in list(self.living):
            process.end()

    def ask(self, order: Mapping[str, Any]) -> str:
        """One order to the parent of all processes, and its answer."""
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.write(json.dumps(order) + "\n")
        self._child.stdin.flush()
        return self._child.stdout.readline()

    def service(self, **options: Any) -> Process:
        """A service that answers; its address is `address`."""
        process = self._start("app.main", port=0, **options)
        process.address = process.wait_for(r"http://127\.0\.0\.1:\d+")
        return process

    def worker(self, **options: Any) -> Process:
        """A worker that takes jobs."""
        process = self._start("app.worker", **options)
        process.wait_for("worker ready")
        return process

    def _start(self, module: str, **options: Any) -> Process:
        self._count += 1
        log = self.logs / f"{self._count:04d}-{module}.log"
        pid = int(self.ask({"run": module, "options": {**self.options, **options}, "log": str(log)}))
        process = Process(self, pid, log)
        self.living.append(process)
        return process
