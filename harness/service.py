"""A live service started through the command line, with an administrator's key and without rate limits."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple


class Served(NamedTuple):
    """Where the service answers, the key that was made for it, and its process."""

    address: str
    key: str
    pid: int


@contextmanager
def service(runs: Path, data: Path, *, database_url: str | None = None, **settings: str) -> Iterator[Served]:
    """Start a service on a free port; stop it at the end. Its log is service.log in `data`.

    `settings` are further environment variables, such as LEJEPA_LOG_LEVEL="error".
    """
    data.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "lejepa_med.cli"]
    environment = {
        **os.environ,
        "LEJEPA_AUTH": "on",
        "LEJEPA_REQUESTS_PER_MINUTE": "0",
        "LEJEPA_JOBS_PER_KEY": "1000000",
        "LEJEPA_THREADS": "1",
        **({"LEJEPA_DATABASE_URL": database_url} if database_url else {}),
        **settings,
    }
    make = [*command, "key", "create", "harness", "--scopes", "admin", "--data-dir", str(data)]
    key = subprocess.run(make, env=environment, check=True, capture_output=True, text=True).stdout.strip()
    log = data / "service.log"
    with log.open("w") as stream:
        run = [*command, "serve", str(runs), "--port", "0", "--data-dir", str(data)]
        process = subprocess.Popen(run, env=environment, stderr=stream, stdout=stream)
    try:
        yield Served(_address(process, log), key, process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _address(process: "subprocess.Popen[bytes]", log: Path) -> str:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        match = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
        if match:
            return match[0]
        time.sleep(0.2)
    raise SystemExit(f"the service did not start:\n{log.read_text()}")
