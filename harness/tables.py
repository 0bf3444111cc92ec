"""Embedding tables of made vectors, in the format that `lejepa-med embed` writes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from app.vectors import NONE, Condition, Query
from lejepa_med.models.embed import content_hash


def write_table(
    folder: Path,
    vectors: np.ndarray,
    *,
    ids: list[str] | None = None,
    groups: list[str] | None = None,
    labels: list[str | None] | None = None,
    encoder: str = "e" * 64,
    shard_rows: int = 1000,
    **columns: list[Any],
) -> Path:
    """`vectors` (N, dim), four rows a group unless told, with further `columns`."""
    folder.mkdir(parents=True)
    count, dim = vectors.shape
    table = pa.table(
        {
            "id": ids or [f"{row:032x}" for row in range(count)],
            "group": groups or [f"g{row // 4}" for row in range(count)],
            "label": pa.array(labels or [None] * count, pa.string()),
            **columns,
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float32).ravel()), dim),
        }
    )
    for number, start in enumerate(range(0, count, shard_rows)):
        pq.write_table(table.slice(start, shard_rows), folder / f"part-{number:05d}.parquet")
    info = {
        "encoder": encoder,
        "dim": dim,
        "embedded": count,
        "columns": list(columns),
        "content": content_hash(folder),
    }
    (folder / "embedding.json").write_text(json.dumps(info))
    return folder


def clusters(count: int, dim: int = 32, *, seed: int = 0) -> np.ndarray:
    """(count, dim) float32 around a few centres, far from length 1."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 5, (20, dim))
    return (centres[rng.integers(0, 20, count)] + rng.normal(0, 3, (count, dim))).astype(np.float32)


def facts(count: int) -> dict[str, list[Any]]:
    """Columns of every kind, with gaps, and texts that SQL could stumble over."""
    texts = ["HE", "it's", 'a "b" \\', "50%", "", None]
    return {
        "labels": [["spiral", "o'clock", None][row % 3] for row in range(count)],
        "stain": [texts[row % 6] for row in range(count)],
        "mpp": [None if row % 5 == 0 else row % 7 / 4 for row in range(count)],
        "objid": [None if row % 13 == 0 else 587722952767439450 + row for row in range(count)],
        "flat": [None if row % 11 == 0 else row % 2 == 0 for row in range(count)],
    }


def conditions(*given: dict[str, Any]) -> list[Condition]:
    return [Condition.model_validate(one) for one in given]


def query(vectors: np.ndarray, k: int, *, own_rows: Any = None, own_groups: Any = None, **more: Any) -> Query:
    none = np.full(len(vectors), NONE, np.int64)
    return Query(
        vectors=vectors,
        k=k,
        own_rows=none if own_rows is None else np.asarray(own_rows),
        own_groups=none if own_groups is None else np.asarray(own_groups),
        **more,
    )
