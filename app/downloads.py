"""Tables as answers: Parquet from disk, CSV and JSON row by row; none is ever whole in memory."""

import csv
import io
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow.parquet as pq
from fastapi.responses import Response, StreamingResponse

from app.settings import Settings
from data_adapters.tables import NO_LABELS

PARQUET, CSV, JSON = "application/vnd.apache.parquet", "text/csv", "application/json"
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
