"""kill -9 of real services and workers, after the 202 and in the middle of jobs: nothing is lost or doubled."""

import json
import os
import signal
import time
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from app import store as stores
from harness.launcher import Launcher
from tests.app.helpers import client_of, eventually, files, png, wait

COUNT = 160  # 20 steps


def accepted(client: httpx.Client, count: int, *, name: str = "image.png") -> str:
    """A probe job of `count` labelled pictures."""
    answer = client.post(
        "/v1/probes",
        files=files(*(png(i, bright=i % 2 == 0) for i in range(count)), name=name),
        data={"encoder": "images", "labels": json.dumps([str(i % 2) for i in range(count)]), "folds": "5"},
    )
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def in_the_middle(client: httpx.Client, job: str) -> float:
    """Progress, as soon as the job is between a tenth and four fifths."""
    end = time.monotonic() + 60
    while not 0.1 < (middle := client.get(f"/v1/jobs/{job}").json()["progress"]) < 0.8:
        assert time.monotonic() < end and middle < 0.8
        time.sleep(0.005)
    return float(middle)


def rows_of(url: str | None) -> bytes:
    """All that a service keeps in PostgreSQL, as text."""
    if url is None:
        return b""
    import psycopg

    with psycopg.connect(url) as connection:
        tables = connection.execute(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname = 'public'"
        ).fetchall()
        rows = [connection.execute(f"SELECT t::text FROM {name} t").fetchall() for (name,) in tables]  # type: ignore
    return repr(rows).encode()


def test_kill_9_of_the_service(launcher: Launcher, runs: Path, tmp_path: Path, database_url: str | None) -> None:
    data = tmp_path / "data"
    service = launcher.service()
    with client_of(service) as client:
        job = accepted(client, COUNT, name="Doe^Jane_MRN90371465.png")
        assert service.end(signal.SIGKILL) == -signal.SIGKILL
    (data / "tmp" / "leftover").mkdir(parents=True)

    service = launcher.service()
    with client_of(service) as client:
        assert not (data / "tmp" / "leftover").exists()
        middle = in_the_middle(client, job)
        service.end(signal.SIGKILL)
    done = {path: path.stat().st_mtime_ns for path in (data / "jobs" / job).glob("vectors-??????.npy")}
    assert 0 < len(done) < COUNT / 8, "the kill came in the middle of the job"

    service = launcher.service()
    with client_of(service) as client:
        assert client.get(f"/v1/jobs/{job}").json()["progress"] >= middle, "what was done is still done"
        # The last may have been written but not noted as finished.
        stamps = {path: path.stat().st_mtime_ns for path in sorted(done)[:-1] if path.exists()}
        assert stamps.items() <= done.items(), "finished steps are not run again"
        found = wait(client, job, seconds=120)
        assert found["state"] == "succeeded", found
        assert found["attempts"] in (2, 3)
        assert [event["message"] for event in found["events"]].count("succeeded") == 1
        probes = client.get("/v1/probes").json()["probes"]
        assert [(probe["id"], probe["count"]) for probe in probes] == [(job, COUNT)]
        assert client.get(f"/v1/probes/{job}").json()["metrics"]["linear"]["balanced_accuracy"] > 0.9
        assert sorted(path.name for path in (data / "probes" / job).iterdir()) == ["probe.json", "probe.safetensors"]
        assert [path.name for path in (data / "probes").iterdir()] == [job]
        eventually(lambda: not list((data / "jobs").iterdir()))
        assert service.end(signal.SIGTERM) in (0, -signal.SIGTERM)
    assert list((data / "workers").iterdir()) == [], "the dead were forgotten, and the last one said goodbye"
    for log in tmp_path.glob("*.log"):
        text = log.read_text()
        assert "Doe" not in text and "MRN90371465" not in text and str(runs) not in text
    stored = b"".join(path.read_bytes() for path in data.rglob("*") if path.is_file()) + rows_of(database_url)
    assert b"Doe" not in stored and b"MRN90371465" not in stored


def test_kill_9_of_one_worker_among_three(launcher: Launcher, tmp_path: Path) -> None:
    service = launcher.service(job_workers=0)
    with client_of(service) as client:
        jobs = [accepted(client, 96) for _ in range(3)]
        time.sleep(0.5)
        assert {client.get(f"/v1/jobs/{job}").json()["state"] for job in jobs} == {"queued"}, "nobody works yet"
        workers = [launcher.worker() for _ in range(3)]
        in_the_middle(client, jobs[0])
        with closing(stores.Store(url_of(launcher))) as store:
            holder = store.job(jobs[0]).worker  # type: ignore[union-attr]
            victim = next(worker for worker in workers if f"-{worker.pid}-" in holder)
            victim.end(signal.SIGKILL)
            found = [wait(client, job, seconds=120) for job in jobs]
            assert [job["state"] for job in found] == ["succeeded"] * 3, found
            assert store.job(jobs[0]).worker != holder  # type: ignore[union-attr]
        messages = [event["message"] for event in found[0]["events"]]
        assert messages.count("its worker ended; another one takes it over") == 1
        for job in found:
            assert [event["message"] for event in job["events"]].count("succeeded") == 1
        assert sorted(probe["id"] for probe in client.get("/v1/probes").json()["probes"]) == sorted(jobs)
        eventually(lambda: not list((tmp_path / "data" / "jobs").iterdir()))


def test_two_services_on_one_database_and_one_of_them_is_killed(launcher: Launcher, tmp_path: Path) -> None:
    if launcher.options["database_url"] is None:
        pytest.skip("with SQLite one service alone has the data directory")
    first, second = launcher.service(), launcher.service()
    with client_of(first) as one, client_of(second) as other:
        jobs = [accepted(client, 96) for client in (one, other, one, other)]
        assert {job["id"] for job in one.get("/v1/jobs").json()["jobs"]} == set(jobs), "each tells of all jobs"
        eventually(lambda: other.get("/v1/jobs?state=running").json()["jobs"])
        first.end(signal.SIGKILL)
        found = [wait(other, job, seconds=120) for job in jobs]
        assert [job["state"] for job in found] == ["succeeded"] * 4, found
        for job in found:
            assert [event["message"] for event in job["events"]].count("succeeded") == 1
        assert sorted(probe["id"] for probe in other.get("/v1/probes").json()["probes"]) == sorted(jobs)
        eventually(lambda: not list((tmp_path / "data" / "jobs").iterdir()))


@pytest.mark.slow
def test_a_worker_that_is_stopped_gives_its_job_back(launcher: Launcher) -> None:
    service = launcher.service(job_workers=0)
    with client_of(service) as client:
        job = accepted(client, COUNT)
        worker = launcher.worker()
        in_the_middle(client, job)
        assert worker.end(signal.SIGTERM) == 0
        launcher.worker()
        found = wait(client, job, seconds=120)
        assert (found["state"], found["attempts"]) == ("succeeded", 2)
        assert not any("ended" in event["message"] for event in found["events"]), "no loss is counted"


@pytest.mark.slow
def test_a_worker_that_stood_still_is_taken_for_dead_and_not_heard_when_it_wakes(launcher: Launcher) -> None:
    if launcher.options["database_url"] is None:
        pytest.skip("with SQLite, who is stopped inside a transaction holds the lock that all others need")
    service = launcher.service(job_workers=0)
    with client_of(service) as client, closing(stores.Store(url_of(launcher))) as store:
        job = accepted(client, COUNT)
        first = launcher.worker()
        in_the_middle(client, job)
        os.kill(first.pid, signal.SIGSTOP)
        launcher.worker()
        mine = f"-{first.pid}-"
        eventually(lambda: mine not in (store.job(job).worker or mine), seconds=120)  # type: ignore[union-attr]
        os.kill(first.pid, signal.SIGCONT)
        found = wait(client, job, seconds=120)
        assert (found["state"], found["attempts"]) == ("succeeded", 2), found
        assert [event["message"] for event in found["events"]].count("succeeded") == 1
        assert [probe["id"] for probe in client.get("/v1/probes").json()["probes"]] == [job]


def url_of(launcher: Launcher) -> str:
    return stores.database_url(launcher.options["database_url"], data=Path(launcher.options["data_dir"]))


def test_second_service_on_one_data_directory_is_refused(client: object, runs: Path) -> None:
    from app.api.service import Service
    from app.core.settings import Settings
    from data_adapters.errors import UserError

    with pytest.raises(UserError, match="Another service"):
        Service(Settings(runs_dir=runs)).start()
