"""Writing of an embedding table, shard by shard; `lejepa_med.embed` says what its files are."""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_adapters.atomic import new_file, sync, write_text
from data_adapters.manifest import Manifest
from lejepa_med.errors import UserError
from lejepa_med.evaluation.features import Feature

ABOUT = "_about"  # readers of Parquet folders pass over a name that begins so
DONE = "embedding.json"
PLAN = "plan.json"
RELATED = "related.json"
OWN = ("id", "group", "label", "vector")  # columns of every table
# Of a record: where it lies, what it is called, or another spelling of that.
NEVER_COLUMNS = frozenset(
    {"path", "item", "digest", "bytes", "mtime_ns", "meta", "file", "files", "parts", "name", "uri"}
)


def about(folder: Path, name: str) -> Path:
    """Where a table's file that is no shard lies; in a folder of an earlier release that is beside the shards."""
    new, old = folder / ABOUT / name, folder / name
    return old if old.is_file() and not new.is_file() else new


class TableWriter:
    """A table in the making: shards in any order, each whole or absent, then `finish`. Opened again, it goes on."""

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
        }
        _claim(out, self._plan)
        own = pa.table({name: pa.array(manifest.column(name), pa.string()) for name in OWN[:3]})
        self._rows = pa.table([*own.columns, *facts.columns], names=[*own.column_names, *facts.column_names])

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-len(self._rows) // int(self._plan["shard_rows"]))

    def rows(self, shard: int) -> range:
        """Rows of the manifest that a shard stands for."""
        size = int(self._plan["shard_rows"])
        return range(shard * size, min((shard + 1) * size, len(self._rows)))

    def has(self, shard: int) -> bool:
        """Whether a shard is written."""
        return self._file(shard).is_file()

    def write(self, shard: int, features: Iterable[Feature]) -> None:
        """Write a shard; `features` are of its rows, `index` counts within the shard."""
        first = self.rows(shard).start
        kept: list[int] = []
        vectors: list[np.ndarray] = []
        failed: list[tuple[str, str]] = []
        for feature in features:
            row = first + feature.index
            if feature.vector is None:
                failed.append((self._rows.column("id")[row].as_py(), feature.error))
            else:
                kept.append(row)
                vectors.append(feature.vector)
        write_text(self._out / ABOUT / f"failed-{shard:05d}.csv", _csv(failed))
        stacked = np.stack(vectors) if vectors else np.empty((0, self._dim))
        _write_shard(self._file(shard), self._rows.take(pa.array(kept, pa.int64())), stacked)

    @property
    def embedded(self) -> int:
        """Rows of the shards that are written."""
        return _embedded(self._out)

    def finish(self) -> dict[str, Any]:
        """Mark the table as whole; the content of embedding.json.

        Raises:
            UserError: nothing could be embedded.
        """
        _write_related(self._out / ABOUT / RELATED, self._manifest.related())
        told = {"cautions": self._cautions, "by_folder": self._manifest.by_folder}
        return _finish(self._out, self._plan, {name: value for name, value in told.items() if value})

    def _file(self, shard: int) -> Path:
        return self._out / f"part-{shard:05d}.parquet"


def _groups_digest(manifest: Manifest) -> str:
    """A hash of all groups: shards of one table must not have been grouped by two rules or catalogues."""
    return hashlib.blake2b("\n".join(manifest.column("group")).encode(), digest_size=16).hexdigest()


def _claim(out: Path, plan: dict[str, Any]) -> None:
    """Note in the folder whose table it is, so that shards of two encoders are never mixed."""
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
            remedy="Leave it out of --columns: the table has it already, or it tells where a file lies.",
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
    """What a split must not part, for the probes that learn from the table; contents become numbers."""
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
    """A hash over the shards: what was made from this table tells by it whether it still belongs to it."""
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
