"""kill -9 of the real service, right after the 202 and in the middle of the job: nothing is lost or doubled."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.app.helpers import eventually, files, png, wait

ROOT = Path(__file__).parents[2]
COUNT = 160  # 20 steps
# Imports once, then forks a service for each line on its input: three starts in the time of one. "wait" reaps it.
LAUNCHER = """
import os, sys
import dbos, app.main
for line in sys.stdin:
    if line == "wait\\n":
        print(os.waitstatus_to_exitcode(os.waitpid(-1, 0)[1]), flush=True)
        continue
    pid = os.fork()
    if pid == 0:
        log = os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1), os.dup2(log, 2)
        app.main.run(
            runs_dir=sys.argv[1], data_dir=sys.argv[2], port=0, threads=1, database_url=sys.argv[4] or None)
        os._exit(0)
    print(pid, flush=True)
"""


class Launcher:
    """Starts services and tells how they ended."""

    def __init__(self, runs: Path, data: Path, log: Path, database_url: str | None) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", LAUNCHER, str(runs), str(data), str(log), database_url or ""]
        self.log = log
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = 0

    def ask(self, line: str) -> int:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def end(self, number: int) -> int:
        """Send a signal and wait; the exit status."""
        os.kill(self.pid, number)
        status = self.ask("wait")
        self.pid = 0
        return status

    @contextmanager
    def service(self) -> Iterator[httpx.Client]:
        self.log.unlink(missing_ok=True)
        self.pid = self.ask("start")
        end = time.monotonic() + 60
        while not (self.log.exists() and (address := re.search(r"http://127\.0\.0\.1:\d+", self.log.read_text()))):
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.02)
        with httpx.Client(base_url=address.group(), timeout=60) as client:
            yield client


@pytest.fixture
def launcher(runs: Path, tmp_path: Path, database_url: str | None) -> Iterator[Launcher]:
    made = Launcher(runs, tmp_path / "data", tmp_path / "log", database_url)
    yield made
    if made.pid:
        made.end(signal.SIGKILL)
    made.process.kill()
    made.process.wait()


def rows_of(url: str | None) -> bytes:
    """All that a service keeps in PostgreSQL, as text."""
    if url is None:
        return b""
    import psycopg

    with psycopg.connect(url) as connection:
        tables = connection.execute(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname IN ('public', 'dbos')"
        ).fetchall()
        rows = [connection.execute(f"SELECT t::text FROM {name} t").fetchall() for (name,) in tables]  # type: ignore
    return repr(rows).encode()


def test_kill_9(launcher: Launcher, runs: Path, tmp_path: Path, database_url: str | None) -> None:
    data = tmp_path / "data"
    with launcher.service() as client:
        answer = client.post(
            "/v1/probes",
            files=files(*(png(i, bright=i % 2 == 0) for i in range(COUNT)), name="Doe^Jane_MRN90371465.png"),
            data={"encoder": "images", "labels": json.dumps([str(i % 2) for i in range(COUNT)]), "folds": "5"},
        )
        assert launcher.end(signal.SIGKILL) == -signal.SIGKILL
    assert answer.status_code == 202, answer.text
    job = answer.json()["id"]
    logs = [launcher.log.read_text()]
    (data / "tmp" / "leftover").mkdir(parents=True)

    with launcher.service() as client:
        assert not (data / "tmp" / "leftover").exists()
        end = time.monotonic() + 60
        while not 0.1 < (middle := client.get(f"/v1/jobs/{job}").json()["progress"]) < 0.8:
            assert time.monotonic() < end and middle < 0.8
            time.sleep(0.005)
        launcher.end(signal.SIGKILL)
    logs.append(launcher.log.read_text())
    done = {path: path.stat().st_mtime_ns for path in (data / "jobs" / job).glob("vectors-??????.npy")}
    assert 0 < len(done) < COUNT / 8, "the kill came in the middle of the job"

    with launcher.service() as client:
        assert client.get(f"/v1/jobs/{job}").json()["progress"] >= middle, "what was done is still done"
        # The last may have been written but not noted as finished.
        stamps = {path: path.stat().st_mtime_ns for path in sorted(done)[:-1] if path.exists()}
        assert stamps.items() <= done.items(), "finished steps are not run again"
        found = wait(client, job, seconds=120)
        assert found["state"] == "succeeded", found
        assert found["attempts"] in (2, 3)
        assert [event["message"] for event in found["events"]].count("succeeded") == 1
        probes = client.get("/v1/probes").json()["probes"]
        assert [(probe["id"], probe["count"]) for probe in probes] == [(job, COUNT)]
        assert client.get(f"/v1/probes/{job}").json()["metrics"]["linear"]["balanced_accuracy"] > 0.9
        assert sorted(path.name for path in (data / "probes" / job).iterdir()) == ["probe.json", "probe.safetensors"]
        assert [path.name for path in (data / "probes").iterdir()] == [job]
        eventually(lambda: not list((data / "jobs").iterdir()))
        assert launcher.end(signal.SIGTERM) in (0, -signal.SIGTERM)
    logs.append(launcher.log.read_text())
    for text in logs:
        assert "Doe" not in text and "MRN90371465" not in text and str(runs) not in text
    stored = b"".join(path.read_bytes() for path in data.rglob("*") if path.is_file()) + rows_of(database_url)
    assert b"Doe" not in stored and b"MRN90371465" not in stored
    assert b"py_pickle" not in stored and b"portable_json" in stored


def test_second_service_on_one_data_directory_is_refused(client: object, runs: Path) -> None:
    from app.service import Service
    from app.settings import Settings
    from data_adapters.errors import UserError

    with pytest.raises(UserError, match="Another service"):
        Service(Settings(runs_dir=runs)).start()
