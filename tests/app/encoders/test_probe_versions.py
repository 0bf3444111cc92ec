"""Labels that arrive later: versions of a probe, what to label next, and the kinds of labels over HTTP."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from app.core.settings import Settings
from lejepa_med.models.embed import EmbeddingTable
from lejepa_med.probes.examples import Labelled
from lejepa_med.probes.probe import Probe, fit_probe
from tests.app.helpers import files, png, wait


@pytest.fixture(scope="module")
def table(runs: Path) -> EmbeddingTable:
    return EmbeddingTable.open(runs / "table")


@pytest.fixture(scope="module")
def truth(table: EmbeddingTable) -> list[str]:
    centred = table.vectors - table.vectors.mean(0)
    side = centred @ np.linalg.svd(centred, full_matrices=False)[2][0] > 0
    return ["high" if up else "low" for up in side]


def labelled(table: EmbeddingTable, truth: list[Any], rows: range) -> list[dict[str, Any]]:
    return [{"id": table.ids[row], "label": truth[row]} for row in rows]


def made(client: TestClient, address: str, **body: Any) -> dict[str, Any]:
    """The probe of an accepted job."""
    answer = client.post(address, **body)
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == f"/v1/jobs/{answer.json()['id']}"
    job = wait(client, answer.json()["id"])
    assert job["state"] == "succeeded", job
    probe: dict[str, Any] = client.get(job["result"]).json()
    return probe


@pytest.fixture(scope="module")
def first(client: TestClient, table: EmbeddingTable, truth: list[str]) -> dict[str, Any]:
    labels = labelled(table, truth, range(14))
    return made(client, "/v1/probes", json={"name": "side", "archive": "table", "labels": labels, "seed": 3})


def test_later_labels_make_a_new_version_and_leave_the_old_one(
    client: TestClient, first: dict[str, Any], table: EmbeddingTable, truth: list[str], settings: Settings
) -> None:
    assert (first["version"], first["series"], first["kind"], first.get("parent")) == (
        1,
        first["id"],
        "classification",
        None,
    )
    ask = {"archive": "table", "ids": table.ids}
    before = client.post(f"/v1/probes/{first['id']}/predictions", json=ask).json()
    changed = [*truth[:10], *["low" if name == "high" else "high" for name in truth[10:12]], *truth[12:]]
    later = labelled(table, changed, range(10, 24))
    second = made(client, f"/v1/probes/{first['id']}/labels", json={"archive": "table", "labels": later})
    assert (second["version"], second["series"], second["parent"]) == (2, first["id"], first["id"])
    assert (second["name"], second["count"], second["metrics"]["seed"]) == ("side", 24, 3)
    assert [v["version"] for v in second["versions"]] == [2, 1]
    stored = Probe.load(settings.data / "probes" / second["id"])
    names = dict(zip(stored.examples.ids, stored.examples.labels, strict=True))
    assert names == {f"table/{name}": changed[row] for row, name in enumerate(table.ids)}
    expected = fit_probe(stored.examples.vectors, changed, table.groups, seed=3, encoder=table.encoder)
    assert second["metrics"]["linear"] == expected.metrics["linear"]
    # What was made of the first version stays as it was, and labels sent to its address go to the newest one.
    assert client.post(f"/v1/probes/{first['id']}/predictions", json=ask).json() == before
    third = made(client, f"/v1/probes/{first['id']}/labels", json={"archive": "table", "labels": later[:1], "folds": 3})
    assert (third["version"], third["parent"], third["count"]) == (3, second["id"], 24)


def test_two_jobs_on_one_version_lose_no_label(
    client: TestClient, table: EmbeddingTable, truth: list[str], settings: Settings
) -> None:
    base = made(client, "/v1/probes", json={"archive": "table", "labels": labelled(table, truth, range(12))})
    training = client.app.state.service.training  # type: ignore[attr-defined]
    real, late = training.probe, []

    def probe_while_another_registers(probe_id: str) -> Probe:
        # At the moment when one job has read its parent, another one makes the next version.
        if not late:
            late.append("started")
            found: Probe = real(probe_id)
            row = client.app.state.service.store.probe(probe_id)  # type: ignore[attr-defined]
            other = "f" * 32
            training_row = {c.key: getattr(row, c.key) for c in row.__table__.columns}
            more = Labelled((f"table/{table.ids[12]}",), table.vectors[12:13], (truth[12],), (table.groups[12],))
            extra = found.examples.updated(more)
            fit_probe(extra.vectors, extra.labels, extra.groups, ids=extra.ids).save(training.result_folder(other))
            changes = {"id": other, "version": 2, "parent": probe_id, "count": 13}
            with client.app.state.service.store._write() as session:  # type: ignore[attr-defined]
                session.add(type(row)(**{**training_row, **changes}))
            return found
        return real(probe_id)

    training.probe = probe_while_another_registers
    try:
        later = labelled(table, truth, range(13, 15))
        found = made(client, f"/v1/probes/{base['id']}/labels", json={"archive": "table", "labels": later})
    finally:
        training.probe = real
    assert (found["version"], found["parent"], found["count"]) == (3, "f" * 32, 15)
    assert len(Probe.load(settings.data / "probes" / found["id"]).examples.ids) == 15


def test_a_file_sent_again_is_the_same_item(client: TestClient, settings: Settings) -> None:
    pictures = [png(i, bright=i % 2 == 0) for i in range(6)]
    names = ["bright", "dark"] * 3
    send = {"files": files(*pictures), "data": {"encoder": "images", "labels": json.dumps(names)}}
    first = made(client, "/v1/probes", **send)
    more = files(pictures[0], png(50, bright=False))
    fields = {"labels": '["dark", "dark"]', "groups": '["Doe^Jane", "Doe^Jane"]'}
    second = made(client, f"/v1/probes/{first['id']}/labels", files=more, data=fields)
    examples = Probe.load(settings.data / "probes" / second["id"]).examples
    assert (second["count"], sorted(examples.labels)) == (7, ["bright"] * 2 + ["dark"] * 5)
    assert len(set(examples.groups)) == 6 and "Doe" not in "".join(examples.groups)
    twice = files(pictures[0], pictures[0], pictures[1], pictures[2])
    for problem, labels, groups in (
        ("two-labels", ["a", "b", "b", "a"], ["p", "p", "q", "r"]),
        ("two-groups", ["a", "a", "b", "b"], ["p", "q", "r", "s"]),
    ):
        fields = {"encoder": "images", "labels": json.dumps(labels), "groups": json.dumps(groups), "folds": "2"}
        job = wait(client, client.post("/v1/probes", files=twice, data=fields).json()["id"])
        assert (job["state"], job["error"]["type"].rpartition(":")[2]) == ("failed", problem)


def test_numbers_and_lists_of_labels(client: TestClient, table: EmbeddingTable) -> None:
    sizes = (table.vectors - table.vectors.mean(0)) @ np.linalg.svd(table.vectors - table.vectors.mean(0))[2][0]
    rows = range(24)
    number = made(
        client, "/v1/probes", json={"archive": "table", "labels": labelled(table, sizes.astype(float).tolist(), rows)}
    )
    assert (number["kind"], number["labels"], number["count"]) == ("regression", [], 24)
    assert number["metrics"]["linear"]["r2"] > 0.5
    ask = {"archive": "table", "ids": table.ids[:3]}
    item = client.post(f"/v1/probes/{number['id']}/predictions", json=ask).json()["items"][0]
    assert item["interval"][0] < item["value"] < item["interval"][1] and "label" not in item
    assert 0 <= item["novelty"] <= 1 and 0 <= item["uncertainty"] <= 1

    seen = [[*(["big"] if s > 0 else []), *(["odd"] if row % 2 else [])] for row, s in zip(rows, sizes, strict=True)]
    many = made(client, "/v1/probes", json={"archive": "table", "labels": labelled(table, seen, rows)})
    assert (many["kind"], many["labels"]) == ("multilabel", ["big", "odd"])
    item = client.post(f"/v1/probes/{many['id']}/predictions", json=ask).json()["items"][0]
    assert item["probabilities"].keys() == {"big", "odd"} and set(item["labels"]) <= {"big", "odd"}

    refused = client.post(
        f"/v1/probes/{many['id']}/labels", json={"archive": "table", "labels": labelled(table, ["text"] * 24, rows)}
    )
    assert (refused.status_code, refused.json()["type"].rpartition(":")[2]) == (422, "other-kind")
    mixed = [{"id": table.ids[0], "label": 1.0}, {"id": table.ids[1], "label": "a"}]
    refused = client.post("/v1/probes", json={"archive": "table", "labels": mixed})
    assert refused.status_code == 422 and "several kinds" in refused.json()["detail"]
    for value in (True, {"a": 1}):
        body = {"archive": "table", "labels": [{"id": name, "label": value} for name in table.ids[:4]]}
        assert client.post("/v1/probes", json=body).json()["type"].endswith("invalid-request")


def test_what_to_label_next(client: TestClient, first: dict[str, Any], table: EmbeddingTable) -> None:
    answer = client.get(f"/v1/probes/{first['id']}/uncertain", params={"archive": "table", "limit": 6})
    assert answer.status_code == 200, answer.text
    items = answer.json()["items"]
    assert len({item["id"] for item in items}) == 6
    assert not {item["id"] for item in items} & set(table.ids[:14])  # those have labels
    assert all(0 < item["uncertainty"] <= 1 and item["distance"] > 0 and item["group"] for item in items)
    rest = client.get(f"/v1/probes/{first['id']}/uncertain", params={"archive": "table", "limit": 1000}).json()
    assert len(rest["items"]) <= 10
    assert client.get(f"/v1/probes/{first['id']}/uncertain", params={"archive": "none"}).status_code == 404
    assert client.get("/v1/probes/none/uncertain", params={"archive": "table"}).status_code == 404
    assert client.get(f"/v1/probes/{first['id']}/uncertain").status_code == 422


def test_probes_of_another_release_ask_to_be_trained_again(
    client: TestClient, table: EmbeddingTable, truth: list[str], settings: Settings
) -> None:
    probe = made(client, "/v1/probes", json={"archive": "table", "labels": labelled(table, truth, range(12))})
    document = settings.data / "probes" / probe["id"] / "probe.json"
    document.write_text(document.read_text(encoding="utf-8").replace('"format": 2', '"format": 1'), encoding="utf-8")
    client.app.state.service.training._loaded.clear()  # type: ignore[attr-defined]
    ask = {"archive": "table", "ids": table.ids[:1]}
    answer = client.post(f"/v1/probes/{probe['id']}/predictions", json=ask)
    assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (422, "probe-format")
    assert "again" in answer.json()["remedy"]
