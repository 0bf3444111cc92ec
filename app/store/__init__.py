"""Metadata of the service in SQLite or PostgreSQL. `Store` is the one door; its methods block, so call them on threads.

A room each: `database` connects, `schema` migrates, `tables` says what there is, `jobs`, `results` read and write it.
"""

from sqlalchemy import text

from app.store import schema
from app.store.database import database_url, patience, persistent, unavailable
from app.store.jobs import JobStore, new_job
from app.store.results import ResultStore
from app.store.tables import (
    UNFINISHED,
    ArchiveRow,
    AuditRow,
    EncoderRow,
    EventRow,
    JobRow,
    KeyRow,
    PredictionRow,
    ProbeRow,
    UploadRow,
    WorkerRow,
    now,
)

__all__ = [
    "UNFINISHED",
    "ArchiveRow",
    "AuditRow",
    "EncoderRow",
    "EventRow",
    "JobRow",
    "KeyRow",
    "PredictionRow",
    "ProbeRow",
    "Store",
    "UploadRow",
    "WorkerRow",
    "database_url",
    "new_job",
    "now",
    "patience",
    "unavailable",
]


class Store(JobStore, ResultStore):
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
