"""The demo's service: `lejepa-med serve` as a process that outlives the demo, found again by its pid file."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_adapters.errors import UserError, require

if TYPE_CHECKING:
    from lejepa_med.client import Client

HOST = "127.0.0.1"
START_SECONDS = 120.0
STOP_SECONDS = 20.0
PORTS = 50


@dataclass(frozen=True)
class Running:
    """A service that the demo started."""

    pid: int
    port: int
    runs: str

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://{HOST}:{self.port}"


def previous(home: Path) -> Running | None:
    """The service that an earlier demo left, if its process still runs and is that service."""
    try:
        known = Running(**json.loads((home / "service.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    # A process id may have gone to another program since; its command line tells.
    command = ["ps", "-ww", "-o", "command=", "-p", str(known.pid)]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:  # a slim container without ps
        shown = _linux_command(known.pid)
    return known if " serve " in shown and known.runs in shown else None


def _linux_command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def stop(home: Path) -> bool:
    """End the service that an earlier demo left; True when there was one.

    Raises:
        UserError: it does not end.
    """
    known = previous(home)
    if known is None:
        return False
    os.kill(known.pid, signal.SIGTERM)
    end = time.monotonic() + STOP_SECONDS
    while previous(home) is not None:
        if time.monotonic() > end:
            raise UserError(
                f"The service of an earlier demo (process {known.pid}) does not end.",
                remedy=f"End it with: kill -9 {known.pid}",
            )
        _reap(known.pid)
        time.sleep(0.1)
    for name in ("service.json", "service.pid"):
        (home / name).unlink(missing_ok=True)
    return True


def _reap(pid: int) -> None:
    """A service that this same process started stays in the process table until it is waited for."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass


def free_port(wanted: int) -> int:
    """`wanted`, or the next port that nobody listens on.

    Raises:
        UserError: no port is free.
    """
    for port in range(wanted, min(wanted + PORTS, 65536)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise UserError(
        f"The ports {wanted} to {wanted + PORTS - 1} are all in use.", remedy="Give another one with --port."
    )


def start(home: Path, runs: Path, *, port: int) -> Running:
    """Start the service on `runs` and wait until /readyz says that it can work.

    Its log is `home`/service.log, its state `home`/service, its process id `home`/service.pid.

    Raises:
        UserError: it ended, or did not become ready in two minutes.
    """
    port = free_port(port)
    log = home / "service.log"
    command = [sys.executable, "-m", "lejepa_med.cli", "serve", str(runs), "--host", HOST, "--port", str(port)]
    command += ["--data-dir", str(home / "service")]
    with log.open("wb") as stream:
        # A session of its own: closing the terminal or Ctrl-C in it does not reach the service.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
    running = Running(pid=process.pid, port=port, runs=str(runs))
    (home / "service.json").write_text(json.dumps(running.__dict__), encoding="utf-8")
    (home / "service.pid").write_text(f"{process.pid}\n", encoding="utf-8")
    _wait(process, running, log)
    return running


def connect(running: Running, *, timeout: float = 120) -> "Client":
    """Return a client of the service.

    Raises:
        MissingExtraError: httpx is not installed.
    """
    require("httpx", extra="serve")
    from lejepa_med.client import Client

    return Client(running.url, timeout=timeout)


def _wait(process: "subprocess.Popen[bytes]", running: Running, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise UserError(
                f"The service ended with status {process.returncode}: {' '.join(lines[-1:])}",
                remedy=f"Its log is {log}.",
            )
        with connect(running, timeout=10) as client:
            if client.is_ready():
                return
        time.sleep(0.3)
    os.kill(process.pid, signal.SIGTERM)
    raise UserError(f"The service was not ready in {START_SECONDS:.0f} s.", remedy=f"Its log is {log}.")
