"""An archive becomes an embedding table: Parquet shards of ids, groups and vectors, resumable after any interruption.

OUT/part-00000.parquet ...      id, group, label, further columns where asked for, vector (fixed-size list of float32);
                                no paths, no names. `pyarrow.parquet.read_table(OUT)` reads all of them
OUT/_about/failed-00000.csv ... rows of each shard that could not be read (id, reason)
OUT/_about/related.json         ids that a split must not part (equal images in several groups, groups in several splits
                                of the catalogue), with numbers of equal content; absent when there are none
OUT/_about/context.parquet      id, and how each image was made (scanner, field strength, site ...), by which probes are
                                checked for confounders; absent where the archive tells nothing. May be deleted
OUT/_about/thumbnails.arrow     small pictures of what the encoder saw, only where they were asked for (thumbnails.py)
OUT/_about/plan.json            whose table this is, so that two are never mixed
OUT/_about/embedding.json       encoder fingerprint, digests of archive and shards, counts; written last

Tables of earlier releases have the files of _about beside the shards; they are read all the same.
"""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_adapters.acquisition import acquisition_facts, public_facts
from data_adapters.atomic import new_file, sync, write_text
from data_adapters.base import Adapter, BaseAdapter, Record, rejected
from data_adapters.leaks import Leak, Placed, find_leak
from data_adapters.manifest import Manifest
from lejepa_med.cpu import Threads
from lejepa_med.data.loader import Ahead, Parcel
from lejepa_med.errors import BadFileError, UserError, is_shortage
from lejepa_med.models.folder import LoadedEncoder
from lejepa_med.models.thumbnails import Thumbnail, join_parts, thumbnails_of, write_part

ABOUT = "_about"  # readers of Parquet folders pass over a name that begins so
DONE = "embedding.json"
PLAN = "plan.json"
RELATED = "related.json"
CONTEXT = "context.parquet"
OWN = ("id", "group", "label", "vector")  # columns of every table
# Of a record: where it lies, what it is called, or another spelling of that.
NEVER_COLUMNS = frozenset(
    {"path", "item", "digest", "bytes", "mtime_ns", "meta", "file", "files", "parts", "name", "uri"}
)
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Feature:
    """The embedding of `records[index]`, (dim,) float32, or why there is none; `thumbnail` as WebP, or empty."""

    index: int
    vector: np.ndarray | None
    error: str = ""
    thumbnail: bytes = b""


def _prepare(adapter: Adapter, records: Sequence[Record], index: int) -> Parcel:
    try:
        return Parcel("", [adapter.prepare(records[index])])
    except BadFileError as error:
        return Parcel(error.cause)
    except (OSError, ValueError, EOFError, RuntimeError) as error:
        if is_shortage(error):
            raise  # of memory or open files, say, which is no fault of this file
        return Parcel(rejected(records[index].uri, error).reason)


def embed_records(
    encoder: LoadedEncoder,
    records: Sequence[Record],
    *,
    batch_size: int = 64,
    workers: int = 0,
    threads: Threads | None = None,
    thumbnail: Thumbnail | None = None,
) -> Iterator[Feature]:
    """Embed records in order; one that cannot be read yields a Feature with an error and the rest goes on.

    Args:
        encoder: with its own adapter, so the pixels are those that it was trained for.
        records: of any archive of the same modality.
        batch_size: slices or tiles in one forward pass.
        workers: processes that read and prepare.
        threads: an open choice of CPU threads that goes on over several calls; None: one for this call.
        thumbnail: makes the features' thumbnails; None: they have none.
    """
    loader = Ahead(
        partial(_prepare, encoder.adapter, records),
        range(len(records)),
        build=lambda parcel: parcel,
        workers=workers,
        fewer="--workers or a smaller --batch-size",
    )
    waiting: list[Parcel] = []
    size = first = 0
    open_choice = nullcontext(threads) if threads is not None else Threads(active=encoder.device == "cpu")
    with closing(loader), open_choice as pace:
        for parcel in loader:
            waiting.append(parcel)
            size += sum(map(len, parcel.tensors))
            if size >= batch_size:
                yield from _flush(encoder, waiting, first, batch_size, thumbnail)
                pace.step(size)
                first += len(waiting)
                waiting, size = [], 0
        yield from _flush(encoder, waiting, first, batch_size, thumbnail)


def _flush(
    encoder: LoadedEncoder, waiting: Sequence[Parcel], first: int, batch_size: int, thumbnail: Thumbnail | None
) -> Iterator[Feature]:
    vectors = iter(encoder.embed([tensor for parcel in waiting for tensor in parcel.tensors], batch_size=batch_size))
    for index, parcel in enumerate(waiting, first):
        small = b"" if thumbnail is None or not parcel.tensors else thumbnail(parcel.tensors[0])
        yield Feature(index, next(vectors) if parcel.tensors else None, parcel.facts, small)


def about(folder: Path, name: str) -> Path:
    """Return the path of a table's file that is no shard; earlier releases put it beside the shards."""
    new, old = folder / ABOUT / name, folder / name
    return old if old.is_file() and not new.is_file() else new


class TableWriter:
    """Writes a table: shards in any order, each whole or absent, then `finish`. Opened again, it goes on."""

    def __init__(
        self,
        out: Path,
        manifest: Manifest,
        *,
        encoder: str,
        encoder_name: str,
        dim: int,
        shard_rows: int = 2048,
        columns: Sequence[str] = (),
        cautions: Sequence[str] = (),
        excluded: Collection[str] = (),
        thumbnails: bool = False,
    ) -> None:
        """Claim the folder `out` for this encoder and archive.

        Args:
            out: folder of the table, made if need be.
            manifest: of the archive.
            encoder: fingerprint.
            encoder_name: what people call it.
            dim: length of a vector.
            shard_rows: rows of the manifest that one Parquet file stands for.
            columns: further facts of each item, see `embed_archive`.
            cautions: what a user of the vectors must hear; kept with the table, and said by what uses it.
            excluded: ids that a person left out of the manifest; kept with the table.
            thumbnails: keep the features' thumbnails beside the table.

        Raises:
            UserError: `out` holds the table of another encoder, archive or grouping, or something else; or a column is
                not there or tells where a file lies.
        """
        facts = _facts(manifest, columns)
        self._manifest = manifest
        out.mkdir(parents=True, exist_ok=True)
        self._out, self._dim, self._cautions = out, dim, list(cautions)
        self._plan: dict[str, Any] = {
            "encoder": encoder,
            "encoder_name": encoder_name,
            "dim": dim,
            "archive": manifest.digest(),
            "groups": _groups_digest(manifest),
            "rows": len(manifest),
            "shard_rows": shard_rows,
            **({"columns": facts.column_names} if columns else {}),
            **({"excluded": sorted(excluded)} if excluded else {}),
            **({"thumbnails": True} if thumbnails else {}),
        }
        _claim(out, self._plan)
        own = pa.table({name: pa.array(manifest.column(name), pa.string()) for name in OWN[:3]})
        self._rows = pa.table([*own.columns, *facts.columns], names=[*own.column_names, *facts.column_names])

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-len(self._rows) // int(self._plan["shard_rows"]))

    def rows(self, shard: int) -> range:
        """Return the rows of the manifest that a shard holds."""
        size = int(self._plan["shard_rows"])
        return range(shard * size, min((shard + 1) * size, len(self._rows)))

    def has(self, shard: int) -> bool:
        """Return whether a shard is written."""
        return self._file(shard).is_file()

    def write(self, shard: int, features: Iterable[Feature]) -> None:
        """Write a shard; `features` are of its rows, `index` counts within the shard."""
        first = self.rows(shard).start
        kept: list[int] = []
        vectors: list[np.ndarray] = []
        pictures: list[bytes] = []
        failed: list[tuple[str, str]] = []
        for feature in features:
            row = first + feature.index
            if feature.vector is None:
                failed.append((self._rows.column("id")[row].as_py(), feature.error))
            else:
                kept.append(row)
                vectors.append(feature.vector)
                pictures.append(feature.thumbnail)
        write_text(self._out / ABOUT / f"failed-{shard:05d}.csv", _csv(failed))
        stacked = np.stack(vectors) if vectors else np.empty((0, self._dim))
        rows = self._rows.take(pa.array(kept, pa.int64()))
        if "thumbnails" in self._plan:
            write_part(self._out / ABOUT, shard, rows.column("id").to_pylist(), pictures)
        _write_shard(self._file(shard), rows, stacked)

    @property
    def embedded(self) -> int:
        """Number of rows in the shards that are written."""
        return _embedded(self._out)

    def finish(self) -> dict[str, Any]:
        """Mark the table as complete; return the content of embedding.json.

        Raises:
            UserError: nothing could be embedded.
        """
        _write_related(self._out / ABOUT / RELATED, self._manifest.related())
        _write_context(self._out / ABOUT / CONTEXT, self._manifest)
        if "thumbnails" in self._plan:
            join_parts(self._out / ABOUT)
        told = {"cautions": self._cautions, "by_folder": self._manifest.by_folder}
        return _finish(self._out, self._plan, {name: value for name, value in told.items() if value})

    def _file(self, shard: int) -> Path:
        return self._out / f"part-{shard:05d}.parquet"


def _groups_digest(manifest: Manifest) -> str:
    """Hash all groups: shards of one table must not have been grouped by two rules or catalogues."""
    return hashlib.blake2b("\n".join(manifest.column("group")).encode(), digest_size=16).hexdigest()


def _claim(out: Path, plan: dict[str, Any]) -> None:
    """Record the encoder and archive in the folder, so that shards of two encoders are never mixed."""
    if (out / PLAN).is_file():
        raise UserError(
            f"{out} holds an embedding table of an earlier release, which can be read but not continued.",
            remedy="Give another --out, or delete that folder.",
        )
    if (out / ABOUT / PLAN).is_file():
        before = json.loads((out / ABOUT / PLAN).read_text(encoding="utf-8"))
        if before != plan:
            changed = sorted(key for key in plan.keys() | before if before.get(key) != plan.get(key))
            raise UserError(
                f"{out} holds an embedding table of another origin (it differs in: {', '.join(changed)}).",
                remedy="Give another --out, or delete that folder.",
            )
    elif any(path.name != ABOUT for path in out.iterdir()):
        raise UserError(f"{out} is not empty and holds no embedding table.", remedy="Give a new folder as --out.")
    else:
        (out / ABOUT).mkdir(exist_ok=True)
        sync(out)
        write_text(out / ABOUT / PLAN, json.dumps(plan, indent=1) + "\n")


def _facts(manifest: Manifest, columns: Sequence[str]) -> pa.Table:
    """The further columns: whole numbers of 64 bits, floats where these hold every number, else texts.

    Lists and objects are refused.
    """
    refused = NEVER_COLUMNS.intersection(columns) | set(OWN).intersection(columns)
    if refused:
        raise UserError(
            f"An embedding table cannot carry the column '{min(refused)}'.",
            remedy="Leave it out of --columns: the table has it already, or it holds the location of a file.",
        )
    meta = [json.loads(text) for text in manifest.column("meta")] if set(columns) - {"split", "samples"} else []
    found = {}
    for name in dict.fromkeys(columns):
        values = manifest.column(name) if name in ("split", "samples") else [row.get(name) for row in meta]
        if all(value is None for value in values) or any(isinstance(value, list | dict) for value in values):
            raise UserError(
                f"The archive has no column '{name}' of numbers or texts.",
                remedy="Give --columns names of --catalog, or of header facts that manifest.parquet holds in 'meta'.",
            )
        kinds = {type(value) for value in values if value is not None}
        if kinds == {bool}:
            found[name] = pa.array(values, pa.bool_())
        elif kinds == {int} and all(value is None or -(2**63) <= value < 2**63 for value in values):
            found[name] = pa.array(values, pa.int64())
        elif kinds <= {int, float} and all(value is None or value == float(value) for value in values):
            found[name] = pa.array(values, pa.float64())
        else:
            found[name] = pa.array([None if value is None else str(value) for value in values], pa.string())
    return pa.table(found)


def _write_shard(file: Path, rows: pa.Table, vectors: np.ndarray) -> None:
    values = pa.array(np.ascontiguousarray(vectors, np.float32).ravel())
    table = rows.append_column("vector", pa.FixedSizeListArray.from_arrays(values, vectors.shape[1]))
    with new_file(file) as draft:
        pq.write_table(table, draft)


def _write_related(file: Path, rows: pa.Table) -> None:
    """Write the items that a split must not part, for probes that learn from the table; contents become numbers."""
    if not len(rows):
        file.unlink(missing_ok=True)
        return
    numbers = {content: number for number, content in enumerate(dict.fromkeys(rows.column("content").to_pylist()))}
    found = {
        "id": rows.column("id").to_pylist(),
        "content": [numbers[content] if content else None for content in rows.column("content").to_pylist()],
        "split": rows.column("split").to_pylist(),
    }
    write_text(file, json.dumps(found) + "\n")


def _write_context(file: Path, manifest: Manifest) -> None:
    """Write how each image was made, as far as headers and catalogue tell."""
    rows = [public_facts(acquisition_facts(json.loads(text))) for text in manifest.column("meta")]
    columns = {name: [row.get(name) for row in rows] for name in sorted({name for row in rows for name in row})}
    told = {name: _column(values) for name, values in columns.items() if len(set(values)) > 1}
    if not told:
        file.unlink(missing_ok=True)
        return
    with new_file(file) as draft:
        pq.write_table(pa.table({"id": pa.array(manifest.column("id"), pa.string()), **told}), draft)


def _column(values: Sequence[Any]) -> pa.Array:
    """Numbers, or texts where one of the values is a text."""
    if all(value is None or isinstance(value, float) for value in values):
        return pa.array(values, pa.float64())
    return pa.array([f"{value:g}" if isinstance(value, float) else value for value in values], pa.string())


def _finish(out: Path, plan: dict[str, Any], told: dict[str, Any]) -> dict[str, Any]:
    embedded = _embedded(out)
    if embedded == 0:
        raise UserError(
            "Not one item of the archive could be embedded.", remedy=f"See the reasons in {out / ABOUT}/failed-*.csv."
        )
    info = {**plan, "embedded": embedded, "failed": plan["rows"] - embedded, "content": content_hash(out)}
    info |= told
    write_text(out / ABOUT / DONE, json.dumps(info, indent=1) + "\n")
    return info


def content_hash(out: Path) -> str:
    """Hash the shards; results derived from this table store it to detect a changed table."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(out.glob("part-*.parquet")):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, hashlib.blake2b).digest())
    return digest.hexdigest()


def _embedded(out: Path) -> int:
    return sum(pq.read_metadata(file).num_rows for file in out.glob("part-*.parquet"))


def _csv(failed: list[tuple[str, str]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(["id", "reason"])
    writer.writerows(failed)
    return stream.getvalue()


@dataclass
class EmbeddingTable:
    """A finished table in memory.

    Attributes:
        name: the folder's name.
        ids: salted ids, (N).
        groups: salted groups, (N).
        labels: label or None, (N).
        vectors: (N, dim) float32.
        encoder: fingerprint of the encoder that made it.
        related: (content, split) by id, of items that a split must not part; the content is empty without copies.
        context: how each image was made, (N,) values by column name; None where it is not told.
    """

    name: str
    ids: list[str]
    groups: list[str]
    labels: list[str | None]
    vectors: np.ndarray
    encoder: str
    info: dict[str, Any] = field(default_factory=dict)
    related: dict[str, tuple[str, str]] = field(default_factory=dict)
    context: dict[str, list[str | float | None]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> "EmbeddingTable":
        """Read a finished table.

        Raises:
            UserError: the folder holds none, or an unfinished one.
        """
        info = read_info(folder)
        table = read_shards(folder)
        vectors = table.column("vector").combine_chunks()
        ids = table.column("id").to_pylist()
        return cls(
            name=folder.name,
            ids=ids,
            groups=table.column("group").to_pylist(),
            labels=table.column("label").to_pylist(),
            vectors=np.asarray(vectors.flatten(), np.float32).reshape(len(table), info["dim"]),
            encoder=info["encoder"],
            info=info,
            related=_related(about(folder, RELATED)),
            context=_context(folder / ABOUT / CONTEXT, table, ids),
        )

    def leak(self, used: Mapping[int, str] | None = None) -> Leak | None:
        """Find the leak of the rows `used` (by number, with their groups; by default all): what lies in several splits.

        The splits are those of the archive's catalogue when it was embedded.
        """
        places = [index for index, name in enumerate(self.ids) if name in self.related]
        chosen = {index: self.groups[index] for index in places} if used is None else used
        return find_leak(
            Placed(chosen.get(row, self.groups[row]), *self.related[self.ids[row]], self.ids[row], row in chosen)
            for row in places
        )


def _context(file: Path, table: pa.Table, ids: Sequence[str]) -> dict[str, list[str | float | None]]:
    """Return how each item was made, and the table's further columns (`embed --columns`), by column name."""
    found: dict[str, list[str | float | None]] = {}
    if file.is_file():
        told = pq.read_table(file)
        place = {name: row for row, name in enumerate(told.column("id").to_pylist())}
        rows = pa.array([place.get(name) for name in ids], pa.int64())
        found = {name: told.column(name).take(rows).to_pylist() for name in told.column_names if name != "id"}
    further = (name for name in table.column_names if name not in (*OWN, "split", "samples"))
    return found | {
        name: [
            float(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in table.column(name).to_pylist()
        ]
        for name in further
    }


def _related(file: Path) -> dict[str, tuple[str, str]]:
    if not file.is_file():
        return {}
    found = json.loads(file.read_text(encoding="utf-8"))
    contents = ("" if number is None else str(number) for number in found["content"])
    return dict(zip(found["id"], zip(contents, found["split"], strict=True), strict=True))


def read_shards(folder: Path) -> pa.Table:
    """Read all rows of a finished table."""
    return pa.concat_tables([pq.read_table(file) for file in sorted(folder.glob("part-*.parquet"))])


def whole_ids(folder: Path) -> list[str]:
    """For each row of a finished table the id that a scan of the archive knows: a tile's slide, else the row's own."""
    table = read_shards(folder)
    own: list[str] = table.column("id").to_pylist()
    if "whole" not in table.column_names:
        return own
    return [whole or name for whole, name in zip(table.column("whole").to_pylist(), own, strict=True)]


def read_info(folder: Path) -> dict[str, Any]:
    """Read embedding.json of a finished table; UserError where there is none."""
    try:
        return json.loads(about(folder, DONE).read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    except (OSError, ValueError) as error:
        state = "an unfinished embedding table" if about(folder, PLAN).is_file() else "no embedding table"
        raise UserError(
            f"{folder} holds {state}.", remedy="Make or finish it with: lejepa-med embed ENCODER ARCHIVE --out FOLDER"
        ) from error


def find_tables(runs: Path) -> list[Path]:
    """Return finished embedding tables at most three levels below `runs`, sorted."""
    depths = ("", "*/", "*/*/", "*/*/*/")
    found = {file.parent for depth in depths for file in runs.glob(depth + DONE) if file.parent.name != ABOUT}
    return sorted(found | {file.parent.parent for depth in depths for file in runs.glob(f"{depth}{ABOUT}/{DONE}")})


def embed_archive(
    encoder: LoadedEncoder,
    manifest: Manifest,
    out: Path,
    *,
    shard_rows: int = 2048,
    batch_size: int = 64,
    workers: int = 0,
    threads: int | None = None,
    columns: Sequence[str] = (),
    excluded: Collection[str] = (),
    thumbnails: bool = False,
    caution: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Embed every row of `manifest` into `out`; a shard that is there already is kept, so a second call goes on.

    Args:
        encoder: the encoder; its own preprocessing is used.
        manifest: of the archive, from scan.
        out: folder of the table.
        shard_rows: rows of one Parquet file, which is also what an interruption costs at most.
        batch_size: slices or tiles in one forward pass.
        workers: reading processes.
        threads: CPU threads that compute; None: as cores are free.
        columns: further facts of each item that the table carries, so that a search can be narrowed by them: `split`,
            `samples`, or a column of the catalogue or the header such as mpp, ra, dec. They are kept as they are.
        thumbnails: keep a small picture of what the encoder saw of each item beside the table (thumbnails.py).
        excluded: ids that a person left out of the manifest, which the table keeps.
        caution: called with what a user of the vectors must hear, before they are computed.
        progress: called with (rows done, rows in all).

    Returns:
        The content of embedding.json.

    Raises:
        UserError: `out` holds the table of another encoder or archive, nothing could be embedded, or a column is
            not there or tells where a file lies.
    """
    cautions = cautions_of(encoder.adapter, manifest.records())
    for text in cautions:
        if caution is not None:
            caution(text)
    table = TableWriter(
        out,
        manifest,
        encoder=encoder.fingerprint,
        encoder_name=encoder.name,
        dim=encoder.dim,
        shard_rows=shard_rows,
        columns=columns,
        excluded=excluded,
        cautions=cautions,
        thumbnails=thumbnails,
    )
    make = thumbnails_of(encoder.adapter) if thumbnails else None
    with Threads(threads, active=encoder.device == "cpu") as pace:
        for shard in range(table.shards):
            rows = table.rows(shard)
            if not table.has(shard):
                records = [manifest.record(row) for row in rows]
                features = embed_records(
                    encoder, records, batch_size=batch_size, workers=workers, threads=pace, thumbnail=make
                )
                table.write(shard, _told(features, rows.start, len(manifest), progress))
            if progress is not None:
                progress(rows.stop, len(manifest))
    return table.finish()


def in_parts(adapter: Adapter, manifest: Manifest) -> tuple[Manifest, list[str]]:
    """A row for each tile in place of each slide, and the columns with its place; see `Manifest.in_parts`.

    Raises:
        UserError: the modality, or this archive, has no parts.
    """
    if not isinstance(adapter, BaseAdapter):
        raise UserError(f"The modality '{adapter.name}' has no parts.", remedy="Leave out --per-tile.")
    divided = manifest.in_parts(adapter)
    places = (json.loads(text) for text in divided.column("meta"))
    first = next(place for place in places if "whole" in place)  # in_parts has found one
    return divided, ["whole", *(name for name in adapter.part_columns if first.get(name) is not None)]


def cautions_of(adapter: Adapter, records: Sequence[Record], *, give: str | None = None) -> list[str]:
    """Return what a user must know before using the records' vectors, as sentences; `give` as in `Caution.text`."""
    found = adapter.cautions(records) if isinstance(adapter, BaseAdapter) else []
    return [one.text() if give is None else one.text(give=give) for one in found]


def _told(features: Iterable[Feature], start: int, total: int, progress: Progress | None) -> Iterator[Feature]:
    for feature in features:
        yield feature
        if progress is not None:
            progress(start + feature.index + 1, total)


def archive_digest(manifest: Manifest) -> str:
    """Hash the archive: ids and content digests of all rows."""
    return manifest.digest()
