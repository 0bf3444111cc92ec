"""One array, four ways to its vector: training-time evaluation, `embed`, a probe, and HTTP. They must agree."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from data_adapters.scan import scan_archive
from lejepa_med.models.embed import EmbeddingTable, embed_archive, embed_records
from lejepa_med.models.folder import load_encoder, record_formation, record_precision, way_back
from lejepa_med.models.formation import fixed_views
from lejepa_med.probes.probe import Probe, fit_probe
from lejepa_med.training.sample import FixedSample
from tests.app.helpers import files, png, wait

Maker = Callable[[Path, int], Path]


def make_picture(folder: Path, number: int) -> Path:
    file = folder / f"{number}.png"
    file.write_bytes(png(number, bright=number % 2 == 1))
    return file


def make_volume(folder: Path, number: int) -> Path:
    from tests.data.mri import phantom, write_nifti

    field = phantom(seed=number)
    return write_nifti(folder / f"{number}.nii.gz", field + np.float32(number % 2) * np.roll(field, 4, axis=0))


def make_slide(folder: Path, number: int) -> Path:
    from tests.data.histology import write_slide

    file = folder / f"slide{number}.tif"
    write_slide(file, width=400 + 40 * number, height=400, mpp=0.5)
    return file


def make_cutout(folder: Path, number: int) -> Path:
    from astropy.io import fits

    flux = np.random.default_rng(number).normal(0.1, 0.05, (3, 48, 48)).astype(np.float32)
    flux[:, 20:28, 18 - 6 * (number % 2) : 28 + 6 * (number % 2)] += 2
    file = folder / f"{number}.fits"
    fits.PrimaryHDU(flux, fits.Header([("BANDS", "grz"), ("BUNIT", "nanomaggy")])).writeto(file)
    return file


@pytest.fixture
def formed(runs: Path) -> Iterator[Callable[..., str]]:
    """Gives a modality's encoder another formation, for one test; returns the copy's id."""
    made: list[Path] = []

    def make(modality: str, **formation: int) -> str:
        made.append(runs / f"{modality}-formed")
        shutil.copytree(runs / modality, made[-1])
        record_formation(made[-1], **formation)
        return made[-1].name

    yield make
    for folder in made:
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("modality", "make", "formation"),
    [
        ("images", make_picture, {}),
        ("mri", make_volume, {"size": 48, "views": 2}),
        ("histology", make_slide, {"views": 8}),
        ("galaxy", make_cutout, {"size": 48, "views": 8, "layers": 2}),
    ],
)
def test_four_paths_one_vector(
    modality: str,
    make: Maker,
    formation: dict[str, int],
    formed: Callable[..., str],
    client: TestClient,
    runs: Path,
    tmp_path: Path,
) -> None:
    archive = tmp_path / "archive"
    archive.mkdir()
    made = [make(archive, number) for number in range(6)]
    plain = load_encoder(runs / modality)
    modality = formed(modality, **formation) if formation else modality
    encoder = load_encoder(runs / modality)
    manifest = scan_archive(encoder.adapter, archive).manifest
    order = [made.index(archive / path) for path in manifest.column("path")]

    evaluated = np.stack([f.vector for f in embed_records(encoder, manifest.records()) if f.vector is not None])
    embed_archive(encoder, manifest, tmp_path / "table", workers=0)  # a fork of the running service could hang
    table = EmbeddingTable.open(tmp_path / "table")
    answer = client.post(
        "/v1/embeddings",
        files=[("files", (path.name, path.read_bytes())) for path in made],
        data={"encoder": modality},
    )
    served = np.array([item["vector"] for item in answer.json()["items"]], np.float32)[order]
    np.testing.assert_allclose(table.vectors, evaluated, atol=1e-5)
    np.testing.assert_allclose(served, evaluated, atol=1e-5)
    assert np.abs(evaluated[0] - evaluated[1]).max() > 1e-3  # the items are not all alike
    sample = FixedSample(manifest, encoder.adapter, size=6, cache_bytes=2**30)
    sample.fill(6)
    places = [sample.rows[position] for position in sample.kept]
    np.testing.assert_allclose(sample.embed(encoder.module, device="cpu"), evaluated[places], atol=1e-5)
    # formed by hand, one pass after the other
    module, pixels = encoder.module, encoder.adapter.prepare(manifest.record(0)).contiguous()
    with torch.inference_mode():
        views = fixed_views(pixels, encoder.formation.views)
        passes = [(module.joined if encoder.formation.layers == 2 else module)(view[None]) for view in views]
    np.testing.assert_allclose(torch.cat(passes).mean(dim=0), evaluated[0], atol=1e-5)
    detail = client.get(f"/v1/encoders/{modality}").json()
    assert detail["formation"] == {"size": 32, "views": 1, "layers": 1, **formation}
    assert (detail["image_size"], detail["dim"]) == (pixels.shape[-1], encoder.dim)
    assert (encoder.fingerprint == plain.fingerprint) == (not formation)
    assert f"{formation.get('views', 1)} pass" in detail["vectors"]

    labels = [("even", "odd")[index % 2] for index in order]
    local = fit_probe(table.vectors, labels, table.groups, encoder=table.encoder, folds=2)
    started = client.post(
        "/v1/probes",
        files=files(*(path.read_bytes() for path in made), name="x" + "".join(made[0].suffixes)),
        data={"encoder": modality, "folds": "2", "labels": json.dumps([("even", "odd")[n % 2] for n in range(6)])},
    )
    assert started.status_code == 202, started.text
    job = wait(client, started.json()["id"])
    assert job["state"] == "succeeded", job
    predicted = client.post(
        f"{job['result']}/predictions", files=[("files", (path.name, path.read_bytes())) for path in made]
    ).json()["items"]
    # Folds follow the groups' names, and with them what is held out, so predictions are compared within one probe.
    trained = Probe.load(client.app.state.service.training.result_folder(job["id"]))  # type: ignore[attr-defined]
    sure, alike = (probe.head.probabilities(evaluated).argmax(1).tolist() for probe in (trained, local))
    assert sure == alike and trained.classes == local.classes
    for index, same in zip(order, trained.predict(evaluated), strict=True):
        assert (predicted[index]["seen"], predicted[index]["label"]) == ("record", same.label)
        assert predicted[index]["probabilities"] == pytest.approx(same.probabilities, abs=1e-4)


@pytest.fixture
def rough(runs: Path) -> Iterator[Path]:
    """An encoder that is recorded to compute in bfloat16, with the weights of 'images', for one test."""
    folder = runs / "rough"
    shutil.copytree(runs / "images", folder)
    record_precision(folder, "bfloat16")
    yield folder
    shutil.rmtree(folder)
    shutil.rmtree(runs / "rough-table", ignore_errors=True)


def test_where_less_precision_is_recorded_every_path_takes_it_and_says_so(
    rough: Path, client: TestClient, runs: Path
) -> None:
    encoder = load_encoder(rough)
    manifest = scan_archive(encoder.adapter, runs.parent / "archive").manifest
    embed_archive(encoder, manifest, runs / "rough-table", workers=0)
    table, exact = EmbeddingTable.open(runs / "rough-table"), EmbeddingTable.open(runs / "table")
    assert table.encoder == encoder.fingerprint != exact.encoder
    away = np.linalg.norm(table.vectors - exact.vectors, axis=1) / np.linalg.norm(exact.vectors, axis=1)
    assert (away > 1e-5).all() and (away < 0.03).all()

    picture = (runs.parent / "archive" / manifest.column("path")[0]).read_bytes()
    sent = {"files": files(picture), "data": {"encoder": "rough"}}
    named = client.post("/v1/embeddings", **sent).json()
    assert (named["precision"], named["fingerprint"]) == ("bfloat16", encoder.fingerprint)
    other = client.post("/v1/embeddings", **sent, headers={"Accept": "application/x-npy"})
    assert other.headers["X-Encoder-Precision"] == "bfloat16"
    assert client.get("/v1/encoders/rough").json()["precision"] == "bfloat16"
    vector = np.array(named["items"][0]["vector"])
    assert np.linalg.norm(vector - table.vectors[0]) / np.linalg.norm(vector) < 0.02

    found = client.post("/v1/search", files=files(picture), data={"archive": "rough-table", "k": "1"}).json()
    assert found["items"][0]["hits"][0]["id"] == table.ids[0]
    query = {"archive": "table", "vectors": [vector.tolist()], "fingerprint": encoder.fingerprint}
    assert client.post("/v1/search", json=query).status_code == 422  # that table was computed in float32
    labels = [{"id": name, "label": "ab"[row % 2]} for row, name in enumerate(table.ids)]
    started = client.post("/v1/probes", json={"archive": "rough-table", "labels": labels, "folds": 2})
    job = wait(client, started.json()["id"])
    assert job["state"] == "succeeded", job
    predicted = client.post(f"{job['result']}/predictions", files=files(picture))
    assert predicted.status_code == 200, predicted.text


def test_what_was_made_before_the_formation_changed_says_how_to_go_back(
    formed: Callable[..., str], client: TestClient, runs: Path
) -> None:
    """A table of one formation, searched with pictures after the encoder got another one."""
    folder = runs / formed("images", views=2)
    encoder = load_encoder(folder)
    embed_archive(encoder, scan_archive(encoder.adapter, runs.parent / "archive").manifest, folder / "table", workers=0)
    picture = (runs.parent / "archive" / "00.png").read_bytes()
    sent = {"files": files(picture), "data": {"archive": "images-formed-table", "k": "1"}}
    assert client.post("/v1/search", **sent).status_code == 200
    record_formation(folder, views=1, size=48)
    answer = client.post("/v1/search", **sent)
    problem = answer.json()
    assert answer.status_code == 422 and problem["type"].endswith("encoder-gone")
    assert "made with the encoder 'images" in problem["detail"]  # or its copy, which has the same weights
    assert "goes back with: lejepa-med vectors RUN" in problem["remedy"] and "--views 2" in problem["remedy"]
    record_precision(folder, "bfloat16")
    commands = way_back(load_encoder(folder).info, encoder.fingerprint)
    assert commands == "lejepa-med vectors RUN --size 32 --views 2 and lejepa-med precision RUN float32"
    record_precision(record_formation(folder, views=2, size=32), "float32")
    assert client.post("/v1/search", **sent).status_code == 200
    info = json.loads((folder / "encoder" / "lejepa_med.json").read_text())
    info["formation"]["views"] = 16  # of a release to come
    (folder / "encoder" / "lejepa_med.json").write_text(json.dumps(info))
    (listed,) = [one for one in client.get("/v1/encoders").json()["encoders"] if one["id"] == "images-formed"]
    assert "Install lejepa-med" in listed["vectors"]
    assert client.get("/v1/encoders/images-formed").status_code == 422
