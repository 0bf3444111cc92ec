"""The durable queue. DBOS on SQLite or Postgres keeps the checkpoints, behind a small interface."""

import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, ClassVar, Protocol, TypeVar

from app.errors import ProblemError, describe
from app.executor import executor_id
from app.jobs.retry import GaveUp, Halted, persevere, why_passing
from app.schemas import Problem
from app.store import patience

QUEUE = "jobs"
FORMAT = "2"  # of the jobs' steps: recovery takes up only jobs of an equal version, so raise it when steps change
POLL_SECONDS = 0.2
PATIENCE_SECONDS = 60.0  # how long one call of a job waits for the database
ACTIVE = ("ENQUEUED", "DELAYED", "PENDING")
Step = Callable[[], None]
T = TypeVar("T")


class Stopped(Exception):
    """The job was cancelled, or went over to another worker, while a step ran."""


class Work(Protocol):
    """What the engine carries out. Every method may run again after a kill, so each is idempotent."""

    def start(self, job_id: str) -> bool:
        """Begin an attempt; False when there is nothing to do any more."""

    def steps(self, job_id: str) -> Iterable[Step]:
        """The same steps at each call; a finished step is not run again. A few seconds each, then cancel is quick.

        A generator may ask for a later step what an earlier one left on the disk.
        """

    def finish(self, job_id: str) -> None:
        """Make the result visible, exactly once."""

    def retry(self, job_id: str, reason: str) -> bool:
        """Note that a step failed for a passing reason; False when the job is no longer this process's."""

    def fail(self, job_id: str, found: Problem) -> None:
        """Make the failure visible, unless the job has an outcome."""

    def give_up(self, job_id: str, found: Problem) -> None:
        """Lay the job aside with its inputs, unless it has an outcome."""

    def clean(self, job_id: str) -> None:
        """Remove the inputs of a job that has an outcome."""


@dataclass(frozen=True)
class Claim:
    """A job as the queue has it. `executor` is the process that took it; None while it waits."""

    job_id: str
    workflow_id: str
    executor: str | None
    is_current: bool
    """Whether this version of the service carries it out; a job of another one's steps begins anew."""


class JobEngine(Protocol):
    """A durable queue. What was submitted stays in it until it ended, also through kill -9 of every process."""

    def start(self) -> None:
        """Begin to take jobs."""

    def submit(self, job_id: str, kind: str) -> None:
        """Queue a job, unless it is queued or running already."""

    def cancel(self, job_id: str) -> None:
        """Take a job off the queue, or stop it at its next step."""

    def claims(self) -> list[Claim]:
        """Every job that waits or was taken."""

    def is_known(self, job_id: str) -> bool:
        """Whether a job waits or was taken, at this moment."""

    def requeue(self, claim: Claim, kind: str) -> None:
        """Let another process continue a job; what its old one still does is not noted any more."""

    def running(self) -> set[str]:
        """The jobs that run in this process."""

    def tidy(self) -> None:
        """Forget the checkpoints of jobs that ended a while ago."""

    def stop(self) -> None:
        """Take no more jobs. A step in flight is abandoned with the process."""


class DbosEngine:
    """JobEngine on DBOS 3.x. DBOS is one per process, so is this."""

    _is_running: ClassVar[bool] = False

    def __init__(self, works: Mapping[str, Work], *, database: str, workers: int, retries: int) -> None:
        """`workers` jobs run here at the same time; 0 only submits. A step is tried again `retries` times."""
        self._works = works
        self._database = database
        self._workers = workers
        self._retries = retries
        self._active: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._halt = threading.Event()
        self._run: Any = None

    def start(self) -> None:
        """Launch DBOS. What earlier processes left is found by `app.workers`, not by DBOS, since ids are never reused.

        The number of jobs at a time is a property of the queue in DBOS, hence of all processes with workers.
        """
        from dbos import DBOS, DBOSPortableJSONSerializer

        if DbosEngine._is_running:
            raise RuntimeError("one job engine a process: DBOS would hand out the other one's database")
        DbosEngine._is_running = True
        if self._database.startswith("sqlite:///"):
            with sqlite3.connect(self._database.removeprefix("sqlite:///"), timeout=30) as connection:
                connection.execute("PRAGMA journal_mode=WAL")  # stays with the file: readers never wait for a writer
            connection.close()
        DBOS(
            config={
                "name": "lejepa-med",
                "system_database_url": self._database,
                "application_version": FORMAT,
                "executor_id": executor_id(),
                "serializer": DBOSPortableJSONSerializer(),  # the default is pickle
                "log_level": "WARNING",
                "enable_otlp": False,
            }
        )

        def run_job(kind: str, job_id: str) -> None:
            self._workflow(self._works[kind], job_id)

        self._run = DBOS.workflow(name="run_job", max_recovery_attempts=None)(run_job)
        DBOS.listen_queues([QUEUE] if self._workers else [])
        DBOS.launch()
        DBOS.register_queue(
            QUEUE,
            worker_concurrency=self._workers or 1,
            polling_interval_sec=POLL_SECONDS,
            on_conflict="always_update" if self._workers else "never_update",
        )

    def submit(self, job_id: str, kind: str) -> None:
        """Queue a job; its workflow's id is fixed by its history, which makes a second submit harmless."""
        from dbos import DBOS, SetWorkflowID

        workflow_id, _ = self._current(job_id)
        with SetWorkflowID(workflow_id):
            DBOS.enqueue_workflow(QUEUE, self._run, kind, job_id)

    def cancel(self, job_id: str) -> None:
        """Take a waiting job off the queue, or stop a running one at its next step."""
        from dbos import DBOS

        workflow_id, is_known = self._current(job_id)
        if is_known:
            DBOS.cancel_workflow(workflow_id)

    def claims(self) -> list[Claim]:
        """The workflows that have not ended."""
        from dbos import DBOS

        return [
            Claim(
                job_id=found.workflow_id.rpartition(".")[0],
                workflow_id=found.workflow_id,
                executor=found.executor_id if found.status == "PENDING" else None,
                is_current=found.app_version == FORMAT,
            )
            for found in DBOS.list_workflows(status=list(ACTIVE), load_input=False, load_output=False)
        ]

    def is_known(self, job_id: str) -> bool:
        """Whether the job has a workflow that has not ended."""
        return self._current(job_id)[1]

    def requeue(self, claim: Claim, kind: str) -> None:
        """Queue the workflow again, from its last finished step; one of other steps ends, and a new one begins."""
        from dbos import DBOS

        if claim.is_current:
            DBOS.resume_workflow(claim.workflow_id, queue_name=QUEUE)
        else:
            DBOS.cancel_workflow(claim.workflow_id)
            self.submit(claim.job_id, kind)

    def running(self) -> set[str]:
        """The jobs that run in this process."""
        with self._lock:
            return set(self._active)

    def tidy(self) -> None:
        """Delete workflows that ended an hour ago: what is worth keeping of a job is in the store."""
        from dbos import DBOS

        ended = DBOS.list_workflows(
            status=["SUCCESS", "ERROR", "CANCELLED"],
            completed_before=(datetime.now(UTC) - timedelta(hours=1)).isoformat(),
            limit=500,
            load_input=False,
            load_output=False,
        )
        if ended:
            DBOS.delete_workflows([found.workflow_id for found in ended])

    def stop(self) -> None:
        """Stop taking jobs."""
        from dbos import DBOS

        self._halt.set()
        DBOS.destroy(destroy_registry=True)
        DbosEngine._is_running = False

    def _current(self, job_id: str) -> tuple[str, bool]:
        """The id of a job's present workflow, and whether DBOS knows it.

        A workflow that ended although its job has no outcome (the disk was full, say) is followed by a new one.
        """
        from dbos import DBOS

        number = 0
        while True:
            workflow_id = f"{job_id}.{number}"
            status = DBOS.get_workflow_status(workflow_id)
            if status is None or status.status in ACTIVE:
                return workflow_id, status is not None
            number += 1

    def _workflow(self, work: Work, job_id: str) -> None:
        from dbos import DBOS, error

        with self._lock:
            self._active[job_id] += 1
        try:
            with patience(PATIENCE_SECONDS):
                if not self._try(work, job_id, lambda: work.start(job_id)):
                    return
                for step in self._try(work, job_id, lambda: work.steps(job_id)):
                    outcome: dict[str, Any] = DBOS.run_step({"name": "step"}, self._step, work, job_id, step)
                    if outcome:
                        _end(work, job_id, outcome)
                        return
                self._try(work, job_id, lambda: work.finish(job_id))
        except error.DBOSException:
            raise
        except Exception as failure:
            if self._halt.is_set() or why_passing(failure):
                raise Halted from None  # DBOS's own database is away or full: the job is found and queued again
            _end(work, job_id, _failed(failure))
        finally:
            with self._lock:
                self._active[job_id] -= 1
                self._active += Counter()  # drops what is at zero
            with suppress(ProblemError):  # the database is away: what is left is found by app.workers
                work.clean(job_id)

    def _try(self, work: Work, job_id: str, call: Callable[[], T]) -> T:
        return persevere(call, retries=self._retries, note=partial(work.retry, job_id), halt=self._halt)

    def _step(self, work: Work, job_id: str, step: Step) -> dict[str, Any]:
        """Run a step; failures become values, because DBOS would store and log an exception with its message."""
        try:
            self._try(work, job_id, step)
        except Stopped:
            raise Halted from None
        except Exception as failure:
            return _failed(failure)
        return {}


def _failed(failure: Exception) -> dict[str, Any]:
    is_dead = isinstance(failure, GaveUp)
    found = describe(failure.__cause__ if is_dead and isinstance(failure.__cause__, Exception) else failure)
    return {"error": found.model_dump(mode="json", exclude_none=True), "dead": is_dead}


def _end(work: Work, job_id: str, outcome: Mapping[str, Any]) -> None:
    found = Problem.model_validate(outcome["error"])
    if outcome.get("dead"):
        work.give_up(job_id, found)
    else:
        work.fail(job_id, found)
