"""Uploads, and waiting for jobs."""

import time
from collections.abc import Callable
from typing import Any

import httpx

from app.store import Store, new_job, now
from harness.encoders import picture as picture
from harness.encoders import png as png
from harness.launcher import Process
from lejepa_med.client import Client


def files(*contents: bytes, name: str = "image.png") -> list[tuple[str, tuple[str, bytes]]]:
    """The `files` argument of httpx."""
    return [("files", (name, content)) for content in contents]


def client_of(service: Process) -> httpx.Client:
    return httpx.Client(base_url=service.address, timeout=60)


def eventually(condition: Callable[[], bool], *, seconds: float = 60) -> None:
    """Wait for what happens soon after an answer."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def wait(client: httpx.Client, job: str, *, seconds: float = 120) -> dict[str, Any]:
    """The job once it has an outcome; progress must never fall on the way."""
    service = Client(str(client.base_url), http=client)
    end, progress = time.monotonic() + seconds, 0.0
    while time.monotonic() < end:
        # not Client.wait: a TestClient may have an event loop for each request, and what waits is of one loop
        found = service.job(job)
        assert found.progress >= progress
        progress = found.progress
        if found.has_ended:
            return found.model_dump(mode="json")
        time.sleep(0.05)
    raise AssertionError(f"job not ended after {seconds} s: {found}")


def add_dead_job(store: Store, job: str, kind: str) -> None:
    """A job whose tries are used up; it never waits, so no worker begins it."""
    row = new_job(job, kind)
    row.state, row.finished = "dead", now()
    with store._write() as session:
        session.add(row)
