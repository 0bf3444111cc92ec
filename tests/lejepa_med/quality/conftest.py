"""An archive of small pictures whose class b comes from one scanner, and an embedding table of it with made vectors."""

import csv
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

import data_adapters
from data_adapters.catalog import Catalog
from data_adapters.scan import scan_archive
from lejepa_med.models.embed import Feature, TableWriter
from lejepa_med.models.thumbnails import thumbnails_of

PATIENTS, IMAGES = 24, 96
DIM = 16


def write_archive(folder: Path) -> list[dict[str, str]]:
    """`IMAGES` pictures of 64 px, and labels.csv: class b was taken with scanner s1 alone."""
    rng = np.random.default_rng(0)
    (folder / "img").mkdir(parents=True)
    rows = []
    for number in range(IMAGES):
        patient = number % PATIENTS
        label = "b" if patient % 2 else "a"
        scanner = "s1" if label == "b" or patient % 6 == 0 else "s2"
        name = f"img/{number:03d}.png"
        image = np.full((64, 64, 3), 40, np.uint8)
        for x, y, size, grey in rng.integers((0, 0, 4, 60), (64, 64, 14, 255), (12, 4)).tolist():
            cv2.circle(image, (x, y), size, (grey, grey, grey), -1)
        cv2.imwrite(str(folder / name), image)
        rows.append({"path": name, "label": label, "group": f"p{patient}", "scanner": scanner, "note": f"n{number}"})
    with (folder / "labels.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return rows


def write_table(archive: Path, out: Path, vectors: np.ndarray) -> None:
    """An embedding table of the archive with these vectors, (n, dim), in the order of its files, and thumbnails."""
    adapter = data_adapters.create("images", global_size=32, n_global=2, n_local=0)
    manifest = scan_archive(adapter, archive, catalog=Catalog(archive / "labels.csv")).manifest
    manifest.write(out.parent / "manifest.parquet")
    writer = TableWriter(out, manifest, encoder="made", encoder_name="made", dim=vectors.shape[1], thumbnails=True)
    small = thumbnails_of(adapter)
    features = [
        Feature(index, vector.astype(np.float32), thumbnail=small(adapter.prepare(manifest.record(index))))
        for index, vector in enumerate(vectors)
    ]
    writer.write(0, features)
    writer.finish()


@pytest.fixture(scope="session")
def confounded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder with `archive`, and `table` whose vectors know the label and the scanner."""
    root = tmp_path_factory.mktemp("confounded")
    rows = write_archive(root / "archive")
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(IMAGES, DIM))
    vectors[:, 0] += [2.0 * (row["label"] == "b") for row in rows]
    vectors[:, 1] += [5.0 * (row["scanner"] == "s1") for row in rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEJEPA_SALT", "test")  # as each test has it
        write_table(root / "archive", root / "table", vectors)
    yield root
