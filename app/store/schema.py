"""Bringing a database to this version's schema, with Alembic, before anything else touches it."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from data_adapters.errors import UserError

LOCK = 0x6C656A65  # advisory lock of PostgreSQL, "leje"


def upgrade(engine: Engine) -> None:
    """Bring the schema to this version; processes that start together wait for each other.

    Raises:
        UserError: the database was written by a newer version.
    """
    with _alone(engine), engine.begin() as connection:
        config = config_for(connection)
        revision = current(connection)
        if revision is not None and revision not in _known(config):
            raise UserError(
                "The service's database was written by a newer version of lejepa-med.",
                remedy="Install that version or a newer one, or restore a backup that this version made.",
            )
        command.upgrade(config, "head")


def current(connection: Connection) -> str | None:
    """The schema's revision; None for an empty database."""
    revision: str | None = MigrationContext.configure(connection).get_current_revision()
    return revision


def config_for(connection: Connection) -> Config:
    """Alembic's configuration for a connection; there is no alembic.ini."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _known(config: Config) -> set[str]:
    return {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}


@contextmanager
def _alone(engine: Engine) -> Iterator[None]:
    if engine.dialect.name == "postgresql":
        with engine.connect() as connection:
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": LOCK})
            try:
                yield
            finally:
                connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": LOCK})
        return
    assert engine.url.database is not None
    with Path(engine.url.database).with_suffix(".migrate").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
