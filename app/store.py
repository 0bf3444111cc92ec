"""Metadata of the service: probes, jobs and their log, in SQLite (WAL) below the data directory."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, ForeignKey, String, case, create_engine, event, func, select, text, update
from sqlalchemy.engine import CursorResult
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

UNFINISHED = ("queued", "running")


class Base(DeclarativeBase):
    """Tables of the service. Created at the start; migrations come with the next schema."""


class JobRow(Base):
    """One job. `state` changes only by compare-and-set, so that every job has exactly one outcome."""

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    kind: Mapped[str] = mapped_column(String(40))
    state: Mapped[str] = mapped_column(String(16), index=True)
    stage: Mapped[str] = mapped_column(String(40), default="")
    progress: Mapped[float] = mapped_column(default=0.0)
    created: Mapped[float] = mapped_column(index=True)  # seconds since 1970, UTC
    started: Mapped[float | None]  # of the running attempt
    start_progress: Mapped[float] = mapped_column(default=0.0)  # where that attempt began, for the ETA
    finished: Mapped[float | None]
    attempts: Mapped[int] = mapped_column(default=0)
    result: Mapped[str | None] = mapped_column(String(200))
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON)


class EventRow(Base):
    """One line of a job's log."""

    __tablename__ = "events"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    at: Mapped[float]
    message: Mapped[str] = mapped_column(String(200))


class ProbeRow(Base):
    """One trained probe; its weights lie in probes/<id>/ of the data directory."""

    __tablename__ = "probes"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(120))
    encoder: Mapped[str] = mapped_column(String(200))
    fingerprint: Mapped[str] = mapped_column(String(64), index=True)
    labels: Mapped[list[str]] = mapped_column(JSON)
    count: Mapped[int]
    created: Mapped[float] = mapped_column(index=True)
    metrics: Mapped[dict[str, Any]] = mapped_column(JSON)
    receipt: Mapped[dict[str, Any]] = mapped_column(JSON)


@dataclass(frozen=True)
class JobStatistic:
    """Jobs of one kind in one state: how many, how often they were started, and the seconds of those that ended."""

    kind: str
    state: str
    count: int
    attempts: int
    timed: int
    seconds: float
    within: tuple[int, ...]


def now() -> float:
    """Seconds since 1970."""
    return datetime.now(UTC).timestamp()


class Store:
    """All reads and writes of metadata. Its methods block; call them on threads."""

    def __init__(self, file: Path) -> None:
        self._engine = create_engine(
            f"sqlite:///{file}", json_serializer=lambda value: json.dumps(value, allow_nan=False)
        )

        @event.listens_for(self._engine, "connect")
        def configure(connection: Any, record: Any) -> None:
            # WAL: readers never wait for a writer. FULL: an accepted job survives a power cut, not only a kill.
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=30000", "foreign_keys=ON"):
                connection.execute(f"PRAGMA {pragma}")

        Base.metadata.create_all(self._engine)
        self._sessions = sessionmaker(self._engine, expire_on_commit=False)

    @contextmanager
    def _write(self) -> Iterator[Session]:
        with self._sessions.begin() as session:
            # Take the write lock first: a read that is upgraded later would fail at once under contention.
            session.execute(text("BEGIN IMMEDIATE"))
            yield session

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def check(self) -> None:
        """Prove that the store can be written; raises what SQLite raises."""
        with self._write() as session:
            session.execute(text("PRAGMA user_version = 1"))

    # --- jobs -------------------------------------------------------------------------------------------------------

    def add_job(self, job_id: str, kind: str) -> JobRow:
        """A new job in state queued."""
        row = JobRow(
            id=job_id, kind=kind, state="queued", stage="", progress=0.0, start_progress=0.0, created=now(), attempts=0
        )
        with self._write() as session:
            session.add(row)
            session.flush()
            session.add(EventRow(job_id=job_id, at=row.created, message="accepted"))
        return row

    def job(self, job_id: str) -> JobRow | None:
        """One job."""
        with self._sessions() as session:
            return session.get(JobRow, job_id)

    def jobs(self, *, limit: int) -> list[JobRow]:
        """Jobs, newest first."""
        query = select(JobRow).order_by(JobRow.created.desc(), JobRow.id).limit(limit)
        with self._sessions() as session:
            return list(session.scalars(query))

    def unfinished(self) -> list[JobRow]:
        """Every job that is queued or running, oldest first."""
        query = select(JobRow).where(JobRow.state.in_(UNFINISHED)).order_by(JobRow.created, JobRow.id)
        with self._sessions() as session:
            return list(session.scalars(query))

    def events(self, job_id: str) -> list[EventRow]:
        """A job's log, oldest first."""
        query = select(EventRow).where(EventRow.job_id == job_id).order_by(EventRow.id)
        with self._sessions() as session:
            return list(session.scalars(query))

    def start_job(self, job_id: str) -> JobRow | None:
        """Begin an attempt; None when the job is finished or cancelled already."""
        with self._write() as session:
            row = session.get(JobRow, job_id)
            if row is None or row.state not in UNFINISHED:
                return None
            row.state, row.started, row.start_progress = "running", now(), row.progress
            row.attempts += 1
            message = "started" if row.attempts == 1 else f"continued, attempt {row.attempts}"
            session.add(EventRow(job_id=job_id, at=row.started, message=message))
            return row

    def advance(self, job_id: str, *, stage: str, progress: float) -> bool:
        """Note progress (it never falls); False when the job no longer runs, so that the work stops."""
        with self._write() as session:
            row = session.get(JobRow, job_id)
            if row is None or row.state != "running":
                return False
            if stage != row.stage:
                session.add(EventRow(job_id=job_id, at=now(), message=stage))
            row.stage, row.progress = stage, max(row.progress, min(1.0, progress))
            return True

    def finish_job(
        self,
        job_id: str,
        state: str,
        *,
        result: str | None = None,
        error: dict[str, Any] | None = None,
        probe: ProbeRow | None = None,
    ) -> bool:
        """Give a job its one outcome, and a probe its row, in one transaction; False when it has an outcome already."""
        with self._write() as session:
            at = now()
            values = {"state": state, "finished": at, "result": result, "error": error}
            if state == "succeeded":
                values["progress"] = 1.0
            changed = session.execute(
                update(JobRow).where(JobRow.id == job_id, JobRow.state.in_(UNFINISHED)).values(**values)
            )
            assert isinstance(changed, CursorResult)
            if changed.rowcount == 0:
                return False
            session.add(EventRow(job_id=job_id, at=at, message=state))
            if probe is not None:
                session.add(probe)
            return True

    def job_statistics(self, bounds: Sequence[float]) -> list[JobStatistic]:
        """Counts and durations of all jobs, by kind and state.

        Args:
            bounds: seconds; `within` tells how many ended jobs took at most each.
        """
        took = JobRow.finished - JobRow.started  # None for what has not ended, or was cancelled before its start
        within = [func.count(case((took <= bound, 1))) for bound in bounds]
        query = select(
            JobRow.kind,
            JobRow.state,
            func.count(),
            func.sum(JobRow.attempts),
            func.count(took),
            func.sum(took),
            *within,
        ).group_by(JobRow.kind, JobRow.state)
        with self._sessions() as session:
            return [
                JobStatistic(kind, state, count, attempts, timed, seconds or 0.0, tuple(sums))
                for kind, state, count, attempts, timed, seconds, *sums in session.execute(query)
            ]

    # --- probes -----------------------------------------------------------------------------------------------------

    def probe(self, probe_id: str) -> ProbeRow | None:
        """One probe."""
        with self._sessions() as session:
            return session.get(ProbeRow, probe_id)

    def probes(self) -> list[ProbeRow]:
        """All probes, newest first."""
        with self._sessions() as session:
            return list(session.scalars(select(ProbeRow).order_by(ProbeRow.created.desc(), ProbeRow.id)))
