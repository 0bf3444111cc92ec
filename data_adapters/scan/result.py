"""What a scan found: figures, the manifest, and the files that a data manager reads."""

import csv
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_adapters.base import Rejected
from data_adapters.catalog import Catalog
from data_adapters.errors import naming
from data_adapters.manifest import ROW_GROUP, SCHEMA, Manifest, parquet_writer
from data_adapters.scan.journal import Journal

ROWS = ", ".join(f'"{name}"' for name in SCHEMA.names)
BATCH = 1024  # rows that are Python objects at one time
READABLE = "FROM items WHERE run = ? AND NOT refused"


@dataclass(frozen=True)
class Changes:
    """Files since the last finished scan into the same journal; after a first scan all are new."""

    new: int
    changed: int
    same: int
    removed: int


@dataclass(frozen=True)
class Figures:
    """Counts over the readable items. `bytes` counts each file once; `facts[key]`: values of meta with their counts."""

    items: int
    groups: int
    samples: int
    bytes: int
    labels: Counter[str]
    splits: Counter[str]
    facts: dict[str, Counter[str]]


@dataclass(frozen=True)
class Copy:
    """One of several items with equal content. `number` is that of the content."""

    number: int
    path: str
    item: str
    group: str
    label: str | None
    split: str


@dataclass(frozen=True)
class Copies:
    """How many contents lie in several groups, and how many of them in several splits of the catalogue."""

    contents: int
    across_splits: int


class Scan:
    """The readable items and the refused files of one archive.

    Rows stay in the journal until they are asked for; once another scan has written into the same journal, asking is an
    error.
    """

    def __init__(
        self,
        *,
        root: Path,
        adapter: dict[str, Any],
        journal: Journal,
        changes: Changes,
        catalog: Catalog | None = None,
    ) -> None:
        self.root, self.adapter, self.changes = root, adapter, changes
        self._catalog = catalog
        self._journal, self._run = journal, journal.run

    def __len__(self) -> int:
        return int(self._one(f"SELECT COUNT(*) {READABLE}")[0])

    @property
    def unused(self) -> list[str]:
        """Paths of the catalogue's rows without a file, in memory."""
        return self._catalog.unused() if self._catalog is not None else []

    @property
    def unused_rows(self) -> int:
        """How many rows of the catalogue are without a file."""
        return self._catalog.unused_rows() if self._catalog is not None else 0

    def _one(self, sql: str) -> tuple[Any, ...]:
        return next(self._journal.query(sql, self._run))

    @cached_property
    def manifest(self) -> Manifest:
        """The readable items in memory, sorted by path and item."""
        return Manifest(root=self.root, adapter=self.adapter, rows=pa.Table.from_batches(self._batches(), SCHEMA))

    def _batches(self) -> Iterator[pa.RecordBatch]:
        rows = self._journal.query(f"SELECT {ROWS} {READABLE} ORDER BY path, item", self._run)
        while batch := list(islice(rows, BATCH)):
            columns = zip(*batch, strict=True)
            arrays = [pa.array(values, kind) for values, kind in zip(columns, SCHEMA.types, strict=True)]
            yield pa.record_batch(arrays, schema=SCHEMA)

    @cached_property
    def refused(self) -> list[Rejected]:
        """Refused files, sorted by path, in memory."""
        return [Rejected(uri=str(self.root / path), reason=reason, remedy=m) for path, reason, m in self._refusals()]

    def _refusals(self) -> Iterator[tuple[str, str, str]]:
        sql = "SELECT path, reason, remedy FROM items WHERE run = ? AND refused ORDER BY path, item"
        return self._journal.query(sql, self._run)  # type: ignore[return-value]

    def reasons(self) -> list[tuple[str, int]]:
        """Reasons of refusal with their counts, most frequent first."""
        sql = "SELECT reason, COUNT(*) FROM items WHERE run = ? AND refused GROUP BY reason ORDER BY 2 DESC, 1"
        return list(self._journal.query(sql, self._run))  # type: ignore[arg-type]

    def figures(self, keys: Iterable[str]) -> Figures:
        """Counts of items, and of the values that `keys` of meta have, as JSON text."""
        items, groups, samples = self._one(
            f'SELECT COUNT(*), COUNT(DISTINCT "group"), COALESCE(SUM(samples), 0) {READABLE}'
        )
        (size,) = self._one(f"SELECT COALESCE(SUM(b), 0) FROM (SELECT MAX(bytes) b {READABLE} GROUP BY path)")
        facts: dict[str, Counter[str]] = {key: Counter() for key in keys}
        for (meta,) in self._journal.query(f"SELECT meta {READABLE}", self._run):
            known = json.loads(meta)
            for key in facts.keys() & known.keys():
                facts[key][json.dumps(known[key])] += 1
        return Figures(
            items=items,
            groups=groups,
            samples=samples,
            bytes=size,
            labels=self._counts("label"),
            splits=self._counts("split"),
            facts=facts,
        )

    def _counts(self, column: str) -> Counter[str]:
        sql = f"SELECT {column}, COUNT(*) {READABLE} AND {column} != '' GROUP BY {column} ORDER BY 2 DESC, MIN(path)"
        return Counter(dict(self._journal.query(sql, self._run)))  # type: ignore[arg-type]

    def copies(self) -> Iterator[Copy]:
        """Items of equal content that lie in several groups (patients, slides, sky cells), content by content."""
        sql = f"""
            SELECT DENSE_RANK() OVER (ORDER BY digest, item), path, item, "group", label, split {READABLE}
            AND (digest, item) IN (
                SELECT digest, item {READABLE} GROUP BY digest, item HAVING COUNT(DISTINCT "group") > 1
            ) ORDER BY digest, item, path
        """
        return (Copy(*row) for row in self._journal.query(sql, self._run, self._run))

    @cached_property
    def copied(self) -> Copies:
        """The counts of `copies`."""
        contents, across = self._one(
            f"""
            SELECT COUNT(*), COALESCE(SUM(splits > 1), 0) FROM (
                SELECT COUNT(DISTINCT CASE WHEN split != '' THEN split END) AS splits {READABLE}
                GROUP BY digest, item HAVING COUNT(DISTINCT "group") > 1
            )
            """
        )
        return Copies(contents=contents, across_splits=across)

    def write(self, folder: Path, *, manifest: Manifest | None = None) -> None:
        """Write rejected.csv, duplicates.csv (where there are any) and manifest.parquet into `folder`.

        Each file is replaced as a whole, the manifest last. A run writes a `manifest` of its own instead: a part of
        the scan's, with the description of the fitted adapter, and without duplicates.csv.
        """
        folder.mkdir(parents=True, exist_ok=True)
        _write_csv(folder / "rejected.csv", ("path", "reason", "remedy"), self._refusals())
        if manifest is not None:
            manifest.write(folder / "manifest.parquet")
            return
        if self.copied.contents:
            rows = ((c.number, c.path, c.item, c.group, c.label or "", c.split) for c in self.copies())
            _write_csv(folder / "duplicates.csv", ("content", "path", "item", "group", "label", "split"), rows)
        else:
            (folder / "duplicates.csv").unlink(missing_ok=True)
        with parquet_writer(folder / "manifest.parquet", root=self.root, adapter=self.adapter) as writer:
            batches = self._batches()
            while group := list(islice(batches, ROW_GROUP // BATCH)):
                writer.write_table(pa.Table.from_batches(group), row_group_size=ROW_GROUP)


def _write_csv(file: Path, header: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> None:
    with _draft(file) as draft, draft.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows(rows)
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def _draft(file: Path) -> Iterator[Path]:
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with naming(file):
            yield draft
        os.replace(draft, file)
    finally:
        draft.unlink(missing_ok=True)
