"""What is tried again, when it is given up, and what becomes of a job then."""

import errno
import threading

import pytest
import torch
from fastapi.testclient import TestClient

from app.core.errors import ProblemError
from app.core.settings import Settings
from app.jobs.base import GaveUp, Stopped, persevere, why_passing
from data_adapters.errors import BadFileError, UserError
from tests.app.helpers import eventually, wait


def test_only_faults_that_pass_are_tried_again() -> None:
    for passing in (
        OSError(errno.ENOSPC, "No space left on device", "/secret/path"),
        MemoryError(),
        torch.OutOfMemoryError("x"),
        ProblemError(503, "busy", "The queue is full."),
    ):
        reason = why_passing(passing)
        assert reason is not None and "secret" not in reason
    for lasting in (UserError("x"), BadFileError("x"), ValueError("x"), ProblemError(422, "x", "x")):
        assert why_passing(lasting) is None


def test_a_fault_is_tried_again_until_it_passes_or_the_limit_is_reached() -> None:
    notes: list[str] = []
    left = [OSError(errno.ENOSPC, "No space left on device")]

    def work() -> str:
        if left:
            raise left.pop()
        return "done"

    def note(message: str) -> bool:
        notes.append(message)
        return True

    def fail() -> None:
        raise OSError(errno.EIO, "Input/output error")

    assert persevere(work, retries=1, note=note, halt=threading.Event()) == "done"
    assert notes == ["No space left on device: trying again in 1 s (1 of 1)"]
    with pytest.raises(GaveUp) as caught:
        persevere(fail, retries=0, note=note, halt=threading.Event())
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(Stopped):
        persevere(fail, retries=5, note=lambda message: False, halt=threading.Event())
    halted = threading.Event()
    halted.set()
    with pytest.raises(Stopped):
        persevere(fail, retries=5, note=note, halt=halted)
    assert len(notes) == 2


def probe_of(client: TestClient) -> str:
    """A job that trains on the embedding table."""
    ids = [item["id"] for item in client.get("/v1/archives/table/ids").json()["items"]]
    labels = [{"id": name, "label": str(number % 2)} for number, name in enumerate(ids)]
    answer = client.post("/v1/probes", json={"archive": "table", "folds": 2, "labels": labels})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def test_a_job_whose_tries_are_used_up_is_dead_keeps_its_inputs_and_can_be_queued_again(
    client: TestClient, settings: Settings
) -> None:
    probes, aside = settings.data / "probes", settings.data / "aside"
    probes.mkdir(exist_ok=True)
    probes.rename(aside)
    probes.write_bytes(b"")  # where the result's folder should be: a fault of the disk, to the job
    try:
        revived, given_up = probe_of(client), probe_of(client)
        for job in (revived, given_up):
            found = wait(client, job)
            assert found["state"] == "dead", found
            assert "/v1/jobs/{id}/retry" in found["error"]["remedy"] and str(settings.data) not in str(found)
            assert any("trying again in 1 s (1 of 1)" in event["message"] for event in found["events"])
            assert (settings.data / "jobs" / job / "vectors.npy").exists()
    finally:
        probes.unlink()
        aside.rename(probes)
    dead = client.get("/v1/jobs", params={"state": "dead", "kind": "train-probe", "limit": 5}).json()["jobs"]
    assert {job["id"] for job in dead} == {revived, given_up}
    assert client.get("/v1/jobs", params={"state": "dead", "kind": "other"}).json()["jobs"] == []
    assert client.get("/v1/jobs", params={"state": "lost"}).status_code == 422

    assert client.delete(f"/v1/jobs/{given_up}").json()["state"] == "cancelled"
    eventually(lambda: not (settings.data / "jobs" / given_up).exists())
    answer = client.post(f"/v1/jobs/{revived}/retry")
    assert answer.status_code == 202 and answer.json()["state"] in ("queued", "running")
    eventually(lambda: client.get(f"/v1/jobs/{revived}").json()["state"] == "succeeded", seconds=30)
    assert client.get(f"/v1/probes/{revived}").status_code == 200
    eventually(lambda: not (settings.data / "jobs" / revived).exists())
    for job, status in ((revived, 409), (given_up, 409), ("unknown", 404)):
        assert client.post(f"/v1/jobs/{job}/retry").status_code == status
