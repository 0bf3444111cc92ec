"""A probe applied to a whole archive: the same predictions as the library's, in three formats."""

import csv
import io
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from app.api.service import Service
from app.core.settings import Settings
from lejepa_med.models.embed import EmbeddingTable
from lejepa_med.probes.probe import Probe
from tests.app.helpers import files, png, wait

PARQUET = "application/vnd.apache.parquet"


@pytest.fixture(scope="module")
def probe(client: TestClient, runs: Path) -> str:
    ids = EmbeddingTable.open(runs / "table").ids
    labels = [{"id": name, "label": ("dark", "bright")[row % 2]} for row, name in enumerate(ids[:12])]
    job = wait(client, client.post("/v1/probes", json={"archive": "table", "labels": labels}).json()["id"])
    assert job["state"] == "succeeded", job
    return str(job["id"])


@pytest.fixture(scope="module")
def applied(client: TestClient, probe: str) -> dict[str, Any]:
    answer = client.post(f"/v1/probes/{probe}/applications", json={"archive": "table"})
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == f"/v1/jobs/{answer.json()['id']}"
    job = wait(client, answer.json()["id"])
    assert (job["kind"], job["state"]) == ("apply-probe", "succeeded"), job
    found: dict[str, Any] = client.get(job["result"]).json()
    return found


def test_predictions_are_those_of_the_library(
    client: TestClient, probe: str, applied: dict[str, Any], runs: Path, settings: Settings
) -> None:
    table = EmbeddingTable.open(runs / "table")
    expected = Probe.load(settings.data / "probes" / probe).predict(table.vectors)
    answer = client.get(f"/v1/applications/{applied['id']}/table")
    assert answer.headers["content-type"] == PARQUET
    rows = pq.read_table(io.BytesIO(answer.content)).to_pylist()
    assert [row["id"] for row in rows] == table.ids
    for row, one in zip(rows, expected, strict=True):
        assert (row["label"], row["note"]) == (one.label, one.note)
        assert row["nearest_cosine"] == pytest.approx(one.nearest_cosine)
        assert one.probabilities is not None
        for name, value in one.probabilities.items():
            assert row[f"probability {name}"] == pytest.approx(value)
    counts = {name: [one.label for one in expected].count(name) for name in ("bright", "dark")}
    assert {**{"bright": 0, "dark": 0}, **applied["summary"]["counts"]} == counts
    assert applied["summary"]["unlike"] == pytest.approx(sum(bool(one.note) for one in expected) / 24)
    assert (applied["count"], applied["archive"], applied["probe"]) == (24, "table", probe)
    listed = client.get(f"/v1/probes/{probe}/applications").json()["applications"]
    assert [one["id"] for one in listed] == [applied["id"]]


def test_csv_and_json_hold_the_same(client: TestClient, applied: dict[str, Any]) -> None:
    address = f"/v1/applications/{applied['id']}/table"
    rows = pq.read_table(io.BytesIO(client.get(address).content)).to_pylist()
    assert client.get(address, headers={"Accept": "application/json"}).json() == rows
    answer = client.get(address, headers={"Accept": "text/csv"})
    assert answer.headers["content-type"].startswith("text/csv")
    for line, row in zip(csv.DictReader(io.StringIO(answer.text)), rows, strict=True):
        assert (line["id"], line["label"]) == (row["id"], row["label"])
        assert float(line["probability dark"]) == pytest.approx(row["probability dark"])


def test_a_removed_application_leaves_nothing_and_the_probe_stays(
    client: TestClient, probe: str, settings: Settings
) -> None:
    made = wait(client, client.post(f"/v1/probes/{probe}/applications", json={"archive": "table"}).json()["id"])
    assert made["state"] == "succeeded" and (settings.data / "predictions" / made["id"]).is_dir()
    address = f"/v1/applications/{made['id']}"
    folder = settings.data / "predictions" / made["id"]
    folder.rename(folder.with_suffix(".away"))  # as a removal does first
    for accept in ("*/*", "text/csv", "application/json"):
        assert client.get(f"{address}/table", headers={"Accept": accept}).status_code == 404
    folder.with_suffix(".away").rename(folder)
    assert client.delete(address).status_code == 204
    assert not (settings.data / "predictions" / made["id"]).exists()
    for path in (address, f"{address}/table"):
        assert client.get(path).status_code == 404
    assert client.delete(address).status_code == 404
    assert made["id"] not in client.get(f"/v1/probes/{probe}/applications").text
    assert client.get(f"/v1/probes/{probe}").status_code == 200


def test_other_encoders_and_unknown_things_are_refused(client: TestClient, probe: str, runs: Path) -> None:
    labels = '["a", "a", "b", "b"]'
    answer = client.post(
        "/v1/probes", files=files(*map(png, range(4))), data={"encoder": "histology", "labels": labels, "mpp": "0.5"}
    )
    other = wait(client, answer.json()["id"])
    assert other["state"] == "succeeded", other
    for address, archive, status, kind in (
        (f"/v1/probes/{other['id']}/applications", "table", 422, "other-encoder"),
        (f"/v1/probes/{probe}/applications", "none", 404, "not-found"),
        (f"/v1/probes/{'0' * 32}/applications", "table", 404, "not-found"),
    ):
        found = client.post(address, json={"archive": archive})
        assert (found.status_code, found.json()["type"]) == (status, f"urn:lejepa-med:problem:{kind}"), found.text
        assert found.json()["remedy"]
    for address in ("/v1/applications/none", f"/v1/applications/{'0' * 32}", "/v1/applications/none/table"):
        assert client.get(address).status_code == 404


def test_an_archive_that_was_embedded_anew_is_not_mixed_with_the_old(client: TestClient, probe: str) -> None:
    import json

    service: Service = client.app.state.service  # type: ignore[attr-defined]
    job = "3" * 32
    service.applying.accept_plan(job, probe, "table")
    plan = service.applying.folder(job) / "plan.json"
    plan.write_text(json.dumps({**json.loads(plan.read_text()), "digest": "of before"}))
    service.queue_job(job, service.applying.kind)
    found = wait(client, job)
    assert (found["state"], found["error"]["type"]) == ("failed", "urn:lejepa-med:problem:archive-changed")
