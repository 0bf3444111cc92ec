"""Archives: a folder that the operator has opened becomes a table like that of `lejepa-med embed`."""

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

import data_adapters
from app.errors import ProblemError
from app.kinds.archiving import SHARD_ROWS, chunk_of
from app.kinds.folders import archive_folder
from app.service import Service
from app.settings import Settings
from app.vectors.base import table_key
from lejepa_med.embed import EmbeddingTable
from tests.app.helpers import eventually, picture, png, wait
from tests.data.histology import write_tiles


@pytest.fixture(scope="module")
def folder(runs: Path, settings: Settings) -> Path:
    """The pictures of the runs directory's table, two damaged ones, and links to a file and a folder outside."""
    assert settings.archives_dir is not None
    folder = settings.archives_dir / "wing" / "east"
    shutil.copytree(runs.parent / "archive", folder)
    (folder / "zz_header.png").write_bytes(png(99)[:900])
    cut = cv2.imencode(".jpg", picture(99, bright=True, side=64))[1].tobytes()
    (folder / "zz_pixels.jpg").write_bytes(cut[: len(cut) // 2])
    (folder / "zz_link.png").symlink_to(runs.parent / "archive" / "00.png")
    (folder / "zz_folder").symlink_to(runs.parent / "archive")
    (folder.parent / "outside").symlink_to(runs.parent / "archive")
    return folder


@pytest.fixture(scope="module")
def made(client: TestClient, folder: Path) -> dict[str, Any]:
    answer = client.post("/v1/archives", json={"name": "east", "folder": "wing/east", "encoder": "images"})
    assert answer.status_code == 202, answer.text
    job = wait(client, answer.json()["id"], seconds=60)
    assert (job["kind"], job["state"], job["result"]) == ("embed-archive", "succeeded", "/v1/archives/east"), job
    assert [event["message"] for event in job["events"]] == [
        "accepted", "started", "scanning", "embedding", "succeeded",
    ]  # fmt: skip
    return job


def test_a_folder_becomes_the_table_that_the_command_writes(
    client: TestClient, made: dict[str, Any], runs: Path, settings: Settings
) -> None:
    expected = EmbeddingTable.open(runs / "table")
    table = EmbeddingTable.open(settings.data / "archives" / made["id"])
    assert pq.read_table(settings.data / "archives" / made["id"]).num_rows == len(table.ids)
    assert client.get("/v1/archives/east").json()["cautions"] == []
    assert (table.ids, table.groups, table.encoder) == (expected.ids, expected.groups, expected.encoder)
    np.testing.assert_allclose(table.vectors, expected.vectors, atol=1e-5)
    schemas = [
        pq.read_schema(place / "part-00000.parquet")
        for place in (runs / "table", settings.data / "archives" / made["id"])
    ]
    assert schemas[0] == schemas[1]
    detail = client.get("/v1/archives/east").json()
    assert (detail["count"], detail["failed"], detail["groups"]) == (24, 4, 24), "links outside are not read"
    reasons = {one["reason"]: one["count"] for one in detail["failures"]}
    assert reasons.pop("a link to a place outside of the archives") == 2 and sum(reasons.values()) == 2
    listed = {one["name"]: one for one in client.get("/v1/archives").json()["archives"]}
    assert listed["east"]["created"] and not listed["table"].get("created")
    assert listed["east"]["fingerprint"] == listed["table"]["fingerprint"]
    assert "wing" not in client.get("/v1/archives/east").text + json.dumps(made)
    service: Service = client.app.state.service  # type: ignore[attr-defined]
    seen = service.store.seen_encoder(expected.encoder)
    assert seen is not None and (seen.name, seen.modality, seen.dim) == ("images", "images", 512)


def test_tiles_of_unknown_scale_are_told(client: TestClient, settings: Settings) -> None:
    assert settings.archives_dir is not None
    write_tiles(settings.archives_dir / "tiles", slides=["s1", "s2"])
    wanted = {"name": "tiles", "folder": "tiles", "encoder": "histology"}
    job = wait(client, client.post("/v1/archives", json=wanted).json()["id"], seconds=60)
    assert job["state"] == "succeeded", job
    (caution,) = client.get("/v1/archives/tiles").json()["cautions"]
    assert caution.startswith("4 of 4 tiles have no mpp (um per pixel), and the encoder was trained at 0.5")
    assert client.delete("/v1/archives/tiles").status_code == 204


def test_download(client: TestClient, made: dict[str, Any], settings: Settings) -> None:
    answer = client.get("/v1/archives/east/table")
    assert answer.headers["content-type"] == "application/vnd.apache.parquet"
    assert int(answer.headers["content-length"]) == len(answer.content)
    found = pq.read_table(io.BytesIO(answer.content))
    table = EmbeddingTable.open(settings.data / "archives" / made["id"])
    assert found.column_names == ["id", "group", "label", "vector"]
    assert found.column("id").to_pylist() == table.ids
    np.testing.assert_array_equal(np.array(found.column("vector").to_pylist(), np.float32), table.vectors)
    assert client.get("/v1/archives/none/table").status_code == 404


def test_probes_learn_from_it_and_predict_it_by_name(client: TestClient, made: dict[str, Any]) -> None:
    ids = [one["id"] for one in client.get("/v1/archives/east/ids").json()["items"]]
    labels = [{"id": name, "label": str(row % 2)} for row, name in enumerate(ids)]
    job = wait(client, client.post("/v1/probes", json={"archive": "east", "labels": labels}).json()["id"])
    assert job["state"] == "succeeded", job
    answer = client.post(f"{job['result']}/predictions", json={"archive": "east", "ids": ids[:3]})
    assert [one["id"] for one in answer.json()["items"]] == ids[:3]


@pytest.mark.parametrize(
    ("change", "status", "kind"),
    [
        ({"folder": "../runs"}, 404, "not-found"),
        ({"folder": "wing/../../runs"}, 404, "not-found"),
        ({"folder": "/etc"}, 404, "not-found"),
        ({"folder": "wing/outside"}, 404, "not-found"),
        ({"folder": "wing/east/00.png"}, 404, "not-found"),
        ({"folder": "x" * 900}, 404, "not-found"),
        ({"folder": "a\x00b"}, 422, "invalid-request"),
        ({"folder": None}, 422, "invalid-request"),
        ({"upload": "0" * 32}, 422, "invalid-request"),
        ({"folder": None, "upload": "0" * 32}, 404, "not-found"),
        ({"encoder": "none"}, 404, "not-found"),
        ({"name": "table"}, 409, "name-taken"),
        ({"name": "a/b"}, 422, "invalid-request"),
    ],
)
def test_refused_archives(client: TestClient, folder: Path, change: dict[str, Any], status: int, kind: str) -> None:
    body = {"name": "fresh", "folder": "wing/east", "encoder": "images", **change}
    answer = client.post("/v1/archives", json=body)
    assert (answer.status_code, answer.json()["type"]) == (status, f"urn:lejepa-med:problem:{kind}"), answer.text
    assert answer.json()["remedy"] and str(folder.parent) not in answer.text


def test_without_the_setting_no_folder_is_open(settings: Settings, folder: Path) -> None:
    assert archive_folder(settings, "wing/east") == Path(os.path.realpath(folder))
    with pytest.raises(ProblemError) as caught:
        archive_folder(settings.model_copy(update={"archives_dir": None}), "wing/east")
    assert caught.value.problem.type.endswith("no-archives")


def test_an_archive_of_nothing_readable_fails(client: TestClient, settings: Settings) -> None:
    assert settings.archives_dir is not None
    (settings.archives_dir / "empty").mkdir(parents=True)
    answer = client.post("/v1/archives", json={"name": "empty", "folder": "empty", "encoder": "images"})
    job = wait(client, answer.json()["id"], seconds=60)
    assert (job["state"], job["error"]["type"]) == ("failed", "urn:lejepa-med:problem:nothing-readable")
    assert client.get("/v1/archives/empty").status_code == 404
    assert not (settings.data / "archives" / job["id"]).exists()


def test_names_and_removal(client: TestClient, made: dict[str, Any], runs: Path, settings: Settings) -> None:
    body = {"name": "east", "folder": "wing/east", "encoder": "images"}
    assert client.post("/v1/archives", json=body).status_code == 409
    service: Service = client.app.state.service  # type: ignore[attr-defined]
    # A job that has the name and one that reads the archive, accepted but not begun.
    service.archiving.accept_plan("1" * 32, service.archiving.plan("later", "images", folder="wing/east"))
    service.store.add_job("1" * 32, service.archiving.kind)
    assert client.post("/v1/archives", json={**body, "name": "later"}).json()["type"].endswith("name-taken")
    probe = next(one for one in client.get("/v1/probes").json()["probes"])["id"]
    service.applying.accept_plan("2" * 32, probe, "east")
    service.store.add_job("2" * 32, service.applying.kind)
    assert client.delete("/v1/archives/east").json()["type"].endswith("in-use")
    for job in ("1" * 32, "2" * 32):
        assert client.delete(f"/v1/jobs/{job}").status_code == 200
    assert client.delete("/v1/archives/table").json()["type"].endswith("not-removable")
    # A run of the same name must not take over what the name means.
    shutil.copytree(runs / "table", runs / "east")
    try:
        assert client.get("/v1/archives/east").json()["created"]
        assert client.get("/v1/archives/east-2").json()["count"] == 24
    finally:
        shutil.rmtree(runs / "east")
    item = client.get("/v1/archives/east/ids?limit=1").json()["items"][0]["id"]
    assert client.post("/v1/search", json={"archive": "east", "ids": [item]}).status_code == 200
    searched = settings.data / "search" / "exact" / table_key(settings.data / "archives" / made["id"])
    assert searched.is_dir()
    assert client.delete("/v1/archives/east").status_code == 204
    eventually(lambda: not searched.exists())
    assert client.get("/v1/archives/east").status_code == 404
    assert client.delete("/v1/archives/east").status_code == 404
    assert not (settings.data / "archives" / made["id"]).exists()


def test_chunks_divide_shards_and_are_smaller_for_larger_items() -> None:
    chunks = {
        name: chunk_of(data_adapters.create(name, **options), views=1)
        for name, options in (("images", {}), ("mri", {"slices": 3}), ("histology", {"tiles": 16}))
    }
    assert chunks == {"images": 128, "mri": 32, "histology": 8}
    assert chunk_of(data_adapters.create("mri3d"), views=1) == 4
    assert chunk_of(data_adapters.create("galaxy"), views=8) == 16
    assert all(SHARD_ROWS % chunk == 0 for chunk in chunks.values())
