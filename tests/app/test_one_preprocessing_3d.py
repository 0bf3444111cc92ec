"""One volume, four ways to its vector (evaluation, `embed`, a probe, HTTP): they must agree in 3-D too."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("fastapi", reason="needs the extra 'serve'")

from fastapi.testclient import TestClient

import data_adapters
from data_adapters.scan import scan_archive
from lejepa_med.models.embed import EmbeddingTable, embed_archive, embed_records
from lejepa_med.models.encoder import create_encoder
from lejepa_med.models.folder import load_encoder, save_encoder
from lejepa_med.models.formation import Formation
from lejepa_med.probes.probe import Probe, fit_probe
from tests.app.helpers import wait
from tests.data.mri import phantom, write_nifti


@pytest.fixture(scope="module", autouse=True)
def heads(runs: Path) -> Iterator[None]:
    """The encoder heads among those of the running service, and gone afterwards."""
    torch.manual_seed(0)
    adapter = data_adapters.create("mri3d", global_size=32, local_size=32, n_local=0, embed_size=40)
    encoder = create_encoder("monai:resnet10", adapter.spec, formation=Formation(size=40, views=2))
    save_encoder(encoder, adapter, runs / "heads" / "encoder")
    yield
    shutil.rmtree(runs / "heads")


def make(folder: Path, number: int) -> Path:
    """Heads of two kinds; the last is elongated, so that its vector is the mean over two cubes."""
    head = phantom(seed=number, shape=(24, 28, 52 if number == 5 else 20))
    spacing = (1.0, 1.25, 1.25) if number == 5 else (1.0, 1.25, 2.0)
    return write_nifti(folder / f"{number}.nii.gz", np.roll(head, 4 * (number % 2), axis=0), spacing=spacing)


def test_four_paths_one_vector(client: TestClient, runs: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    made = [make(archive, number) for number in range(6)]
    encoder = load_encoder(runs / "heads")
    manifest = scan_archive(encoder.adapter, archive).manifest
    assert manifest.column("path") == [path.name for path in made]

    evaluated = np.stack([f.vector for f in embed_records(encoder, manifest.records()) if f.vector is not None])
    embed_archive(encoder, manifest, tmp_path / "table", workers=0)  # a fork of the running service could hang
    table = EmbeddingTable.open(tmp_path / "table")
    upload = [("files", (path.name, path.read_bytes())) for path in made]
    answer = client.post("/v1/embeddings", files=upload, data={"encoder": "heads"}).json()["items"]
    np.testing.assert_allclose(table.vectors, evaluated, atol=1e-5)
    np.testing.assert_allclose(np.array([item["vector"] for item in answer], np.float32), evaluated, atol=1e-5)
    assert [item["items"] for item in answer] == [1, 1, 1, 1, 1, 2]
    with torch.inference_mode():
        cube = encoder.adapter.prepare(manifest.record(0))
        mirrored = torch.cat([encoder.module(cube), encoder.module(cube.flip(-1))]).mean(dim=0)
    np.testing.assert_allclose(mirrored, evaluated[0], atol=1e-5)
    assert np.abs(evaluated[0] - evaluated[1]).max() > 1e-3  # the heads are not all alike

    labels = [("even", "odd")[number % 2] for number in range(6)]
    local = fit_probe(table.vectors, labels, table.groups, encoder=table.encoder, folds=2)
    started = client.post(
        "/v1/probes", files=upload, data={"encoder": "heads", "folds": "2", "labels": json.dumps(labels)}
    )
    assert started.status_code == 202, started.text
    job = wait(client, started.json()["id"])
    assert job["state"] == "succeeded", job
    predicted = client.post(f"{job['result']}/predictions", files=upload).json()["items"]
    trained = Probe.load(client.app.state.service.training.result_folder(job["id"]))  # type: ignore[attr-defined]
    sure, alike = (probe.head.probabilities(evaluated).argmax(1).tolist() for probe in (trained, local))
    assert sure == alike
    for item, same in zip(predicted, trained.predict(evaluated), strict=True):
        assert (item["seen"], item["label"]) == ("record", same.label)
        assert item["probabilities"] == pytest.approx(same.probabilities, abs=1e-4)


def test_the_service_tells_what_the_encoder_sees(client: TestClient) -> None:
    detail = client.get("/v1/encoders/heads").json()
    assert (detail["modality"], detail["dims"], detail["image_size"], detail["channels"]) == ("mri3d", 3, 40, 1)
    assert detail["formation"] == {"size": 40, "views": 2, "layers": 1}


def test_a_slice_is_refused_with_the_way_out(client: TestClient) -> None:
    import cv2

    picture = cv2.imencode(".png", phantom()[:, :, 10].astype(np.uint16))[1].tobytes()
    answer = client.post("/v1/embeddings", files=[("files", ("a.png", picture))], data={"encoder": "heads"})
    assert answer.status_code == 422 and "modality mri" in answer.json()["remedy"]
