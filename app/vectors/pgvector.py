"""An HNSW index of pgvector in the service's PostgreSQL: for tables that are too large to look at every vector.

A table `lejepa_search.v_KEY` holds row number, group code, metadata and the vector in half precision. Table, rows and
index are made in one transaction, so nobody sees a part of them and a killed build leaves nothing. What `find` tells
is the table's comment. Answers are row numbers of the base, which gives the exact order and everything that is shown.
"""

import json
import struct
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import ProgrammingError

from app.vectors.backend import Query, Report, measure
from data_adapters.errors import UserError
from lejepa_med.client.wire.common import BackendName
from lejepa_med.search.base import NONE, Base
from lejepa_med.search.conditions import to_sql

SCHEMA = "lejepa_search"
MAX_DIM = 4000  # of an HNSW index over halfvec (pgvector's README)
PLAIN_DIM = 2000  # up to which a row with its vector fits into half a page, so that none is put aside (TOAST)
M, EF_CONSTRUCTION = 16, 128  # edges of a node, pgvector's default; twice its default effort, for recall
EF_LEAST, EF_MOST = 200, 1000  # candidates a search keeps: 200 for recall; pgvector allows at most 1000
ITERATIVE = (0, 8)  # pgvector's first version whose filtered scans go on until enough rows were found
MEMORY_MOST = 2 << 30  # bytes of maintenance_work_mem: a graph that does not fit is built many times slower
COPY_ROWS = 4096
_TYPES = {"string": "text", "bool": "boolean", "double": "float8", "float": "float8"}  # of Arrow; others are integers


class PgVector:
    """Backend over the service's SQLAlchemy engine."""

    name: BackendName = "pgvector"

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def available(self) -> bool:
        """Whether the server has pgvector, installed or ready to be."""
        with self._engine.connect() as connection:
            found = connection.scalar(text("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'"))
        return found is not None

    def find(self, key: str) -> Report | None:
        """From the comment on the table."""
        with self._engine.connect() as connection:
            found = connection.scalar(
                text("SELECT obj_description(to_regclass(:name), 'pg_class')"), {"name": _table(key)}
            )
        return Report(**json.loads(found)) if found else None

    def build(self, base: Base) -> Report:
        """COPY, then HNSW, then the measurement, all before the commit.

        Raises:
            UserError: vectors too long for pgvector, or another process builds this index.
        """
        if base.dim > MAX_DIM:
            raise UserError(
                f"pgvector indexes vectors of at most {MAX_DIM} numbers.", remedy="Use LEJEPA_SEARCH_INDEX=lancedb."
            )
        began = time.perf_counter()
        self._prepare()
        name = _table(base.key)
        with self._engine.begin() as connection:
            if not connection.scalar(
                text("SELECT pg_try_advisory_xact_lock(hashtextextended(:key, 0))"), {"key": name}
            ):
                raise UserError("Another process builds this index.", remedy="Search again when it is ready.")
            connection.execute(text(f"DROP TABLE IF EXISTS {name}"))
            columns = [f"c{i} {_TYPES.get(str(kind), 'bigint')}" for i, kind in enumerate(base.columns.values())]
            declared = ", ".join(["id int NOT NULL", "g int NOT NULL", *columns, f"v halfvec({base.dim}) NOT NULL"])
            connection.execute(text(f"CREATE TABLE {name} ({declared})"))
            if base.dim <= PLAIN_DIM:
                connection.execute(text(f"ALTER TABLE {name} ALTER COLUMN v SET STORAGE PLAIN"))
            with _cursor(connection).copy(f"COPY {name} FROM STDIN (FORMAT BINARY)") as copy:
                for block in _binary(base):
                    copy.write(block)
            need = min(MEMORY_MOST, base.rows * (2 * base.dim + 512))
            connection.execute(
                text(
                    "SELECT set_config('maintenance_work_mem', :need || 'kB', true) WHERE :bytes > "
                    "pg_size_bytes(current_setting('maintenance_work_mem'))"
                ),
                {"need": str(need // 1024), "bytes": need},
            )
            connection.execute(
                text(
                    f"CREATE INDEX ON {name} USING hnsw (v halfvec_ip_ops) "
                    f"WITH (m = {M}, ef_construction = {EF_CONSTRUCTION})"
                )
            )
            connection.execute(text(f"CREATE INDEX ON {name} (g)"))
            connection.execute(text(f"ANALYZE {name}"))
            recall, sample = measure(base, lambda query: _nearest(connection, base, query))
            report = Report(rows=base.rows, recall=recall, sample=sample, seconds=round(time.perf_counter() - began, 2))
            comment = json.dumps(report.as_dict()).replace("'", "''")
            connection.exec_driver_sql(f"COMMENT ON TABLE {name} IS '{comment}'")
        return report

    def nearest(self, base: Base, query: Query) -> list[np.ndarray]:
        """Rows in the index's order."""
        with self._engine.begin() as connection:
            return _nearest(connection, base, query)

    def drop(self, keep: frozenset[str]) -> None:
        """Remove the tables of other keys."""
        wanted = {f"v_{key}" for key in keep}
        with self._engine.begin() as connection:
            found = connection.scalars(
                text("SELECT tablename FROM pg_tables WHERE schemaname = :schema"), {"schema": SCHEMA}
            )
            for table in set(found) - wanted:
                connection.execute(text(f'DROP TABLE IF EXISTS {SCHEMA}."{table}"'))

    def _prepare(self) -> None:
        """The extension and the schema, in a transaction of their own: two builds may want them at once."""
        try:
            with self._engine.begin() as connection:
                connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": SCHEMA})
                connection.execute(text("CREATE EXTENSION IF NOT EXISTS vector"))
                connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
        except ProgrammingError:
            raise UserError(
                "The service's PostgreSQL role may not create the extension pgvector or a schema.",
                remedy="A superuser runs in its database: CREATE EXTENSION vector; GRANT CREATE ON DATABASE ... TO ...",
            ) from None


def _nearest(connection: Connection, base: Base, query: Query) -> list[np.ndarray]:
    bound: dict[str, Any] = {}

    def literal(value: bool | int | float | str) -> str:
        bound[f"p{len(bound)}"] = value
        return f":p{len(bound) - 1}"

    named = [str(value) for item in query.conditions if item.column == "group" for value in item.values]
    clauses = to_sql(query.conditions, base.columns, base.codes_of(named), literal)
    # More than k: halves are rounded, and the query item itself is among them.
    wanted = min(EF_MOST, 2 * query.k + 1)
    settings = {"hnsw.ef_search": str(min(EF_MOST, max(EF_LEAST, 2 * wanted))), "enable_seqscan": "off"}
    if _version(connection) >= ITERATIVE:
        settings["hnsw.iterative_scan"] = "relaxed_order"  # the base puts them into the exact order anyway
    for name, value in settings.items():
        connection.execute(text("SELECT set_config(:name, :value, true)"), {"name": name, "value": value})
    found = []
    for vector, group in zip(query.vectors, query.own_groups, strict=True):
        own = ["g <> :own"] if group != NONE else []
        where = f"WHERE {' AND '.join([*clauses, *own])}" if clauses or own else ""
        rows = connection.scalars(
            text(f"SELECT id FROM {_table(base.key)} {where} ORDER BY v <#> CAST(:v AS halfvec) LIMIT :n"),
            {**bound, "own": int(group), "v": _literal(vector), "n": wanted},
        )
        found.append(np.fromiter(rows, np.int64))
    return found


def _version(connection: Connection) -> tuple[int, ...]:
    found = connection.scalar(text("SELECT extversion FROM pg_extension WHERE extname = 'vector'"))
    return tuple(int(part) for part in str(found).split(".")[:2])


def _table(key: str) -> str:
    return f"{SCHEMA}.v_{key}"  # a key is hexadecimal


def _literal(vector: np.ndarray) -> str:
    return f"[{','.join(f'{value:.5g}' for value in vector)}]"  # a half has three to four digits


def _cursor(connection: Connection) -> Any:
    """Psycopg's own cursor in the same transaction: SQLAlchemy has no COPY."""
    driver = connection.connection.driver_connection
    assert driver is not None
    return driver.cursor()


def _binary(base: Base) -> Iterator[bytes]:
    """The rows in PostgreSQL's binary COPY format; a halfvec is its dimension, a zero, and big-endian halves."""
    yield b"PGCOPY\n\xff\r\n\0" + bytes(8)
    fields = struct.pack("!h", 3 + len(base.columns))
    head = struct.pack("!ihh", 4 + 2 * base.dim, base.dim, 0)
    for start in range(0, base.rows, COPY_ROWS):
        stop = min(start + COPY_ROWS, base.rows)
        halves = base.vectors[start:stop].astype(">f2")
        rows = base.table.slice(start, stop - start)
        facts = [[_field(value) for value in rows[name].to_pylist()] for name in base.columns]
        block = bytearray()
        for index in range(stop - start):
            block += fields
            block += struct.pack("!iiii", 4, start + index, 4, base.groups[start + index])
            for column in facts:
                block += column[index]
            block += head + halves[index].tobytes()
        yield bytes(block)
    yield struct.pack("!h", -1)


def _field(value: str | bool | float | None) -> bytes:
    if value is None:
        return struct.pack("!i", -1)
    if isinstance(value, bool):
        return struct.pack("!i?", 1, value)
    if isinstance(value, str):
        raw = value.replace("\0", "").encode()  # PostgreSQL's text has no NUL
        return struct.pack("!i", len(raw)) + raw
    return struct.pack("!iq" if isinstance(value, int) else "!id", 8, value)
