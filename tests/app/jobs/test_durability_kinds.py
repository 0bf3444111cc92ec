"""kill -9 while an upload is imported or embedded, or a probe applied: nothing is lost, done twice or shown twice."""

import io
import signal
import time
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.launcher import Launcher
from harness.tables import clusters, write_table
from lejepa_med.models.embed import EmbeddingTable
from tests.app.helpers import client_of, eventually, files, png, wait

COUNT = 300  # 3 chunks


@pytest.mark.slow
def test_kill_9_of_import_and_embedding(launcher: Launcher, tmp_path: Path) -> None:
    data = tmp_path / "data"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as target:
        for number in range(COUNT):
            target.writestr(f"Doe_{number:03d}.png", png(number, side=20))
    service = launcher.service()
    with client_of(service) as client:
        answer = client.post(
            "/v1/uploads",
            files=files(packed.getvalue(), name="Doe.zip"),
            data={"encoder": "images", "name": "ward", "embed": "true"},
        )
        assert service.end(signal.SIGKILL) == -signal.SIGKILL
    assert answer.status_code == 202, answer.text
    upload = answer.json()["id"]

    service = launcher.service()
    with client_of(service) as client:
        assert client.get(f"/v1/uploads/{upload}").json()["state"] == "importing"
        taken = client.post("/v1/archives", json={"name": "ward", "upload": upload, "encoder": "images"})
        assert taken.status_code == 404, "an upload that is not imported cannot be embedded"
        imported = wait(client, upload, seconds=120)
        assert (imported["state"], imported["attempts"] <= 2) == ("succeeded", True), imported
        detail = client.get(f"/v1/uploads/{upload}").json()
        assert (detail["state"], detail["items"], detail["refused"]) == ("ready", COUNT, 0)
        job = detail["embedding"]
        end = time.monotonic() + 120
        while len(list((data / "jobs" / job).glob("vectors-*.npz"))) < 1:
            assert time.monotonic() < end, client.get(f"/v1/jobs/{job}").text
            time.sleep(0.005)
        service.end(signal.SIGKILL)
    done = {path: path.stat().st_mtime_ns for path in (data / "jobs" / job).glob("vectors-*.npz")}
    assert 1 <= len(done) < 3, "the kill came in the middle of the job"

    service = launcher.service()
    with client_of(service) as client:
        assert client.get("/v1/archives/ward").status_code == 404, "nothing of an unfinished job is visible"
        end = time.monotonic() + 120
        stamps: dict[Path, int] = {}
        while (state := client.get(f"/v1/jobs/{job}").json()["state"]) in ("queued", "running"):
            assert time.monotonic() < end
            stamps |= {path: path.stat().st_mtime_ns for path in done if path.exists()}
            time.sleep(0.05)
        assert state == "succeeded"
        assert stamps.items() <= done.items(), "finished chunks are not computed again"
        events = [event["message"] for event in client.get(f"/v1/jobs/{job}").json()["events"]]
        assert events.count("succeeded") == 1
        assert [one["name"] for one in client.get("/v1/archives").json()["archives"]] == ["table", "ward"]
        assert [one["id"] for one in client.get("/v1/uploads").json()["uploads"]] == [upload]
        table = EmbeddingTable.open(data / "archives" / job)
        items = client.get(f"/v1/uploads/{upload}/items").json()["items"]
        assert table.ids == [one["id"] for one in items] and len(set(table.ids)) == COUNT
        assert [one["entry"] for one in items] == list(range(COUNT))
        eventually(lambda: not list((data / "jobs").iterdir()))
        assert {path.name for path in (data / "archives").iterdir()} == {job}
    stored = b"".join(path.read_bytes() for path in data.rglob("*") if path.is_file())
    assert b"Doe" not in stored and "Doe" not in service.log.read_text()


@pytest.mark.slow
def test_kill_9_of_an_application(launcher: Launcher, tmp_path: Path, database_url: str | None) -> None:
    data, rows = tmp_path / "data", 6 * 8192  # as many steps as eights
    table = write_table(tmp_path / "runs" / "plates", clusters(rows), shard_rows=8192)
    ids = EmbeddingTable.open(table).ids
    launcher.use(tmp_path / "runs", data, tmp_path, database_url=database_url)
    service = launcher.service()
    with client_of(service) as client:
        labels = [{"id": name, "label": ("a", "b")[row % 2]} for row, name in enumerate(ids[:40])]
        probe = client.post("/v1/probes", json={"archive": "plates", "labels": labels}).json()["id"]
        assert wait(client, probe)["state"] == "succeeded"
        answer = client.post(f"/v1/probes/{probe}/applications", json={"archive": "plates"})
        assert service.end(signal.SIGKILL) == -signal.SIGKILL
    assert answer.status_code == 202, answer.text
    job = answer.json()["id"]

    service = launcher.service()
    end = time.monotonic() + 120
    while not (done := list((data / "jobs" / job).glob("predicted-*.parquet"))):
        assert time.monotonic() < end
        time.sleep(0.005)
    service.end(signal.SIGKILL)
    stamps = {path: path.stat().st_mtime_ns for path in done}
    assert not (data / "predictions").exists(), "the kill came in the middle of the job"

    service = launcher.service()
    with client_of(service) as client:
        assert client.get(f"/v1/probes/{probe}/applications").json()["applications"] == []
        seen: dict[Path, int] = {}
        while (state := client.get(f"/v1/jobs/{job}").json()["state"]) in ("queued", "running"):
            assert time.monotonic() < end
            seen |= {path: path.stat().st_mtime_ns for path in done if path.exists()}
            time.sleep(0.05)
        assert state == "succeeded"
        assert seen.items() <= stamps.items(), "finished chunks are not computed again"
        events = [event["message"] for event in client.get(f"/v1/jobs/{job}").json()["events"]]
        assert events.count("succeeded") == 1
        assert [one["id"] for one in client.get(f"/v1/probes/{probe}/applications").json()["applications"]] == [job]
        eventually(lambda: not list((data / "jobs").iterdir()))
    (found,) = (data / "predictions").rglob("*.parquet")
    assert pq.read_table(found, columns=["id"]).column("id").to_pylist() == ids


@pytest.mark.slow
def test_kill_9_of_quality_reports(launcher: Launcher, tmp_path: Path, database_url: str | None) -> None:
    """Both jobs are accepted, their service is killed twice, and each gives one whole report."""
    data = tmp_path / "data"
    table = write_table(tmp_path / "runs" / "plates", clusters(6000), labels=["a", "b", "c"] * 2000)
    names = EmbeddingTable.open(table).ids
    (table / "_about").mkdir()
    scanner = [f"s{row % 5}" for row in range(len(names))]
    pq.write_table(pa.table({"id": names, "scanner": scanner}), table / "_about" / "context.parquet")
    launcher.use(tmp_path / "runs", data, tmp_path, database_url=database_url)
    service = launcher.service()
    with client_of(service) as client:
        jobs = [client.post(f"/v1/archives/plates/{what}", json={}).json()["id"] for what in ("checks", "outliers")]
        assert service.end(signal.SIGKILL) == -signal.SIGKILL
    service = launcher.service()
    with client_of(service) as client:
        end = time.monotonic() + 60
        while client.get(f"/v1/jobs/{jobs[0]}").json()["state"] == "queued":
            assert time.monotonic() < end
            time.sleep(0.005)
    service.end(signal.SIGKILL)
    service = launcher.service()
    with client_of(service) as client:
        ended = [wait(client, job, seconds=120) for job in jobs]
        assert [job["state"] for job in ended] == ["succeeded", "succeeded"], ended
        reports = [client.get(job["result"]).json()["report"] for job in ended]
        assert reports[0]["columns"][0]["column"] == "scanner" and reports[1]["counts"]["odd"] == 60
        listed = client.get("/v1/archives/plates/qualities").json()["qualities"]
        assert sorted(one["id"] for one in listed) == sorted(jobs)
        eventually(lambda: not list((data / "jobs").iterdir()))
    assert sorted(path.name for path in (data / "quality").iterdir()) == sorted(jobs)
