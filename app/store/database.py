"""The connection to SQLite (default) or PostgreSQL: transactions, and patience while the server restarts."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, InterfaceError, OperationalError
from sqlalchemy.orm import Session, sessionmaker

from app.core.errors import ProblemError
from data_adapters.errors import UserError, require

P = ParamSpec("P")
T = TypeVar("T")
_patience: ContextVar[float] = ContextVar("patience", default=0.0)
DRIVER = "postgresql+psycopg"


class Database:
    """An engine and its transactions. `url` is what `database_url` gives."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = make_engine(url)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)

    @property
    def is_postgres(self) -> bool:
        """Whether a server holds the data, so that several machines may share it."""
        return self.engine.dialect.name == "postgresql"

    @contextmanager
    def _read(self) -> Iterator[Session]:
        with self._sessions() as session:
            yield session

    @contextmanager
    def _write(self) -> Iterator[Session]:
        with self._sessions.begin() as session:
            if not self.is_postgres:
                # Take the write lock first: a read that is upgraded later would fail at once under contention.
                session.execute(text("BEGIN IMMEDIATE"))
            yield session

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def database_url(given: str | None, *, data: Path) -> str:
    """The SQLAlchemy URL: `given`, a postgresql:// URL, or SQLite in the data directory.

    Raises:
        UserError: another scheme, or no URL; the text is not repeated, since it may hold a password.
    """
    if given is None:
        return f"sqlite:///{data / 'service.sqlite'}"
    try:
        url = make_url(given)
    except ArgumentError:
        url = None
    if url is None or url.get_backend_name() != "postgresql":
        raise UserError(
            "The database's address is no PostgreSQL URL.",
            remedy="Give LEJEPA_DATABASE_URL=postgresql://USER:PASSWORD@HOST/DATABASE, or leave it out for SQLite.",
        )
    require("psycopg", extra="postgres")
    return url.set(drivername=DRIVER).render_as_string(hide_password=False)


def make_engine(url: str) -> Engine:
    """An engine whose every connection is set up for durability."""
    options: dict[str, Any] = {"json_serializer": lambda value: json.dumps(value, allow_nan=False)}
    if url.startswith("sqlite"):
        engine = create_engine(url, **options)

        @event.listens_for(engine, "connect")
        def configure(connection: Any, record: Any) -> None:
            # WAL: readers never wait for a writer. FULL: an accepted job survives a power cut, not only a kill.
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=30000", "foreign_keys=ON"):
                connection.execute(f"PRAGMA {pragma}")

        return engine
    # pre-ping: a connection that a restart of the server has cut is noticed before it is used
    return create_engine(url, pool_pre_ping=True, pool_size=5, max_overflow=15, pool_timeout=10, **options)


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Let the store's methods in this block outlast a database that is away for `seconds` (jobs can wait)."""
    token = _patience.set(seconds)
    try:
        yield
    finally:
        _patience.reset(token)


S = TypeVar("S", bound=Database)


def persistent(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """A method of the store that is repeated while the database is away, and then answers 503.

    The repeated method must be harmless if its first run was committed and only the answer was lost.
    """

    @wraps(method)
    def repeated(self: S, *args: P.args, **kwargs: P.kwargs) -> T:
        end = time.monotonic() + _patience.get()
        while True:
            try:
                return method(self, *args, **kwargs)
            except (OperationalError, InterfaceError):
                if time.monotonic() >= end:
                    raise unavailable() from None
                time.sleep(0.5)

    return cast(Callable[Concatenate[S, P], T], repeated)


def unavailable() -> ProblemError:
    """503: the database is away or cannot be written."""
    return ProblemError(
        503,
        "store-unavailable",
        "The service's database cannot be reached or written at the moment.",
        remedy="Try again after the seconds in Retry-After; the operator sees the cause in the database's log.",
        headers={"Retry-After": "5"},
    )
