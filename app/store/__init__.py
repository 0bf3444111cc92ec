"""Metadata of the service in SQLite or PostgreSQL. `Store` is the one door; its methods block, so call them on threads.

`database` connects, `schema` migrates, `tables` declares what there is; `jobs`, `results`, `label_sets` and
`keys` read and write it.
"""

import os

from sqlalchemy import text
from sqlalchemy.exc import InterfaceError, OperationalError

from app.core.settings import Settings
from app.store import schema
from app.store.database import database_url, patience, persistent, unavailable
from app.store.jobs import TRANSITIONS, JobStore, new_job
from app.store.keys import KeyStore
from app.store.label_sets import LabelSetStore
from app.store.results import ResultStore
from app.store.tables import (
    UNFINISHED,
    ArchiveRow,
    AuditRow,
    EncoderRow,
    EventRow,
    JobRow,
    KeyRow,
    LabelRow,
    LabelSetRow,
    PredictionRow,
    ProbeRow,
    UploadRow,
    WorkerRow,
    now,
)
from data_adapters.errors import UserError, system_error
from lejepa_med.errors import explained

__all__ = [
    "TRANSITIONS",
    "UNFINISHED",
    "ArchiveRow",
    "AuditRow",
    "EncoderRow",
    "EventRow",
    "JobRow",
    "KeyRow",
    "LabelRow",
    "LabelSetRow",
    "PredictionRow",
    "ProbeRow",
    "Store",
    "UploadRow",
    "WorkerRow",
    "database_url",
    "new_job",
    "now",
    "open_store",
    "patience",
    "unavailable",
]


class Store(JobStore, ResultStore, LabelSetStore, KeyStore):
    """All metadata. Opening it brings the schema up to date."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        schema.upgrade(self.engine)

    @persistent
    def check(self) -> None:
        """Prove that the store can be written.

        Raises:
            ProblemError: 503, it cannot.
        """
        with self._write() as session:
            if self.is_postgres:
                session.execute(text("CREATE TEMPORARY TABLE IF NOT EXISTS writable (x int) ON COMMIT DROP"))
            else:
                session.execute(text("PRAGMA user_version = 1"))


def open_store(settings: Settings) -> Store:
    """The store that the settings name; its data directory is made where it is missing.

    Raises:
        UserError: it cannot be opened.
    """
    secret = settings.database_url
    try:
        settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)  # uploads of waiting jobs lie in it
        return Store(database_url(secret.get_secret_value() if secret else None, data=settings.data))
    except (OSError, InterfaceError, OperationalError) as error:
        code = system_error(error)  # of SQLite or the data directory; none of a server
        if code is not None and (known := explained(OSError(code, os.strerror(code), str(settings.data)))) is not None:
            raise known from None
        raise UserError(
            "The service's database cannot be opened.",
            remedy="Check that the data directory (--data-dir, LEJEPA_DATA_DIR) is writable, or that the server of "
            "LEJEPA_DATABASE_URL is up and knows the user.",
        ) from None
