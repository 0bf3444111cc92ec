import io
import json
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from app.core.settings import Settings
from app.store.database import unavailable
from lejepa_med.models.embed import EmbeddingTable
from lejepa_med.probes.probe import Probe, fit_probe
from tests.app.helpers import eventually, files, png, wait


@pytest.fixture(scope="module")
def table(runs: Path) -> EmbeddingTable:
    return EmbeddingTable.open(runs / "table")


@pytest.fixture(scope="module")
def labels(table: EmbeddingTable) -> list[dict[str, str]]:
    """By the first principal component, so that both classes exist whatever the ids' order."""
    centred = table.vectors - table.vectors.mean(0)
    side = centred @ np.linalg.svd(centred, full_matrices=False)[2][0] > 0
    return [{"id": name, "label": "high" if up else "low"} for name, up in zip(table.ids, side, strict=True)]


@pytest.fixture(scope="module")
def trained(client: TestClient, labels: list[dict[str, str]]) -> dict[str, Any]:
    answer = client.post("/v1/probes", json={"name": "side", "archive": "table", "labels": labels, "folds": 3})
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == f"/v1/jobs/{answer.json()['id']}"
    job = wait(client, answer.json()["id"])
    assert (job["state"], job["progress"], job["attempts"]) == ("succeeded", 1.0, 1), job
    assert [event["message"] for event in job["events"]] == ["accepted", "started", "fitting", "succeeded"]
    probe: dict[str, Any] = client.get(job["result"]).json()
    return probe


def test_probe_from_archive_ids_equals_the_library(
    client: TestClient, trained: dict[str, Any], table: EmbeddingTable, labels: list[dict[str, str]], settings: Settings
) -> None:
    names = [item["label"] for item in labels]
    expected = fit_probe(table.vectors, names, table.groups, folds=3, encoder=table.encoder)
    assert trained["metrics"]["linear"]["balanced_accuracy"] == expected.metrics["linear"]["balanced_accuracy"]
    assert trained["fingerprint"] == table.encoder
    assert trained["encoder"] == "images"
    assert (trained["labels"], trained["count"]) == (["high", "low"], len(labels))
    assert trained["receipt"]["groups_disjoint"] is True
    stored = Probe.load(settings.data / "probes" / trained["id"])
    np.testing.assert_array_equal(stored.head.linear.coef, expected.head.linear.coef)
    asked = table.ids[:5]
    answer = client.post(f"/v1/probes/{trained['id']}/predictions", json={"archive": "table", "ids": asked})
    for item, wanted, name in zip(answer.json()["items"], expected.predict(table.vectors[:5]), asked, strict=True):
        assert (item["id"], item["label"], item["knn_label"]) == (name, wanted.label, wanted.knn_label)
        assert item["probabilities"] == pytest.approx(wanted.probabilities)


def test_prediction_of_files(client: TestClient, trained: dict[str, Any]) -> None:
    answer = client.post(f"/v1/probes/{trained['id']}/predictions", files=files(png(1), b"bad", png(2)))
    assert answer.status_code == 200, answer.text
    first, second, third = answer.json()["items"]
    assert sum(first["probabilities"].values()) == pytest.approx(1)
    assert "error" in second and "label" not in second
    assert third["file_index"] == 2 and third["label"] in ("high", "low")


def test_probe_from_files(client: TestClient, settings: Settings) -> None:
    # More than one chunk of files, so that several steps run; groups are names, which must not come back.
    count = 20
    answers = [i % 2 == 0 for i in range(count)]
    answer = client.post(
        "/v1/probes",
        files=files(*(png(i, bright=bright) for i, bright in enumerate(answers))),
        data={
            "encoder": "images",
            "labels": json.dumps(["bright" if bright else "dark" for bright in answers]),
            "groups": json.dumps([f"Doe^Jane{i // 2}" for i in range(count)]),
            "folds": "3",
        },
    )
    assert answer.status_code == 202, answer.text
    job = wait(client, answer.json()["id"])
    assert job["state"] == "succeeded", job
    probe = client.get(job["result"]).json()
    assert probe["count"] == count
    assert probe["metrics"]["groups"] == count // 2
    assert probe["metrics"]["linear"]["balanced_accuracy"] > 0.9
    assert "Doe" not in json.dumps(probe)
    assert probe["id"] in [p["id"] for p in client.get("/v1/probes?limit=1000").json()["probes"]]
    eventually(lambda: not (settings.data / "jobs" / job["id"]).exists())  # the uploads are gone
    fresh = files(png(100, bright=True), png(101, bright=False))
    seen = client.post(f"/v1/probes/{probe['id']}/predictions", files=fresh).json()["items"]
    assert [item["label"] for item in seen] == ["bright", "dark"]


def test_missing_labels_are_left_out_and_counted(client: TestClient, labels: list[dict[str, Any]]) -> None:
    written = {"high": ("1", "1.0", " 1"), "low": ("0", "0.0", "0 ")}
    given = [{**item, "label": written[item["label"]][place % 3], "group": "NA"} for place, item in enumerate(labels)]
    given[0]["label"], given[1]["label"], given[2]["label"] = None, "NA", "-"
    answer = client.post("/v1/probes", json={"archive": "table", "labels": given, "folds": 3})
    assert answer.status_code == 202, answer.text
    probe = client.get(wait(client, answer.json()["id"])["result"]).json()
    assert (probe["labels"], probe["count"]) == (["0", "1"], len(labels) - 3)
    assert probe["metrics"]["table"] == {
        "rows": len(labels),
        "missing": {"": 1, "NA": 1, "-": 1},
        "used": len(labels) - 3,
        "items": len(labels) - 3,
        "items_without_label": 3,
    }
    assert probe["metrics"]["groups"] > 1  # the table's own groups


def test_files_without_a_label_are_left_out(client: TestClient) -> None:
    given = ["a", "NA", "b", float("nan"), "a", "b"]
    data = {"encoder": "images", "labels": json.dumps(given), "groups": json.dumps(["x", "NA", "y", None, None, "z"])}
    answer = client.post("/v1/probes", files=files(*(png(i) for i in range(6))), data=data)
    assert answer.status_code == 202, answer.text
    probe = client.get(wait(client, answer.json()["id"])["result"]).json()
    assert probe["count"] == 4 and probe["metrics"]["table"]["missing"] == {"NA": 1, "": 1}
    twice = files(png(0), png(1), png(1), png(3), png(4))
    data = {"encoder": "images", "labels": json.dumps([None, "a", "b", "a", "b"])}
    job = wait(client, client.post("/v1/probes", files=twice, data=data).json()["id"])
    assert job["state"] == "failed" and "Files 1 and 2 are the same" in job["error"]["detail"]


def test_unknown_ids_are_counted_by_position(client: TestClient, labels: list[dict[str, Any]]) -> None:
    given = [{**item, "id": "0" * 32 if place == 3 else item["id"]} for place, item in enumerate(labels)]
    given += [{"id": f"{place:032x}", "label": "a"} for place in range(1, 7)]
    answer = client.post("/v1/probes", json={"archive": "table", "labels": given}).json()
    assert answer["index"] == 3
    assert "7 of the 30 ids, at the positions 3, 24, 25, 26, 27 and others" in answer["detail"]


@pytest.mark.parametrize(
    ("change", "status", "kind"),
    [
        ({"archive": "nothing"}, 404, "not-found"),
        ({"encoder": "mri"}, 422, "not-possible"),
        ({"labels": [{"id": "nobody", "label": "a"}, {"id": "noone", "label": "b"}]}, 422, "unknown-id"),
        ({"folds": 1}, 422, "invalid-request"),
        ({"fold": 3}, 422, "invalid-request"),
        ({"labels": "one class"}, 422, "not-possible"),
        ({"labels": "twice"}, 422, "not-possible"),
    ],
)
def test_refused_probe_requests(
    client: TestClient, labels: list[dict[str, str]], change: dict[str, Any], status: int, kind: str
) -> None:
    body = {"archive": "table", "labels": labels, **change}
    if body["labels"] == "one class":
        body["labels"] = [{**item, "label": "same"} for item in labels]
    elif body["labels"] == "twice":
        body["labels"] = labels + labels[:1]
    before = client.get("/v1/jobs").json()["jobs"]
    answer = client.post("/v1/probes", json=body)
    assert (answer.status_code, answer.json()["type"]) == (status, f"urn:lejepa-med:problem:{kind}"), answer.text
    assert answer.json()["remedy"]
    assert client.get("/v1/jobs").json()["jobs"] == before


@pytest.mark.parametrize(
    ("contents", "fields", "status", "kind"),
    [
        ([png(0), png(1)], {"labels": '["a"]'}, 422, "invalid-request"),
        ([png(0), png(1)], {"labels": "a,b"}, 422, "invalid-request"),
        ([png(i) for i in range(4)], {"labels": '["a","b","a","b"]', "groups": '["x"]'}, 422, "invalid-request"),
        ([png(0), b"bad", png(1), png(2)], {"labels": '["a","b","a","b"]'}, 422, "bad-file"),
        ([], {"labels": "[]"}, 422, "no-files"),
    ],
)
def test_refused_labelled_files(
    client: TestClient, settings: Settings, contents: list[bytes], fields: dict[str, str], status: int, kind: str
) -> None:
    send = files(*contents) or [("x", (None, "1"))]
    answer = client.post("/v1/probes", files=send, data={"encoder": "images", **fields})
    assert answer.status_code == status, answer.text
    if contents:
        assert answer.json()["type"] == f"urn:lejepa-med:problem:{kind}"
    assert list((settings.data / "tmp").iterdir()) == []


def test_json_beyond_the_limit(client: TestClient, settings: Settings) -> None:
    answer = client.post("/v1/probes", json={"archive": "x" * settings.max_json_bytes, "labels": []})
    assert answer.status_code == 413


def test_cancel(client: TestClient, labels: list[dict[str, str]], settings: Settings) -> None:
    # One worker: while the first job runs, the others wait, so the last is cancelled from the queue.
    body = {"archive": "table", "labels": labels, "folds": 3}
    ids = [client.post("/v1/probes", json=body).json()["id"] for _ in range(4)]
    cancelled = client.delete(f"/v1/jobs/{ids[-1]}")
    assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    for job in ids[:-1]:
        assert wait(client, job)["state"] == "succeeded"
    time.sleep(0.5)
    assert client.get(f"/v1/jobs/{ids[-1]}").json()["state"] == "cancelled"
    assert client.get(f"/v1/probes/{ids[-1]}").status_code == 404
    assert not (settings.data / "jobs" / ids[-1]).exists()
    again = client.delete(f"/v1/jobs/{ids[0]}")
    assert (again.status_code, again.json()["type"]) == (409, "urn:lejepa-med:problem:job-ended")
    assert client.delete("/v1/jobs/none").status_code == 404


def test_cancel_while_running(client: TestClient, settings: Settings) -> None:
    count = 200
    answer = client.post(
        "/v1/probes",
        files=files(*(png(i, bright=i % 2 == 0) for i in range(count))),
        data={"encoder": "images", "labels": json.dumps([str(i % 2) for i in range(count)])},
    )
    job = answer.json()["id"]
    end = time.monotonic() + 30
    while client.get(f"/v1/jobs/{job}").json()["progress"] == 0 and time.monotonic() < end:
        time.sleep(0.02)
    stopped = client.delete(f"/v1/jobs/{job}").json()
    assert stopped["state"] == "cancelled" and 0 < stopped["progress"] < 1
    eventually(lambda: not (settings.data / "jobs" / job).exists())  # when the step in flight has stopped
    assert client.get(f"/v1/jobs/{job}").json()["state"] == "cancelled"
    assert client.get(f"/v1/probes/{job}").status_code == 404


def test_a_job_that_fails_says_why(client: TestClient) -> None:
    # A header that reads well before pixels that do not: only the job finds it.
    whole = png(0, side=64)
    contents = [png(1), png(2), whole[: len(whole) // 2], png(3)]
    answer = client.post(
        "/v1/probes", files=files(*contents), data={"encoder": "images", "labels": '["a","b","a","b"]'}
    )
    if answer.status_code == 422:  # found at once
        assert answer.json()["index"] == 2
        return
    job = wait(client, answer.json()["id"])
    assert (job["state"], job["error"]["index"]) == ("failed", 2)
    assert job["error"]["remedy"]


def test_pages_of_ids(client: TestClient, table: EmbeddingTable) -> None:
    listed = [one for one in client.get("/v1/archives").json()["archives"] if one["name"] == "table"]
    wanted = {"name": "table", "count": 24, "dim": 512, "fingerprint": table.encoder, "encoder": "images"}
    content = client.get("/v1/archives/table/map").json()["content"]
    added = {"created": None, "upload": None, "cautions": [], "content": content, "thumbnails": True}
    assert listed == [{**wanted, **added}]
    seen, link = [], "/v1/archives/table/ids?limit=10"
    while link:
        page = client.get(link).json()
        assert page["total"] == 24
        seen += [item["id"] for item in page["items"]]
        link = page["next"]
    assert seen == table.ids
    assert client.get("/v1/archives/none/ids").status_code == 404


def test_probe_from_zipped_series_with_one_label_each(client: TestClient, tmp_path: Path) -> None:
    from tests.data.mri import phantom, write_series

    packed = []
    for number in range(4):
        paths = write_series(tmp_path / str(number), phantom(seed=number, shape=(24, 30, 8)), series=number + 1)
        packed.append(io.BytesIO())
        with zipfile.ZipFile(packed[-1], "w") as target:
            for path in paths:
                target.write(path, path.name)
    answer = client.post(
        "/v1/probes",
        files=files(*(one.getvalue() for one in packed), name="series.zip"),
        data={"encoder": "mri", "labels": '["a", "a", "b", "b"]', "folds": "2"},
    )
    assert answer.status_code == 202, answer.text
    job = wait(client, answer.json()["id"])
    assert job["state"] == "succeeded", job
    several = zipfile.ZipFile(both := io.BytesIO(), "w")
    several.writestr("a.png", png(1))
    several.writestr("b.png", png(2))
    several.close()
    answer = client.post(
        "/v1/probes",
        files=files(*[both.getvalue()] * 4, name="two.zip"),
        data={"encoder": "images", "labels": '["a", "a", "b", "b"]'},
    )
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:lejepa-med:problem:several-items")


@pytest.mark.parametrize("write", ["claim_job", "advance", "finish_job"])
def test_a_job_goes_on_when_the_database_takes_its_rows_again(
    client: TestClient, labels: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    """The disk is full at its start, in a step, or at its end, and not even a failure can be recorded."""
    service = client.app.state.service  # type: ignore[attr-defined]
    tried = threading.Event()

    def full(*_: object, **given: object) -> bool:
        tried.set()
        raise unavailable()

    with monkeypatch.context() as patch:
        for name in {write, "finish_job"}:
            patch.setattr(service.store, name, full)
        job = client.post("/v1/probes", json={"archive": "table", "labels": labels, "folds": 2}).json()["id"]
        assert tried.wait(10)
        eventually(lambda: job not in service.worker.running())
    found = wait(client, job)
    assert (found["state"], found["attempts"]) == ("succeeded", 1 if write == "claim_job" else 2)


def test_a_claim_whose_answer_was_lost_is_not_forgotten(
    client: TestClient, labels: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = client.app.state.service  # type: ignore[attr-defined]
    claim, lost = service.store.claim_job, []

    def committed(**given: Any) -> Any:
        found = claim(**given)
        if found is not None and not lost:
            lost.append(found.id)
            raise unavailable()
        return found

    monkeypatch.setattr(service.store, "claim_job", committed)
    job = client.post("/v1/probes", json={"archive": "table", "labels": labels, "folds": 2}).json()["id"]
    found = wait(client, job)
    assert lost == [job] and (found["state"], found["attempts"]) == ("succeeded", 2)


@pytest.mark.parametrize("values", [("a", "b"), (1.5, 2.5)])
def test_a_probe_over_two_groups_says_why_its_scores_are_rough(
    client: TestClient, table: EmbeddingTable, values: tuple[Any, Any]
) -> None:
    labels = [
        {"id": name, "label": values[row % 2] if not isinstance(values[0], float) else row + values[0]}
        for row, name in enumerate(table.ids[:16])
    ]
    given = [{**one, "group": "left" if row < 8 else "right"} for row, one in enumerate(labels)]
    job = wait(client, client.post("/v1/probes", json={"archive": "table", "labels": given}).json()["id"])
    assert job["state"] == "succeeded", job
    warnings = client.get(job["result"]).json()["metrics"]["warnings"]
    (told,) = [one for one in warnings if "third" in one]
    assert "All labels come from two groups (patients, slides, fields)" in told
    assert told.endswith("Label items of a third group.")
