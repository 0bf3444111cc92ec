"""A dropped file: what the encoder sees, part by part, beside neighbours and the answers of all its probes."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from app.core.settings import Settings
from lejepa_med.models.folder import load_encoder
from lejepa_med.models.thumbnails import shown_parts
from tests.app.helpers import files, png, wait
from tests.data.mri import phantom, write_nifti


def shown(data: str) -> Image.Image:
    head, _, body = data.partition(",")
    assert head in ("data:image/webp;base64", "data:image/png;base64")
    return Image.open(io.BytesIO(base64.b64decode(body)))


@pytest.fixture(scope="module")
def probe(client: TestClient) -> str:
    ids = [one["id"] for one in client.get("/v1/archives/table/ids").json()["items"]]
    pca = np.frombuffer(client.get("/v1/archives/table/map/points").content, "<f4").reshape(-1, 2)[:, 0]
    labels = [{"id": item, "label": "one" if x < 0 else "two"} for item, x in zip(ids, pca, strict=True)]
    body = {"name": "brightness", "archive": "table", "labels": labels, "folds": 2}
    return str(wait(client, client.post("/v1/probes", json=body).json()["id"])["id"])


def test_a_picture(client: TestClient, runs: Path, probe: str, tmp_path: Path) -> None:
    sent = {"encoder": "images", "archive": "table", "k": "3"}
    answer = client.post("/v1/inspect", files=files(png(99)), data=sent)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["unit"], told["count"], told["items"], told["width"]) == ("image", 1, 1, 32)
    (part,) = told["parts"]
    adapter = load_encoder(runs / "images" / "encoder").adapter
    (tmp_path / "image.png").write_bytes(png(99))
    (record,) = adapter.scan(tmp_path / "image.png")
    (expected,), _ = shown_parts(adapter, adapter.prepare(record), [0])  # type: ignore[arg-type]
    error = np.abs(np.asarray(shown(part["image"]), float) - expected.astype(float)).mean()
    assert error < 8, "what the encoder saw, but for WebP's losses"
    assert shown(part["features"]).size == (16, 16), "a CNN's map is made of an enlarged picture"
    assert "attention" not in part and "no attention" in told["attention_note"]
    searched = client.post("/v1/search", files=files(png(99)), data={"archive": "table", "k": "3"}).json()
    assert [one["id"] for one in told["neighbours"]] == [one["id"] for one in searched["items"][0]["hits"]]
    for one in told["neighbours"]:
        assert one["distance"] == pytest.approx(np.sqrt(2 - 2 * one["score"]), abs=1e-4)
    predicted = client.post(f"/v1/probes/{probe}/predictions", files=files(png(99))).json()["items"][0]
    found = next(one for one in told["predictions"] if one["probe"] == probe)
    assert found["probe_name"] == "brightness" and found["label"] == predicted["label"]
    assert found["probabilities"] == pytest.approx(predicted["probabilities"]) and told["novel"] in (True, False)
    plain = client.post("/v1/inspect", files=files(png(99)), data={"encoder": "images", "overlay": "false"}).json()
    assert "features" not in plain["parts"][0] and "neighbours" not in plain


def test_slices_of_a_volume(client: TestClient, tmp_path: Path) -> None:
    write_nifti(tmp_path / "head.nii.gz", phantom())
    sent = files((tmp_path / "head.nii.gz").read_bytes(), name="head.nii.gz")
    told = client.post("/v1/inspect", files=sent, data={"encoder": "mri"}).json()
    assert (told["unit"], told["count"], [one["index"] for one in told["parts"]]) == ("slice", 3, [0, 1, 2])
    assert told["shown"] == "grey" and told["modality"] == "mri" and len({one["image"] for one in told["parts"]}) == 3
    some = client.post("/v1/inspect", files=sent, data={"encoder": "mri", "parts": "2"}).json()
    assert (some["count"], [one["index"] for one in some["parts"]]) == (3, [0, 2])


@pytest.mark.parametrize(
    ("status", "kind", "sent", "data"),
    [
        (422, "one-file", files(png(1), png(2)), {}),
        (422, "bad-file", files(b"nothing"), {}),
        (404, "not-found", files(png(1)), {"item": "1"}),
        (422, "invalid-request", files(png(1)), {"parts": "1000"}),
        (422, "invalid-request", files(png(1)), {"part": "1"}),
        (422, "other-encoder", files(png(1)), {"archive": "table", "encoder": "galaxy"}),
    ],
)
def test_what_is_refused(client: TestClient, status: int, kind: str, sent: Any, data: dict[str, str]) -> None:
    answer = client.post("/v1/inspect", files=sent, data={"encoder": "images", **data})
    assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (status, kind), answer.text
    assert answer.json()["remedy"]


def test_nothing_of_the_file_is_kept(client: TestClient, settings: Settings) -> None:
    before = {path for path in settings.data.rglob("*") if path.is_file()}
    assert client.post("/v1/inspect", files=files(png(5)), data={"encoder": "images"}).status_code == 200
    new = {path for path in settings.data.rglob("*") if path.is_file()} - before
    assert not [path for path in new if "sqlite" not in path.name], new
    assert torch.is_grad_enabled()
