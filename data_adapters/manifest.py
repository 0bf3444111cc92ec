"""scan: an archive becomes manifest.parquet (what can be read) and rejected.csv (what cannot, and why)."""

import csv
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_adapters.base import Adapter, Record, Rejected, rejected, walk
from data_adapters.catalog import Catalog
from data_adapters.errors import UserError
from data_adapters.identity import pseudonym

SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # salted hash of path and item: the only name that leaves the machine
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
HASH_WHOLE = 64 << 20  # bytes; of larger files the size, the head, the middle and the tail are hashed (4 MiB each)
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Manifest:
    """The readable items of one archive, sorted by path and item. Row numbers are what the sampler speaks of."""

    root: Path
    adapter: dict[str, Any]
    rows: pa.Table

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    def column(self, name: str) -> list[Any]:
        """One column as a list."""
        return self.rows.column(name).to_pylist()  # type: ignore[no-any-return]

    def record(self, index: int) -> Record:
        """Row `index` as a Record with an absolute uri."""
        row = self.rows.slice(index, 1).to_pylist()[0]
        meta = json.loads(row["meta"])
        if "files" in meta:
            meta["files"] = [str(self.root / name) for name in meta["files"]]
        return Record(
            uri=str(self.root / row["path"]),
            item=row["item"],
            group=row["group"],
            label=row["label"],
            split=row["split"],
            samples=row["samples"],
            meta=meta,
        )

    def records(self) -> list[Record]:
        """Every row as a Record."""
        return [self.record(index) for index in range(len(self))]

    def select(self, indices: Sequence[int]) -> "Manifest":
        """The given rows, in the given order."""
        return Manifest(root=self.root, adapter=self.adapter, rows=self.rows.take(pa.array(indices, pa.int64())))

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
                remedy=f"The catalogue has the splits: {', '.join(known)}."
                if known
                else "Give a catalogue with 'split'.",
            )
        return self.select(chosen)

    def duplicates(self) -> list[list[int]]:
        """Groups of rows with equal content that lie in different groups (patients, slides, sky cells)."""
        by_digest: dict[tuple[str, str], list[int]] = {}
        for index, key in enumerate(zip(self.column("digest"), self.column("item"), strict=True)):
            by_digest.setdefault(key, []).append(index)
        groups = self.column("group")
        return [rows for rows in by_digest.values() if len({groups[i] for i in rows}) > 1]

    def write(self, file: Path) -> None:
        """Write Parquet under a temporary name, then rename."""
        header = {b"root": str(self.root).encode(), b"adapter": json.dumps(self.adapter).encode()}
        draft = file.with_name(f".{file.name}.{os.getpid()}")
        pq.write_table(self.rows.replace_schema_metadata(header), draft)
        os.replace(draft, file)

    @classmethod
    def read(cls, file: Path) -> "Manifest":
        """Open manifest.parquet.

        Raises:
            UserError: the file is missing or is no manifest.
        """
        try:
            table = pq.read_table(file)
            header = table.schema.metadata or {}
            return cls(
                root=Path(header[b"root"].decode()),
                adapter=json.loads(header[b"adapter"]),
                rows=table.replace_schema_metadata(None),
            )
        except (OSError, pa.ArrowInvalid, KeyError) as error:
            raise UserError(
                f"{file} is not a manifest ({type(error).__name__}).", remedy="Write one with: lejepa-med scan ARCHIVE"
            ) from error


@dataclass(frozen=True)
class Scan:
    """What scan found."""

    manifest: Manifest
    refused: list[Rejected]
    unused: list[str]  # catalogue rows without a file

    def reasons(self) -> list[tuple[str, int]]:
        """Reasons of refusal with their counts, most frequent first."""
        return Counter(item.reason for item in self.refused).most_common()

    def write(self, folder: Path) -> None:
        """Write manifest.parquet and rejected.csv into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f".rejected.csv.{os.getpid()}"
        with draft.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["path", "reason", "remedy"])
            for item in self.refused:
                writer.writerow([_relative(item.uri, self.manifest.root), item.reason, item.remedy])
        os.replace(draft, folder / "rejected.csv")
        self.manifest.write(folder / "manifest.parquet")


def scan_archive(
    adapter: Adapter,
    root: Path,
    *,
    catalog: Catalog | None = None,
    verify: bool = True,
    progress: Progress | None = None,
) -> Scan:
    """Walk `root` and sort its files into readable records and refused files.

    Args:
        adapter: the modality.
        root: the archive's folder, or one file.
        catalog: groups, labels and splits by path.
        verify: decode every record once, so that damage behind a good header is found now and not during training.
        progress: called with (records seen, files in all).

    Raises:
        UserError: `root` does not exist, or nothing in it can be read.
    """
    root = root.resolve()
    if not root.exists():
        raise UserError(f"The archive {root} does not exist.", remedy="Give the folder that holds the images.")
    base = root if root.is_dir() else root.parent
    total = sum(1 for _ in walk(root))
    refused: list[Rejected] = []
    rows: list[dict[str, Any]] = []
    digests: dict[str, tuple[int, int, str]] = {}
    for seen, found in enumerate(adapter.scan(root, catalog=catalog), start=1):
        if isinstance(found, Record):
            try:
                if verify:
                    adapter.verify(found)
                rows.append(_row(found, base, digests))
            except Exception as error:  # a reader may raise anything; `rejected` lets real faults through
                refused.append(rejected(found.uri, error))
        else:
            refused.append(found)
        if progress is not None:
            progress(seen, max(total, seen))
    rows.sort(key=lambda row: (row["path"], row["item"]))
    manifest = Manifest(root=base, adapter=adapter.describe(), rows=pa.Table.from_pylist(rows, schema=SCHEMA))
    return Scan(manifest=manifest, refused=refused, unused=catalog.unused() if catalog is not None else [])


def _row(record: Record, base: Path, digests: dict[str, tuple[int, int, str]]) -> dict[str, Any]:
    files: list[str] = list(record.meta.get("files", [record.uri]))
    if record.uri not in digests:
        stats = [os.stat(name) for name in files]
        size, mtime = sum(s.st_size for s in stats), max(s.st_mtime_ns for s in stats)
        digests.clear()  # items of one file follow each other; one entry is enough
        digests[record.uri] = (size, mtime, content_hash(files))
    size, mtime, digest = digests[record.uri]
    path = _relative(record.uri, base)
    meta = dict(record.meta)
    if "files" in meta:
        meta["files"] = [_relative(name, base) for name in meta["files"]]
    return {
        "id": pseudonym("id", path, record.item),
        "group": pseudonym("group", record.group),
        "path": path,
        "item": record.item,
        "label": record.label,
        "split": record.split,
        "samples": record.samples,
        "bytes": size,
        "mtime_ns": mtime,
        "digest": digest,
        "meta": json.dumps(meta, sort_keys=True),
    }


def content_hash(files: Iterable[str]) -> str:
    """BLAKE2b-128 of the files' content; of files beyond 64 MiB, of their size, head, middle and tail."""
    digest = hashlib.blake2b(digest_size=16)
    for name in files:
        size = os.stat(name).st_size
        with open(name, "rb") as stream:
            if size <= HASH_WHOLE:
                digest.update(stream.read())
                continue
            digest.update(size.to_bytes(8, "little"))
            for start in (0, size // 2, size - (4 << 20)):
                stream.seek(start)
                digest.update(stream.read(4 << 20))
    return digest.hexdigest()


def _relative(path: str, base: Path) -> str:
    return Path(path).relative_to(base).as_posix() if Path(path).is_relative_to(base) else path
