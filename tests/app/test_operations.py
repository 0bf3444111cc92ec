"""Metrics, logs and request ids: what an operator sees, and that no client's text gets into it."""

import io
import json
import logging
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from app.core import logs, metrics
from app.store import Store
from tests.app.helpers import files, png, wait

DEPLOY = Path(__file__).parents[2] / "deploy"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(client: TestClient) -> Samples:
    """Every sample by name and labels."""
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def grown(before: Samples, after: Samples, name: str, **labels: str) -> float:
    key = (name, frozenset(labels.items()))
    return after[key] - before.get(key, 0.0)


def test_requests_batches_and_refusals_are_counted(client: TestClient) -> None:
    before = samples(client)
    sent = client.post("/v1/embeddings", files=files(png(1), png(2), b"bad"), data={"encoder": "images"})
    assert sent.status_code == 200
    client.post("/v1/embeddings", files=files(b"bad"), data={"encoder": "images"})
    client.get("/v1/jobs/Mustermann")
    client.get("/Mustermann/MRN9037")
    client.request("MUSTERMANN", "/v1/jobs")
    after = samples(client)
    route = {"method": "POST", "route": "/v1/embeddings"}
    assert grown(before, after, "lejepa_request_seconds_count", **route, status="2xx") == 1
    assert grown(before, after, "lejepa_request_seconds_count", **route, status="4xx") == 1
    by_pattern = {"method": "GET", "route": "/v1/jobs/{job_id}", "status": "4xx"}
    assert grown(before, after, "lejepa_request_seconds_count", **by_pattern) == 1
    assert grown(before, after, "lejepa_embedded_items_total") == 2
    assert grown(before, after, "lejepa_batch_items_sum") == 2
    assert grown(before, after, "lejepa_batch_images_sum") == 2
    assert grown(before, after, "lejepa_queue_wait_seconds_count") == 2
    assert grown(before, after, "lejepa_rejected_total", kind="bad-file") == 1
    assert grown(before, after, "lejepa_rejected_total", kind="not-found") >= 2
    assert after["lejepa_queue_items", frozenset()] == 0
    assert after["lejepa_loaded_encoders", frozenset()] >= 1
    assert after["lejepa_requests_in_flight", frozenset()] == 1, "the one that asks"
    assert after["process_resident_memory_bytes", frozenset()] > 1e6
    assert after["process_open_fds", frozenset()] > 3
    text = client.get("/metrics").text
    assert not re.search("mustermann|mrn9037", text, re.IGNORECASE)


def test_jobs_are_counted_out_of_the_store(client: TestClient, tmp_path: Path) -> None:
    before = samples(client)
    ids = [item["id"] for item in client.get("/v1/archives/table/ids").json()["items"]]
    labels = [{"id": name, "label": "ab"[place % 2]} for place, name in enumerate(ids)]
    job = client.post("/v1/probes", json={"archive": "table", "labels": labels, "folds": 2}).json()["id"]
    assert wait(client, job)["state"] == "succeeded"
    after = samples(client)
    ended = {"kind": "train-probe", "state": "succeeded"}
    assert grown(before, after, "lejepa_jobs", **ended) == 1
    assert grown(before, after, "lejepa_job_attempts", **ended) == 1
    assert grown(before, after, "lejepa_job_seconds_count", **ended) == 1
    assert grown(before, after, "lejepa_job_seconds_bucket", **ended, le="3600.0") == 1
    assert 0 < grown(before, after, "lejepa_job_seconds_sum", **ended) < 60


def test_every_metric_of_the_dashboard_and_of_the_document_exists(client: TestClient) -> None:
    client.post("/v1/embeddings", files=files(b"bad"), data={"encoder": "images"})
    metrics.WORKER_RESTARTS.labels("decode")
    answer = client.get("/metrics").text
    known = set(re.findall(r"^# TYPE (\S+)", answer, re.MULTILINE))
    exposed = {name for name, _ in samples(client)} | {n for k in known for n in (k, f"{k}_bucket", f"{k}_count")}
    dashboard = json.loads((DEPLOY / "grafana" / "lejepa-med.json").read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = {name for query in queries for name in re.findall(r"\b(?:lejepa|process)_\w+", query)}
    assert len(queries) >= 10 and asked <= exposed, asked - exposed
    document = (DEPLOY.parent / "docs" / "operations.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`((?!lejepa_med\b)lejepa_\w+|process_\w+)", document))
    own = {name for name in known if name.startswith("lejepa_")}
    assert {name.removesuffix("_total") for name in own} <= {name.removesuffix("_total") for name in told}
    assert told <= exposed, told - exposed
    scrape = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    assert scrape["scrape_configs"][0]["metrics_path"] == "/metrics"


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Standard error of a service that logs JSON; pytest's own handlers are put back afterwards."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    monkeypatch.setattr("sys.stderr", stream := io.StringIO())
    logs.configure(level="info", format=None)  # no terminal, so JSON
    yield stream
    root.handlers[:], root.level = before


def test_a_line_of_json_a_request_with_its_id(client: TestClient, written: io.StringIO) -> None:
    mine = uuid.uuid4()
    good = client.get("/v1/jobs?limit=3", headers={"X-Request-ID": str(mine)})
    bad = client.get("/v1/jobs/Mustermann", headers={"X-Request-ID": "Mustermann^Erika"})
    assert good.headers["x-request-id"] == str(mine)
    assert re.fullmatch("[0-9a-f]{32}", bad.headers["x-request-id"])
    assert bad.json()["reference"] == bad.headers["x-request-id"]
    client.request("MUSTERMANN", "/v1/jobs")
    first, second, third = map(json.loads, written.getvalue().splitlines())
    assert third["method"] == "other" and "MUSTERMANN" not in written.getvalue()
    assert (first["request"], second["request"]) == (str(mine), bad.headers["x-request-id"])
    assert (second["method"], second["route"], second["status"]) == ("GET", "/v1/jobs/{job_id}", 404)
    assert second["level"] == "info" and second["milliseconds"] > 0
    assert "Mustermann" not in written.getvalue()


def test_an_unexpected_error_is_found_by_the_id_of_its_request(
    client: TestClient, written: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(store: Store, **options: object) -> None:
        raise OSError(5, "secret", "/archive/Mustermann.nii")

    monkeypatch.setattr(Store, "jobs", fail)
    answer = client.get("/v1/jobs")
    assert answer.status_code == 500
    fault, line = map(json.loads, written.getvalue().splitlines())
    assert fault["level"] == "error" and fault["event"].startswith("unexpected OSError")
    assert answer.json()["reference"] == fault["request"] == line["request"] == answer.headers["x-request-id"]
    assert "secret" not in written.getvalue() + answer.text


def test_exceptions_and_unlisted_loggers_of_libraries_say_nothing(written: io.StringIO) -> None:
    for name in ("uvicorn.error", "sqlalchemy", "pydicom", "root"):
        try:
            raise ValueError("Mustermann")
        except ValueError:
            logging.getLogger(name).exception("from %s", name, extra={"path": "Mustermann"})
    logging.getLogger("uvicorn.error").error("Traceback (most recent call last):\n Mustermann")
    (line,) = map(json.loads, written.getvalue().splitlines())
    assert line["event"].startswith("from uvicorn.error (ValueError at test_exceptions")
    assert "Mustermann" not in written.getvalue()


def test_text_for_people(client: TestClient, monkeypatch: pytest.MonkeyPatch, written: io.StringIO) -> None:
    monkeypatch.setattr("sys.stderr", written)
    logs.configure(level="info", format="text")
    answer = client.get("/healthz")
    line = written.getvalue()
    assert "GET /healthz 200" in line and answer.headers["x-request-id"] in line and "{" not in line


def test_a_full_queue_is_counted_and_says_when_to_come_back(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app.encoders.inference import Batcher, busy

    def full(batcher: Batcher, item: object) -> None:
        raise busy(1)

    before = samples(client)
    with monkeypatch.context() as patch:
        patch.setattr(Batcher, "submit", full)
        answer = client.post("/v1/embeddings", files=files(png()), data={"encoder": "images"})
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:lejepa-med:problem:busy")
    assert int(answer.headers["retry-after"]) > 0
    assert grown(before, samples(client), "lejepa_rejected_total", kind="busy") == 1


def test_a_start_that_is_refused_says_why_in_one_line(
    client: TestClient, capsys: pytest.CaptureFixture[str], settings: object, runs: Path
) -> None:
    """Another service holds the data directory: the operator reads the remedy and no traceback."""
    from lejepa_med.cli import main

    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    try:
        with pytest.raises(SystemExit) as ended:
            main(["serve", str(runs), "--port", "0"])
    finally:
        root.handlers[:], root.level = before
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert "Another service works on the data directory" in told and "Traceback" not in told
