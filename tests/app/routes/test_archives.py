"""Archives: a folder that the operator has opened becomes a table like that of `lejepa-med embed`."""

import io
import json
import os
import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

import data_adapters
from app.api.service import Service
from app.core.errors import ProblemError
from app.core.settings import Settings
from app.jobs.embed_archive import SHARD_ROWS, archive_folder, chunk_of
from data_adapters.identity import group_id
from lejepa_med.models.embed import EmbeddingTable
from lejepa_med.search.base import table_key
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
    told = client.get("/v1/archives/tiles").json()
    (caution,) = told["cautions"]
    assert caution.startswith("4 of 4 tiles have no mpp (um per pixel), and the encoder was trained at 0.5")
    assert told["by_folder"] == "4 files in 2 folders were taken for 2 groups, by folder (folder:1)"
    assert "Give a table with a column 'mpp' as the request's 'catalog', so that this is checked" in caution
    listed = {one["name"]: one["cautions"] for one in client.get("/v1/archives").json()["archives"]}
    assert (listed["tiles"], listed["table"]) == ([caution], [])
    # What is made from the table says it, too. Files are named by key, and that to their sender only.
    ids = [one["id"] for one in client.get("/v1/archives/tiles/ids").json()["items"]]
    labels = [{"id": name, "label": "ab"[place // 2]} for place, name in enumerate(ids)]
    probe = client.post("/v1/probes", json={"archive": "tiles", "labels": labels, "folds": 2}).json()
    assert probe["cautions"] == [caution] and wait(client, probe["id"])["state"] == "succeeded"
    address = f"/v1/probes/{probe['id']}"
    told = client.post(f"{address}/predictions", json={"archive": "tiles", "ids": ids}).json()
    assert told["cautions"] == client.get(f"{address}/uncertain?archive=tiles").json()["cautions"] == [caution]
    job = wait(client, client.post(f"{address}/applications", json={"archive": "tiles"}).json()["id"])
    assert client.get(job["result"]).json()["cautions"] == [caution]
    tiles = [path.read_bytes() for path in sorted((settings.archives_dir / "tiles").rglob("*.png"))]
    parts: list[Any] = [("files", (f"Doe {number}.png", tile)) for number, tile in enumerate(tiles)]
    own, keys = "1 of 1 tiles have no mpp", '["Doe"]'
    for path, data in ((f"{address}/predictions", {"keys": keys}), ("/v1/search", {"archive": "tiles", "keys": keys})):
        (found,) = client.post(path, files=parts[:1], data=data).json()["cautions"]
        assert found.startswith(own) and found.endswith(": 0 key 'Doe'") and "form field 'mpp'" in found
        assert client.post(path, files=parts[:1], data={**data, "mpp": "0.2"}).json()["cautions"] == []
    data = {"encoder": "histology", "labels": '["a", "a", "b", "b"]', "folds": "2", "keys": '["Doe", null, null, null]'}
    sent = client.post("/v1/probes", files=parts, data=data).json()
    assert sent["cautions"][0].endswith("Files (by position, from 0): 0 key 'Doe', 1, 2, 3")
    assert wait(client, sent["id"])["state"] == "succeeded"
    (kept,) = client.get(f"/v1/probes/{sent['id']}").json()["cautions"]
    assert kept.endswith("Files (by position, from 0): 0, 1, 2, 3") and "Doe" not in kept
    sent = client.post(
        f"/v1/probes/{sent['id']}/labels", files=parts[:1], data={"labels": '["a"]', "mpp": "0.2"}
    ).json()
    assert sent["cautions"] == [] and wait(client, sent["id"])["state"] == "succeeded"
    assert client.get(f"/v1/probes/{sent['id']}").json()["cautions"] == [kept], "of the older examples"
    assert client.delete("/v1/archives/tiles").status_code == 204


@pytest.fixture
def bids(settings: Settings) -> Iterator[Path]:
    """Three participants with two sessions each, and their table, whose `group` is a diagnosis."""
    assert settings.archives_dir is not None
    root = settings.archives_dir / "ds"
    for number, (subject, session) in enumerate(product("123", "12")):
        folder = root / f"sub-0{subject}" / f"ses-{session}"
        folder.mkdir(parents=True)
        (folder / f"sub-0{subject}_ses-{session}.png").write_bytes(png(number))
    (root / "participants.tsv").write_text("participant_id\tsex\tgroup\nsub-01\tF\tc\n02\tM\tp\n03\tM\tp\n9\tF\tc\n")
    rows = [f"{path.relative_to(root).as_posix()},{path.parent.parent.name}" for path in sorted(root.rglob("*.png"))]
    (root / "table.csv").write_text("\n".join(["path,Subject ID", *rows]))
    yield root
    shutil.rmtree(root)


def embedded(client: TestClient, **wanted: str) -> tuple[dict[str, Any], list[str]]:
    """The archive 'ds' of the folder, which is removed again, and its groups."""
    body = {"name": "ds", "folder": "ds", "encoder": "images", **wanted}
    job = wait(client, client.post("/v1/archives", json=body).json()["id"], seconds=60)
    assert job["state"] == "succeeded", job
    groups = [one["group"] for one in client.get("/v1/archives/ds/ids").json()["items"]]
    found: dict[str, Any] = client.get("/v1/archives/ds").json()
    assert client.delete("/v1/archives/ds").status_code == 204
    return found, groups


def test_participants_of_a_folder_are_its_catalogue_as_for_the_command(client: TestClient, bids: Path) -> None:
    expected = [group_id(f"sub-0{number}") for number in (1, 1, 2, 2, 3, 3)]
    found, groups = embedded(client)
    assert (groups, found["labels"], found["cautions"]) == (expected, {}, [])
    assert found["notes"] == [
        "participants.tsv is taken as the catalogue, and its participants as the groups; give label_column=COLUMN to "
        "take labels from it",
        "1 of 4 rows match no readable file; a participant's files have sub-XX in the name of a folder or file. The "
        "first: row 5 of participants.tsv",
    ]
    found, groups = embedded(client, label_column="sex")
    assert (groups, found["labels"]) == (expected, {"F": 2, "M": 4})
    (bids / "participants.tsv").write_text("participant_id\tsex\nsub-01\tF\tx\n")
    found, groups = embedded(client)
    assert len(set(groups)) == 3 and found["notes"][0].startswith("participants.tsv is not used as the catalogue: ")
    assert "row 2 has 3 cells" in found["notes"][0] and str(bids.parent) not in str(found)


def test_a_folders_table_with_a_likely_group_that_is_not_used(client: TestClient, bids: Path) -> None:
    found, groups = embedded(client, catalog="table.csv")
    assert len(set(groups)) == 3 and found["notes"] == []  # by folder
    assert found["cautions"] == [
        "In the catalogue, the column 'Subject ID' looks like the group (patient, slide, field), and is not used: give "
        "'group_column=Subject ID' to keep its equal values on one side of every split"
    ]
    found, groups = embedded(client, catalog="table.csv", group_column="subject id")
    assert groups == [group_id(f"sub-0{number}") for number in (1, 1, 2, 2, 3, 3)] and found["cautions"] == []


@pytest.mark.parametrize(
    ("wanted", "status", "cause"),
    [
        ({"folder": "ds", "catalog": "gone.csv"}, 404, "no such table"),
        ({"folder": "ds", "catalog": "../wing/x.csv"}, 404, "no such table"),
        ({"folder": "ds", "catalog": "out.csv"}, 404, "no such table"),
        (
            {"folder": "ds", "catalog": "table.csv", "label_column": "Doe"},
            422,
            "no column of the name that label_column",
        ),
        ({"folder": "ds/sub-01", "label_column": "sex"}, 422, "the folder has no participants.tsv"),
    ],
)
def test_refused_catalogues(
    client: TestClient, bids: Path, tmp_path: Path, wanted: dict[str, str], status: int, cause: str
) -> None:
    (tmp_path / "out.csv").write_text("path\n")
    (bids / "out.csv").symlink_to(tmp_path / "out.csv")
    answer = client.post("/v1/archives", json={"name": "ds", "encoder": "images", **wanted})
    assert answer.status_code == status and cause in answer.json()["detail"] and answer.json()["remedy"], answer.text
    assert "Doe" not in answer.text and str(bids) not in answer.text


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


def test_names_and_removal(
    client: TestClient, made: dict[str, Any], runs: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"name": "east", "folder": "wing/east", "encoder": "images"}
    assert client.post("/v1/archives", json=body).status_code == 409
    service: Service = client.app.state.service  # type: ignore[attr-defined]
    # A job that has the name and one that reads the archive, accepted but not begun.
    monkeypatch.setattr(service.store, "claim_job", lambda **_: None)
    service.archiving.accept_plan("1" * 32, service.archiving.plan("later", "images", folder="wing/east"))
    service.store.add_job("1" * 32, service.archiving.kind)
    assert client.post("/v1/archives", json={**body, "name": "later"}).json()["type"].endswith("name-taken")
    probe = next(one for one in client.get("/v1/probes").json()["probes"])["id"]
    service.applying.accept_plan("2" * 32, probe, "east")
    service.store.add_job("2" * 32, service.applying.kind)
    assert client.delete("/v1/archives/east").json()["type"].endswith("in-use")
    for job in ("1" * 32, "2" * 32):
        assert client.delete(f"/v1/jobs/{job}").status_code == 200
    monkeypatch.undo()
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
