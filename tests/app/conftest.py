"""A runs directory with one small random encoder for each modality, an embedding table, and the app over it."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("fastapi", reason="needs the extra 'serve'")

os.environ["LEJEPA_ALLOWED_HOSTS"] = "testserver"  # the name that the test client gives the service

from fastapi.testclient import TestClient

import data_adapters
from app.core.settings import Settings
from app.encoders.library import ServedEncoder
from app.main import create_app
from benchmarks.launcher import Launcher
from data_adapters.scan import scan_archive
from lejepa_med.models.embed import embed_archive
from lejepa_med.models.encoder import create_encoder
from lejepa_med.models.folder import load_encoder, save_encoder
from tests.app.helpers import picture
from tests.app.postgres import NewDatabase, postgres

SMALL = {"global_size": 32, "local_size": 32, "n_local": 0}
OPTIONS: dict[str, dict[str, Any]] = {
    "images": {},
    "mri": {"slices": 3},
    "histology": {"tile_px": 64, "tiles": 4},
    "galaxy": {"kind": "flux", "bands": "g,r,z", "scales": (1.0, 1.0, 1.0), "pixel_scale": 0.262},
}


def make_encoder(folder: Path, modality: str, *, seed: int = 0) -> None:
    """A resnet18 with random weights under `folder`/encoder."""
    torch.manual_seed(seed)
    adapter = data_adapters.create(modality, **SMALL, **OPTIONS[modality])
    encoder = create_encoder("resnet18", adapter.spec)
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            # at 0, as a fresh ResNet has it in every block, only the corner of a 32 px image would reach the vector
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    save_encoder(encoder, adapter, folder / "encoder")


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four encoders (ids images, mri, histology, galaxy) and the embedding table 'table' of 24 pictures."""
    root = tmp_path_factory.mktemp("service") / "runs"
    for modality in OPTIONS:
        make_encoder(root / modality, modality)
    archive = root.parent / "archive"
    archive.mkdir()
    for number in range(24):
        cv2.imwrite(str(archive / f"{number:02d}.png"), picture(number, bright=number % 2 == 1))
    encoder = load_encoder(root / "images" / "encoder")
    embed_archive(encoder, scan_archive(encoder.adapter, archive).manifest, root / "table", thumbnails=True)
    return root


@pytest.fixture(scope="session")
def new_postgres() -> Iterator[NewDatabase]:
    """A function that makes an empty database in a real PostgreSQL and gives its URL; `.server` is the server."""
    with postgres() as made:
        yield made


@pytest.fixture(scope="session")
def new_database(request: pytest.FixtureRequest) -> NewDatabase | None:
    """What `--database` asks for: a function that gives the URL of an empty database, or None for SQLite."""
    if request.config.getoption("--database") == "sqlite":
        return None
    made: NewDatabase = request.getfixturevalue("new_postgres")
    return made


@pytest.fixture(scope="session")
def launchers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """The parent of all real services and workers."""
    place = tmp_path_factory.mktemp("launcher")
    with Launcher(environment={"LEJEPA_SALT": "test", "LEJEPA_CACHE": str(place / "cache")}) as launcher:
        yield launcher


@pytest.fixture
def launcher(launchers: Launcher, runs: Path, tmp_path: Path, database_url: str | None) -> Iterator[Launcher]:
    """Starts real services and workers on a data directory of the test's own, tmp_path / "data"."""
    launchers.use(runs, tmp_path / "data", tmp_path, database_url=database_url)
    yield launchers
    launchers.end_all()


@pytest.fixture
def database_url(new_database: NewDatabase | None) -> str | None:
    """`database_url` of Settings for a service with a state of its own."""
    return new_database() if new_database is not None else None


@pytest.fixture(scope="session")
def settings(runs: Path, new_database: NewDatabase | None) -> Settings:
    return Settings(
        database_url=new_database() if new_database is not None else None,  # type: ignore[arg-type]
        runs_dir=runs,
        archives_dir=runs.parent / "archives",
        threads=1,
        job_retries=1,
        max_upload_bytes=4 << 20,
        max_json_bytes=64 << 10,
        max_unzipped_bytes=32 << 20,
    )


@pytest.fixture(scope="session")
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings)) as client:
        yield client


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Encoders compute nothing until it is set."""
    gate = threading.Event()
    embed = ServedEncoder.embed

    def held(self: ServedEncoder, items: list[torch.Tensor]) -> list[np.ndarray]:
        assert gate.wait(60)
        return embed(self, items)

    monkeypatch.setattr(ServedEncoder, "embed", held)
    yield gate
    gate.set()
