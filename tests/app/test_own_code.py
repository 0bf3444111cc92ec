"""Encoders that bring Python code: the service runs none of it unless the operator allows it."""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

import data_adapters
from data_adapters import Record
from harness.encoders import SMALL
from harness.launcher import Launcher
from lejepa_med.cli import main as command_line
from lejepa_med.models.encoder import create_encoder
from lejepa_med.models.folder import INFO, load_encoder, save_encoder
from tests.app.helpers import picture, wait
from tests.data.histology import write_slide

NET = """
from pathlib import Path
from torch import nn

here = Path(globals().get("__file__", "nowhere"))
if here.parent.name == "encoder":  # in the folder of the encoder, and not where it was written
    (here.parent.parent.parent / "net.ran").touch()


class Net(nn.Module):
    def __init__(self, in_chans):
        super().__init__()
        self.conv = nn.Conv2d(in_chans, 8, 5, stride=2)

    def forward(self, x):
        return self.conv(x).relu().view(len(x), 8, -1).mean(2)  # view() fails in the channels-last layout
"""
ADAPTER = """
from data_adapters.images.adapter import ImagesAdapter
from pathlib import Path
Path(__file__).with_suffix(".ran").touch()


class Mine(ImagesAdapter):
    name = "mine"
"""

SLIDES = """
from dataclasses import replace

import cv2
import numpy as np
import openslide
import torch
from data_adapters import BaseAdapter, Record
from data_adapters.pipeline import A, Seeded


class Slides(BaseAdapter):
    name = "slides"
    suffixes = (".tif",)
    reads_regions = True

    def inspect(self, path, root):
        yield self.complete(Record(uri=str(path), group=""))

    def complete(self, record):
        with openslide.OpenSlide(record.uri) as slide:
            return replace(record, meta={**record.meta, "size": list(slide.dimensions), "bits": 8})

    def read(self, record, rng):
        corner = [int(rng.integers(side - 128)) for side in record.meta["size"]]
        with openslide.OpenSlide(record.uri) as slide:
            return np.asarray(slide.read_region(corner, 0, (128, 128)).convert("RGB"))

    def augment(self, kind, size):
        return Seeded([A.RandomResizedCrop((size, size)), A.D4()])

    def prepare(self, record):
        left, top, width, height = record.meta.get("region", (0, 0, 64, 64))
        with openslide.OpenSlide(record.uri) as slide:
            region = np.asarray(slide.read_region((left, top), 0, (width, height)).convert("RGB"))
        side = self.options.global_size
        return torch.from_numpy(cv2.resize(region, (side, side))).permute(2, 0, 1)[None]
"""


@pytest.fixture
def own_runs(tmp_path: Path) -> Path:
    """A runs directory with one encoder of a class Net, whose file leaves a mark when it runs in a folder of runs."""
    (tmp_path / "net.py").write_text(NET)
    adapter = data_adapters.create("images", **SMALL)
    save_encoder(create_encoder(f"{tmp_path}/net.py:Net", adapter.spec), adapter, tmp_path / "runs" / "own" / "encoder")
    return tmp_path / "runs"


def embed(client: httpx.Client) -> tuple[int, dict]:  # type: ignore[type-arg]
    pixels = cv2.imencode(".png", picture(1, bright=True))[1].tobytes()
    answer = client.post("/v1/embeddings", files={"files": ("a.png", io.BytesIO(pixels))}, data={"encoder": "own"})
    return answer.status_code, answer.json()


@contextmanager
def service(launchers: Launcher, runs: Path, data: Path, **options: Any) -> Iterator[httpx.Client]:
    """A real service: the tests' own process may have one already."""
    launchers.use(runs, data, data.parent)
    try:
        address = launchers.service(**options).address
        with httpx.Client(base_url=address, timeout=60) as client:
            yield client
    finally:
        launchers.end_all()


def test_code_in_the_runs_directory_runs_only_when_it_is_allowed(
    launchers: Launcher, own_runs: Path, tmp_path: Path
) -> None:
    with service(launchers, own_runs, tmp_path / "state", allow_code=False) as client:
        status, answer = embed(client)
        assert (status, answer["type"]) == (422, "urn:lejepa-med:problem:code-not-allowed")
        assert "--allow-code" in answer["remedy"] and "net.py" not in json.dumps(answer)
        assert client.get("/v1/encoders/own").json()["info"]["backbone"] == "net.py:Net"  # listed, but not run
        assert client.get("/readyz").json()["encoders"] == {"own": False}
    assert not (own_runs / "net.ran").exists()
    with service(launchers, own_runs, tmp_path / "state", allow_code=True) as client:
        status, answer = embed(client)
        assert status == 200 and (own_runs / "net.ran").exists()
        encoder = load_encoder(own_runs / "own")
        cv2.imwrite(str(tmp_path / "a.png"), picture(1, bright=True))
        [record] = encoder.adapter.inspect(tmp_path / "a.png", tmp_path)  # type: ignore[attr-defined]
        expected = encoder.embed([encoder.adapter.prepare(record)])[0]
        assert np.allclose(answer["items"][0]["vector"], expected, atol=1e-6)


def test_an_adapter_file_inside_the_runs_directory_counts_as_well(
    launchers: Launcher, own_runs: Path, tmp_path: Path
) -> None:
    info = own_runs / "own" / "encoder" / INFO
    described = json.loads(info.read_text())
    (own_runs / "mine.py").write_text(ADAPTER)
    described["adapter"]["adapter"] = f"{own_runs}/mine.py:Mine"
    info.write_text(json.dumps(described))
    with service(launchers, own_runs, tmp_path / "state", allow_code=False) as client:
        assert embed(client)[1]["type"] == "urn:lejepa-med:problem:code-not-allowed"
    assert not (own_runs / "mine.ran").exists()
    with service(launchers, own_runs, tmp_path / "state", allow_code=True) as client:
        assert embed(client)[0] == 200
    assert (own_runs / "mine.ran").exists()


def test_a_slide_adapter_of_ones_own_is_served_by_region_as_the_built_in_one(
    launchers: Launcher, tmp_path: Path
) -> None:
    """The service asks what an adapter can do, and not its name: this slide is larger than any image may be."""
    runs, archive = tmp_path / "runs", tmp_path / "archive"
    slide = archive / "0" / "slide.tif"
    (tmp_path / "slides.py").write_text(SLIDES)
    for number in range(4):
        (archive / str(number)).mkdir(parents=True)
        write_slide(archive / str(number) / "slide.tif", width=600, height=500, seed=number)
    run = ["--modality", f"{tmp_path}/slides.py:Slides", "--out", str(runs / "own"), "--backbone", "resnet18"]
    small = ["--views.global-size", "32", "--views.n-local", "0", "--epochs", "1", "--batch-size", "4"]
    command_line(["pretrain", str(archive), *run, *small])
    with service(launchers, runs, tmp_path / "state", allow_code=True, max_pixels=250_000) as client:
        sent = {"files": ("s.tif", slide.read_bytes())}
        answers = [
            client.post("/v1/embeddings", files=sent, data={"encoder": "own", **further})
            for further in ({}, {"region": "100,120,96,64"})
        ]
        assert [answer.status_code for answer in answers] == [200, 200], [answer.text for answer in answers]
        whole, region = (answer.json()["items"][0]["vector"] for answer in answers)
        upload = client.post("/v1/uploads", files=sent, data={"encoder": "own"}).json()["id"]
        assert wait(client, upload)["state"] == "succeeded"
        assert client.get(f"/v1/uploads/{upload}").json()["items"] == 1
    encoder = load_encoder(runs / "own")
    for vector, meta in ((whole, {}), (region, {"region": [100, 120, 96, 64]})):
        pixels = encoder.adapter.prepare(Record(uri=str(slide), group="", meta=meta))
        assert np.allclose(vector, encoder.embed([pixels])[0], atol=1e-5)
    assert not np.allclose(whole, region, atol=1e-3)
