"""An archive becomes an embedding table: Parquet shards of ids, groups and vectors, resumable after any interruption.

OUT/part-00000.parquet ...      id, group, label, further columns where asked for, vector (fixed-size list of float32);
                                no paths, no names. `pyarrow.parquet.read_table(OUT)` reads all of them
OUT/_about/failed-00000.csv ... rows of each shard that could not be read (id, reason)
OUT/_about/related.json         ids that a split must not part (equal images in several groups, groups in several splits
                                of the catalogue), with numbers of equal content; absent when there are none
OUT/_about/plan.json            whose table this is, so that two are never mixed
OUT/_about/embedding.json       encoder fingerprint, digests of archive and shards, counts; written last

Tables of earlier releases have the files of _about beside the shards; they are read all the same.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_adapters.base import Adapter, BaseAdapter
from data_adapters.leaks import Leak, Placed, find_leak
from data_adapters.manifest import Manifest
from lejepa_med.errors import UserError
from lejepa_med.evaluation.features import Feature, embed_records
from lejepa_med.models.folder import LoadedEncoder
from lejepa_med.table_writer import ABOUT, DONE, PLAN, RELATED, TableWriter, about
from lejepa_med.threads import Threads

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
        related: (content, split) by id, of items that a split must not part; the content is empty without copies.
    """

    name: str
    ids: list[str]
    groups: list[str]
    labels: list[str | None]
    vectors: np.ndarray
    encoder: str
    info: dict[str, Any] = field(default_factory=dict)
    related: dict[str, tuple[str, str]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> "EmbeddingTable":
        """Read a finished table.

        Raises:
            UserError: the folder holds none, or an unfinished one.
        """
        info = read_info(folder)
        table = read_shards(folder)
        vectors = table.column("vector").combine_chunks()
        return cls(
            name=folder.name,
            ids=table.column("id").to_pylist(),
            groups=table.column("group").to_pylist(),
            labels=table.column("label").to_pylist(),
            vectors=np.asarray(vectors.flatten(), np.float32).reshape(len(table), info["dim"]),
            encoder=info["encoder"],
            info=info,
            related=_related(about(folder, RELATED)),
        )

    def leak(self, used: Mapping[int, str] | None = None) -> Leak | None:
        """What of the rows `used` (by number, with their groups; by default all) lies in several splits.

        The splits are those of the archive's catalogue when it was embedded.
        """
        places = [index for index, name in enumerate(self.ids) if name in self.related]
        chosen = {index: self.groups[index] for index in places} if used is None else used
        return find_leak(
            Placed(chosen.get(row, self.groups[row]), *self.related[self.ids[row]], self.ids[row], row in chosen)
            for row in places
        )


def _related(file: Path) -> dict[str, tuple[str, str]]:
    if not file.is_file():
        return {}
    found = json.loads(file.read_text(encoding="utf-8"))
    contents = ("" if number is None else str(number) for number in found["content"])
    return dict(zip(found["id"], zip(contents, found["split"], strict=True), strict=True))


def read_shards(folder: Path) -> pa.Table:
    """All rows of a table that is finished."""
    return pa.concat_tables([pq.read_table(file) for file in sorted(folder.glob("part-*.parquet"))])


def read_info(folder: Path) -> dict[str, Any]:
    """embedding.json of a finished table; UserError where there is none."""
    try:
        return json.loads(about(folder, DONE).read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    except (OSError, ValueError) as error:
        state = "an unfinished embedding table" if about(folder, PLAN).is_file() else "no embedding table"
        raise UserError(
            f"{folder} holds {state}.", remedy="Make or finish it with: lejepa-med embed ENCODER ARCHIVE --out FOLDER"
        ) from error


def find_tables(runs: Path) -> list[Path]:
    """Finished embedding tables at most three levels below `runs`, sorted."""
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
        caution: called with what a user of the vectors must hear, before they are computed.
        progress: called with (rows done, rows in all).

    Returns:
        The content of embedding.json.

    Raises:
        UserError: `out` holds the table of another encoder or archive, nothing could be embedded, or a column is
            not there or tells where a file lies.
    """
    cautions = cautions_of(encoder.adapter, manifest)
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
        cautions=cautions,
    )
    with Threads(threads, active=encoder.device == "cpu") as pace:
        for shard in range(table.shards):
            rows = table.rows(shard)
            if not table.has(shard):
                records = [manifest.record(row) for row in rows]
                features = embed_records(encoder, records, batch_size=batch_size, workers=workers, threads=pace)
                table.write(shard, _told(features, rows.start, len(manifest), progress))
            if progress is not None:
                progress(rows.stop, len(manifest))
    return table.finish()


def cautions_of(adapter: Adapter, manifest: Manifest) -> list[str]:
    """What the adapter has to say of the rows before their vectors are used."""
    return adapter.cautions(manifest.records()) if isinstance(adapter, BaseAdapter) else []


def _told(features: Iterable[Feature], start: int, total: int, progress: Progress | None) -> Iterator[Feature]:
    for feature in features:
        yield feature
        if progress is not None:
            progress(start + feature.index + 1, total)


def archive_digest(manifest: Manifest) -> str:
    """A hash of what lies in the archive: ids and content digests of all rows."""
    return manifest.digest()
