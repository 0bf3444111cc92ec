"""GET /v1/jobs/{id}?wait=: the answer comes when the job has ended, and holds up nothing."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.api import service
from harness.launcher import Launcher
from tests.app.helpers import client_of, eventually, files, png, wait

LONG = 30  # seconds, the most that a request may ask for


@pytest.fixture
def job(client: TestClient, gate: threading.Event) -> Iterator[str]:
    """A probe that trains once the gate is open."""
    sent = {"encoder": "images", "labels": '["a","b","a","b"]', "folds": "2"}
    pictures = files(*(png(number, bright=number % 2 == 0) for number in range(4)))
    accepted = client.post("/v1/probes", files=pictures, data=sent).json()
    yield accepted["id"]
    gate.set()
    wait(client, accepted["id"])


def asked(client: TestClient, job: str, seconds: float = LONG) -> Any:
    return client.get(f"/v1/jobs/{job}", params={"wait": seconds})


def test_answers_when_the_job_has_ended(client: TestClient, job: str, gate: threading.Event) -> None:
    waits = client.app.state.service.waits  # type: ignore[attr-defined]
    with ThreadPoolExecutor() as pool:
        began = time.monotonic()
        answers = [pool.submit(asked, client, job) for _ in range(3)]
        eventually(lambda: len(waits._events.get(job, ())) == 3)
        assert client.get(f"/v1/jobs/{job}").json()["state"] in ("queued", "running"), "without wait: at once"
        gate.set()
        assert [answer.result().json()["state"] for answer in answers] == ["succeeded"] * 3
        assert time.monotonic() - began < LONG
    assert asked(client, job).json()["result"] == f"/v1/probes/{job}"
    eventually(lambda: waits._watcher is None)
    assert not waits._events, "nothing is left of the requests"


def test_answers_when_the_time_is_over(client: TestClient, job: str) -> None:
    began = time.monotonic()
    assert asked(client, job, 0.3).json()["state"] in ("queued", "running")
    assert 0.3 <= time.monotonic() - began < LONG


def test_a_cancelled_job_ends_the_wait(client: TestClient, job: str) -> None:
    waits = client.app.state.service.waits  # type: ignore[attr-defined]
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(asked, client, job)
        eventually(lambda: job in waits._events)
        client.delete(f"/v1/jobs/{job}")
        assert answer.result().json()["state"] == "cancelled"


def test_a_drain_ends_the_wait(client: TestClient, job: str) -> None:
    drain = client.app.state.drain  # type: ignore[attr-defined]
    waits = client.app.state.service.waits  # type: ignore[attr-defined]
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(asked, client, job)
        eventually(lambda: job in waits._events)
        drain.begin()
        try:
            assert answer.result(timeout=LONG / 2).json()["state"] in ("queued", "running")
        finally:
            drain.since = None


def test_no_more_requests_wait_than_may(client: TestClient, job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MOST", 0)
    began = time.monotonic()
    assert asked(client, job).json()["state"] in ("queued", "running")
    assert time.monotonic() - began < LONG / 2


def test_waiting_is_no_slow_answer(client: TestClient, job: str) -> None:
    def slow() -> float:
        counted = client.get("/metrics").text.splitlines()
        mine = [line for line in counted if 'route="/v1/jobs/{job_id}"' in line and 'method="GET"' in line]
        (fast,) = (float(line.split()[-1]) for line in mine if 'le="1.0"' in line and 'status="2xx"' in line)
        (all_,) = (float(line.split()[-1]) for line in mine if 'le="+Inf"' in line and 'status="2xx"' in line)
        return all_ - fast

    client.get(f"/v1/jobs/{job}")
    before = slow()
    asked(client, job, 1.2)
    assert slow() == before


@pytest.mark.parametrize("seconds", ["-1", "31", "nan", "long"])
def test_other_waits_are_refused(client: TestClient, seconds: str) -> None:
    answer = client.get("/v1/jobs/none", params={"wait": seconds})
    assert answer.status_code == 422 and "wait" in answer.json()["detail"]


def test_no_such_job(client: TestClient) -> None:
    assert asked(client, "none").status_code == 404


def test_a_client_that_goes_away_is_not_waited_for(launcher: Launcher) -> None:
    service = launcher.service(job_workers=0)  # so the job waits for ever
    with client_of(service) as client:
        sent = {"encoder": "images", "labels": '["a","b","a","b"]'}
        pictures = files(*(png(number) for number in range(4)))
        job = client.post("/v1/probes", files=pictures, data=sent).raise_for_status().json()["id"]
        with socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as gone:
            gone.sendall(f"GET /v1/jobs/{job}?wait={LONG} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            eventually(lambda: "lejepa_requests_in_flight 2.0" in client.get("/metrics").text)
        began = time.monotonic()
        eventually(lambda: "lejepa_requests_in_flight 1.0" in client.get("/metrics").text)
        assert time.monotonic() - began < LONG / 2
        assert client.get(f"/v1/jobs/{job}").json()["state"] == "queued"
