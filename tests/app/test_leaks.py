"""Leaks over REST: an upload and its archive tell them, and a probe across one is refused unless it is allowed."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.app.helpers import png, wait

# Doe lies in two splits; the pictures 4 and 5 are equal, under two patients of two splits.
CATALOG = b"""path,label,group,split
0.png,bright,Doe,train
1.png,dark,Doe,test
2.png,bright,Roe,train
3.png,dark,Roe,train
4.png,bright,Poe,train
5.png,bright,Moe,test
6.png,dark,Coe,test
7.png,bright,Coe,test
"""


@pytest.fixture(scope="module")
def upload(client: TestClient) -> Iterator[dict[str, Any]]:
    contents = [png(min(n, 4) if n < 6 else n, bright=n not in (1, 3, 6)) for n in range(8)]
    parts: list[Any] = [("files", (f"{n}.png", content)) for n, content in enumerate(contents)]
    fields = {"encoder": "images", "embed": "true", "name": "leaking"}
    answer = client.post("/v1/uploads", files=[*parts, ("catalog", ("c.csv", CATALOG))], data=fields)
    assert answer.status_code == 202, answer.text
    assert wait(client, answer.json()["id"])["state"] == "succeeded"
    found: dict[str, Any] = client.get(f"/v1/uploads/{answer.json()['id']}").json()
    assert wait(client, found["embedding"])["state"] == "succeeded"
    yield found
    assert client.delete("/v1/archives/leaking").status_code == 204
    assert client.delete(f"/v1/uploads/{found['id']}").status_code == 204


def test_uploads_and_archives_tell_a_leak(client: TestClient, upload: dict[str, Any]) -> None:
    items = client.get(f"/v1/uploads/{upload['id']}/items").json()["items"]
    groups = {one["file_index"]: one["group"] for one in items}
    leak = {"groups": 1, "images": 2, "copies": 1, "first": [groups[0], groups[4], groups[5]]}
    assert upload["leak"] == leak
    assert client.get("/v1/archives/leaking").json()["leak"] == leak
    assert client.get("/v1/archives/table").json().get("leak") is None


def test_a_probe_across_a_leak_is_refused_unless_it_is_allowed(client: TestClient, upload: dict[str, Any]) -> None:
    items = client.get(f"/v1/uploads/{upload['id']}/items").json()["items"]
    labels = {one["file_index"]: {"id": one["id"], "label": one["label"]} for one in items}

    def post(rows: list[int], path: str = "", **fields: Any) -> Any:
        body = {"archive": "leaking", "labels": [{**labels[row], **fields.pop(str(row), {})} for row in rows]}
        return client.post(f"/v1/probes{path}", json={**body, **fields})

    for rows, said in ((range(8), "1 group lies in several splits (2 images) and 1 image"), ((2, 3, 4, 6), "1 image")):
        answer = post(list(rows))
        assert (answer.status_code, answer.json()["type"]) == (422, "urn:lejepa-med:problem:leak"), answer.text
        assert f"LEAK: {said}" in answer.json()["detail"]
        assert "allow_leak" in answer.json()["remedy"] and "lejepa-med split" in answer.json()["remedy"]
        assert not any(name in answer.text for name in ("Doe", "Poe", ".png"))
    clean = post([2, 3, 6, 7])
    assert wait(client, clean.json()["id"])["state"] == "succeeded", "of these none leaks"
    # who says that the pictures are of other patients is believed
    corrected = post([0, 2, 3, 6], **{"0": {"group": "another patient"}})
    assert wait(client, corrected.json()["id"])["state"] == "succeeded"

    more = f"/{clean.json()['id']}/labels"
    assert post([0, 1], more).json()["type"].endswith(":leak")
    assert wait(client, post([0, 1], more, allow_leak=True).json()["id"])["state"] == "succeeded"
    allowed = wait(client, post(list(range(8)), allow_leak=True).json()["id"])
    assert allowed["state"] == "succeeded"
    metrics = client.get(allowed["result"]).json()["metrics"]
    assert metrics["table"]["leak"] == {"groups": 1, "images": 2, "copies": 1}
