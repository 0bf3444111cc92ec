"""The live service on a real socket: what uvicorn refuses below the application, and a short run of the fuzzing."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from app.main import HEAD_BYTES
from harness.service import service

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def talk(address: str, content: bytes) -> bytes:
    host, _, port = address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(content)
        return connection.recv(1 << 16)


def test_on_the_socket(runs: Path, tmp_path: Path, new_database: object) -> None:
    url = new_database() if callable(new_database) else None
    (tmp_path / "data").mkdir()
    with service(runs, tmp_path / "data", database_url=url) as (address, key, _):
        start = b"GET /v1/encoders HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        assert b" 401 " in talk(address, start + b"\r\n").partition(b"\r\n")[0]
        long = start + b"X-Long: " + b"x" * HEAD_BYTES + b"\r\n\r\n"
        assert talk(address, long).partition(b"\r\n")[0].startswith(b"HTTP/1.1 4")
        target = b"GET /" + b"x" * HEAD_BYTES + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
        assert talk(address, target).partition(b"\r\n")[0].startswith(b"HTTP/1.1 4")
        with httpx.Client(base_url=address, headers={"X-API-Key": key}) as client:
            for method in ("TRACE", "CONNECT", "PATCH", "BREW"):
                answer = client.request(method, "/v1/encoders")
                assert answer.status_code == 405 and "x-api-key" not in answer.text.lower(), method
            assert client.get("/v1/encoders").status_code == 200
        assert key not in (tmp_path / "data" / "service.log").read_text()


def test_two_rounds_of_requests(new_database: object, tmp_path: Path) -> None:
    pytest.importorskip("schemathesis")
    command = [sys.executable, "-m", "benchmarks.stress.fuzz", "--cases", "2500", "--seed", "7", "--examples", "2"]
    command += ["--out", str(tmp_path / "page.md"), "--json", str(tmp_path / "tally.json")]
    if callable(new_database):
        command += ["--database-url", new_database()]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr  # 1 after any 5xx, violation or broken job
    text, tally = (tmp_path / "page.md").read_text(), json.loads((tmp_path / "tally.json").read_text())
    statuses = tally["statuses"]
    assert sum(sum(counts.values()) for counts in statuses.values()) >= 2500
    assert tally["rounds"] >= 2 and len(statuses) >= 18
    assert {"train-probe", "apply-probe", "import-upload"} <= tally["jobs"].keys(), text
    for operation in (
        "embeddings", "search", "probes", "probes/{probe_id}/predictions", "uploads", "label-sets", "inspect",
    ):  # fmt: skip
        assert statuses[f"POST /v1/{operation}"].keys() & {"200", "201", "202"}, f"none got through\n{text}"
