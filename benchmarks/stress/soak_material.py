"""What the clients of `benchmarks.stress.soak` send."""

import gzip
import io
import random
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field

import nibabel as nib
import numpy as np

from harness.encoders import png

PICTURES = 64
File = tuple[str, tuple[str, bytes]]


@dataclass
class Material:
    """Contents of files; `key`, `ids` of the table and `vectors` of the pictures come from the service."""

    key: str
    pictures: list[bytes] = field(
        default_factory=lambda: [png(number, bright=number % 2 == 1) for number in range(PICTURES)]
    )
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


def _volume() -> bytes:
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (48, 56, 40)), indexing="ij", sparse=True)
    inside = (x / 0.85) ** 2 + (y / 0.9) ** 2 + (z / 0.95) ** 2 < 1
    values = inside * (600 + 150 * np.sin(9 * x) * np.cos(11 * y)) + np.random.default_rng(0).normal(
        0, 15, inside.shape
    )
    return gzip.compress(nib.Nifti1Image(np.abs(values).astype(np.int16), np.eye(4)).to_bytes())
