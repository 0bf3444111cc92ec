"""Small encoders of random weights, pictures of noise, and a runs directory of both."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

import data_adapters
from data_adapters.scan import scan_archive
from lejepa_med.models.embed import embed_archive
from lejepa_med.models.encoder import create_encoder
from lejepa_med.models.folder import load_encoder, save_encoder

SMALL = {"global_size": 32, "local_size": 32, "n_local": 0}
OPTIONS: dict[str, dict[str, Any]] = {
    "images": {},
    "mri": {"slices": 3},
    "histology": {"tile_px": 64, "tiles": 4},
    "galaxy": {"kind": "flux", "bands": "g,r,z", "scales": (1.0, 1.0, 1.0), "pixel_scale": 0.262},
}


def picture(seed: int, *, bright: bool, side: int = 40) -> np.ndarray:
    """Return (side, side, 3) uint8 noise, bright or dark: even random features separate these two classes."""
    noise = np.random.default_rng(seed).integers(0, 40, (side, side, 3), dtype=np.uint8)
    return noise + np.uint8(180 if bright else 20)


def png(seed: int = 0, *, bright: bool = True, side: int = 40) -> bytes:
    """Return such a picture as a PNG file."""
    return cv2.imencode(".png", picture(seed, bright=bright, side=side))[1].tobytes()


def make_encoder(folder: Path, modality: str, *, seed: int = 0) -> None:
    """Save a resnet18 with random weights under `folder`/encoder."""
    torch.manual_seed(seed)
    adapter = data_adapters.create(modality, **SMALL, **OPTIONS[modality])
    encoder = create_encoder("resnet18", adapter.spec)
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            # at 0, as a fresh ResNet has it in every block, only the corner of a 32 px image would reach the vector
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    save_encoder(encoder, adapter, folder / "encoder")


def make_runs(root: Path, modalities: Iterable[str] = tuple(OPTIONS), *, rows: int = 24) -> Path:
    """Make `root`/runs with an encoder named after each modality, and the embedding table `table` of `rows` pictures.

    Without `rows`, or without the encoder `images`, there is no table.
    """
    runs = root / "runs"
    for modality in modalities:
        make_encoder(runs / modality, modality)
    if rows and (runs / "images").exists():
        archive = root / "archive"
        archive.mkdir()
        for number in range(rows):
            (archive / f"{number:02d}.png").write_bytes(png(number, bright=number % 2 == 1))
        encoder = load_encoder(runs / "images" / "encoder")
        embed_archive(encoder, scan_archive(encoder.adapter, archive).manifest, runs / "table", thumbnails=True)
    return runs
