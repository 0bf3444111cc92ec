"""Probes that `lejepa-med probe` wrote below the runs directory: listed, used, never changed."""

import csv
import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from harness.launcher import Launcher
from lejepa_med.cli import main
from lejepa_med.client import Client, ConflictError, InvalidError
from lejepa_med.models.embed import EmbeddingTable
from lejepa_med.probes.probe import Probe
from tests.app.helpers import client_of, files, png, wait
from tests.app.server import served

PLACE = "probes/night 3"
ID = "probes-night-3"


def train(runs: Path, place: str, *, swapped: bool = False) -> Path:
    """A probe of the command line on the first 16 items of the runs' table."""
    ids = EmbeddingTable.open(runs / "table").ids[:16]
    labels = runs.parent / "labels.csv"
    rows = [f"{name},{('dark', 'bright')[(row % 2) ^ swapped]}" for row, name in enumerate(ids)]
    labels.write_text("\n".join(["id,label", *rows]), encoding="utf-8")
    main(["probe", str(runs / "table"), str(labels), "--out", str(runs / place), "--folds", "3"])
    return runs / place


@pytest.fixture
def trained(runs: Path) -> Iterator[Path]:
    yield train(runs, PLACE)
    shutil.rmtree(runs / "probes")


def test_a_probe_of_the_command_line_is_listed_and_predicts(client: TestClient, runs: Path, trained: Path) -> None:
    probe, table = Probe.load(trained), EmbeddingTable.open(runs / "table")
    listed = client.get("/v1/probes").json()
    assert listed["unusable"] == [] and listed["probes"][0]["id"] == ID, "the newest comes first"
    found = client.get(f"/v1/probes/{ID}").json()
    assert found.items() >= listed["probes"][0].items()
    assert (found["name"], found["kind"], found["encoder"]) == ("night 3", "classification", "images")
    assert (found["read_only"], found["labels"], found["count"]) == (True, ["bright", "dark"], 16)
    assert found["metrics"]["linear"] == probe.metrics["linear"] and found["receipt"]["groups_disjoint"]
    assert [one["id"] for one in found["versions"]] == [ID]
    expected = probe.predict(table.vectors)
    asked = client.post(f"/v1/probes/{ID}/predictions", json={"archive": "table", "ids": table.ids}).json()["items"]
    assert [one["label"] for one in asked] == [one.label for one in expected]
    sent = client.post(f"/v1/probes/{ID}/predictions", files=files(png(40), png(41, bright=False))).json()["items"]
    assert [one["label"] for one in sent] == ["bright", "dark"]
    uncertain = client.get(f"/v1/probes/{ID}/uncertain?archive=table&limit=5").json()["items"]
    assert len(uncertain) == 5 and all("columns" in one for one in uncertain)


def test_a_whole_archive_by_another_process_in_the_columns_of_the_command_line(
    launcher: Launcher, runs: Path, trained: Path, tmp_path: Path
) -> None:
    service = launcher.service(job_workers=0)
    launcher.worker()
    with client_of(service) as client:
        job = wait(client, client.post(f"/v1/probes/{ID}/applications", json={"archive": "table"}).json()["id"])
        assert job["state"] == "succeeded", job
        text = client.get(f"{job['result']}/table", headers={"Accept": "text/csv"}).text
    service.end()
    with client_of(launcher.service()) as client:
        assert client.get(job["result"]).json()["probe"] == ID
        assert [one["id"] for one in client.get(f"/v1/probes/{ID}/applications").json()["applications"]] == [job["id"]]
    rows = list(csv.DictReader(io.StringIO(text)))
    main(["predict", str(trained), str(runs / "table"), "--out", str(tmp_path / "cli.csv")])
    own = list(csv.DictReader((tmp_path / "cli.csv").open(encoding="utf-8")))
    assert set(own[0]) <= set(rows[0]) and "probability bright" in own[0]
    assert [(one["id"], one["label"]) for one in own] == [(one["id"], one["label"]) for one in rows]


def test_it_is_only_read(client: TestClient, trained: Path) -> None:
    before = {file.name: file.read_bytes() for file in trained.iterdir()}
    ids = [one["id"] for one in client.get("/v1/archives/table/ids").json()["items"]]
    labels = {"archive": "table", "labels": [{"id": ids[20], "label": "dark"}]}
    refused = [
        client.delete(f"/v1/probes/{ID}"),
        client.patch(f"/v1/probes/{ID}", json={"name": "other"}),
        client.put(f"/v1/probes/{ID}", json={"name": "other"}),
        client.post(f"/v1/probes/{ID}/labels", json=labels),
        client.post(f"/v1/probes/{ID}/labels", files=files(png()), data={"labels": '["dark"]'}),
    ]
    for answer in refused:
        assert (answer.status_code, answer.json()["type"]) == (409, "urn:lejepa-med:problem:read-only")
        assert "lejepa-med probe" in answer.json()["detail"] and "POST /v1/probes" in answer.json()["remedy"]
    assert client.delete("/v1/probes/none").status_code == 404
    assert {file.name: file.read_bytes() for file in trained.iterdir()} == before
    with served(client.app) as url, Client(url) as service:
        assert service.probe(ID).read_only and service.probe(ID).more == {}
        with pytest.raises(ConflictError):
            service.add_labels_on(ID, "table", {ids[20]: "dark"})


@pytest.mark.parametrize("file", ["probe.json", "probe.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b'{"format": 2}', b'{"format": 99}', b"\x00\xff", b"[]"])
def test_a_damaged_folder_is_shown_and_harms_no_other(
    client: TestClient, runs: Path, trained: Path, file: str, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    good = shutil.copytree(trained, runs / "probes" / "good")
    (trained / file).unlink()
    if content is not None:
        (trained / file).write_bytes(content)
    listed = client.get("/v1/probes").json()
    ids = [one["id"] for one in listed["probes"]]
    assert "probes-good" in ids and ID not in ids
    if (file, content) == ("probe.json", None):
        assert listed["unusable"] == [] and client.get(f"/v1/probes/{ID}").status_code == 404
        return
    (told,) = listed["unusable"]
    assert told["id"] == ID and "runs directory" in told["detail"] and "lejepa-med probe" in told["remedy"]
    assert f"the probe {ID} in the runs directory cannot be used" in caplog.text
    for answer in (
        client.get(f"/v1/probes/{ID}"),
        client.post(f"/v1/probes/{ID}/predictions", files=files(png())),
        client.post(f"/v1/probes/{ID}/applications", json={"archive": "table"}),
    ):
        assert (answer.status_code, answer.json()["detail"]) == (422, told["detail"])
        assert str(runs) not in answer.text
    with served(client.app) as url, Client(url) as service:
        assert "probes-good" in [one.id for one in service.probes()]
        with pytest.raises(InvalidError):
            service.probe(ID)
    for name in ("probe.json", "probe.safetensors"):
        shutil.copyfile(good / name, trained / name)
    assert client.get("/v1/probes").json()["unusable"] == [] and client.get(f"/v1/probes/{ID}").status_code == 200


def test_a_probe_that_is_trained_anew_is_used_at_once(client: TestClient, runs: Path, trained: Path) -> None:
    path = f"/v1/probes/{ID}/predictions"
    assert client.post(path, files=files(png(40))).json()["items"][0]["label"] == "bright"
    train(runs, PLACE, swapped=True)
    assert client.post(path, files=files(png(40))).json()["items"][0]["label"] == "dark"
    assert client.get(f"/v1/probes/{ID}").json()["count"] == 16
