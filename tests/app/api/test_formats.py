import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from app.api.formats import ARROW, JSON, NDJSON, NPY, PARQUET, AnswerHead, ParquetFile, VectorRow, negotiate
from app.core.errors import ProblemError
from app.core.settings import Settings
from lejepa_med.client.wire.images import Embeddings
from tests.app.helpers import files, png

THREE = files(png(0), b"not a picture", png(1))


def ask(client: TestClient, accept: str, **fields: str):
    return client.post("/v1/embeddings", files=THREE, data={"encoder": "images", **fields}, headers={"Accept": accept})


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        ("application/x-npy", NPY),
        ("text/html, */*;q=0.1", JSON),
        ("application/json;q=0.5, application/x-ndjson", NDJSON),
        ("application/vnd.apache.parquet, */*", PARQUET),  # the one that is named
        ("application/x-ndjson, application/json", NDJSON),  # equally wanted: the first one
        ("application/json;q=0, */*", NPY),
        ("Application/VND.apache.arrow.stream ; q=1.0", ARROW),
    ],
)
def test_the_accept_header_decides(accept: str, kind: str) -> None:
    assert negotiate(accept) == kind


def test_an_unknown_media_type_is_refused_with_the_known_ones(client: TestClient) -> None:
    for accept in ("text/csv", "application/json;q=0", "application/json;q=nan"):
        answer = ask(client, accept)
        assert (answer.status_code, answer.json()["type"]) == (406, "urn:lejepa-med:problem:not-acceptable")
        assert PARQUET in answer.json()["remedy"]
    with pytest.raises(ProblemError):
        negotiate("image/*")


def test_every_form_of_answer_holds_the_same(client: TestClient) -> None:
    json_answer = ask(client, JSON)
    body = json_answer.json()
    Embeddings.model_validate(body)  # written by hand, so held against its schema
    assert [item["index"] for item in body["items"]] == [0, 1, 2]
    assert set(body["items"][1]) == {"index", "file_index", "items", "error"}
    vectors = np.array([body["items"][place]["vector"] for place in (0, 2)], np.float32)

    lines = ask(client, NDJSON)
    items = [json.loads(line) for line in lines.text.splitlines()]
    assert [set(item) for item in items] == [set(item) for item in body["items"]]
    assert items[1] == body["items"][1]

    arrow = ask(client, ARROW)
    parquet = ask(client, PARQUET)
    tables = [pa.ipc.open_stream(arrow.content).read_all(), pq.read_table(io.BytesIO(parquet.content))]
    for answer in (lines, arrow, parquet):
        assert answer.status_code == 200
        assert (answer.headers["x-encoder"], answer.headers["x-encoder-fingerprint"]) == ("images", body["fingerprint"])
    for table in tables:
        assert table.schema.metadata[b"fingerprint"].decode() == body["fingerprint"]
        assert table.schema.field("vector").type == pa.list_(pa.float32(), 512)
        rows = table.to_pylist()
        assert [(row["index"], row["file_index"], row["part"]) for row in rows] == [(n, n, None) for n in range(3)]
        assert json.loads(rows[1]["error"]) == body["items"][1]["error"]
        assert rows[1]["vector"] is None and rows[0]["error"] is None
    columnar = [np.array([table.to_pylist()[place]["vector"] for place in (0, 2)]) for table in tables]
    lined = np.array([items[place]["vector"] for place in (0, 2)])
    for found in (*columnar, lined):
        np.testing.assert_allclose(found, vectors, atol=1e-5)


def test_slices_apart_average_to_the_pooled_vector(client: TestClient, tmp_path: Path) -> None:
    from tests.data.mri import phantom, write_nifti

    content = write_nifti(tmp_path / "head.nii.gz", phantom()).read_bytes()
    sent = {"files": files(content, name="head.nii.gz")}
    pooled = client.post("/v1/embeddings", **sent, data={"encoder": "mri"}).json()["items"]
    apart = client.post("/v1/embeddings", **sent, data={"encoder": "mri", "pool": "none"}).json()["items"]
    assert [(item["index"], item["part"], item["items"]) for item in apart] == [(0, part, 1) for part in range(3)]
    assert (len(pooled), pooled[0]["items"]) == (1, 3) and "part" not in pooled[0]
    mean = np.mean([item["vector"] for item in apart], axis=0)
    np.testing.assert_allclose(mean, pooled[0]["vector"], atol=1e-5)
    assert np.abs(np.array(apart[0]["vector"]) - mean).max() > 1e-3
    npy = client.post("/v1/embeddings", **sent, data={"encoder": "mri", "pool": "none"}, headers={"Accept": NPY})
    np.testing.assert_allclose(np.load(io.BytesIO(npy.content)), [i["vector"] for i in apart], atol=1e-5)
    refused = client.post("/v1/embeddings", **sent, data={"encoder": "mri", "pool": "max"})
    assert (refused.status_code, refused.json()["type"]) == (422, "urn:lejepa-med:problem:invalid-request")


@pytest.mark.parametrize("accept", [NDJSON, ARROW, PARQUET])
def test_a_stream_of_bad_items_alone_is_422_as_in_json(client: TestClient, accept: str) -> None:
    answer = client.post(
        "/v1/embeddings", files=files(b"x", b"y"), data={"encoder": "images"}, headers={"Accept": accept}
    )
    assert answer.status_code == 422
    assert (answer.json()["index"], answer.headers["content-type"]) == (0, "application/problem+json")


def test_a_stream_is_sent_in_pieces_and_leaves_no_files(client: TestClient, settings: Settings) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as target:
        for number in range(40):  # more than are decoded ahead
            target.writestr(f"{number:02d}.png", png(number, side=33))
    with client.stream(
        "POST",
        "/v1/embeddings",
        files=files(packed.getvalue(), name="all.zip"),
        data={"encoder": "images"},
        headers={"Accept": NDJSON},
    ) as answer:
        assert "content-length" not in answer.headers
        items = [json.loads(line) for line in answer.iter_lines()]
    assert [item["index"] for item in items] == list(range(40))
    assert list((settings.data / "tmp").iterdir()) == []


def test_a_table_is_written_in_bounded_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ParquetFile, "rows", 4)
    answer = ParquetFile(AnswerHead("e", "f", "float32", 2))
    pieces = [answer.add(VectorRow(n, 0, None, 1, np.array([n, 1], np.float32), None)) for n in range(10)]
    # the first holds the magic bytes
    assert [bool(piece) for piece in pieces] == [n in (0, 3, 7) for n in range(10)]
    found = pq.ParquetFile(io.BytesIO(b"".join([*pieces, answer.end()])))
    assert found.num_row_groups == 3
    assert found.read().column("vector").to_pylist() == [[n, 1] for n in range(10)]
