"""What the lab page draws of a table: thumbnails, maps and columns, with their tags."""

import io
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from app.core.settings import Settings
from data_adapters.scan import scan_archive
from harness.launcher import Launcher
from harness.tables import clusters, write_table
from lejepa_med.models.embed import ABOUT, EmbeddingTable, TableWriter, embed_archive
from lejepa_med.models.folder import load_encoder
from lejepa_med.models.thumbnails import Thumbnails, thumbnails_of
from tests.app.helpers import client_of, eventually, picture, wait


@pytest.fixture(scope="module")
def ward(client: TestClient, settings: Settings) -> Iterator[str]:
    """An archive of ten pictures, half of them bright, and a file that is none, embedded by the service."""
    assert settings.archives_dir is not None
    folder = settings.archives_dir / "ward"
    folder.mkdir(parents=True)
    for number in range(10):
        cv2.imwrite(str(folder / f"{number}.png"), picture(number, bright=number % 2 == 1))
    (folder / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99))
    rows = "\n".join(f"{number}.png,{'dark' if number % 2 == 0 else 'bright'}" for number in range(9))
    (folder / "labels.csv").write_text(f"path,label\n{rows}\n")
    wanted = {"name": "ward", "folder": "ward", "encoder": "images", "catalog": "labels.csv"}
    job = wait(client, client.post("/v1/archives", json=wanted).json()["id"])
    assert job["state"] == "succeeded", job
    yield "/v1/archives/ward"
    assert client.delete("/v1/archives/ward").status_code == 204
    shutil.rmtree(folder)


def ids_of(client: TestClient, address: str) -> list[str]:
    return [one["id"] for one in client.get(f"{address}/ids").json()["items"]]


def test_every_item_has_the_thumbnail_of_what_the_encoder_saw(client: TestClient, ward: str) -> None:
    assert client.get(ward).json()["thumbnails"] is True
    column = client.get(f"{ward}/columns/label").content
    brightness = []
    for item in ids_of(client, ward):
        answer = client.get(f"{ward}/thumbnails/{item}")
        assert answer.headers["content-type"] == "image/webp" and "max-age" in answer.headers["cache-control"]
        seen = np.asarray(Image.open(io.BytesIO(answer.content)))
        assert seen.shape == (32, 32, 3), "never enlarged: this encoder sees 32 px"
        brightness.append(bool(seen.mean() > 110))
        again = client.get(f"{ward}/thumbnails/{item}", headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    codes = np.frombuffer(column, np.uint8)
    assert [bool(code == 1) for code, bright in zip(codes, brightness, strict=True) if code != 255] == [
        bright for code, bright in zip(codes, brightness, strict=True) if code != 255
    ], "of its own row: label 1 is 'bright'"
    assert client.get(f"{ward}/thumbnails/{'0' * 32}").status_code == 404


def test_columns_are_typed_arrays_in_the_order_of_the_ids(client: TestClient, ward: str) -> None:
    told = client.get(f"{ward}/columns").json()
    columns = {one["name"]: one for one in told["columns"]}
    assert told["count"] == 10 and set(columns) == {"id", "group", "label"}
    assert columns["label"]["values"] == ["dark", "bright"] and columns["label"]["counts"] == [5, 4]
    assert (columns["label"]["missing"], columns["label"]["dtype"]) == (1, "uint8")
    answer = client.get(f"{ward}/columns/id")
    assert answer.headers["x-rows"] == "10" and answer.headers["x-content"] == told["content"]
    given = answer.content.decode("ascii")
    assert [given[start : start + 32] for start in range(0, 320, 32)] == ids_of(client, ward)
    assert client.get(f"{ward}/columns/id", headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
    assert client.get(f"{ward}/columns/vector").status_code == 404


def test_a_map_is_there_at_once_and_a_job_makes_the_better_one(client: TestClient, ward: str) -> None:
    told = client.get(f"{ward}/map").json()
    assert [(one["method"], one["state"]) for one in told["methods"]] == [("pca", "ready"), ("tsne", "absent")]
    assert client.get(f"{ward}/map/points?method=tsne").json()["type"].endswith(":no-map")
    for method in ("pca", "tsne"):
        if method == "tsne":
            job = client.post(f"{ward}/map")
            assert job.status_code == 202 and job.json()["kind"] == "map-archive"
            ended = wait(client, job.json()["id"])
            assert (ended["state"], ended["result"]) == ("succeeded", f"{ward}/map"), ended
        answer = client.get(f"{ward}/map/points?method={method}")
        points = np.frombuffer(answer.content, "<f4").reshape(-1, 2)
        assert points.shape == (10, 2) and np.isfinite(points).all()
        assert abs(points).max() == pytest.approx(1)
        assert answer.headers["x-content"] == told["content"] == client.get(ward).json()["content"]
        tag = {"If-None-Match": answer.headers["etag"]}
        assert client.get(f"{ward}/map/points?method={method}", headers=tag).status_code == 304
    assert {one["state"] for one in client.get(f"{ward}/map").json()["methods"]} == {"ready"}
    # Dark and bright pictures lie apart along the first principal component.
    pca = np.frombuffer(client.get(f"{ward}/map/points").content, "<f4").reshape(-1, 2)
    codes = np.frombuffer(client.get(f"{ward}/columns/label").content, np.uint8)
    dark, bright = pca[codes == 0, 0], pca[codes == 1, 0]
    assert dark.max() < bright.min() or bright.max() < dark.min()


def test_a_map_belongs_to_what_the_table_held(client: TestClient, runs: Path, tmp_path: Path) -> None:
    """A table that is embedded anew has another content, so neither its old map nor its old pictures are shown."""
    encoder, archive, out = load_encoder(runs / "images" / "encoder"), tmp_path / "archive", runs / "anew"
    archive.mkdir()
    contents, statuses = [], []
    for count in (5, 6):
        cv2.imwrite(str(archive / f"{count}.png"), picture(count, bright=True))
        cv2.imwrite(str(archive / f"{count}-dark.png"), picture(count, bright=False))
        shutil.rmtree(out, ignore_errors=True)
        embed_archive(encoder, scan_archive(encoder.adapter, archive).manifest, out, thumbnails=count == 6)
        answer = client.get("/v1/archives/anew/map/points")
        assert len(answer.content) == 8 * client.get("/v1/archives/anew").json()["count"]
        contents.append(answer.headers["x-content"])
        item = ids_of(client, "/v1/archives/anew")[0]
        found = client.get(f"/v1/archives/anew/thumbnails/{item}")
        assert client.get("/v1/archives/anew").json()["thumbnails"] is (count == 6)
        statuses.append(found.status_code)
        if count == 5:
            assert found.json()["type"].endswith(":no-thumbnails") and "--thumbnails" in found.json()["remedy"]
    assert contents[0] != contents[1] and statuses == [404, 200]
    shutil.rmtree(out)


def test_predictions_are_columns_too(client: TestClient, ward: str) -> None:
    codes = np.frombuffer(client.get(f"{ward}/columns/label").content, np.uint8)
    labels = [
        {"id": item, "label": ("dark", "bright")[code]}
        for item, code in zip(ids_of(client, ward), codes.tolist(), strict=True)
        if code != 255
    ]
    probe = wait(client, client.post("/v1/probes", json={"archive": "ward", "labels": labels}).json()["id"])
    made = client.post(f"/v1/probes/{probe['id']}/applications", json={"archive": "ward"}).json()
    job = wait(client, made["id"])
    told = client.get(f"{job['result']}/columns").json()
    columns: dict[str, Any] = {one["name"]: one for one in told["columns"]}
    assert told["content"] == client.get(ward).json()["content"]
    assert {"label", "uncertainty", "novelty", "probability dark"} <= set(columns)
    found = np.frombuffer(client.get(f"{job['result']}/columns/probability%20dark").content, "<f4")
    assert len(found) == 10 and ((found >= 0) & (found <= 1)).all()
    words = columns["label"]["values"]
    told_codes = np.frombuffer(client.get(f"{job['result']}/columns/label").content, np.uint8)
    rows = client.get(f"{job['result']}/table", headers={"Accept": "application/json"}).json()
    assert [words[code] for code in told_codes] == [row["label"] for row in rows]


def test_thumbnails_are_whole_with_their_shard_after_a_kill(runs: Path, tmp_path: Path) -> None:
    """A table whose writer dies between two shards goes on, and its pictures stay beside their rows."""
    encoder, archive, out = load_encoder(runs / "images" / "encoder"), tmp_path / "archive", tmp_path / "table"
    archive.mkdir()
    for number in range(7):
        cv2.imwrite(str(archive / f"{number}.png"), picture(number, bright=number % 2 == 1))
    manifest = scan_archive(encoder.adapter, archive).manifest
    written: list[int] = []
    write = TableWriter.write

    def dying(self: TableWriter, shard: int, features: Any) -> None:
        if written:
            raise KeyboardInterrupt
        write(self, shard, features)
        written.append(shard)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TableWriter, "write", dying)
        embed_archive(encoder, manifest, out, shard_rows=3, thumbnails=True)
    assert [file.name for file in (out / ABOUT).glob("*.arrow")] == ["thumbnails-00000.arrow"]
    embed_archive(encoder, manifest, out, shard_rows=3, thumbnails=True)
    assert [file.name for file in (out / ABOUT).glob("*.arrow")] == ["thumbnails.arrow"]
    pictures, table = Thumbnails(out / ABOUT / "thumbnails.arrow"), EmbeddingTable.open(out)
    make = thumbnails_of(encoder.adapter)
    rows = {name: row for row, name in enumerate(manifest.column("id"))}
    assert len(pictures) == len(table.ids) == 7
    for row, name in enumerate(table.ids):
        assert pictures[row] == make(encoder.adapter.prepare(manifest.record(rows[name])))


@pytest.mark.slow
def test_a_map_survives_kill_9(launcher: Launcher, runs: Path) -> None:
    write_table(runs / "many", clusters(1500))
    try:
        service = launcher.service()
        with client_of(service) as client:
            job = client.post("/v1/archives/many/map").json()["id"]
            again = client.post("/v1/archives/many/map").json()["id"]
            assert again == job, "one job for all who ask"
            eventually(lambda: client.get(f"/v1/jobs/{job}").json()["progress"] > 0)
            assert service.end(signal.SIGKILL) == -signal.SIGKILL
        service = launcher.service()
        with client_of(service) as client:
            state = client.get("/v1/archives/many/map").json()["methods"][1]
            assert state["job"] == job and state["state"] in ("queued", "running")
            assert wait(client, job)["state"] == "succeeded"
            points = client.get("/v1/archives/many/map/points?method=tsne").content
            assert np.isfinite(np.frombuffer(points, "<f4")).all() and len(points) == 8 * 1500
    finally:
        shutil.rmtree(runs / "many")
