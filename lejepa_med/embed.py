"""An archive becomes an embedding table: Parquet shards of ids, groups and vectors, resumable after any interruption.

OUT/part-00000.parquet ...   id, group, label, further columns where asked for, vector (fixed-size list of float32);
                             no paths, no names
OUT/failed-00000.csv ...     rows of each shard that could not be read (id, reason)
OUT/plan.json                whose table this is, so that two are never mixed
OUT/embedding.json           encoder fingerprint, digests of archive and shards, counts; written last
"""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_adapters.manifest import Manifest
from lejepa_med.atomic import write_text
from lejepa_med.errors import UserError
from lejepa_med.evaluation.features import embed_records
from lejepa_med.models.folder import LoadedEncoder

DONE = "embedding.json"
PLAN = "plan.json"
OWN = ("id", "group", "label", "vector")  # columns of every table
# Of a record: where it lies, what it is called, or another spelling of that.
NEVER_COLUMNS = frozenset(
    {"path", "item", "digest", "bytes", "mtime_ns", "meta", "file", "files", "parts", "name", "uri"}
)
Progress = Callable[[int, int], None]


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
    """

    name: str
    ids: list[str]
    groups: list[str]
    labels: list[str | None]
    vectors: np.ndarray
    encoder: str
    info: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> "EmbeddingTable":
        """Read a finished table.

        Raises:
            UserError: the folder holds none, or an unfinished one.
        """
        info = read_info(folder)
        table = pa.concat_tables([pq.read_table(file) for file in sorted(folder.glob("part-*.parquet"))])
        vectors = table.column("vector").combine_chunks()
        return cls(
            name=folder.name,
            ids=table.column("id").to_pylist(),
            groups=table.column("group").to_pylist(),
            labels=table.column("label").to_pylist(),
            vectors=np.asarray(vectors.flatten(), np.float32).reshape(len(table), info["dim"]),
            encoder=info["encoder"],
            info=info,
        )


def read_info(folder: Path) -> dict[str, Any]:
    """embedding.json of a finished table; UserError where there is none."""
    try:
        return json.loads((folder / DONE).read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    except (OSError, ValueError) as error:
        state = "an unfinished embedding table" if (folder / PLAN).is_file() else "no embedding table"
        raise UserError(
            f"{folder} holds {state}.", remedy="Make or finish it with: lejepa-med embed ENCODER ARCHIVE --out FOLDER"
        ) from error


def find_tables(runs: Path) -> list[Path]:
    """Finished embedding tables at most three levels below `runs`, sorted."""
    return sorted({file.parent for depth in ("", "*/", "*/*/", "*/*/*/") for file in runs.glob(depth + DONE)})


def embed_archive(
    encoder: LoadedEncoder,
    manifest: Manifest,
    out: Path,
    *,
    shard_rows: int = 2048,
    batch_size: int = 64,
    workers: int = 0,
    columns: Sequence[str] = (),
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
        columns: further facts of each item that the table carries, so that a search can be narrowed by them: `split`,
            `samples`, or a column of the catalogue or the header such as mpp, ra, dec. They are kept as they are.
        progress: called with (rows done, rows in all).

    Returns:
        The content of embedding.json.

    Raises:
        UserError: `out` holds the table of another encoder or archive, nothing could be embedded, or a column is
            not there or tells where a file lies.
    """
    facts = _facts(manifest, columns)
    out.mkdir(parents=True, exist_ok=True)
    ids = manifest.column("id")
    plan = {
        "encoder": encoder.fingerprint,
        "encoder_name": encoder.name,
        "dim": encoder.dim,
        "archive": archive_digest(manifest),
        "rows": len(manifest),
        "shard_rows": shard_rows,
        **({"columns": facts.column_names} if columns else {}),
    }
    _claim(out, plan)
    own = pa.table({name: pa.array(manifest.column(name), pa.string()) for name in OWN[:3]})
    rows_of_table = pa.table([*own.columns, *facts.columns], names=[*own.column_names, *facts.column_names])
    done = 0
    for shard, start in enumerate(range(0, len(manifest), shard_rows)):
        rows = range(start, min(start + shard_rows, len(manifest)))
        file, failures = out / f"part-{shard:05d}.parquet", out / f"failed-{shard:05d}.csv"
        if not file.is_file():
            kept: list[int] = []
            vectors: list[np.ndarray] = []
            failed: list[tuple[str, str]] = []
            records = [manifest.record(row) for row in rows]
            for feature in embed_records(encoder, records, batch_size=batch_size, workers=workers):
                row = start + feature.index
                if feature.vector is None:
                    failed.append((ids[row], feature.error))
                else:
                    kept.append(row)
                    vectors.append(feature.vector)
                if progress is not None:
                    progress(done + feature.index + 1, len(manifest))
            write_text(failures, _csv(failed))
            kept_vectors = np.stack(vectors) if vectors else np.empty((0, encoder.dim))
            _write_shard(file, rows_of_table.take(pa.array(kept, pa.int64())), kept_vectors)
        done = rows.stop
        if progress is not None:
            progress(done, len(manifest))
    return _finish(out, plan)


def archive_digest(manifest: Manifest) -> str:
    """A hash of what lies in the archive: ids and content digests of all rows."""
    return manifest.digest()


def _claim(out: Path, plan: dict[str, Any]) -> None:
    """Note in the folder whose table it is, so that shards of two encoders are never mixed."""
    if (out / PLAN).is_file():
        before = json.loads((out / PLAN).read_text(encoding="utf-8"))
        if before != plan:
            changed = sorted(key for key in plan.keys() | before if before.get(key) != plan.get(key))
            raise UserError(
                f"{out} holds an embedding table of another origin (it differs in: {', '.join(changed)}).",
                remedy="Give another --out, or delete that folder.",
            )
    elif any(out.iterdir()):
        raise UserError(f"{out} is not empty and holds no embedding table.", remedy="Give a new folder as --out.")
    else:
        write_text(out / PLAN, json.dumps(plan, indent=1) + "\n")


def _facts(manifest: Manifest, columns: Sequence[str]) -> pa.Table:
    """The further columns, each of numbers where every value is one, else of texts; lists and objects are refused."""
    refused = NEVER_COLUMNS.intersection(columns) | set(OWN).intersection(columns)
    if refused:
        raise UserError(
            f"An embedding table cannot carry the column '{min(refused)}'.",
            remedy="Leave it out of --columns: the table has it already, or it tells where a file lies.",
        )
    meta = [json.loads(text) for text in manifest.column("meta")] if set(columns) - {"split", "samples"} else []
    found = {}
    for name in dict.fromkeys(columns):
        values = manifest.column(name) if name in ("split", "samples") else [row.get(name) for row in meta]
        if all(value is None for value in values) or any(isinstance(value, list | dict) for value in values):
            raise UserError(
                f"The archive has no column '{name}' of numbers or texts.",
                remedy="Name columns of the catalogue, or header facts that the manifest's 'meta' holds.",
            )
        kinds = {type(value) for value in values if value is not None}
        if kinds == {bool}:
            found[name] = pa.array(values, pa.bool_())
        elif kinds <= {int, float}:
            found[name] = pa.array(values, pa.float64())
        else:
            found[name] = pa.array([None if value is None else str(value) for value in values], pa.string())
    return pa.table(found)


def _write_shard(file: Path, rows: pa.Table, vectors: np.ndarray) -> None:
    values = pa.array(np.ascontiguousarray(vectors, np.float32).ravel())
    table = rows.append_column("vector", pa.FixedSizeListArray.from_arrays(values, vectors.shape[1]))
    draft = file.with_name(f".{file.name}.draft")
    pq.write_table(table, draft)
    draft.rename(file)


def _finish(out: Path, plan: dict[str, Any]) -> dict[str, Any]:
    embedded = sum(pq.read_metadata(file).num_rows for file in out.glob("part-*.parquet"))
    if embedded == 0:
        raise UserError(
            "Not one item of the archive could be embedded.", remedy=f"See the reasons in {out}/failed-*.csv."
        )
    info = {**plan, "embedded": embedded, "failed": plan["rows"] - embedded, "content": content_hash(out)}
    write_text(out / DONE, json.dumps(info, indent=1) + "\n")
    return info


def content_hash(out: Path) -> str:
    """A hash over the shards: what was made from this table tells by it whether it still belongs to it."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(out.glob("part-*.parquet")):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, hashlib.blake2b).digest())
    return digest.hexdigest()


def _csv(failed: list[tuple[str, str]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(["id", "reason"])
    writer.writerows(failed)
    return stream.getvalue()
