"""Jobs, their log, and the workers that run them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import case, delete, func, select, text, update
from sqlalchemy.engine import CursorResult

from app.store.database import Database, persistent
from app.store.tables import UNFINISHED, Base, EventRow, JobRow, PairRow, WorkerRow, now


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


def new_job(job_id: str, kind: str, *, key_id: str | None = None) -> JobRow:
    """The row of a job that waits."""
    return JobRow(
        id=job_id,
        kind=kind,
        state="queued",
        stage="",
        progress=0.0,
        start_progress=0.0,
        created=now(),
        attempts=0,
        key_id=key_id,
    )


class JobStore(Database):
    """All reads and writes of jobs."""

    @persistent
    def add_job(self, job_id: str, kind: str, *, key_id: str | None = None) -> JobRow:
        """A new job in state queued; the present one where it was added before."""
        row = new_job(job_id, kind, key_id=key_id)
        with self._write() as session:
            known = session.get(JobRow, job_id)
            if known is not None:
                return known
            session.add(row)
            session.flush()
            session.add(EventRow(job_id=job_id, at=row.created, message="accepted"))
        return row

    @persistent
    def job(self, job_id: str) -> JobRow | None:
        """One job."""
        with self._read() as session:
            return session.get(JobRow, job_id)

    @persistent
    def jobs(self, *, limit: int, offset: int = 0, state: str | None = None, kind: str | None = None) -> list[JobRow]:
        """Jobs, newest first, `limit` from `offset` on; of one state or kind where it is given."""
        query = select(JobRow).order_by(JobRow.created.desc(), JobRow.id).offset(offset).limit(limit)
        if state is not None:
            query = query.where(JobRow.state == state)
        if kind is not None:
            query = query.where(JobRow.kind == kind)
        with self._read() as session:
            return list(session.scalars(query))

    @persistent
    def unfinished(self) -> list[JobRow]:
        """Every job that is queued or running, oldest first."""
        query = select(JobRow).where(JobRow.state.in_(UNFINISHED)).order_by(JobRow.created, JobRow.id)
        with self._read() as session:
            return list(session.scalars(query))

    @persistent
    def job_states(self, ids: Sequence[str]) -> dict[str, tuple[str, str]]:
        """(kind, state) of those of the jobs that exist."""
        found: dict[str, tuple[str, str]] = {}
        with self._read() as session:
            for start in range(0, len(ids), 500):  # below every database's limit of parameters
                some = JobRow.id.in_(ids[start : start + 500])
                for job_id, kind, state in session.execute(select(JobRow.id, JobRow.kind, JobRow.state).where(some)):
                    found[job_id] = (kind, state)
        return found

    @persistent
    def unfinished_of(self, key_id: str | None) -> int:
        """Number of jobs, queued or running, that a key asked for; None: those of nobody's key."""
        query = select(func.count()).where(JobRow.state.in_(UNFINISHED), JobRow.key_id == key_id)
        with self._read() as session:
            return session.scalar(query) or 0

    @persistent
    def job_statistics(self, bounds: Sequence[float] = ()) -> list[JobStatistic]:
        """Counts and durations of all jobs, by kind and state.

        Args:
            bounds: seconds; `within` tells how many ended jobs took at most each.
        """
        took = JobRow.finished - JobRow.started  # NULL for what has not ended, or was cancelled before its start
        query = select(
            JobRow.kind,
            JobRow.state,
            func.count(),
            func.sum(JobRow.attempts),
            func.count(took),
            func.sum(took),
            *(func.count(case((took <= bound, 1))) for bound in bounds),
        ).group_by(JobRow.kind, JobRow.state)
        with self._read() as session:
            return [
                JobStatistic(kind, state, count, attempts, timed, seconds or 0.0, tuple(sums))
                for kind, state, count, attempts, timed, seconds, *sums in session.execute(query)
            ]

    @persistent
    def events(self, job_id: str) -> list[EventRow]:
        """A job's log, oldest first."""
        query = select(EventRow).where(EventRow.job_id == job_id).order_by(EventRow.id)
        with self._read() as session:
            return list(session.scalars(query))

    @persistent
    def start_job(self, job_id: str, *, executor: str | None = None) -> JobRow | None:
        """Begin an attempt; None when the job is finished or cancelled already."""
        with self._write() as session:
            row = session.get(JobRow, job_id, with_for_update=True)
            if row is None or row.state not in UNFINISHED:
                return None
            row.state, row.started, row.start_progress = "running", now(), row.progress
            row.attempts += 1
            row.executor = executor
            message = "started" if row.attempts == 1 else f"continued, attempt {row.attempts}"
            session.add(EventRow(job_id=job_id, at=row.started, message=message))
            return row

    @persistent
    def advance(self, job_id: str, *, stage: str, progress: float, executor: str | None = None) -> bool:
        """Note progress (it never falls); False when the job no longer runs, or runs elsewhere, so that work stops."""
        with self._write() as session:
            row = session.get(JobRow, job_id, with_for_update=True)
            if row is None or row.state != "running" or row.executor != (executor or row.executor):
                return False
            if stage != row.stage:
                session.add(EventRow(job_id=job_id, at=now(), message=stage))
            row.stage, row.progress = stage, max(row.progress, min(1.0, progress))
            return True

    @persistent
    def note(self, job_id: str, message: str) -> None:
        """Add a line to a job's log."""
        with self._write() as session:
            session.add(EventRow(job_id=job_id, at=now(), message=message[:200]))

    @persistent
    def finish_job(
        self,
        job_id: str,
        state: str,
        *,
        result: str | None = None,
        error: dict[str, Any] | None = None,
        made: Base | Sequence[Base] = (),
        executor: str | None = None,
    ) -> bool:
        """Give a job its one outcome, and what it made its rows, in one transaction; False when it has an outcome.

        With `executor` it is False also for a job that has gone over to another worker.
        """
        with self._write() as session:
            at = now()
            values = {"state": state, "finished": at, "result": result, "error": error}
            if state == "succeeded":
                values["progress"] = 1.0
            these = [JobRow.id == job_id, JobRow.state.in_(UNFINISHED)]
            if executor is not None:
                these.append(JobRow.executor == executor)
            changed = session.execute(update(JobRow).where(*these).values(**values))
            assert isinstance(changed, CursorResult)
            if changed.rowcount == 0:
                return False
            session.add(EventRow(job_id=job_id, at=at, message=state))
            for row in [made] if isinstance(made, Base) else made:
                if hasattr(row, "key_id"):
                    # whoever asked for the job owns what it made
                    row.key_id = session.scalar(select(JobRow.key_id).where(JobRow.id == job_id))
                session.add(row)
            return True

    @persistent
    def reopen_job(self, job_id: str) -> bool:
        """Queue a job again whose outcome is 'dead'; False when it has another state."""
        again = {"state": "queued", "finished": None, "error": None, "attempts": 0, "losses": 0, "executor": None}
        return self._from_dead(job_id, {**again, "stage": ""}, "queued again by request")

    @persistent
    def discard_job(self, job_id: str) -> bool:
        """Give up a job whose outcome is 'dead': it counts as cancelled. False when it has another state."""
        return self._from_dead(job_id, {"state": "cancelled", "finished": now()}, "cancelled")

    def _from_dead(self, job_id: str, values: dict[str, Any], message: str) -> bool:
        with self._write() as session:
            changed = session.execute(
                update(JobRow).where(JobRow.id == job_id, JobRow.state == "dead").values(**values)
            )
            assert isinstance(changed, CursorResult)
            if changed.rowcount == 0:
                return False
            session.add(EventRow(job_id=job_id, at=now(), message=message))
            return True

    @persistent
    def take_over(self, job_id: str, *, holder: str | None, by: str | None, is_lost: bool = False) -> JobRow | None:
        """Put a job back into the queue in the name of `by`; None unless `holder` has it, so that one process does it.

        Args:
            job_id: the job.
            holder: the worker that had it; None where no attempt was begun, or the worker gave it back.
            by: who acts now; None to give it back.
            is_lost: the worker ended in it, which is counted until the job gets further than it was.
        """
        with self._write() as session:
            row = session.get(JobRow, job_id, with_for_update=True)
            if row is None or row.state not in UNFINISHED or row.executor != holder:
                return None
            row.state, row.executor = "queued", by
            if is_lost:
                row.losses = 1 if row.progress > row.start_progress else row.losses + 1
                session.add(EventRow(job_id=job_id, at=now(), message="its worker ended; another one takes it over"))
            return row

    # --- workers ----------------------------------------------------------------------------------------------------

    @persistent
    def beat(self, executor: str) -> None:
        """Say that this worker lives."""
        with self._write() as session:
            row = session.get(WorkerRow, executor, with_for_update=True)
            if row is None:
                session.add(WorkerRow(executor=executor, beat=1, started=now(), seen=now()))
            else:
                row.beat, row.seen = row.beat + 1, now()

    @persistent
    def workers(self) -> list[WorkerRow]:
        """Every worker that did not say goodbye."""
        with self._read() as session:
            return list(session.scalars(select(WorkerRow).order_by(WorkerRow.started, WorkerRow.executor)))

    @persistent
    def remove_worker(self, executor: str) -> None:
        """Forget a worker that ended, or that was found dead."""
        with self._write() as session:
            session.execute(delete(WorkerRow).where(WorkerRow.executor == executor))

    @persistent
    def pair(self, name: str) -> bool:
        """Whether this database belongs to the data directory of this name; a new one belongs to the first."""
        with self._write() as session:
            if self.is_postgres:
                session.execute(text("LOCK TABLE pair IN EXCLUSIVE MODE"))
            row = session.get(PairRow, 1)
            if row is None:
                session.add(PairRow(id=1, name=name))
            return row is None or row.name == name
