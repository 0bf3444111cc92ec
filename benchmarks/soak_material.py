"""What the clients of `benchmarks.soak` send, and what the service holds when they begin."""

import gzip
import io
import random
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

import data_adapters
from benchmarks.faults_lab import make_runs, picture
from data_adapters.scan import scan_archive
from lejepa_med.models.embed import embed_archive
from lejepa_med.models.encoder import create_encoder
from lejepa_med.models.folder import load_encoder, save_encoder

PICTURES = 64
ROWS = 128  # of the table
File = tuple[str, tuple[str, bytes]]


@dataclass
class Material:
    """Contents of files; `key`, `ids` of the table and `vectors` of the pictures come from the service."""

    key: str
    pictures: list[bytes] = field(default_factory=lambda: [picture(number) for number in range(PICTURES)])
    volume: bytes = field(default_factory=lambda: _volume())
    packed: bytes = b""
    ids: list[str] = field(default_factory=list)
    vectors: list[list[float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as target:
            for number in range(4):
                target.writestr(f"series/{number}.png", self.pictures[number])
        self.packed = buffer.getvalue()

    def files(self, numbers: Iterable[int]) -> list[File]:
        """The `files` argument of httpx for some pictures."""
        return [("files", ("image.png", self.pictures[number])) for number in numbers]

    def broken(self, rng: random.Random) -> list[File]:
        """One picture that is cut off, or noise under its name."""
        content = self.pictures[0][:700] if rng.random() < 0.5 else rng.randbytes(2000)
        return [("files", ("image.png", content))]


def make_all(place: Path) -> Path:
    """A runs directory with the encoders 'images' and 'mri' (random weights) and the embedding table 'table'."""
    runs = make_runs(place / "runs")
    adapter = data_adapters.create("mri", global_size=32, local_size=32, n_local=0, slices=3)
    torch.manual_seed(1)
    save_encoder(create_encoder("resnet18", adapter.spec), adapter, runs / "mri" / "encoder")
    archive = place / "archive"
    archive.mkdir()
    for number in range(ROWS):
        (archive / f"{number:03d}.png").write_bytes(picture(1000 + number))
    encoder = load_encoder(runs / "images" / "encoder")
    embed_archive(encoder, scan_archive(encoder.adapter, archive).manifest, runs / "table")
    return runs


def _volume() -> bytes:
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (48, 56, 40)), indexing="ij", sparse=True)
    inside = (x / 0.85) ** 2 + (y / 0.9) ** 2 + (z / 0.95) ** 2 < 1
    values = inside * (600 + 150 * np.sin(9 * x) * np.cos(11 * y)) + np.random.default_rng(0).normal(
        0, 15, inside.shape
    )
    return gzip.compress(nib.Nifti1Image(np.abs(values).astype(np.int16), np.eye(4)).to_bytes())
