"""The durable queue. DBOS on SQLite or Postgres keeps the checkpoints, behind an interface of four methods."""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Protocol

from app.errors import describe
from app.schemas import Problem

log = logging.getLogger("lejepa_med.app")

QUEUE = "jobs"
FORMAT = "2"  # of the jobs' steps: recovery takes up only jobs of an equal version, so raise it when steps change
EXECUTOR = "service"  # stable, so that a restarted service recovers its own jobs; the data directory admits one service
POLL_SECONDS = 0.2
Step = Callable[[], None]


class Stopped(Exception):
    """The job was cancelled while a step ran."""


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

    def fail(self, job_id: str, found: Problem) -> None:
        """Make the failure visible, unless the job has an outcome."""

    def clean(self, job_id: str) -> None:
        """Remove the inputs of a job that has an outcome."""


class JobEngine(Protocol):
    """A durable queue: what was submitted is run to its end, also through kill -9 of the whole service."""

    def start(self) -> None:
        """Begin to work, first on what an earlier process left."""

    def submit(self, job_id: str, kind: str) -> None:
        """Queue a job, unless it is queued or running already."""

    def cancel(self, job_id: str) -> None:
        """Stop a job at its next step."""

    def stop(self) -> bool:
        """End; True when a job was running, which continues at the next start."""


class DbosEngine:
    """JobEngine on DBOS 3.x. DBOS is one per process, so is this."""

    _is_running: ClassVar[bool] = False

    def __init__(self, works: Mapping[str, Work], *, database: str, workers: int) -> None:
        self._works = works
        self._database = database
        self._workers = workers
        self._active = 0
        self._lock = threading.Lock()
        self._stopping = False
        self._run: Any = None

    def start(self) -> None:
        """Launch DBOS; it recovers the jobs that were running, and the queue holds those that were waiting."""
        from dbos import DBOS, DBOSPortableJSONSerializer

        if DbosEngine._is_running:
            raise RuntimeError("one job engine a process: DBOS would hand out the other one's database")
        DbosEngine._is_running = True
        DBOS(
            config={
                "name": "lejepa-med",
                "system_database_url": self._database,
                "application_version": FORMAT,
                "executor_id": EXECUTOR,
                "serializer": DBOSPortableJSONSerializer(),  # the default is pickle
                "log_level": "WARNING",
                "enable_otlp": False,
            }
        )

        def run_job(kind: str, job_id: str) -> None:
            self._workflow(self._works[kind], job_id)

        self._run = DBOS.workflow(name="run_job", max_recovery_attempts=None)(run_job)
        DBOS.launch()
        DBOS.register_queue(
            QUEUE, worker_concurrency=self._workers, polling_interval_sec=POLL_SECONDS, on_conflict="always_update"
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

    def _current(self, job_id: str) -> tuple[str, bool]:
        """The id of a job's present workflow, and whether DBOS knows it.

        A workflow that ended although its job has no outcome (the disk was full, say) is followed by a new one.
        """
        from dbos import DBOS

        number = 0
        while True:
            workflow_id = f"{job_id}.{number}"
            status = DBOS.get_workflow_status(workflow_id)
            if status is None or status.status in ("ENQUEUED", "DELAYED", "PENDING"):
                return workflow_id, status is not None
            number += 1

    def stop(self) -> bool:
        """Stop taking jobs. A step in flight is abandoned with the process and repeated at the next start."""
        from dbos import DBOS

        self._stopping = True
        with self._lock:
            active = self._active > 0
        DBOS.destroy(destroy_registry=True)
        DbosEngine._is_running = False
        return active

    def _workflow(self, work: Work, job_id: str) -> None:
        from dbos import DBOS, error

        with self._lock:
            self._active += 1
        try:
            if not work.start(job_id):
                return
            for step in work.steps(job_id):
                outcome: dict[str, Any] = DBOS.run_step({"name": "step"}, _guarded, step)
                if outcome.get("stopped"):
                    return
                if outcome.get("error"):
                    work.fail(job_id, Problem.model_validate(outcome["error"]))
                    return
            work.finish(job_id)
        except error.DBOSException:
            raise  # another run of the same job has taken over, or the engine stops
        except Exception as failure:
            if not self._stopping:
                work.fail(job_id, describe(failure))
        finally:
            with self._lock:
                self._active -= 1
            work.clean(job_id)


def _guarded(step: Step) -> dict[str, Any]:
    """Run a step; failures become values, because DBOS would store and log an exception with its message."""
    try:
        step()
    except Stopped:
        return {"stopped": True}
    except Exception as error:
        return {"error": describe(error).model_dump(mode="json", exclude_none=True)}
    return {}
