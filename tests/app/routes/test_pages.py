import json
import re
import shutil
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.app.helpers import eventually

ROUTES = {
    "/v1/encoders": {"get"},
    "/v1/encoders/{encoder_id}": {"get"},
    "/v1/encoders/{encoder_id}/curve": {"get"},
    "/v1/encoders/{encoder_id}/report": {"get"},
    "/v1/embeddings": {"post"},
    "/v1/inspect": {"post"},
    "/v1/label-sets": {"get", "post"},
    "/v1/label-sets/{set_id}": {"get", "patch", "delete"},
    "/v1/label-sets/{set_id}/csv": {"get", "post"},
    "/v1/label-sets/{set_id}/next": {"get"},
    "/v1/probes": {"get", "post"},
    "/v1/probes/{probe_id}": {"get"},
    "/v1/probes/{probe_id}/evaluation": {"get"},
    "/v1/probes/{probe_id}/predictions": {"post"},
    "/v1/probes/{probe_id}/labels": {"post"},
    "/v1/probes/{probe_id}/uncertain": {"get"},
    "/v1/probes/{probe_id}/applications": {"get", "post"},
    "/v1/applications/{application_id}": {"get", "delete"},
    "/v1/applications/{application_id}/table": {"get"},
    "/v1/applications/{application_id}/columns": {"get"},
    "/v1/applications/{application_id}/columns/{column}": {"get"},
    "/v1/uploads": {"get", "post"},
    "/v1/uploads/{upload_id}": {"get", "delete"},
    "/v1/uploads/{upload_id}/items": {"get"},
    "/v1/archives": {"get", "post"},
    "/v1/archives/{name}": {"get", "delete"},
    "/v1/archives/{name}/table": {"get"},
    "/v1/archives/{name}/thumbnails/{item_id}": {"get"},
    "/v1/archives/{name}/map": {"get", "post"},
    "/v1/archives/{name}/map/points": {"get"},
    "/v1/archives/{name}/columns": {"get"},
    "/v1/archives/{name}/columns/{column}": {"get"},
    "/v1/archives/{name}/checks": {"post"},
    "/v1/archives/{name}/outliers": {"post"},
    "/v1/archives/{name}/qualities": {"get"},
    "/v1/qualities/{quality_id}": {"get", "delete"},
    "/v1/folders": {"get"},
    "/v1/archives/{name}/ids": {"get"},
    "/v1/search": {"post"},
    "/v1/search/indexes": {"get"},
    "/v1/jobs": {"get"},
    "/v1/jobs/{job_id}": {"get", "delete"},
    "/v1/keys": {"get", "post"},
    "/v1/keys/{key_id}": {"delete"},
    "/v1/audit": {"get"},
    "/v1/jobs/{job_id}/retry": {"post"},
    "/healthz": {"get"},
    "/readyz": {"get"},
    "/metrics": {"get"},
}


def test_openapi_lists_the_routes_with_their_bodies_and_no_dead_reference(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    assert {path: set(methods) for path, methods in schema["paths"].items()} == ROUTES
    bodies = schema["paths"]["/v1/probes"]["post"]["requestBody"]["content"]
    assert set(bodies) == {"multipart/form-data", "application/json"}
    assert "labels" in bodies["application/json"]["schema"]["properties"]
    names = set(schema["components"]["schemas"])
    assert set(re.findall(r'#/components/schemas/(\w+)"', client.get("/openapi.json").text)) <= names
    assert "$defs" not in client.get("/openapi.json").text


@pytest.mark.parametrize("page", ["/", "/docs", "/web/main.js"])
def test_pages_load_nothing_from_elsewhere(client: TestClient, page: str) -> None:
    answer = client.get(page)
    assert answer.status_code == 200
    foreign = re.findall(r"https?://(?!testserver|www\.w3\.org/2000/svg)[^\s\"']+", answer.text)
    assert foreign == []
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_docs_show_every_route_with_curl(client: TestClient) -> None:
    text = client.get("/docs").text
    assert "`" not in text and "<code>remedy</code>" in text and "&lt;code" not in text
    for path in ROUTES:
        assert path in text
    assert text.count("<pre>curl") >= sum(map(len, ROUTES.values()))
    assert "-F files=@a.fits -F files=@b.fits" in text and "-F catalog=@labels.csv" in text
    assert "/uncertain?archive=galaxies-val" in text, "what must be in the address"


def test_encoders(client: TestClient, runs: Path) -> None:
    listed = client.get("/v1/encoders").json()["encoders"]
    assert [(e["id"], e["modality"], e["available"]) for e in listed] == [
        ("galaxy", "galaxy", True),
        ("histology", "histology", True),
        ("images", "images", True),
        ("mri", "mri", True),
    ]
    detail = client.get("/v1/encoders/mri").json()
    assert (detail["dim"], detail["image_size"], detail["channels"]) == (512, 32, 1)
    assert len(detail["fingerprint"]) == 64
    assert str(runs) not in client.get("/v1/encoders/mri").text
    assert detail["metrics"] == {"training": {}, "evaluation": {}}, "an encoder without its run"


def test_an_encoder_has_the_last_records_of_its_run(client: TestClient, runs: Path) -> None:
    run = shutil.copytree(runs / "mri", runs / "with-run")
    records = [{"step": step, "loss": 1 / step, "backbone/effective_rank": 8.5} for step in (100, 200)]
    text = "".join(json.dumps(one) + "\n" for one in records)
    (run / "metrics.jsonl").write_text(" " * 100_000 + "\n" + text + '{"step": 300, "lo')  # a run that writes
    (run / "online.jsonl").write_text(json.dumps({"step": 150, "knn": 0.8}) + "\n")
    try:
        found = client.get("/v1/encoders/with-run").json()["metrics"]
    finally:
        shutil.rmtree(run)
    assert found == {"training": records[1], "evaluation": {"step": 150, "knn": 0.8}}


def test_damaged_encoder_is_told_and_the_others_work(client: TestClient, runs: Path) -> None:
    folder = runs / "damaged" / "encoder"
    folder.mkdir(parents=True)
    for name in ("lejepa_med.json", "config.json"):
        (folder / name).write_bytes((runs / "images" / "encoder" / name).read_bytes())
    (folder / "model.safetensors").write_bytes(b"cut off")
    try:
        used = client.post("/v1/embeddings", files=[("files", ("a.png", b"x"))], data={"encoder": "damaged"})
        assert (used.status_code, used.json()["type"]) == (422, "urn:lejepa-med:problem:encoder-unusable")
        assert str(runs) not in used.text
        eventually(lambda: client.get("/readyz").status_code == 200, seconds=60)
        ready = client.get("/readyz").json()
        assert ready["encoders"]["damaged"] is False and ready["encoders"]["images"] is True
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        folder.parent.rmdir()
