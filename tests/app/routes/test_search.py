"""POST /v1/search over HTTP: by ids, by vectors, by files; narrowed by metadata; and what is refused."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from app.core.settings import Settings
from harness.tables import facts, write_table
from lejepa_med.models.embed import EmbeddingTable
from tests.app.helpers import files, picture, png, wait


@pytest.fixture(scope="module")
def table(runs: Path) -> EmbeddingTable:
    return EmbeddingTable.open(runs / "table")


@pytest.fixture(scope="module", autouse=True)
def more_tables(runs: Path, table: EmbeddingTable) -> Iterator[None]:
    """`marked`: the table's vectors with groups and facts; `foreign`: of an encoder that is not here."""
    groups = [f"patient {row // 6}" for row in range(24)]
    known = {"encoder": table.encoder, "ids": table.ids, "groups": groups}
    marked = write_table(runs / "marked", table.vectors, **known, **facts(24))
    foreign = write_table(runs / "foreign", table.vectors)
    yield
    shutil.rmtree(marked)
    shutil.rmtree(foreign)


def cosines(table: EmbeddingTable, vector: np.ndarray) -> np.ndarray:
    vectors = table.vectors.astype(np.float64)
    return np.asarray(vectors @ vector / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vector.astype(np.float64)))


def asked(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/search", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_neighbours_of_ids(client: TestClient, table: EmbeddingTable) -> None:
    body = asked(client, archive="marked", ids=[table.ids[3], table.ids[10]], k=5)
    assert (body["archive"], body["fingerprint"], body["backend"], body["recall"]) == (
        "marked",
        table.encoder,
        "exact",
        1.0,
    )
    for row, item in zip((3, 10), body["items"], strict=True):
        wanted = cosines(table, table.vectors[row])
        rows = [table.ids.index(hit["id"]) for hit in item["hits"]]
        assert item["id"] == table.ids[row] and row not in rows and len(set(rows)) == 5
        scores = [hit["score"] for hit in item["hits"]]
        assert scores == sorted(scores, reverse=True)
        np.testing.assert_allclose(scores, wanted[rows], atol=1e-6)
        # Not which rows: the cosines of these pictures differ in the last bits of a float32.
        np.testing.assert_allclose(scores, np.sort(np.delete(wanted, row))[::-1][:5], atol=1e-6)
        # Dark and bright pictures: what is near is of the same kind.
        assert {table.ids.index(hit["id"]) % 2 for hit in item["hits"]} == {row % 2}
    first = body["items"][0]["hits"][0]
    row = table.ids.index(first["id"])
    given = facts(24)
    shown = ("labels", "stain", "mpp", "objid", "flat")  # objid to its last digit
    assert first["columns"] == {name.rstrip("s"): given[name][row] for name in shown}
    assert first["group"] == f"patient {row // 6}"


def test_filters_and_the_own_group(client: TestClient, table: EmbeddingTable) -> None:
    filters = [{"column": "label", "in": ["spiral", "o'clock"]}, {"column": "mpp", "min": 0.25}]
    body = asked(client, archive="marked", ids=[table.ids[0]], k=24, filters=filters, leave_out_own_group=True)
    given = facts(24)
    wanted = {
        row
        for row in range(6, 24)
        if given["labels"][row] is not None and given["mpp"][row] is not None and given["mpp"][row] >= 0.25
    }
    assert wanted and {table.ids.index(hit["id"]) for hit in body["items"][0]["hits"]} == wanted
    none = asked(client, archive="marked", ids=[table.ids[0]], filters=[{"column": "group", "equals": "nobody"}])
    assert none["items"][0]["hits"] == []


def test_ids_of_another_table(client: TestClient, table: EmbeddingTable) -> None:
    body = asked(client, archive="marked", ids=[table.ids[5]], ids_of="table", k=24, leave_out_own_group=True)
    assert len(body["items"][0]["hits"]) == 23, "itself is left out by its id; its group there is no group here"


def test_vectors_of_any_length(client: TestClient, table: EmbeddingTable) -> None:
    vector = (7.5 * table.vectors[4]).tolist()
    body = asked(client, archive="table", vectors=[vector, vector], fingerprint=table.encoder, k=3)
    one, two = body["items"]
    assert one["hits"] == two["hits"] and (one["index"], two["index"]) == (0, 1) and "id" not in one
    assert one["hits"][0]["id"] == table.ids[4] and one["hits"][0]["score"] == pytest.approx(1, abs=1e-5)
    assert one["hits"][0]["columns"] == {"label": None}


def test_files_are_embedded_and_found(client: TestClient, table: EmbeddingTable, settings: Settings) -> None:
    import cv2

    same = cv2.imencode(".png", picture(6, bright=False))[1].tobytes()  # the table's seventh picture
    data = {"archive": "marked", "k": "2", "filters": json.dumps([{"column": "flat", "not_in": [False]}])}
    answer = client.post("/v1/search", files=files(b"no picture", same, png(99)), data=data)
    assert answer.status_code == 200, answer.text
    bad, good, new = answer.json()["items"]
    assert bad["error"]["remedy"] and bad["hits"] == [] and (bad["index"], bad["file_index"]) == (0, 0)
    assert good["hits"][0]["id"] == table.ids[6] and good["hits"][0]["score"] == pytest.approx(1, abs=1e-4)
    assert (good["index"], good["file_index"], new["index"]) == (1, 1, 2) and len(new["hits"]) == 2
    assert all(hit["columns"]["flat"] is not False for hit in good["hits"] + new["hits"])
    assert list((settings.data / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "status", "kind"),
    [
        ({"archive": "nobody"}, 404, "not-found"),
        ({"ids_of": "nobody"}, 404, "not-found"),
        ({"ids": ["no-such-id"]}, 422, "unknown-id"),
        ({"ids": None}, 422, "invalid-request"),
        ({"ids": []}, 422, "invalid-request"),
        ({"vectors": [[1.0]]}, 422, "invalid-request"),  # ids and vectors
        ({"k": 0}, 422, "invalid-request"),
        ({"k": 1001}, 422, "invalid-request"),
        ({"filters": [{"column": "path", "equals": "x"}]}, 422, "unknown-column"),
        ({"filters": [{"column": "label", "min": 1}]}, 422, "invalid-request"),
        ({"filters": [{"column": "label"}]}, 422, "invalid-request"),
        ({"kk": 3}, 422, "invalid-request"),
        ({"archive": "foreign", "ids_of": "table"}, 422, "other-encoder"),
    ],
    ids=str,
)
def test_refusals(client: TestClient, table: EmbeddingTable, change: dict[str, Any], status: int, kind: str) -> None:
    body = {"archive": "marked", "ids": table.ids[:1], **change}
    answer = client.post("/v1/search", json={name: value for name, value in body.items() if value is not None})
    assert answer.status_code == status, answer.text
    assert answer.json()["type"] == f"urn:lejepa-med:problem:{kind}" and answer.json()["remedy"]
    assert "no-such-id" not in answer.text and "nobody" not in answer.text


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"fingerprint": None}, "invalid-request"),
        ({"fingerprint": "0" * 64}, "other-encoder"),
        ({"vectors": [[1.0, 2.0]]}, "invalid-request"),
        ({"vectors": [[0.0] * 512]}, "invalid-request"),
        ({"vectors": [[1e300] * 512]}, "invalid-request"),
        ({"leave_out_own_group": True}, "invalid-request"),
    ],
    ids=["unsaid", "other", "short", "zero", "huge", "group"],
)
def test_vectors_that_cannot_be_compared(
    client: TestClient, table: EmbeddingTable, change: dict[str, Any], kind: str
) -> None:
    body = {"archive": "table", "vectors": [[1.0] * 512], "fingerprint": table.encoder, **change}
    answer = client.post("/v1/search", json={name: value for name, value in body.items() if value is not None})
    assert answer.status_code == 422, answer.text
    assert answer.json()["type"] == f"urn:lejepa-med:problem:{kind}" and answer.json()["remedy"]


def test_answers_are_bounded(client: TestClient, table: EmbeddingTable) -> None:
    answer = client.post("/v1/search", json={"archive": "table", "ids": table.ids[:1] * 101, "k": 1000})
    assert answer.status_code == 422 and "more than 100000 neighbours" in answer.json()["detail"]
    assert len(asked(client, archive="table", ids=table.ids[:1] * 100, k=1000)["items"]) == 100


def test_files_that_cannot_be_compared(client: TestClient) -> None:
    def kind(**data: str) -> str:
        answer = client.post("/v1/search", files=files(png()), data=data)
        assert answer.status_code in (404, 422) and answer.json()["remedy"]
        return str(answer.json()["type"].rsplit(":", 1)[1])

    assert kind(archive="foreign") == "encoder-gone"
    assert kind(archive="table", encoder="galaxy") == "other-encoder"
    assert kind(archive="table", encoder="nobody") == "not-found"
    assert kind() == "not-found"
    assert kind(archive="table", k="many") == "invalid-request"
    assert kind(archive="table", filters='[{"column": "path", "equals": "x"}]') == "unknown-column"
    assert kind(archive="table", filters="[{") == "invalid-request"
    assert kind(archive="table", leave_out_own_group="true") == "invalid-request"


def test_how_tables_are_searched(client: TestClient, table: EmbeddingTable) -> None:
    asked(client, archive="marked", ids=table.ids[:1])
    found = {one["archive"]: one for one in client.get("/v1/search/indexes").json()["indexes"]}
    assert {"marked", "table", "foreign"} <= found.keys()
    assert (found["marked"]["backend"], found["marked"]["state"], found["marked"]["recall"]) == ("exact", "ready", 1.0)
    assert found["marked"]["rows"] == 24


def test_the_document_names_what_a_search_takes(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    content = document["paths"]["/v1/search"]["post"]["requestBody"]["content"]
    assert {"archive", "k", "filters"} <= content["multipart/form-data"]["schema"]["properties"].keys()
    schema = content["application/json"]["schema"]
    condition = schema["properties"]["filters"]["items"]["properties"]
    assert {"column", "equals", "in", "not_in", "min", "max"} == condition.keys()
    assert "$defs" not in json.dumps(schema)


def test_what_to_label_next_comes_with_the_kept_columns(client: TestClient, table: EmbeddingTable) -> None:
    labels = [{"id": name, "label": "ab"[row % 2]} for row, name in enumerate(table.ids[:8])]
    body = {"archive": "table", "labels": labels, "folds": 2}
    probe = wait(client, client.post("/v1/probes", json=body).json()["id"])
    items = client.get(f"/v1/probes/{probe['id']}/uncertain?archive=marked&limit=24").json()["items"]
    hits = asked(client, archive="marked", ids=[items[0]["id"]], k=23)["items"][0]["hits"]
    kept = {hit["id"]: hit["columns"] for hit in hits}
    assert len(items) == 16 and all(one["columns"] == kept[one["id"]] for one in items[1:])
    assert items[0]["columns"].keys() == {"label", *facts(1)} - {"labels"}
