"""Made bombs against a running service: `python -m benchmarks.bombs [--out FILE]` prints and writes the table.

For each file: seconds until the answer, growth of the memory of the service and all its processes (proportional set
size, looked at every 10 ms), HTTP status, and the problem's words. Goal: refused in under 2 s with less than 512 MiB.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import httpx

from benchmarks.hardware import cpu_name, publish
from tests.app.conftest import OPTIONS, make_encoder
from tests.app.growth import Growth
from tests.app.helpers import png
from tests.data.bombs import bombs

SECONDS, MIB = 2.0, 512
START_SECONDS = 180
HEAD = "| file | KiB | seconds | MiB growth | status | answer |\n|---|---:|---:|---:|---:|---|\n"


def main(out: Path) -> int:
    """Run all; 1 where a goal is missed."""
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / "runs"
        for modality in OPTIONS:
            make_encoder(runs / modality, modality)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        service = subprocess.Popen(
            [sys.executable, "-m", "lejepa_med.cli", "serve", str(runs), "--port", str(port)],
            env={**os.environ, "LEJEPA_LOADED_ENCODERS": str(len(OPTIONS)), "LEJEPA_LOG_LEVEL": "error"},
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
                _warm(client)
                rows = [_row(client, service.pid, bomb.modality, bomb.name, bomb.make()) for bomb in bombs()]
        finally:
            service.terminate()
            service.wait(30)
    met = sum(seconds < SECONDS and growth < MIB and status == 422 for _, _, seconds, growth, status, _ in rows)
    machine = f"{cpu_name()}, {os.cpu_count()} cores, {date.today()}"
    text = f"# Made bombs against the service\n\n{machine}. `python -m benchmarks.bombs`\n\n{HEAD}"
    text += "".join(
        f"| {name} | {kib} | {seconds:.2f} | {growth} | {status} | {answer} |\n"
        for name, kib, seconds, growth, status, answer in rows
    )
    load = f"; other work on the machine: load average {os.getloadavg()[1]:.1f} over five minutes"
    text += f"\nRefused in under {SECONDS:g} s with less than {MIB} MiB of growth: {met} of {len(rows)}{load}.\n"
    publish(text, out)
    return int(met < len(rows))


def _warm(client: httpx.Client) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            if client.get("/readyz").status_code == 200:
                break
        except httpx.TransportError:
            pass
        if time.monotonic() > end:
            raise SystemExit("the service does not become ready")
        time.sleep(0.5)
    for _ in range(4):
        client.post("/v1/embeddings", files=[("files", ("a.png", png()))], data={"encoder": "images"})


def _row(
    client: httpx.Client, pid: int, modality: str, name: str, content: bytes
) -> tuple[str, int, float, int, int, str]:
    with Growth(pid) as growth:
        began = time.perf_counter()
        answer = client.post("/v1/embeddings", files=[("files", (name, content))], data={"encoder": modality})
        seconds = time.perf_counter() - began
    words = answer.json().get("detail", "a vector")
    return name, len(content) >> 10, seconds, growth.bytes >> 20, answer.status_code, words


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "bombs.md")
    sys.exit(main(parser.parse_args().out))
