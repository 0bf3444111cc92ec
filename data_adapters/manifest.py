"""The manifest: one row for each readable item of an archive. It is what every later command means by the archive."""

import hashlib
import json
import mmap
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_adapters.atomic import new_file
from data_adapters.base import BaseAdapter, Record
from data_adapters.errors import BadFileError, UserError
from data_adapters.identity import item_id
from data_adapters.leaks import Leak, Placed, find_leak

SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # salted hash of path, item and content: the only name that leaves the machine
        ("group", pa.string()),  # salted hash of the patient, slide case or sky cell
        ("path", pa.string()),  # relative to the archive's root; local use only
        ("item", pa.string()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("samples", pa.int32()),
        ("bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("digest", pa.string()),  # content hash, to find exact duplicates
        ("meta", pa.string()),  # JSON
    ]
)
ROW_GROUP = 16_384  # rows of one Parquet row group: what a writer holds in memory
LARGE = 65_536  # rows; of a larger manifest they lie in a temporary file, not in memory
ONCE = ("id", "path", "mtime_ns", "digest")  # hardly a value comes twice, so a dictionary of them saves nothing


@contextmanager
def parquet_writer(
    file: Path, *, root: Path, adapter: dict[str, Any], by_folder: str = ""
) -> Iterator[pq.ParquetWriter]:
    """A writer of manifest rows. The file appears when the block succeeds, whole and on disk, or not at all."""
    header = {b"root": str(root).encode(), b"adapter": json.dumps(adapter).encode(), b"by_folder": by_folder.encode()}
    shared = [name for name in SCHEMA.names if name not in ONCE]
    with (
        new_file(file) as draft,
        pq.ParquetWriter(draft, SCHEMA.with_metadata(header), use_dictionary=shared) as writer,
    ):
        yield writer


class Records(Sequence[Record]):
    """The rows of a manifest as Records, each made when it is asked for: a million of them need no memory."""

    def __init__(self, manifest: "Manifest") -> None:
        self.manifest = manifest

    def __len__(self) -> int:
        return len(self.manifest)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self.manifest.record(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError("row beyond the manifest's end")
        return self.manifest.record(index % len(self))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Manifest:
    """The readable items of one archive, sorted by path and item. Row numbers are what the sampler speaks of.

    `by_folder`: a sentence without a full stop where the scan took folders for groups, else empty.
    """

    root: Path
    adapter: dict[str, Any]
    rows: pa.Table
    by_folder: str = ""

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    def column(self, name: str) -> list[Any]:
        """One column as a list."""
        return self.rows.column(name).to_pylist()  # type: ignore[no-any-return]

    def value(self, name: str, index: int) -> Any:
        """One value of one row, without making a list of the column."""
        return self.rows.column(name)[index].as_py()

    def record(self, index: int) -> Record:
        """Row `index` as a Record with an absolute uri."""
        row = {name: self.value(name, index) for name in ("path", "item", "group", "label", "split", "samples", "meta")}
        meta = json.loads(row.pop("meta"))
        if "files" in meta:
            meta["files"] = [str(self.root / name) for name in meta["files"]]
        return Record(uri=str(self.root / row.pop("path")), meta=meta, **row)

    def records(self) -> Records:
        """Every row as a Record."""
        return Records(self)

    def digest(self) -> str:
        """A hash of what lies in the archive: ids and content digests of all rows."""
        digest = hashlib.blake2b(digest_size=16)
        for batch in self.rows.select(["id", "digest"]).to_batches(max_chunksize=ROW_GROUP):
            for name, content in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                digest.update(f"{name}:{content}\n".encode())
        return digest.hexdigest()

    def select(self, indices: Sequence[int]) -> "Manifest":
        """The given rows, in the given order."""
        return replace(self, rows=self.rows.take(pa.array(indices, pa.int64())))

    def of_split(self, split: str) -> "Manifest":
        """The rows of one split of the catalogue.

        Raises:
            UserError: no row has this split.
        """
        splits = self.column("split")
        chosen = [index for index, value in enumerate(splits) if value == split]
        if not chosen:
            known = sorted(set(splits) - {""})
            raise UserError(
                f"No file of the archive has the split '{split}'.",
                remedy=f"Use one of its splits: {', '.join(known)}." if known else "Give a catalogue with 'split'.",
            )
        return self.select(chosen)

    def in_parts(self, adapter: BaseAdapter) -> "Manifest":
        """A row for each part of each record (tiles of slides), with the id of the whole record in `meta.whole`.

        Groups, labels and splits are those of the whole. A record whose parts cannot be told keeps its row, so that
        reading it says why.

        Raises:
            UserError: the modality has no parts, or no record of this archive has any.
        """
        if not adapter.part_columns:
            raise UserError(
                f"The modality '{adapter.name}' gives no rows for single tiles: an item has one vector.",
                remedy='Leave out --per-tile (in a request: "pool": "none"). Slides of histology have tiles.',
            )
        tables, divided = [self.rows.slice(0, 0)], False
        for number, row in enumerate(self.rows.to_pylist()):
            try:
                parts = adapter.parts(self.record(number))
            except BadFileError:
                parts = []
            if not parts or parts[0].item == row["item"]:
                tables.append(self.rows.slice(number, 1))
                continue
            divided, kept = True, json.loads(row["meta"])
            new = []
            for part in parts:
                files = {"files": kept["files"]} if "files" in kept else {}  # relative to the root, as in every row
                meta = json.dumps({**part.meta, **files, "whole": row["id"]})
                name = item_id(row["path"], part.item, row["digest"])
                new.append({**row, "id": name, "item": part.item, "samples": part.samples, "meta": meta})
            tables.append(pa.Table.from_pylist(new, SCHEMA))
        if not divided:
            raise UserError(
                "No item of the archive is a slide, so there are no tiles with places on a slide.",
                remedy='Leave out --per-tile (in a request: "pool": "none"): each tile that is a file of its own '
                "has a row already.",
            )
        return replace(self, rows=pa.concat_tables(tables).combine_chunks())

    def duplicates(self) -> list[list[int]]:
        """Groups of rows with equal content that lie in different groups (patients, slides, sky cells)."""
        by_digest: dict[tuple[str, str], list[int]] = {}
        for index, key in enumerate(zip(self.column("digest"), self.column("item"), strict=True)):
            by_digest.setdefault(key, []).append(index)
        groups = self.column("group")
        return [rows for rows in by_digest.values() if len({groups[i] for i in rows}) > 1]

    def leak(self, *, of: str | None = None) -> Leak | None:
        """What lies in several splits; with `of`, in that split and another one."""
        return find_leak(
            Placed(row["group"], row["content"], row["split"], row["name"], of is None or row["split"] == of)
            for row in self.related().to_pylist()
        )

    def related(self) -> pa.Table:
        """The rows that a split must not part: of groups that lie in several splits, and with copies in other groups.

        Columns id, group, split, name (path, and item where there is one) and content, which is empty without copies.
        """
        item = self.rows.column("item")
        key = pc.binary_join_element_wise(self.rows.column("digest"), item, "/")
        inside = pc.if_else(pc.equal(item, ""), "", pc.binary_join_element_wise("", item, " item "))
        table = self.rows.select(["id", "group", "split"])
        table = table.append_column("name", pc.binary_join_element_wise(self.rows.column("path"), inside, ""))
        table = table.append_column("content", key)
        parted = _several(table.filter(pc.not_equal(table.column("split"), "")), "group", "split")
        copied = pc.is_in(key, _several(table, "content", "group"))
        table = table.set_column(4, "content", pc.if_else(copied, key, ""))
        return table.filter(pc.or_(copied, pc.is_in(table.column("group"), parted)))

    def write(self, file: Path) -> None:
        """Write Parquet under a temporary name, then rename."""
        with parquet_writer(file, root=self.root, adapter=self.adapter, by_folder=self.by_folder) as writer:
            writer.write_table(self.rows, row_group_size=ROW_GROUP)

    @staticmethod
    def root_of(file: Path) -> Path:
        """The archive's root, without reading the rows."""
        return Path((pq.read_schema(file).metadata or {})[b"root"].decode())

    @classmethod
    def read(cls, file: Path) -> "Manifest":
        """Open manifest.parquet.

        Raises:
            UserError: the file is missing or is no manifest.
        """
        try:
            with pq.ParquetFile(file) as source:
                header = source.schema_arrow.metadata or {}
                return cls(
                    root=Path(header[b"root"].decode()),
                    adapter=json.loads(header[b"adapter"]),
                    rows=_rows(source),
                    by_folder=header.get(b"by_folder", b"").decode(),
                )
        except (OSError, pa.ArrowInvalid, KeyError) as error:
            raise UserError(
                f"{file} is not a manifest ({type(error).__name__}).", remedy="Write one with: lejepa-med scan ARCHIVE"
            ) from error


def _several(table: pa.Table, key: str, of: str) -> pa.Array:
    """The values of the column `key` that stand beside more than one value of the column `of`."""
    counts = table.group_by(key).aggregate([(of, "count_distinct")])
    return counts.filter(pc.greater(counts.column(f"{of}_count_distinct"), 1)).column(key).combine_chunks()


def _rows(source: pq.ParquetFile) -> pa.Table:
    """All rows. Large manifests are mapped: pages that the system may drop, and that forked loader workers share."""
    if source.metadata.num_rows > LARGE:
        try:
            return _mapped(source)
        except OSError:  # no room for temporary files
            pass
    return source.read().replace_schema_metadata(None).combine_chunks()  # one chunk: a row is found at once


def _mapped(source: pq.ParquetFile) -> pa.Table:
    with tempfile.TemporaryFile() as stream:
        with pa.ipc.new_file(stream, source.schema_arrow.remove_metadata()) as writer:
            for group in range(source.num_row_groups):
                writer.write_table(source.read_row_group(group))
        stream.flush()
        content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)  # it outlives the file's name and handle
    return pa.ipc.open_file(pa.py_buffer(content)).read_all()
