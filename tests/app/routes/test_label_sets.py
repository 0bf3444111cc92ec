"""Sets of labels: kept, changed by several people, exchanged as CSV, learnt from; and kill -9 after an answer."""

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from app.api.service import Service
from harness.launcher import Launcher
from lejepa_med.models.embed import EmbeddingTable
from lejepa_med.probes.label_table import join, read_labels
from lejepa_med.probes.probe import most_different
from tests.app.helpers import client_of, wait

ROOT = "/v1/label-sets"


@pytest.fixture(scope="module")
def ids(client: TestClient) -> list[str]:
    """Of the table's 24 pictures, the dark ones first."""
    items = [one["id"] for one in client.get("/v1/archives/table/ids").json()["items"]]
    pca = np.frombuffer(client.get("/v1/archives/table/map/points").content, "<f4").reshape(-1, 2)[:, 0]
    return [items[row] for row in np.argsort(pca)]


def new_set(client: TestClient, **wanted: Any) -> str:
    body = {"name": "first round", "archive": "table", "classes": ["dark", "bright"], **wanted}
    answer = client.post(ROOT, json=body)
    assert answer.status_code == 201 and answer.headers["etag"] == '"1"', answer.text
    assert answer.headers["location"] == f"{ROOT}/{answer.json()['id']}"
    return answer.headers["location"]


def change(client: TestClient, address: str, version: int | str, **body: Any) -> Any:
    tag = version if isinstance(version, str) else f'"{version}"'
    return client.patch(address, json=body, headers={"If-Match": tag})


def given(labels: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"id": item, "label": label} for item, label in labels.items()]


def held(client: TestClient, address: str) -> dict[str, Any]:
    return {one["id"]: one["label"] for one in client.get(address).json()["labels"]}


def test_labels_are_given_changed_removed_and_renamed(client: TestClient, ids: list[str]) -> None:
    address = new_set(client)
    answer = change(client, address, 1, labels=given({ids[0]: "dark", ids[1]: "dark", ids[2]: " odd "}))
    assert (answer.status_code, answer.headers["etag"]) == (200, '"2"'), answer.text
    assert answer.json()["classes"] == ["dark", "bright", "odd"] and answer.json()["count"] == 3
    answer = change(client, address, 2, labels=given({ids[0]: "bright", ids[1]: None}), rename={"odd": "strange"})
    assert answer.json()["version"] == 3 and answer.json()["classes"] == ["dark", "bright", "strange"]
    assert held(client, address) == {ids[0]: "bright", ids[2]: "strange"}
    whole = client.get(address)
    assert whole.headers["etag"] == '"3"' and whole.json()["count"] == 2
    listed = client.get(ROOT, params={"archive": "table", "limit": 1}).json()
    assert listed["label_sets"][0]["id"] == whole.json()["id"]
    for status, kind, body in (
        (422, "unknown-id", {"labels": given({"0" * 32: "dark"})}),
        (422, "other-kind", {"labels": given({ids[3]: 4.5})}),
        (422, "invalid-request", {"labels": given({ids[3]: "NA"})}),
        (422, "invalid-request", {"labels": [*given({ids[3]: "dark"}), *given({ids[3]: "bright"})]}),
        (422, "invalid-request", {"labelz": []}),
    ):
        answer = change(client, address, 3, **body)
        assert answer.status_code == status and answer.json()["type"].endswith(kind), answer.text
        assert answer.json()["remedy"]
    assert client.patch(address, json={"name": "x"}).status_code == 428
    assert client.get(address).json()["version"] == 3, "a refused change leaves the set as it was"
    assert client.delete(address).status_code == 204 and client.get(address).status_code == 404
    assert client.post(ROOT, json={"name": "x", "archive": "none"}).status_code == 404


def test_two_people_see_both_versions_and_lose_nothing(client: TestClient, ids: list[str]) -> None:
    address = new_set(client)
    change(client, address, 1, labels=given({ids[0]: "dark", ids[1]: "dark", ids[2]: "dark"}))
    mine = {ids[0]: "bright", ids[1]: "bright", ids[3]: "dark"}
    theirs = change(client, address, 2, labels=given({ids[0]: "odd", ids[1]: "bright", ids[2]: None}))
    assert theirs.status_code == 200
    refused = change(client, address, 2, labels=given(mine))
    assert refused.status_code == 412, refused.text
    told = refused.json()
    assert told["type"].endswith(":changed-meanwhile") and told["current"]["version"] == 3
    assert told["yours"]["labels"] == given(mine)
    assert {one["id"]: one.get("label") for one in told["theirs"]} == {ids[0]: "odd", ids[1]: "bright", ids[2]: None}
    assert told["conflicts"] == [{"id": ids[0], "yours": "bright", "theirs": "odd"}]
    assert held(client, address) == {ids[0]: "odd", ids[1]: "bright"}, "nothing was overwritten"
    assert change(client, address, 3, labels=given(mine)).status_code == 200
    assert change(client, address, "*", labels=given({ids[4]: "dark"})).status_code == 200
    assert held(client, address) == {**mine, ids[4]: "dark"}


def test_a_change_whose_answer_was_lost_is_made_once(client: TestClient, ids: list[str]) -> None:
    """The store repeats it when the database comes back."""
    service: Service = client.app.state.service  # type: ignore[attr-defined]
    name = new_set(client).rpartition("/")[2]
    for _ in range(2):
        row, changed = service.store.change_label_set(name, version=1, change="a", labels={ids[0]: "dark"}, facts={})
        assert row is not None and (row.version, changed) == (2, True)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("classification", ["dark", "a;b", "NA?"]),
        ("multilabel", [["dark", "left"], [], ["left"]]),
        ("regression", [1.5, -2.0, 30.0]),
    ],
)
def test_csv_goes_out_into_the_command_line_and_back(
    client: TestClient, runs: Path, tmp_path: Path, ids: list[str], kind: str, values: list[Any]
) -> None:
    labels = dict(zip(ids, values, strict=False))
    address = new_set(client, kind=kind, classes=[])
    change(client, address, 1, labels=given(labels))
    answer = client.get(f"{address}/csv")
    assert answer.headers["content-type"].startswith("text/csv")
    file = tmp_path / "labels.csv"
    file.write_bytes(answer.content)
    read = join(EmbeddingTable.open(runs / "table"), read_labels(file), archive=tmp_path, kind=kind)  # type: ignore[arg-type]
    found = [list(one) if isinstance(one, tuple) else one for one in read.labels]
    assert dict(zip(read.ids, found, strict=True)) == labels
    other = new_set(client, kind=kind, classes=[])
    text = answer.text + f"{'0' * 32},\r\n{'1' * 32},{'1' if kind == 'regression' else 'x'}\r\n"
    took = client.post(f"{other}/csv", json={"csv": text}, headers={"If-Match": '"1"'})
    assert took.status_code == 200, took.text
    assert {name: took.json()[name] for name in ("imported", "unknown", "missing", "version")} == {
        "imported": 3, "unknown": 1, "missing": 1, "version": 2,
    }  # fmt: skip
    assert held(client, other) == labels
    one = f"id,label\n{ids[0]},{file.read_text().splitlines()[1].partition(',')[2]}\n"
    assert client.post(f"{other}/csv", json={"csv": one}, headers={"If-Match": '"1"'}).status_code == 412
    took = client.post(f"{other}/csv", json={"csv": one, "replace": True}, headers={"If-Match": '"2"'})
    assert took.json()["count"] == 1 and len(held(client, other)) == 1
    bad = client.post(f"{other}/csv", json={"csv": "file,class\nx,y\n"}, headers={"If-Match": '"3"'})
    assert bad.status_code == 422 and "tmp" not in bad.text and bad.json()["type"].endswith(":bad-table")


def test_probes_learn_from_a_set_and_tell_what_to_label_next(client: TestClient, ids: list[str]) -> None:
    address = new_set(client)
    first = client.get(f"{address}/next", params={"limit": 5}).json()
    assert first["by"] == "distance" and len({one["id"] for one in first["items"]}) == 5
    labels = {item: "dark" if place < 4 else "bright" for place, item in enumerate([*ids[:4], *ids[-4:]])}
    change(client, address, 1, labels=given(labels))
    body = {"label_set": address.rpartition("/")[2], "name": "brightness", "folds": 2}
    job = wait(client, client.post("/v1/probes", json=body).json()["id"])
    probe = client.get(job["result"]).json()
    assert (probe["name"], probe["count"], probe["labels"]) == ("brightness", 8, ["bright", "dark"])
    assert probe["metrics"]["label_set"] == {"id": body["label_set"], "version": 2, "left_out": 0}
    by_probe = client.get(f"{address}/next", params={"probe": probe["id"], "limit": 30}).json()
    assert by_probe["by"] == "uncertainty" and by_probe["items"][0]["probabilities"]
    for found in (by_probe, client.get(f"{address}/next", params={"limit": 30}).json()):
        assert found["items"] and not {one["id"] for one in found["items"]} & set(labels)
    every = new_set(client)
    change(client, every, 1, labels=given(dict.fromkeys(ids, "dark")))
    assert client.get(f"{every}/next").json()["items"] == [], "nothing is left to label"
    # A next version learns from the set as it is now, without what was removed.
    change(client, address, 2, labels=given({ids[0]: None, ids[4]: "dark", ids[5]: "dark"}))
    more = {"label_set": body["label_set"], "folds": 2}
    job = wait(client, client.post(f"/v1/probes/{probe['id']}/labels", json=more).json()["id"])
    newer = client.get(job["result"]).json()
    assert (newer["version"], newer["parent"], newer["count"]) == (2, probe["id"], 9)
    assert newer["metrics"]["label_set"]["version"] == 3
    for wrong in ({"archive": "table"}, {"label_set": "0" * 32}, {**body, "labels": given({ids[0]: "a", ids[1]: "b"})}):
        assert client.post("/v1/probes", json=wrong).status_code in (404, 422)


def test_farthest_first_covers_what_is_there() -> None:
    rng = np.random.default_rng(0)
    centres = np.eye(6, 16)
    points = np.concatenate([centre + 0.01 * rng.normal(size=(20, 16)) for centre in centres]).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    chosen = most_different(points, [0, 25], limit=4)
    assert {one.row // 20 for one in chosen} == {2, 3, 4, 5}, "one of each cluster without a label"
    assert sorted(one.distance for one in chosen) == pytest.approx([np.sqrt(2)] * 4, abs=0.1)
    assert len(most_different(points, [], limit=6)) == 6
    assert most_different(np.repeat(points[:1], 5, axis=0), [0], limit=3) == [], "copies teach nothing"


@pytest.mark.slow
def test_no_acknowledged_label_is_lost_by_kill_9(launcher: Launcher) -> None:
    acknowledged: dict[str, str] = {}
    address, version = "", 1
    for round_ in range(2):
        service = launcher.service()
        with client_of(service) as client:
            items = [one["id"] for one in client.get("/v1/archives/table/ids").json()["items"]]
            address = address or new_set(client)  # type: ignore[arg-type]
            assert held(client, address) == acknowledged  # type: ignore[arg-type]
            for item in items[8 * round_ : 8 * round_ + 8]:
                answer = change(client, address, version, labels=given({item: "dark"}))  # type: ignore[arg-type]
                assert answer.status_code == 200
                acknowledged[item], version = "dark", answer.json()["version"]
            assert service.end(signal.SIGKILL) == -signal.SIGKILL
    service = launcher.service()
    with client_of(service) as client:
        assert held(client, address) == acknowledged and len(acknowledged) == 16  # type: ignore[arg-type]
