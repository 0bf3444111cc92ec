"""What the lab page shows of probes, encoders and folders."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app.api.keys import make_key
from app.api.service import Service
from app.core.settings import Settings
from harness.encoders import make_encoder
from tests.app.helpers import png, wait


def test_a_probe_shows_the_images_behind_its_scores(client: TestClient) -> None:
    ids = [one["id"] for one in client.get("/v1/archives/table/ids").json()["items"]]
    labels = [{"id": item, "label": "ab"[place % 2]} for place, item in enumerate(ids)]
    body = {"archive": "table", "labels": labels, "folds": 3}
    made = wait(client, client.post("/v1/probes", json=body).json()["id"])
    told = client.get(f"{made['result']}/evaluation").json()
    assert told["scored"] == told["count"] == len(ids)
    assert {(row["id"], row["archive"]) for row in told["rows"]} == {(item, "table") for item in ids}
    cells = [row for line in told["confusion"]["cells"] for cell in line for row in cell]
    assert sorted(cells) == list(range(len(ids)))
    assert all({"from", "to", "right"} <= set(one) for one in told["calibration"])
    more = {"archive": "table", "labels": labels[:4], "folds": 3}
    newer = wait(client, client.post(f"/v1/probes/{made['id']}/labels", json=more).json()["id"])
    detail = client.get(newer["result"]).json()
    assert [one["version"] for one in detail["versions"]] == [2, 1]
    assert detail["versions"][0]["score"] == detail["metrics"]["linear"]["balanced_accuracy"]
    assert detail["versions"][1]["measure"] == "balanced_accuracy" and len(detail["versions"][1]["interval"]) == 2
    assert client.get(f"/v1/probes/{'0' * 32}/evaluation").status_code == 404


@pytest.fixture
def run(runs: Path) -> Iterator[Path]:
    """A run of 30 records with a report, and an evaluation whose rank is not known at first."""
    folder = runs / "watched"
    make_encoder(folder, "images", seed=3)
    lines = [{"step": 10 * k, "loss": 1 / (k + 1), "epoch": k / 10, "note": "x"} for k in range(30)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines) + '{"cut')
    online = [{"step": 100}, {"step": 200, "backbone/effective_rank": 41.5}]
    (folder / "online.jsonl").write_text("".join(json.dumps(one) + "\n" for one in online))
    (folder / "report.html").write_text("<!doctype html><style>p{color:red}</style><p>report</p>")
    yield folder
    shutil.rmtree(folder)


def test_an_encoder_shows_its_run(client: TestClient, run: Path) -> None:
    detail = client.get("/v1/encoders/watched").json()
    assert detail["verdict"]["state"] in ("improving", "plateau") and detail["verdict"]["text"]
    assert (detail["effective_rank"] == 41.5 and detail["card"].startswith("---")) or "#" in detail["card"]
    curve = client.get("/v1/encoders/watched/curve?points=4").json()
    assert curve["training"]["step"] == [0, 100, 190, 290] and set(curve["training"]) == {"step", "loss", "epoch"}
    assert curve["evaluation"]["backbone/effective_rank"] == [None, 41.5]
    answer = client.get(detail["report"])
    policy = answer.headers["content-security-policy"]
    assert answer.headers["content-type"].startswith("text/html") and "<p>report</p>" in answer.text
    assert policy.startswith("sandbox;") and "script-src" not in policy and "default-src 'none'" in policy
    assert answer.headers.get_list("content-security-policy") == [policy], "one policy, the stricter one"
    bare = client.get("/v1/encoders/mri").json()
    assert bare["verdict"] is None and bare["report"] is None and bare["card"]
    assert client.get("/v1/encoders/mri/report").json()["type"].endswith(":no-report")
    assert client.get("/v1/encoders/mri/curve").json() == {"training": {}, "evaluation": {}}


def test_folders_of_the_operator_are_listed_to_who_may_embed(client: TestClient, settings: Settings) -> None:
    root = settings.archives_dir
    assert root is not None
    place = root / "listed"
    (place / "deep").mkdir(parents=True)
    (place / "deep" / "a.png").write_bytes(png(1))
    (place / ".hidden").mkdir()
    (place / "out").symlink_to("/etc")
    (place / "in").symlink_to(place / "deep")
    service: Service = client.app.state.service  # type: ignore[attr-defined]
    try:
        top = {one["name"]: one for one in client.get("/v1/folders").json()["folders"]}
        assert top["listed"]["path"] == "listed" and (top["listed"]["folders"], top["listed"]["files"]) == (2, 0)
        inner = client.get("/v1/folders", params={"path": "listed"}).json()
        assert [(one["path"], one["files"]) for one in inner["folders"]] == [("listed/deep", 1), ("listed/in", 1)]
        for path in ("..", "/etc", "listed/out", "none"):
            answer = client.get("/v1/folders", params={"path": path})
            assert answer.status_code == 404 and "/" + root.name not in answer.text
        wanted = {"name": "deep", "folder": inner["folders"][0]["path"], "encoder": "images"}
        assert wait(client, client.post("/v1/archives", json=wanted).json()["id"])["state"] == "succeeded"
        assert client.delete("/v1/archives/deep").status_code == 204
        _, key = make_key(service.store, name="reader", scopes=["probe"])
        service.keys.refresh(at_once=True)
        answer = client.get("/v1/folders", headers={"X-API-Key": key})
        assert answer.status_code == 403, "names of folders are told to those who may embed them"
    finally:
        with service.store._write() as session:
            for one in service.store.keys():
                session.delete(one)
        service.keys.refresh(at_once=True)
        shutil.rmtree(place)
