"""Formats of answers: vectors as JSON, lines of JSON, .npy, Parquet or an Arrow stream; tables as Parquet, CSV or JSON.

Tables are sent from disk, row by row; none is ever whole in memory.
"""

import csv
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fastapi.responses import Response, StreamingResponse

from app.core.errors import ProblemError
from app.core.settings import Settings
from app.uploads.embedding import Result
from data_adapters.tables import NO_LABELS
from lejepa_med.client.wire.common import FileKey, Problem, Skipped

JSON, NDJSON, NPY, CSV = "application/json", "application/x-ndjson", "application/x-npy", "text/csv"
ARROW, PARQUET = "application/vnd.apache.arrow.stream", "application/vnd.apache.parquet"
ARROW_ROWS, PARQUET_ROWS = 256, 4096  # of one record batch or row group, which is what is kept in memory


class AnswerHead(NamedTuple):
    """What holds for all items of an answer."""

    encoder: str
    fingerprint: str
    precision: str
    dim: int
    cautions: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class VectorRow:
    """One vector of an answer, or the problem that stands for an item. `part` is a slice's or tile's place in it.

    `name` and `key` are the client's words for the item's file.
    """

    index: int
    file_index: int
    part: int | None
    items: int
    vector: np.ndarray | None
    problem: Problem | None
    name: str | None = None
    key: FileKey | None = None


def rows_of(index: int, result: Result) -> Iterator[VectorRow]:
    """One row for a pooled item or a bad one, n rows for an item whose n vectors are kept apart."""
    vector = result.vector
    if vector is None or vector.ndim == 1:
        yield VectorRow(index, result.file_index, None, result.items, vector, result.problem, result.name, result.key)
        return
    for part, single in enumerate(vector):
        yield VectorRow(index, result.file_index, part, 1, single, None, result.name, result.key)


class VectorStream(Protocol):
    """An answer in the making: `add` and `end` give the bytes that can be sent."""

    def add(self, row: VectorRow) -> bytes: ...  # noqa: D102

    def end(self) -> bytes: ...  # noqa: D102


class JsonLines:
    """One JSON document a line, as in the list `items` of the JSON answer."""

    def __init__(self, head: AnswerHead) -> None:
        self._numbers = ",".join(["%.9g"] * head.dim)  # nine digits give every float32 back exactly

    def add(self, row: VectorRow) -> bytes:
        """The row's line."""
        return self.text(row).encode() + b"\n"

    def end(self) -> bytes:
        """Nothing is left to say."""
        return b""

    def text(self, row: VectorRow) -> str:
        """The row as `wire.images.EmbeddedItem` would write it, in a fraction of the time."""
        part = "" if row.part is None else f',"part":{row.part}'
        name = "" if row.name is None else f',"name":{json.dumps(row.name)}'
        key = "" if row.key is None else f',"key":{json.dumps(row.key)}'
        start = f'{{"index":{row.index},"file_index":{row.file_index}{name}{key}{part},"items":{row.items}'
        if row.vector is not None:
            return f'{start},"vector":[{self._numbers % tuple(row.vector.tolist())}]}}'
        error = row.problem.model_dump_json(exclude_none=True) if row.problem is not None else "null"
        return f'{start},"error":{error}}}'


class ArrowStream:
    """Record batches in Arrow's streaming format."""

    rows = ARROW_ROWS

    def __init__(self, head: AnswerHead) -> None:
        self._schema = pa.schema(
            [
                pa.field("index", pa.int32(), nullable=False),
                pa.field("file_index", pa.int32(), nullable=False),
                pa.field("name", pa.string()),
                pa.field("key", pa.string()),
                pa.field("part", pa.int32()),
                pa.field("vector", pa.list_(pa.float32(), head.dim)),
                pa.field("error", pa.string()),
            ],
            metadata={
                "encoder": head.encoder,
                "fingerprint": head.fingerprint,
                "precision": head.precision,
                **({"cautions": json.dumps(head.cautions)} if head.cautions else {}),
            },
        )
        self._dim = head.dim
        self._rows: list[VectorRow] = []
        self._sink = _Outlet()
        self._writer = self.open(self._sink, self._schema)

    def open(self, sink: io.RawIOBase, schema: pa.Schema) -> pa.ipc.RecordBatchStreamWriter | pq.ParquetWriter:
        """A writer of record batches."""
        return pa.ipc.new_stream(sink, schema)

    def add(self, row: VectorRow) -> bytes:
        """The bytes of a batch once it is full."""
        self._rows.append(row)
        if len(self._rows) >= self.rows:
            self._write()
        return self._sink.take()

    def end(self) -> bytes:
        """The last batch and the end mark."""
        if self._rows:
            self._write()
        self._writer.close()
        return self._sink.take()

    def _write(self) -> None:
        blank = np.zeros(self._dim, np.float32)
        vectors = np.stack([blank if row.vector is None else row.vector for row in self._rows])
        missing = pa.array([row.vector is None for row in self._rows])
        errors = [None if row.problem is None else row.problem.model_dump_json(exclude_none=True) for row in self._rows]
        columns = [
            pa.array([row.index for row in self._rows], pa.int32()),
            pa.array([row.file_index for row in self._rows], pa.int32()),
            pa.array([row.name for row in self._rows], pa.string()),
            pa.array([None if row.key is None else str(row.key) for row in self._rows], pa.string()),
            pa.array([row.part for row in self._rows], pa.int32()),
            pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), self._dim, mask=missing),
            pa.array(errors, pa.string()),
        ]
        self._writer.write_batch(pa.record_batch(columns, schema=self._schema))
        self._rows.clear()


class _Outlet(io.RawIOBase):
    """A file that only grows; what was written is taken away piece by piece."""

    def __init__(self) -> None:
        super().__init__()
        self._written, self._position = bytearray(), 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def write(self, data: Any) -> int:
        self._written += data
        self._position += len(data)
        return len(data)

    def take(self) -> bytes:
        data = bytes(self._written)
        self._written.clear()
        return data


class ParquetFile(ArrowStream):
    """Row groups of one Parquet file, the footer at the end."""

    rows = PARQUET_ROWS

    def open(self, sink: io.RawIOBase, schema: pa.Schema) -> pq.ParquetWriter:
        """A writer of row groups."""
        return pq.ParquetWriter(sink, schema)


STREAMS: dict[str, type[JsonLines] | type[ArrowStream]] = {NDJSON: JsonLines, ARROW: ArrowStream, PARQUET: ParquetFile}
OFFERS = (JSON, NPY, *STREAMS)


def whole_json(head: AnswerHead, rows: list[VectorRow], skipped: Sequence[Skipped] = ()) -> str:
    """The JSON answer, as `wire.images.Embeddings` describes it."""
    lines = JsonLines(head)
    items = ",".join(lines.text(row) for row in rows)
    told = f',"skipped":{json.dumps([one.model_dump() for one in skipped])}' if skipped else ""
    # Ids, fingerprints and precisions are made of letters that JSON need not escape.
    return (
        f'{{"encoder":"{head.encoder}","fingerprint":"{head.fingerprint}","precision":"{head.precision}",'
        f'"dim":{head.dim},"cautions":{json.dumps(head.cautions)},"items":[{items}]{told}}}'
    )


def whole_npy(rows: list[VectorRow]) -> bytes:
    """Vectors (rows, dim) float32 in NumPy's format; every row must have one."""
    buffer = io.BytesIO()
    np.save(buffer, np.stack([row.vector for row in rows if row.vector is not None]))
    return buffer.getvalue()


def negotiate(accept: str) -> str:
    """The media type of OFFERS that the Accept header wants most; JSON where it says nothing (RFC 9110, 12.5.1).

    Raises:
        ProblemError: 406, it wants none of them.
    """
    best, chosen = (0.0, -1, 0), ""
    wanted = [_range(text) for text in accept.split(",") if text.strip()] or [("*/*", 1.0)]
    for offer in OFFERS:
        matching = [
            (2 - pattern.count("*"), -place, quality)
            for place, (pattern, quality) in enumerate(wanted)
            if pattern in (offer, "*/*", f"{offer.split('/')[0]}/*")
        ]
        if matching:
            precision, place, quality = max(matching)  # the most precise range decides over an offer's quality
            if quality > 0 and (quality, precision, place) > best:
                best, chosen = (quality, precision, place), offer
    if not chosen:
        raise ProblemError(
            406,
            "not-acceptable",
            "The service cannot answer in a media type that the Accept header names.",
            remedy=f"Accept one of: {', '.join(OFFERS)}.",
        )
    return chosen


def _range(text: str) -> tuple[str, float]:
    kind, *parameters = (part.strip().lower() for part in text.split(";"))
    quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
    return kind, float(quality) if re.fullmatch(r"[01](\.\d{0,3})?", quality) else 0.0


# --- tables ----------------------------------------------------------------------------------------------------------

PIECE = 1 << 20
ROWS = 1024  # that are Python objects at one time
BINARY = {"schema": {"type": "string", "format": "binary"}}
PARQUET_RESPONSE: dict[int | str, dict[str, Any]] = {200: {"description": "Parquet", "content": {PARQUET: BINARY}}}
TABLE_RESPONSE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Parquet, or by 'Accept' CSV with a header line, or a JSON list of objects",
        "content": {PARQUET: BINARY, CSV: {"schema": {"type": "string"}}, JSON: {"schema": {"type": "array"}}},
    }
}


def joined(folder: Path, settings: Settings) -> Response:
    """The shards of an embedding table as one Parquet file.

    Raises:
        FileNotFoundError: it has been removed.
    """
    (settings.data / "tmp").mkdir(exist_ok=True)
    # Without a name, so that nothing is left when the client goes away or the service is killed.
    stream = tempfile.TemporaryFile(dir=settings.data / "tmp")
    shards = sorted(folder.glob("part-*.parquet"))
    if not shards:
        raise FileNotFoundError
    with pq.ParquetWriter(stream, pq.read_schema(shards[0])) as writer:
        for shard in shards:
            writer.write_table(pq.read_table(shard))
    headers = {"Content-Length": str(stream.tell()), **_named("archive.parquet")}
    stream.seek(0)
    return StreamingResponse(_pieces(stream), media_type=PARQUET, headers=headers)


def table(file: Path, accept: str) -> Response:
    """A Parquet file as it is, or as the CSV or JSON that `accept` names; whole, also where it is removed meanwhile.

    Raises:
        FileNotFoundError: it has been removed.
    """
    stream = file.open("rb")
    if CSV in accept:
        return StreamingResponse(_csv(stream), media_type=CSV, headers=_named("predictions.csv"))
    if JSON in accept:
        return StreamingResponse(_json(stream), media_type=JSON)
    headers = {"Content-Length": str(os.fstat(stream.fileno()).st_size), **_named("predictions.parquet")}
    return StreamingResponse(_pieces(stream), media_type=PARQUET, headers=headers)


def _named(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"'}


def _pieces(stream: IO[bytes]) -> Iterator[bytes]:
    with stream:
        while piece := stream.read(PIECE):
            yield piece


def _batches(source: pq.ParquetFile) -> Iterator[list[dict[str, Any]]]:
    for batch in source.iter_batches(batch_size=ROWS):
        yield batch.to_pylist()


def _csv(stream: IO[bytes]) -> Iterator[str]:
    text = io.StringIO()
    with stream, pq.ParquetFile(stream) as source:
        writer = csv.DictWriter(text, source.schema_arrow.names)
        writer.writeheader()
        for rows in _batches(source):
            for row in rows:
                writer.writerow({k: _cell(v) for k, v in row.items()})
            yield text.getvalue()
            text.seek(0)
            text.truncate()


def _cell(value: Any) -> Any:
    """A value as `lejepa-med predict` writes it; labels of one image as a table of labels has them."""
    if isinstance(value, bool):
        return str(value).lower()
    return (";".join(value) or NO_LABELS) if isinstance(value, list) else value


def _json(stream: IO[bytes]) -> Iterator[str]:
    before = "["
    with stream, pq.ParquetFile(stream) as source:
        for rows in _batches(source):
            for row in rows:
                yield before + json.dumps(row)
                before = ",\n"
    yield "]"
