"""Fixtures for all tests: a salt of the test's own, the real data, and a small archive of pictures."""

import os

# one thread, here and in the processes that tests start: bit-identical runs need equal thread counts
os.environ["OMP_NUM_THREADS"] = "1"

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--one-core", action="store_true", help="every test process, and what it starts, sees one core only"
    )
    parser.addoption(
        "--database", choices=("sqlite", "postgres"), default="sqlite", help="what the service's tests keep state in"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--one-core"):
        cores = sorted(os.sched_getaffinity(0))
        worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
        os.sched_setaffinity(0, {cores[worker % len(cores)]})


@pytest.fixture(autouse=True)
def _private_places(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's own salt or cache."""
    monkeypatch.setenv("LEJEPA_SALT", "test")
    monkeypatch.setenv("LEJEPA_CACHE", str(tmp_path_factory.getbasetemp() / "volume-cache"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The real images; tests without them are skipped with a reason."""
    folder = os.environ.get("LEJEPA_REAL_DATA")
    if not folder:
        pytest.skip("LEJEPA_REAL_DATA is not set: this test reads real images")
    return Path(folder)


def write_pictures(folder: Path, *, count: int = 48, side: int = 48, seed: int = 0) -> Path:
    """An archive of PNG pictures with labels.csv: stripes or rings, two to a group, three quarters in `train`."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["path,label,group,split"]
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij")).astype(float)
    for index in range(count):
        label = ("stripes", "rings")[index % 2]
        angle, wave, phase = rng.uniform(0, np.pi), rng.uniform(5, 9), rng.uniform(0, 6)
        if label == "stripes":
            field = np.cos(2 * np.pi * (grid[0] * np.cos(angle) + grid[1] * np.sin(angle)) / wave + phase)
        else:
            centre = rng.uniform(side / 3, 2 * side / 3, (2, 1, 1))
            field = np.cos(2 * np.pi * np.hypot(*(grid - centre)) / wave + phase)
        colour = rng.uniform(0.3, 1, 3)
        pixels = (field[..., None] * 0.35 + 0.5) * colour + rng.normal(0, 0.04, (side, side, 3))
        name = f"{index:04d}.png"
        Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8)).save(folder / name)
        lines.append(f"{name},{label},g{index // 2},{'val' if (index // 2) % 4 == 3 else 'train'}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 pictures of two kinds, with labels.csv."""
    return write_pictures(tmp_path_factory.mktemp("pictures"))
