"""Predictions on what a probe learnt from, over HTTP: marked and out-of-fold, for items, files and whole archives."""

import csv
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from app.core.settings import Settings
from lejepa_med.client import Client
from lejepa_med.models.embed import EmbeddingTable
from lejepa_med.probes.probe import Probe
from tests.app.helpers import files, png, wait
from tests.app.server import served
from tests.data.mri import phantom, write_series

LABELLED, OWN = 16, "ward 7"  # rows with a label; a group that the requests name


@pytest.fixture(scope="module")
def table(runs: Path) -> EmbeddingTable:
    return EmbeddingTable.open(runs / "table")


@pytest.fixture(scope="module")
def pixels(client: TestClient, runs: Path, table: EmbeddingTable) -> list[bytes]:
    """The files of the table's rows."""
    contents = [file.read_bytes() for file in sorted((runs.parent / "archive").glob("*.png"))]
    answer = client.post("/v1/embeddings", files=files(*contents), data={"encoder": "images"})
    vectors = np.array([item["vector"] for item in answer.json()["items"]])
    apart = ((table.vectors[:, None] - vectors[None]) ** 2).sum(-1)
    assert apart.min(1).max() < 1e-4
    return [contents[place] for place in apart.argmin(1)]


def trained(client: TestClient, **request: Any) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEJEPA_SALT", "test")  # that of the tests, before which fixtures of the module are made
        job = wait(client, client.post("/v1/probes", **request).json()["id"])
    assert job["state"] == "succeeded", job
    return str(job["id"])


@pytest.fixture(scope="module", params=["classification", "multilabel", "regression"])
def probe(request: pytest.FixtureRequest, client: TestClient, table: EmbeddingTable) -> str:
    """Learnt from the first 16 rows; rows 14 to 17 are of one group, which the request names, and 16, 17 unlabelled."""
    sizes = table.vectors @ np.random.default_rng(0).normal(size=table.vectors.shape[1])
    value = {
        "classification": lambda row: ("dark", "bright")[row % 2],
        "multilabel": lambda row: [name for name, bit in (("a", 1), ("b", 2)) if (row + 1) & bit],
        "regression": lambda row: float(sizes[row]),
    }[request.param]
    labels = [
        {"id": name, "label": value(row) if row < LABELLED else None, **({"group": OWN} if row >= 14 else {})}
        for row, name in enumerate(table.ids[: LABELLED + 2])
    ]
    return trained(client, json={"archive": "table", "labels": labels, "folds": 4})


def expected(row: int) -> str:
    return "record" if row < LABELLED else "group" if row < LABELLED + 2 else "no"


def test_items_of_a_table(client: TestClient, probe: str, table: EmbeddingTable, settings: Settings) -> None:
    answer = client.post(f"/v1/probes/{probe}/predictions", json={"archive": "table", "ids": table.ids}).json()
    assert [item["seen"] for item in answer["items"]] == [expected(row) for row in range(24)]
    assert not any(item["in_sample"] for item in answer["items"])
    assert answer["notes"][0] == "the probe learnt from 16 of these images (seen: record)"
    assert answer["notes"][1].startswith("2 other images are of groups") and len(answer["notes"]) == 3
    stored = Probe.load(settings.data / "probes" / probe)
    found = stored.predict(table.vectors, ids=table.ids, groups=table.groups)
    for item, one in zip(answer["items"], found, strict=True):
        assert item["novelty"] == pytest.approx(one.novelty) and item["uncertainty"] == pytest.approx(one.uncertainty)
        assert (item.get("label"), item.get("value")) == (one.label, pytest.approx(one.value))
    seen = answer["items"][:LABELLED]
    assert np.mean([item["novelty"] for item in seen]) > 0.3
    if stored.kind == "regression":
        truth = [float(label) for label in stored.examples.labels]
        error = np.mean([abs(item["value"] - t) for item, t in zip(seen, truth, strict=True)])
        assert error == pytest.approx(client.get(f"/v1/probes/{probe}").json()["metrics"]["linear"]["mae"])
    fresh = client.post(f"/v1/probes/{probe}/predictions", json={"archive": "table", "ids": table.ids[20:]}).json()
    assert "notes" not in fresh


def test_files_with_the_pixels_of_labelled_items(client: TestClient, probe: str, pixels: list[bytes]) -> None:
    address = f"/v1/probes/{probe}/predictions"
    sent = files(pixels[0], b"bad", pixels[LABELLED], png(777))
    answer = client.post(address, files=sent).json()
    assert [item.get("seen") for item in answer["items"]] == ["record", None, "no", "no"]
    assert answer["items"][0]["novelty"] > 0 and answer["items"][0]["nearest_cosine"] < 0.999999
    named = client.post(address, files=sent, data={"groups": json.dumps([None, None, OWN, "another"])}).json()
    assert [item.get("seen") for item in named["items"]] == ["record", None, "group", "no"]
    refused = client.post(address, files=sent, data={"groups": '["one"]'})
    assert refused.status_code == 422 and "4 files and 1 groups" in refused.json()["detail"]


def test_a_whole_archive(client: TestClient, probe: str, table: EmbeddingTable) -> None:
    job = wait(client, client.post(f"/v1/probes/{probe}/applications", json={"archive": "table"}).json()["id"])
    assert job["state"] == "succeeded", job
    found = client.get(job["result"]).json()
    assert found["summary"]["seen"] == {"no": 6, "record": 16, "group": 2, "in_sample": 0}
    assert found["summary"]["notes"][0].startswith("the probe learnt from 16")
    text = client.get(f"{job['result']}/table", headers={"Accept": "text/csv"}).text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["seen"] for row in rows] == [expected(row) for row in range(24)]
    assert {row["in_sample"] for row in rows} == {"false"}
    as_json = client.get(f"{job['result']}/table", headers={"Accept": "application/json"}).json()
    assert [row["seen"] for row in as_json] == [row["seen"] for row in rows]


def test_what_to_label_next(client: TestClient, probe: str, table: EmbeddingTable) -> None:
    items = client.get(f"/v1/probes/{probe}/uncertain", params={"archive": "table", "limit": 50}).json()["items"]
    place = {name: row for row, name in enumerate(table.ids)}
    assert items and all(place[item["id"]] >= LABELLED for item in items)
    assert all(item["seen"] == expected(place[item["id"]]) and item["in_sample"] is False for item in items)


def test_files_that_it_learnt_from_as_they_are_sent_again(client: TestClient) -> None:
    pictures = [png(seed, bright=seed % 2 == 0) for seed in range(8)]
    labels = json.dumps(["bright", "dark"] * 4)
    made = trained(client, files=files(*pictures), data={"encoder": "images", "labels": labels, "folds": "2"})
    with served(client.app) as address, Client(address) as service:
        found = service.predict_files(made, [(picture, ".png") for picture in (*pictures[:2], png(50))])
        assert [(one.seen, one.in_sample) for one in found] == [("record", False), ("record", False), ("no", False)]
        # no group can be left out of a probe of one group
        named = {"encoder": "images", "labels": labels, "groups": json.dumps(["P1"] * 8)}
        single = trained(client, files=files(*pictures), data=named)
        sent = [(picture, ".png") for picture in (pictures[0], png(50), png(51))]
        found = service.predict_files(single, sent, groups=["P1", "P1", "P2"])
        assert [(one.seen, one.in_sample) for one in found] == [("record", True), ("group", True), ("no", False)]


def test_a_dicom_file_tells_its_patient_itself(client: TestClient, tmp_path: Path) -> None:
    def series(number: int, patient: str) -> bytes:
        folder, content = tmp_path / str(number), io.BytesIO()
        array = phantom(seed=number, shape=(24, 30, 8))
        paths = write_series(folder, array, series=number + 1, PatientID=patient)
        with zipfile.ZipFile(content, "w") as archive:
            for path in paths:
                archive.write(path, path.name)
        return content.getvalue()

    sent = [series(number, f"P{number // 2}") for number in range(8)]  # two series of each patient
    named = [("files", ("series.zip", content)) for content in sent]
    labels = json.dumps([("a", "b")[number // 2 % 2] for number in range(8)])
    made = trained(client, files=named, data={"encoder": "mri", "labels": labels})
    metrics = client.get(f"/v1/probes/{made}").json()["metrics"]
    assert (metrics["groups"], metrics["folds"]) == (4, 2)  # patients, although the request names none
    later = [("files", ("later.zip", series(20, "P0"))), ("files", ("other.zip", series(21, "P9"))), named[0]]
    items = client.post(f"/v1/probes/{made}/predictions", files=later).json()["items"]
    assert [(item["seen"], item["in_sample"]) for item in items] == [("group", False), ("no", False), ("record", False)]
