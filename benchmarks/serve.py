"""Requests per second of the service, of LitServe and of a plain FastAPI route, beside the bare encoder.

    python -m benchmarks.serve [--seconds 4] [--rounds 3] [--clients 1 8 32 128] [--python PYTHON] [--out FILE]

All sides run the same encoder folder with the same number of threads; they are loaded in turns, each round in another
order, so that whatever else the machine does meets all of them. Who has not its turn is stopped (SIGSTOP): some servers
are busy while they wait. `--python` names an interpreter that has
litserve besides this project's packages, for that side alone: LitServe brings a faster HTTP parser and event loop,
which the others shall not get by it. Without it LitServe is left out. A quarter of an hour.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

import data_adapters
from benchmarks.hardware import publish
from benchmarks.serve_report import page
from benchmarks.train import make_files
from lejepa_med.models.encoder import create_encoder
from lejepa_med.models.folder import save_encoder
from lejepa_med.models.formation import Formation

ROOT = Path(__file__).parent.parent
SIZES = {"resnet18": 64, "resnet18, 8 views": 64, "vit_small_patch16_224": 224}  # pixels that each encoder sees
VIEWS = {"resnet18, 8 views": 8}  # fixed views that are averaged, where it is not one
SERVERS = {
    "ours": ["benchmarks.serve_sides", "ours"],
    "plain FastAPI": ["benchmarks.serve_sides", "plain"],
    "LitServe": ["benchmarks.peers.litserve_server"],
}
READY = {"ours": "/readyz", "plain FastAPI": "/docs", "LitServe": "/health"}
START_SECONDS = 120
SETTLE_SECONDS = 5


def prepare(scratch: Path, backbone: str) -> tuple[Path, Path, int]:
    """A runs directory with a random encoder, a JPEG file a quarter larger than it sees, and the vector length."""
    size = SIZES[backbone]
    torch.manual_seed(0)
    # galaxies, since eight views are allowed for them; their pictures are read as those of any modality
    adapter = data_adapters.create("galaxy", kind="picture", field=1, global_size=size, local_size=size, n_local=0)
    formation = Formation(size=size, views=VIEWS.get(backbone, 1))
    encoder = create_encoder(backbone.partition(",")[0], adapter.spec, formation=formation)
    runs = scratch / backbone
    save_encoder(encoder, adapter, runs / "run" / "encoder")
    picture = make_files(scratch / f"{backbone}-pictures", count=1, side=size * 5 // 4) / "0000.jpg"
    return runs, picture, encoder.vector_dim


@contextmanager
def running(command: list[str], *, log: Path, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process in a session of its own, ended with all its children."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LEJEPA_LOG_LEVEL": "warning"}
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stderr=stream, text=True, start_new_session=True, **options
        )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):  # all have ended by themselves
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_ready(side: str, port: int, process: "subprocess.Popen[str]", log: Path) -> None:
    """Until the side answers."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}{READY[side]}", timeout=2).close()
            return
        except OSError:
            time.sleep(0.3)
    raise SystemExit(f"{side} did not start:\n{log.read_text()[-2000:]}")


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def awake(process: "subprocess.Popen[str]") -> Iterator[None]:
    """Let a stopped process and its children run."""
    os.killpg(process.pid, signal.SIGCONT)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGSTOP)


def load(port: int, picture: Path, clients: int, seconds: float, process: int, dim: int) -> dict[str, float]:
    """One window of load; 'failed' alone where it did not end in time."""
    url = f"http://127.0.0.1:{port}/v1/embeddings"
    command = [sys.executable, "-m", "benchmarks.serve_load", url, str(picture)]
    command += [str(value) for value in (clients, seconds, process, dim)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"  no figures: {(done.stderr.strip().splitlines() or ['?'])[-1]}", file=sys.stderr)
        return {"failed": 1}
    return dict(json.loads(done.stdout))


def measure(backbone: str, args: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    """All windows of one encoder."""
    runs, picture, dim = prepare(scratch, backbone)
    sides = [side for side in SERVERS if side != "LitServe" or args.python]
    threads = str(args.threads)
    windows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        servers = {}
        for side in sides:
            port, log = free_port(), scratch / f"{side}.log"
            python = args.python if side == "LitServe" else sys.executable
            command = [python, "-m", *SERVERS[side], str(runs), str(port), threads]
            servers[side] = (port, stack.enter_context(running(command, log=log, stdout=subprocess.DEVNULL)), log)
        for side, (port, process, log) in servers.items():
            wait_ready(side, port, process, log)
        time.sleep(SETTLE_SECONDS)  # what is loaded behind the first answer
        for _, process, _ in servers.values():
            os.killpg(process.pid, signal.SIGSTOP)
        command = [sys.executable, "-m", "benchmarks.serve_sides", "bare", str(runs), "0", threads]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        bare = stack.enter_context(running(command, log=scratch / "bare.log", **pipes))
        assert bare.stdin is not None and bare.stdout is not None
        for turn in range(args.rounds):
            for clients in args.clients:
                if clients > args.most.get(backbone, clients):
                    continue
                order = sides[turn % len(sides) :] + sides[: turn % len(sides)]
                row: dict[str, Any] = {"backbone": backbone, "clients": clients, "turn": turn}
                for batch in sorted({1, min(clients, 32)}):
                    print(batch, args.seconds / 2, file=bare.stdin, flush=True)
                    row[f"bare {batch}"] = json.loads(bare.stdout.readline())
                for side in order:
                    port, process, _ = servers[side]
                    with awake(process):
                        row[side] = load(port, picture, clients, args.seconds, process.pid, dim)
                    print(backbone, turn, clients, side, row[side].get("rate"), file=sys.stderr)
                windows.append(row)
    return windows


def main() -> None:
    """Measure, print the page, and write it where --out says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4, help="least length of a window")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--backbones", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument(
        "--threads", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="of torch on every side [cores - 1]"
    )
    parser.add_argument("--python", help="an interpreter with litserve")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    # 128 answers of a ViT take half a minute on two cores; its batches are full with 32 clients already
    args.most = {"vit_small_patch16_224": 32}
    with tempfile.TemporaryDirectory() as folder:
        windows = [row for backbone in args.backbones for row in measure(backbone, args, Path(folder))]
    publish(page(windows, SIZES, threads=args.threads, seconds=args.seconds, rounds=args.rounds), args.out)


if __name__ == "__main__":
    main()
