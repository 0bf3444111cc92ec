"""What a scan found: figures, the manifest, and the files that a data manager reads."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_adapters.atomic import new_file
from data_adapters.base import Rejected
from data_adapters.catalog import Catalog
from data_adapters.leaks import Leak, Placed, find_leak
from data_adapters.manifest import ROW_GROUP, SCHEMA, Manifest, parquet_writer
from data_adapters.record import BY_FOLDER
from data_adapters.scan.journal import Journal
from data_adapters.tables import count

ROWS = ", ".join(f'"{name}"' for name in SCHEMA.names)
BATCH = 1024  # rows that are Python objects at one time
FOLDER = "rtrim({path}, replace({path}, '/', ''))"  # without the file's name
# where a group lies, where that is not its items' folder
PLACES = {"BIDS subject": "substr({path}, 1, instr({path}, 'sub-') - 1)"}
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
    """Counts over the readable items. `bytes` counts each file once; `facts[key]`: values of meta with their counts.

    `parts`: samples of each split.
    """

    items: int
    groups: int
    samples: int
    bytes: int
    labels: Counter[str]
    splits: Counter[str]
    parts: Counter[str]
    facts: dict[str, Counter[str]]


@dataclass(frozen=True)
class Grouping:
    """What one rule made: so many groups of so many items in so many folders. `apart`: groups in several folders."""

    rule: str
    groups: int
    items: int
    folders: int
    apart: int

    @property
    def by_folder(self) -> str:
        """What a user must hear where folders were taken for groups, without a full stop; else empty."""
        if not self.rule.startswith(BY_FOLDER):
            return ""
        files, folders = count(self.items, "file"), count(self.folders, "folder")
        return f"{files} in {folders} were taken for {count(self.groups, 'group')}, by folder ({self.rule})"


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
    """How many contents lie in several groups, how many of them in several splits, and how many in one group alone."""

    contents: int
    across_splits: int
    within: int


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
        passed: Mapping[str, int],
        catalog: Catalog | None = None,
        origins: Mapping[str, str] | None = None,
    ) -> None:
        self._path = "origin(path)" if origins else "path"  # in SQL; without a call of Python where it can be
        if origins:
            journal.define("origin", lambda path: origins.get(path, path))
        self.root, self.adapter, self.changes = root, adapter, changes
        self.passed = passed
        """Files that are no images and stand beside them, by suffix, and `system files`."""
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

    @property
    def first_unused(self) -> list[tuple[int, str]]:
        """Row numbers and paths of the first of them."""
        return self._catalog.first_unused() if self._catalog is not None else []

    @property
    def without_row(self) -> int:
        """How many items of the archive have no row in the catalogue."""
        return self._catalog.without_row if self._catalog is not None else 0

    @property
    def catalog_notes(self) -> list[str]:
        """What the catalogue's reader has to say: rows without files, files without rows, missing cells."""
        return self._catalog.notes() if self._catalog is not None else []

    def _one(self, sql: str) -> tuple[Any, ...]:
        return next(self._journal.query(sql, self._run))

    @cached_property
    def manifest(self) -> Manifest:
        """The readable items in memory, sorted by path and item."""
        rows = pa.Table.from_batches(self._batches(), SCHEMA)
        return Manifest(root=self.root, adapter=self.adapter, rows=rows, by_folder=self.by_folder)

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

    def figures(self, keys: Iterable[str], *, split: str | None = None) -> Figures:
        """Counts of items, and of the values that `keys` of meta have, as JSON text; of one split, the facts."""
        items, groups, samples = self._one(
            f'SELECT COUNT(*), COUNT(DISTINCT "group"), COALESCE(SUM(samples), 0) {READABLE}'
        )
        (size,) = self._one(f"SELECT COALESCE(SUM(b), 0) FROM (SELECT MAX(bytes) b {READABLE} GROUP BY path)")
        facts: dict[str, Counter[str]] = {key: Counter() for key in keys}
        for (meta,) in self._journal.query(f"SELECT meta {READABLE} AND split = COALESCE(?, split)", self._run, split):
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
            parts=self._counts("split", "SUM(samples)"),
            facts=facts,
        )

    def grouping(self) -> list[Grouping]:
        """How the groups were found, the rule with most items first."""
        folder = FOLDER.format(path=self._path)
        sql = f"""
            SELECT grouped_by, COUNT(DISTINCT "group"), COUNT(*), COUNT(DISTINCT {folder}) {READABLE}
            GROUP BY grouped_by ORDER BY 3 DESC, 1
        """
        return [
            Grouping(rule, groups, items, folders, self._apart(rule))
            for rule, groups, items, folders in list(self._journal.query(sql, self._run))
        ]

    @property
    def by_folder(self) -> str:
        """The sentence of `Grouping.by_folder`, or empty."""
        return "".join(one.by_folder for one in self.grouping())

    def _apart(self, rule: str) -> int:
        """How many groups of a rule lie in several places."""
        by, _, level = rule.partition(":")
        place = PLACES.get(rule, FOLDER).format(path=self._path)
        place = f"first_parts({place}, {int(level)})" if by == BY_FOLDER else place
        sql = f"""
            SELECT COUNT(*) FROM (
                SELECT 1 {READABLE} AND grouped_by = ? GROUP BY "group" HAVING COUNT(DISTINCT {place}) > 1
            )
        """
        return int(next(self._journal.query(sql, self._run, rule))[0])

    def _counts(self, column: str, what: str = "COUNT(*)") -> Counter[str]:
        sql = f"SELECT {column}, {what} {READABLE} AND {column} != '' GROUP BY {column} ORDER BY 2 DESC, MIN(path)"
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
        contents, across, within = self._one(
            f"""
            SELECT COALESCE(SUM(n > 1), 0), COALESCE(SUM(n > 1 AND splits > 1), 0), COALESCE(SUM(n = 1), 0) FROM (
                SELECT COUNT(DISTINCT "group") AS n, COUNT(DISTINCT CASE WHEN split != '' THEN split END) AS splits
                {READABLE} GROUP BY digest, item HAVING COUNT(*) > 1
            )
            """
        )
        return Copies(contents=contents, across_splits=across, within=within)

    @cached_property
    def leak(self) -> Leak | None:
        """What lies in several splits of the catalogue."""
        return find_leak(
            Placed(group, content, split, path + f" item {item}" * bool(item))
            for group, content, split, path, item in self._parted()
        )

    def _parted(self) -> Iterator[tuple[str, str, str, str, str]]:
        """Group, content, split, path and item of what lies in several splits by its group or by its content.

        The content is empty where it does not.
        """
        placed, several = f"{READABLE} AND split != ''", "HAVING COUNT(DISTINCT split) > 1"
        sql = f"""
            WITH copied AS (SELECT digest, item {placed} GROUP BY digest, item {several})
            SELECT "group", CASE WHEN (digest, item) IN copied THEN digest || '/' || item ELSE '' END, split, path, item
            {placed} AND (
                "group" IN (SELECT "group" {placed} GROUP BY "group" {several}) OR (digest, item) IN copied
            ) ORDER BY path, item
        """
        return self._journal.query(sql, self._run, self._run, self._run)  # type: ignore[return-value]

    def write(self, folder: Path, *, manifest: Manifest | None = None) -> None:
        """Write rejected.csv, duplicates.csv and leaks.csv (where there are any) and manifest.parquet into `folder`.

        Each file is replaced as a whole, the manifest last. A run writes a `manifest` of its own instead: a part of
        the scan's, with the description of the fitted adapter, and without duplicates.csv and leaks.csv.
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
        if self.leak is not None:
            _write_csv(folder / "leaks.csv", ("group", "content", "split", "path", "item"), self._parted())
        else:
            (folder / "leaks.csv").unlink(missing_ok=True)
        facts: dict[str, Any] = {"root": self.root, "adapter": self.adapter, "by_folder": self.by_folder}
        with parquet_writer(folder / "manifest.parquet", **facts) as writer:
            batches = self._batches()
            while group := list(islice(batches, ROW_GROUP // BATCH)):
                writer.write_table(pa.Table.from_batches(group), row_group_size=ROW_GROUP)


def _write_csv(file: Path, header: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> None:
    with new_file(file) as draft, draft.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows(rows)
