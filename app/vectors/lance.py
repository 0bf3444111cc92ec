"""A LanceDB index in the data directory: for tables too large to look at every vector, where no PostgreSQL is at hand.

KEY/vectors.lance   row number, group code, metadata, vector; with an HNSW index over 8-bit codes
KEY/report.json     what `find` tells; the folder appears whole, by a rename
"""

import json
import math
import shutil
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from app.vectors.backend import Query, Report, measure
from data_adapters.atomic import new_folder, write_text
from lejepa_med.client.wire.common import BackendName
from lejepa_med.search.base import NONE, Base
from lejepa_med.search.conditions import to_sql

WRITE_ROWS = 8192
PARTITION = 1 << 20  # vectors of one HNSW graph, LanceDB's own default: bounds the memory of the build
EF_LEAST = 200  # candidates a search keeps, for recall
REPORT = "report.json"


class Lance:
    """Backend in files below `folder`."""

    name: BackendName = "lancedb"

    @staticmethod
    def is_installed() -> bool:
        """Whether the extra 'lance' is."""
        return find_spec("lancedb") is not None

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, Any] = {}

    def find(self, key: str) -> Report | None:
        """From its report file."""
        file = self._folder / key / REPORT
        return Report(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None

    def build(self, base: Base) -> Report:
        """Write, index and measure in a draft folder, then rename it."""
        from lancedb.index import HnswSq

        began = time.perf_counter()
        with new_folder(self._folder / base.key) as draft:
            schema = _schema(base)
            reader = pa.RecordBatchReader.from_batches(schema, _batches(base, schema))
            table = _connect(draft).create_table("vectors", data=reader)
            graphs = max(1, math.ceil(base.rows / PARTITION))
            table.create_index("v", config=HnswSq(distance_type="dot", num_partitions=graphs))
            recall, sample = measure(base, lambda query: _nearest(table, base, query))
            report = Report(rows=base.rows, recall=recall, sample=sample, seconds=round(time.perf_counter() - began, 2))
            write_text(draft / REPORT, json.dumps(report.as_dict()))
        return report

    def nearest(self, base: Base, query: Query) -> list[np.ndarray]:
        """Rows in the index's order."""
        if base.key not in self._open:
            self._open[base.key] = _connect(self._folder / base.key).open_table("vectors")
        return _nearest(self._open[base.key], base, query)

    def drop(self, keep: frozenset[str]) -> None:
        """Remove the folders of other keys, and drafts of killed builds."""
        for entry in self._folder.iterdir() if self._folder.is_dir() else ():
            if entry.name not in keep:
                self._open.pop(entry.name, None)
                shutil.rmtree(entry, ignore_errors=True)


def _connect(folder: Path) -> Any:
    import lancedb

    return lancedb.connect(folder)


def _nearest(table: Any, base: Base, query: Query) -> list[np.ndarray]:
    named = [str(value) for item in query.conditions if item.column == "group" for value in item.values]
    clauses = to_sql(query.conditions, base.columns, base.codes_of(named), _literal)
    wanted = 2 * query.k + 1  # more than k: codes are rounded, and the query item itself is among them
    found = []
    for vector, group in zip(query.vectors, query.own_groups, strict=True):
        where = [*clauses, *([f"g <> {group}"] if group != NONE else [])]
        search = table.search(vector, vector_column_name="v").distance_type("dot").select(["row", "_distance"])
        search = search.limit(wanted).ef(max(EF_LEAST, 2 * wanted)).nprobes(math.ceil(base.rows / PARTITION))
        if where:
            search = search.where(" AND ".join(where), prefilter=True)
        found.append(search.to_arrow().column("row").to_numpy().astype(np.int64))
    return found


def _schema(base: Base) -> pa.Schema:
    facts = [(f"c{index}", kind) for index, kind in enumerate(base.columns.values())]
    return pa.schema([("row", pa.int32()), ("g", pa.int32()), *facts, ("v", pa.list_(pa.float32(), base.dim))])


def _batches(base: Base, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for start in range(0, base.rows, WRITE_ROWS):
        stop = min(start + WRITE_ROWS, base.rows)
        facts = base.table.slice(start, stop - start).select(list(base.columns)).combine_chunks()
        values = pa.array(np.ascontiguousarray(base.vectors[start:stop]).ravel())
        yield pa.record_batch(
            [
                pa.array(np.arange(start, stop), pa.int32()),
                pa.array(base.groups[start:stop]),
                *(column.combine_chunks() for column in facts.columns),
                pa.FixedSizeListArray.from_arrays(values, base.dim),
            ],
            schema=schema,
        )


def _literal(value: bool | int | float | str) -> str:
    """A value in DataFusion's SQL, where a quote inside a text is doubled and a backslash means itself."""
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(value).lower() if isinstance(value, bool) else repr(value)
