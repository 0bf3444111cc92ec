"""Vectors of an archive on their way into its table: files of a few rows that are whole or absent."""

import csv
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from data_adapters.atomic import new_file
from lejepa_med.evaluation.features import Feature
from lejepa_med.table_writer import ABOUT


def write_chunk(file: Path, features: Iterable[Feature], *, dim: int) -> None:
    """Write features, `index` as it is."""
    found = list(features)
    good = [(feature.index, feature.vector) for feature in found if feature.vector is not None]
    bad = [(feature.index, feature.error) for feature in found if feature.vector is None]
    with new_file(file) as draft, draft.open("wb") as stream:
        np.savez(
            stream,
            rows=np.array([row for row, _ in good], np.int64),
            vectors=np.stack([vector for _, vector in good]) if good else np.empty((0, dim), np.float32),
            bad=np.array([row for row, _ in bad], np.int64),
            reasons=np.array([reason for _, reason in bad], np.str_),
        )


def read_chunks(files: Iterable[Path]) -> Iterator[Feature]:
    """The features of the files, one after the other."""
    for file in files:
        with np.load(file, allow_pickle=False) as stored:
            rows, vectors = stored["rows"].tolist(), stored["vectors"]
            bad, reasons = stored["bad"].tolist(), stored["reasons"].tolist()
        yield from (Feature(row, vector) for row, vector in zip(rows, vectors, strict=True))
        yield from (Feature(row, None, reason) for row, reason in zip(bad, reasons, strict=True))


def failures(folder: Path) -> Counter[str]:
    """Reasons why items of a table have no vector, with their counts."""
    found: Counter[str] = Counter()
    for file in sorted([*folder.glob("failed-*.csv"), *folder.glob(f"{ABOUT}/failed-*.csv")]):
        with file.open(newline="", encoding="utf-8") as stream:
            found.update(row["reason"] for row in csv.DictReader(stream))
    return found
