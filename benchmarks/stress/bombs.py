"""Made bombs against a running service: `python -m benchmarks.stress.bombs [--out FILE]` prints and writes the table.

Each row has the seconds until the answer, the growth in memory of the service with all its processes (proportional set
size, sampled every 10 ms), the HTTP status, and the detail of the problem. Goal: refused in under 2 s with less than
512 MiB.
"""

import argparse
import os
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import httpx

from benchmarks.hardware import cpu_name, publish
from harness.bombs import Bomb, bombs
from harness.encoders import OPTIONS, make_runs, png
from harness.growth import Growth
from harness.service import service

SECONDS, MIB = 2.0, 512
HEAD = "| file | KiB | seconds | MiB growth | status | answer |\n|---|---:|---:|---:|---:|---|\n"


def main(out: Path) -> int:
    """Send every bomb; return 1 where a goal is missed."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        settings = {"LEJEPA_LOADED_ENCODERS": str(len(OPTIONS)), "LEJEPA_LOG_LEVEL": "info"}
        with service(make_runs(place, rows=0), place / "data", **settings) as served:
            head = {"Authorization": f"Bearer {served.key}"}
            with httpx.Client(base_url=served.address, timeout=120, headers=head) as client:
                while client.get("/readyz").status_code != 200:
                    time.sleep(0.5)
                for _ in range(4):
                    client.post("/v1/embeddings", files=[("files", ("a.png", png()))], data={"encoder": "images"})
                rows = [_row(client, served.pid, bomb) for bomb in bombs()]
    met = sum(seconds < SECONDS and growth < MIB and status == 422 for _, _, seconds, growth, status, _ in rows)
    machine = f"{cpu_name()}, {os.cpu_count()} cores, {date.today()}"
    text = f"# Made bombs against the service\n\n{machine}. `python -m benchmarks.stress.bombs`\n\n{HEAD}"
    text += "".join(
        f"| {name} | {kib} | {seconds:.2f} | {growth} | {status} | {answer} |\n"
        for name, kib, seconds, growth, status, answer in rows
    )
    load = f"Load average over five minutes, other work included: {os.getloadavg()[1]:.1f}."
    text += f"\nRefused in under {SECONDS:g} s with less than {MIB} MiB of growth: {met} of {len(rows)}. {load}\n"
    publish(text, out)
    return int(met < len(rows))


def _row(client: httpx.Client, pid: int, bomb: Bomb) -> tuple[str, int, float, int, int, str]:
    content = bomb.make()
    with Growth(pid) as growth:
        began = time.perf_counter()
        answer = client.post("/v1/embeddings", files=[("files", (bomb.name, content))], data={"encoder": bomb.modality})
        seconds = time.perf_counter() - began
    words = answer.json().get("detail", "a vector")
    return bomb.name, len(content) >> 10, seconds, growth.bytes >> 20, answer.status_code, words


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "bombs.md")
    sys.exit(main(parser.parse_args().out))
