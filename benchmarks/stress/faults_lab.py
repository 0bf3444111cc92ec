"""A service under faults as its clients see it: what was accepted, and at the end what became of it."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from harness.encoders import png
from harness.launcher import Launcher, Process

OPEN = ("queued", "running")
IMAGES = 40  # of one job: five steps of embedding and a fit


@dataclass
class Outcome:
    """One row of the table. Lost: accepted and without its one probe. Doubled: more than one visible effect."""

    case: str
    database: str
    faults: str
    accepted: int = 0
    lost: int = 0
    doubled: int = 0
    revived: int = 0
    left: int = 0
    peak_mb: float = 0.0
    seen: str = ""


@dataclass
class Lab:
    """One data directory, its processes, and a client that remembers every 202."""

    launcher: Launcher
    data: Path
    service: Process
    workers: list[Process] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    revived: int = 0
    peak: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def call(self, method: str, path: str, **request: Any) -> httpx.Response | None:
        """One request; None where the service died on the way."""
        try:
            return httpx.request(method, self.service.address + path, timeout=60, **request)
        except httpx.HTTPError:
            return None

    def ask(self, path: str) -> Any:
        """A document of the service, asked for until it answers."""
        while (answer := self.call("GET", path)) is None or answer.status_code >= 500:
            time.sleep(0.1)
        answer.raise_for_status()
        return answer.json()

    def send(self, images: int = IMAGES) -> int:
        """Send a job; the status, 0 where the service died on the way. A 202 is remembered."""
        files = [("files", ("image.png", png(number, bright=number % 2 == 1))) for number in range(images)]
        labels = json.dumps([str(number % 2) for number in range(images)])
        answer = self.call("POST", "/v1/probes", files=files, data={"labels": labels, "folds": "2"})
        if answer is not None and answer.status_code == 202:
            with self.lock:
                self.accepted.append(answer.json()["id"])
        return 0 if answer is None else answer.status_code

    def must_send(self, images: int = IMAGES) -> str:
        """Send a job that nothing stands in the way of; its id."""
        status = self.send(images)
        assert status == 202, status
        return self.accepted[-1]

    def job(self, job_id: str) -> Any:
        """A job as the service tells it."""
        return self.ask(f"/v1/jobs/{job_id}")

    def until(self, condition: Callable[[], bool], *, seconds: float = 240) -> bool:
        """Wait; whether it came true."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True

    def running(self, job_id: str) -> bool:
        """Whether the job is in the middle of its work, or beyond."""
        return bool(self.job(job_id)["progress"] > 0.1)

    def weigh(self) -> None:
        """Note the memory of every process."""
        self.peak = max([self.peak, *(process.memory() for process in self.launcher.living)])

    def settle(self, outcome: Outcome) -> Outcome:
        """Wait for the end of all jobs, queue dead ones again, and fill in what became of them."""
        self.until(self._ended, seconds=300)
        jobs = {job["id"]: job for job in self.ask("/v1/jobs?limit=1000")["jobs"]}
        made = [probe["id"] for probe in self.ask("/v1/probes?limit=1000")["probes"]]
        outcome.accepted = len(self.accepted)
        outcome.lost = sum(made.count(job) == 0 or jobs[job]["state"] != "succeeded" for job in self.accepted)
        outcome.doubled = len(made) - len(set(made)) + len(set(made) - set(jobs))
        for job in jobs:
            ends = [event["message"] for event in self.job(job)["events"] if event["message"] == "succeeded"]
            outcome.doubled += max(0, len(ends) - 1)
        self.until(lambda: not self._leftovers(), seconds=90)
        outcome.left = len(self._leftovers())
        outcome.revived = self.revived
        self.weigh()
        outcome.peak_mb = self.peak / 2**20
        return outcome

    def _ended(self) -> bool:
        states = [(job["id"], job["state"]) for job in self.ask("/v1/jobs?limit=1000")["jobs"]]
        for job, state in states:
            if state == "dead" and (answer := self.call("POST", f"/v1/jobs/{job}/retry")) is not None:
                self.revived += answer.status_code == 202
        self.weigh()
        time.sleep(0.3)
        return not any(state in (*OPEN, "dead") for _, state in states)

    def _leftovers(self) -> list[Path]:
        folders = [self.data / name for name in ("jobs", "tmp")]
        made = [path for path in (self.data / "probes").glob(".*")]
        return [entry for folder in folders if folder.is_dir() for entry in folder.iterdir()] + made


@contextmanager
def lab(launcher: Launcher, runs: Path, place: Path, *, workers: int = 0, **options: Any) -> Iterator[Lab]:
    """A service and workers on a data directory of their own in `place`."""
    logs = place / "logs"
    logs.mkdir(parents=True)
    launcher.use(runs, place / "data", logs, **options)
    try:
        service = launcher.service()
        yield Lab(launcher, place / "data", service, [launcher.worker() for _ in range(workers)])
    finally:
        launcher.end_all()
