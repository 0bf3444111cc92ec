"""Where one fault is staged: a database, a data directory, a small disk, a clock that can be set."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.stress.faults_lab import Lab, Outcome, lab
from harness.launcher import Launcher

FAKETIME = (
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
)


class Skipped(Exception):
    """A case that this machine cannot stage, and why."""


class Case:
    """Where one fault is staged."""

    def __init__(self, name: str, database: str, url: str | None, launcher: Launcher, runs: Path, place: Path) -> None:
        self.name, self.database, self.url = name, database, url
        self.launcher, self.runs, self.place = launcher, runs, place
        self.faketime = place.parent / "clock"

    @contextmanager
    def lab(self, place: Path | None = None, **options: Any) -> Iterator[Lab]:
        """Processes on this case's database."""
        where = place or self.place
        where.mkdir(parents=True, exist_ok=True)
        with lab(self.launcher, self.runs, where, database_url=self.url, **options) as made:
            yield made

    def outcome(self, faults: str) -> Outcome:
        """A row to be filled in."""
        return Outcome(case=self.name, database=self.database, faults=faults)

    @contextmanager
    def small_disk(self) -> Iterator[Path]:
        """A file system of 48 MB."""
        place = self.place / "disk"
        place.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", "size=48m", "none", str(place)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            raise Skipped("a small file system can be mounted by root only")
        try:
            yield place
        finally:
            subprocess.run(["umount", "--lazy", str(place)], check=True)


def faked(library: str, clock: Path) -> dict[str, str]:
    """The environment of processes whose wall clock is what the file `clock` says."""
    return {
        "LD_PRELOAD": library,
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # as on a real machine, where only the wall clock is set
    }
