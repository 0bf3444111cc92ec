"""The base of every search: a table's vectors at length 1 in one memory-mapped file, beside its ids and metadata.

KEY/vectors.npy   (N, dim) float32, each of length 1, so that a dot product is the cosine
KEY/groups.npy    (N,) int32, a number for each group
KEY/rows.arrow    id, group and the columns that may be shown
KEY/base.json     whose it is; the folder appears whole, by a rename
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_adapters.atomic import new_folder
from lejepa_med.models.embed import read_info
from lejepa_med.probes.neighbours import normalise
from lejepa_med.search.conditions import mask, require_known
from lejepa_med.search.filters import Condition

FORMAT = "1"  # of the folder; part of the key, so that another format is another folder
READ_ROWS = 8192
BLOCK = 1 << 22  # floats of one product's largest operand or result: 16 MiB
QUERIES = 64  # of one product
NONE = -1  # a query that is no row, or of no group


class Base:
    """A table, opened for search. Pages of the file are the system's: read on demand, dropped when memory is short."""

    def __init__(self, folder: Path) -> None:
        info = json.loads((folder / "base.json").read_text(encoding="utf-8"))
        self.key: str = folder.name
        self.folder = folder
        self.encoder: str = info["encoder"]
        self.seconds: float = info["seconds"]
        self.built: float = info["built"]
        # np.asarray: a plain array over the mapped pages, without memmap's cost at every slice
        self.vectors: np.ndarray = np.asarray(np.load(folder / "vectors.npy", mmap_mode="r"))
        self.groups: np.ndarray = np.asarray(np.load(folder / "groups.npy", mmap_mode="r"))
        self.table: pa.Table = pa.ipc.open_file(pa.memory_map(str(folder / "rows.arrow"))).read_all()
        self.columns: dict[str, pa.DataType] = {
            field.name: field.type for field in self.table.schema if field.name not in ("id", "group")
        }

    @property
    def rows(self) -> int:
        """Number of vectors, N."""
        return len(self.vectors)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self.vectors.shape[1])

    def rows_of(self, ids: Sequence[str]) -> list[int | None]:
        """Return the row of each id, or None where the table has no such id."""
        place = self._places("id", ids)
        return [place.get(wanted) for wanted in ids]

    def codes_of(self, names: Sequence[str]) -> dict[str, int]:
        """Return the codes of those groups that the table has."""
        return {name: int(self.groups[row]) for name, row in self._places("group", names).items()}

    def _places(self, column: str, names: Sequence[str]) -> dict[str, int]:
        """A row for each of the names that the column has."""
        found = pc.is_in(self.table[column], value_set=pa.array(list(names), pa.string()))
        rows = np.flatnonzero(found.to_numpy())
        return dict(zip(self.table[column].take(rows).to_pylist(), rows.tolist(), strict=True))

    def meets(self, conditions: Sequence[Condition]) -> np.ndarray:
        """Return (N,) bool: which rows meet all conditions. ConditionError for one that does not fit the table."""
        require_known(conditions, self.columns)
        return mask(conditions, self.table)

    def nearest(
        self,
        vectors: np.ndarray,
        k: int,
        *,
        rows: np.ndarray | None = None,
        own_rows: np.ndarray,
        own_groups: np.ndarray,
    ) -> list[np.ndarray]:
        """Find the k rows of the largest cosine for each query, in descending order; equal ones in the table's order.

        Memory beyond the mapped file stays below some 100 MiB, whatever the number of rows.

        Args:
            vectors: (Q, dim) float32 of length 1.
            k: how many.
            rows: look at these rows only, ascending.
            own_rows: (Q,) a row that is left out, or NONE.
            own_groups: (Q,) a group's code that is left out, or NONE.
        """
        found = []
        for start in range(0, len(vectors), QUERIES):
            part = slice(start, start + QUERIES)
            found += self._nearest(vectors[part], k, rows, own_rows[part], own_groups[part])
        return found

    def _nearest(
        self, vectors: np.ndarray, k: int, rows: np.ndarray | None, own_rows: np.ndarray, own_groups: np.ndarray
    ) -> list[np.ndarray]:
        count = self.rows if rows is None else len(rows)
        step = max(1024, BLOCK // (len(vectors) if rows is None else max(len(vectors), self.dim)))
        best = np.full((len(vectors), 0), -np.inf, np.float32)
        places = np.zeros((len(vectors), 0), np.int64)
        for start in range(0, count, step):
            stop = min(start + step, count)
            index = np.arange(start, stop) if rows is None else rows[start:stop]
            block = self.vectors[start:stop] if rows is None else self.vectors[index]
            scores = (block @ vectors[0])[None] if len(vectors) == 1 else vectors @ block.T
            for query, (row, group) in enumerate(zip(own_rows, own_groups, strict=True)):
                own = np.searchsorted(index, row)
                if own < len(index) and index[own] == row:
                    scores[query, own] = -np.inf
                if group >= 0:
                    scores[query, self.groups[index] == group] = -np.inf
            keep = min(k, scores.shape[1])
            top = np.argpartition(scores, scores.shape[1] - keep, axis=1)[:, scores.shape[1] - keep :]
            best = np.concatenate([best, np.take_along_axis(scores, top, 1)], axis=1)
            places = np.concatenate([places, index[top]], axis=1)
            order = np.lexsort((places, -best), axis=1)[:, :k]
            best, places = np.take_along_axis(best, order, 1), np.take_along_axis(places, order, 1)
        return [place[np.isfinite(score)] for place, score in zip(places, best, strict=True)]


def table_key(folder: Path) -> str:
    """Return a name for the content of a finished embedding table, the same wherever the table lies.

    Of a table from before its file held a content hash, times of change stand for the content: copies differ.

    Raises:
        UserError: there is no finished table.
    """
    info = read_info(folder)
    if "content" not in info:
        info["content"] = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in _shards(folder)]
    return info_key(info)


def info_key(info: Mapping[str, Any]) -> str:
    """Return the `table_key` of a table whose embedding.json, `info`, holds a content hash."""
    text = json.dumps([FORMAT, info], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def build_base(table: Path, target: Path) -> None:
    """Write the base of a finished embedding table as the folder `target`, whole or not at all.

    Reads a shard at a time, so memory does not grow with the table but for some bytes a group.

    Raises:
        UserError: there is no finished table.
        ValueError: it holds a vector that is not finite, or another length or type than it says.
        OSError: the disk is full, for one.
    """
    began = time.perf_counter()
    info = read_info(table)
    files = _shards(table)
    count = sum(pq.read_metadata(file).num_rows for file in files)
    found = pq.read_schema(files[0])
    names = ["id", "group", *(name for name in ("label", *info.get("columns", ())) if _is_simple(found, name))]
    schema = pa.schema([found.field(name) for name in names])
    with new_folder(target) as draft:
        codes: dict[str, int] = {}
        groups = np.empty(count, np.int32)
        start = 0
        # Written and not mapped: on a full disk a write fails, a mapped page ends the process.
        with (draft / "vectors.npy").open("wb") as vectors, pa.ipc.new_file(str(draft / "rows.arrow"), schema) as rows:
            header = {"descr": "<f4", "fortran_order": False, "shape": (count, info["dim"])}
            np.lib.format.write_array_header_1_0(vectors, header)
            for batch in _batches(files, [*names, "vector"]):
                stop = start + len(batch)
                values = np.asarray(batch.column("vector").flatten(), np.float32)
                vectors.write(normalised(values.reshape(len(batch), info["dim"])).astype("<f4", copy=False).data)
                groups[start:stop] = [codes.setdefault(name, len(codes)) for name in batch.column("group").to_pylist()]
                rows.write_batch(batch.select(names).cast(schema))
                start = stop
        np.save(draft / "groups.npy", groups)
        facts: dict[str, Any] = {
            "encoder": info["encoder"],
            "built": time.time(),
            "seconds": round(time.perf_counter() - began, 3),
        }
        (draft / "base.json").write_text(json.dumps(facts), encoding="utf-8")


def normalised(vectors: np.ndarray) -> np.ndarray:
    """Return vectors (N, dim) at length 1; a vector of zeros stays, with a cosine of 0 to everything.

    Raises:
        ValueError: a value is not finite.
    """
    if not np.isfinite(vectors).all():
        raise ValueError("a vector is not finite")
    return normalise(vectors)


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.parquet"))


def _batches(files: Sequence[Path], columns: list[str]) -> Iterator[pa.RecordBatch]:
    for file in files:
        with pq.ParquetFile(file, pre_buffer=False) as shard:  # a reader keeps what it has read ahead
            yield from shard.iter_batches(READ_ROWS, columns=columns)


def _is_simple(schema: pa.Schema, name: str) -> bool:
    if name not in schema.names:
        return False
    kind = schema.field(name).type
    return bool(
        pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    )
