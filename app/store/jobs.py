"""Jobs, their log, and the workers that run them. A job's row is the one truth about it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import case, delete, func, select, text
from sqlalchemy.orm import Session

from app.store.database import Database, persistent
from app.store.tables import UNFINISHED, Base, DirectoryRow, EventRow, JobRow, WorkerRow, now


class Transition(NamedTuple):
    """A change of a job's state, from one of several states."""

    sources: tuple[str, ...]
    target: str


TRANSITIONS = {
    "claim": Transition(("queued",), "running"),  # a worker begins an attempt
    "release": Transition(("running",), "queued"),  # its worker stops, or could not record the outcome
    "lose": Transition(("running",), "queued"),  # its worker ended in it
    "succeed": Transition(("running",), "succeeded"),
    "fail": Transition(("running",), "failed"),
    "give up": Transition(("running",), "dead"),  # retries are used up, or workers ended in it too often
    "retry": Transition(("dead",), "queued"),  # by request
    "cancel": Transition(("queued", "running", "dead"), "cancelled"),  # by request
}
"""Every way in which a job's state changes. docs/durability.md draws it."""


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
        losses=0,
        key_id=key_id,
    )


class JobStore(Database):
    """All reads and writes of jobs. Only the worker that claimed a job changes it; a request may cancel it."""

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

    # --- reading ----------------------------------------------------------------------------------------------------

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
    def running_jobs(self) -> dict[str, str]:
        """Ids of the jobs that run, and who runs them."""
        query = select(JobRow.id, JobRow.worker).where(JobRow.state == "running")
        with self._read() as session:
            return {job_id: worker or "" for job_id, worker in session.execute(query)}

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

    # --- an attempt of a worker -------------------------------------------------------------------------------------

    @persistent
    def claim_job(self, *, worker: str, kinds: Collection[str], but: Collection[str] = ()) -> JobRow | None:
        """Begin an attempt at the oldest job of these kinds that waits; None when none does.

        Args:
            worker: who asks.
            kinds: the kinds of jobs that it can run.
            but: jobs of which an earlier attempt of it, which does not count any more, has not stopped yet.
        """
        waiting = JobRow.state.in_(TRANSITIONS["claim"].sources), JobRow.kind.in_(kinds), JobRow.id.not_in(but)
        with self._read() as session:  # SQLite has one write lock: an idle worker must not take it five times a second
            if session.scalar(select(JobRow.id).where(*waiting).limit(1)) is None:
                return None
        oldest = select(JobRow).where(*waiting).order_by(JobRow.created, JobRow.id).limit(1)
        with self._write() as session:
            # Several workers at the same time: each skips what another one is claiming. SQLite has no row locks and
            # needs none, since the transaction holds its write lock.
            row = session.scalar(oldest.with_for_update(skip_locked=True))
            if row is None:
                return None
            attempt = row.attempts + 1
            _change(
                session,
                row,
                "claim",
                "started" if attempt == 1 else f"continued, attempt {attempt}",
                worker=worker,
                attempts=attempt,
                started=now(),
                start_progress=row.progress,
            )
            return row

    @persistent
    def holds_job(self, job_id: str, *, worker: str) -> bool:
        """Whether the worker's attempt still counts: the job was neither cancelled nor taken over."""
        with self._read() as session:
            return _held(session, job_id, worker, lock=False) is not None

    @persistent
    def advance(self, job_id: str, *, stage: str, progress: float, worker: str) -> bool:
        """Note progress, which never falls; False when the worker does not hold the job any more, so that work stops.

        Args:
            job_id: the job.
            stage: a word for what is done now; a new one gets a line in the job's log.
            progress: share that is done, 0 to 1.
            worker: who asks.
        """
        with self._write() as session:
            row = _held(session, job_id, worker)
            if row is None:
                return False
            if stage != row.stage:
                session.add(EventRow(job_id=job_id, at=now(), message=stage))
            row.stage, row.progress = stage, max(row.progress, min(1.0, progress))
            return True

    @persistent
    def note(self, job_id: str, message: str, *, worker: str) -> bool:
        """Add a line to a job's log; False when the worker does not hold the job any more."""
        with self._write() as session:
            if _held(session, job_id, worker) is None:
                return False
            session.add(EventRow(job_id=job_id, at=now(), message=message[:200]))
            return True

    @persistent
    def finish_job(
        self,
        job_id: str,
        outcome: str,
        *,
        worker: str,
        result: str | None = None,
        error: dict[str, Any] | None = None,
        made: Base | Sequence[Base] = (),
    ) -> bool:
        """Give a job its one outcome, and what it made its rows, in one transaction.

        Args:
            job_id: the job.
            outcome: "succeed", "fail" or "give up".
            worker: who ran it.
            result: address of what it made.
            error: the problem document of a failure.
            made: rows of what it made; they belong to the key that asked for the job.

        Returns:
            False when the worker does not hold the job any more; then nothing is written.
        """
        with self._write() as session:
            row = _held(session, job_id, worker)
            if row is None:
                return False
            done = {"progress": 1.0} if outcome == "succeed" else {}
            target = TRANSITIONS[outcome].target
            _change(session, row, outcome, target, finished=now(), result=result, error=error, **done)
            for one in [made] if isinstance(made, Base) else made:
                if hasattr(one, "key_id"):
                    one.key_id = row.key_id
                session.add(one)
            return True

    # --- other changes of state -------------------------------------------------------------------------------------

    @persistent
    def release_jobs(self, worker: str, *, but: Collection[str] = ()) -> int:
        """Give back the jobs that a worker holds, except those that it runs; their number. Nothing is held against it.

        Args:
            worker: who holds them.
            but: ids of jobs that it runs.
        """
        query = select(JobRow).where(JobRow.state == "running", JobRow.worker == worker, JobRow.id.not_in(but))
        with self._write() as session:
            found = session.scalars(query.with_for_update()).all()
            for row in found:
                _change(session, row, "release", None, worker=None)
            return len(found)

    @persistent
    def lose_job(self, job_id: str, *, worker: str, most: int, error: dict[str, Any]) -> JobRow | None:
        """Queue a job again whose worker ended in it, or give it up; None where another process has done so.

        Args:
            job_id: the job.
            worker: the one that ended.
            most: the job is given up after so many workers in a row that ended before it got any further.
            error: the problem document of a job that is given up.
        """
        with self._write() as session:
            row = _held(session, job_id, worker)
            if row is None:
                return None
            losses = 1 if row.progress > row.start_progress else row.losses + 1
            session.add(EventRow(job_id=job_id, at=now(), message="its worker ended; another one takes it over"))
            if losses < most:
                _change(session, row, "lose", None, worker=None, losses=losses)
            else:
                _change(session, row, "give up", "dead", losses=losses, finished=now(), error=error)
            return row

    @persistent
    def cancel_job(self, job_id: str) -> tuple[str, str] | None:
        """End a job as cancelled; the kind and state that it had, or None when it has another outcome already."""
        with self._write() as session:
            row = session.get(JobRow, job_id, with_for_update=True)
            if row is None or row.state not in TRANSITIONS["cancel"].sources:
                return None
            before = row.kind, row.state
            _change(session, row, "cancel", "cancelled", finished=now())
            return before

    @persistent
    def retry_job(self, job_id: str) -> bool:
        """Queue a dead job again, with all attempts before it; False when it has another state."""
        with self._write() as session:
            row = session.get(JobRow, job_id, with_for_update=True)
            if row is None or row.state not in TRANSITIONS["retry"].sources:
                return False
            again = {"finished": None, "error": None, "stage": "", "attempts": 0, "losses": 0, "worker": None}
            _change(session, row, "retry", "queued again by request", **again)
            return True

    # --- workers ----------------------------------------------------------------------------------------------------

    @persistent
    def heartbeat(self, worker: str) -> None:
        """Note that this worker lives."""
        with self._write() as session:
            row = session.get(WorkerRow, worker, with_for_update=True)
            if row is None:
                session.add(WorkerRow(id=worker, heartbeat=1, started=now(), seen=now()))
            else:
                row.heartbeat, row.seen = row.heartbeat + 1, now()

    @persistent
    def workers(self) -> list[WorkerRow]:
        """Every worker that has not stopped in order."""
        with self._read() as session:
            return list(session.scalars(select(WorkerRow).order_by(WorkerRow.started, WorkerRow.id)))

    @persistent
    def remove_worker(self, worker: str) -> None:
        """Forget a worker that stopped, or that was found dead."""
        with self._write() as session:
            session.execute(delete(WorkerRow).where(WorkerRow.id == worker))

    @persistent
    def belongs_to(self, directory: str) -> bool:
        """Whether this database belongs to the data directory of this name; a new one belongs to the first."""
        with self._write() as session:
            if self.is_postgres:
                session.execute(text("LOCK TABLE directory IN EXCLUSIVE MODE"))
            row = session.get(DirectoryRow, 1)
            if row is None:
                session.add(DirectoryRow(id=1, name=directory))
            return row is None or row.name == directory


def _held(session: Session, job_id: str, worker: str, *, lock: bool = True) -> JobRow | None:
    """The job if this worker runs it, locked against other transactions."""
    query = select(JobRow).where(JobRow.id == job_id, JobRow.state == "running", JobRow.worker == worker)
    return session.scalar(query.with_for_update() if lock else query)


def _change(session: Session, row: JobRow, transition: str, message: str | None, **values: Any) -> None:
    """Make a transition from the state of a row that this transaction has locked; `message` goes to the job's log."""
    sources, target = TRANSITIONS[transition]
    if row.state not in sources:
        raise RuntimeError(f"a job that is {row.state} cannot {transition}")
    for name, value in {"state": target, **values}.items():
        setattr(row, name, value)
    if message is not None:
        session.add(EventRow(job_id=row.id, at=now(), message=message))
