"""The threads of this process that run jobs: claim one, run its steps, give it an outcome, begin again."""

import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import partial

from app.datadir import this_process
from app.errors import ProblemError, describe, log_unexpected
from app.jobs.base import JobKind
from app.jobs.retry import GaveUp, Stopped, persevere
from app.store import JobRow, Store, patience

POLL_SECONDS = 0.2  # between two looks for jobs that other processes queued; a job of this process wakes a thread
PATIENCE_SECONDS = 60.0  # how long one call of a job waits for the database
PAUSE_SECONDS = 2.0  # after a claim or an outcome that the database did not take
CLAIM_SECONDS = 5.0  # that a claim in flight may take at the end


class Worker:
    """Runs `threads` jobs at the same time; with 0 it leaves all jobs to other processes."""

    def __init__(self, store: Store, kinds: Mapping[str, JobKind], *, threads: int, retries: int) -> None:
        """`kinds` by their names. A step is tried again `retries` times."""
        self._store, self._kinds, self._retries = store, kinds, retries
        self._me = this_process()
        self._running: set[str] = set()
        self._claiming = threading.Lock()
        self._is_uncertain = False  # the store may say that this process runs jobs that it does not run
        self._queued = threading.Event()
        self._halt = threading.Event()
        self._threads = [threading.Thread(target=self._loop, name=f"job-{n}", daemon=True) for n in range(threads)]

    def start(self) -> None:
        """Begin to take jobs."""
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Look for jobs now: one was queued here."""
        self._queued.set()

    def running(self) -> set[str]:
        """The jobs that run in this process."""
        return set(self._running)

    def stop(self) -> bool:
        """Take no more jobs and give those that run back; True when there were any. Their threads are abandoned."""
        self._halt.set()
        self._queued.set()
        is_claimed = self._claiming.acquire(timeout=CLAIM_SECONDS)  # from here on no claim is in flight
        try:
            if self._running or self._is_uncertain:
                self._store.release_jobs(self._me)
        except Exception as error:
            log_unexpected(error)  # other processes find out by themselves
        finally:
            if is_claimed:
                self._claiming.release()
        return bool(self._running)

    def _loop(self) -> None:
        while not self._halt.is_set():
            self._queued.clear()
            try:
                row = self._claim()
            except ProblemError:
                self._halt.wait(PAUSE_SECONDS)  # the database is away, as the heartbeat has logged
            except Exception as error:
                log_unexpected(error)
                self._halt.wait(PAUSE_SECONDS)
            else:
                if row is None:
                    self._queued.wait(POLL_SECONDS)
                elif not self._attempt(row):
                    self._halt.wait(PAUSE_SECONDS)

    def _claim(self) -> JobRow | None:
        with self._claiming:
            if self._halt.is_set():
                return None
            if self._is_uncertain:
                self._store.release_jobs(self._me, but=self.running())
            self._is_uncertain = True  # until the answer is here: the claim may be committed and its answer lost
            row = self._store.claim_job(worker=self._me, kinds=tuple(self._kinds), but=self.running())
            self._is_uncertain = False
            if row is not None:
                self._running.add(row.id)
            return row

    def _attempt(self, row: JobRow) -> bool:
        """Run a job; False when the store could not take the outcome."""
        kind, job_id = self._kinds[row.kind], row.id
        again = partial(persevere, retries=self._retries, note=partial(self._note, job_id), halt=self._halt)

        def run_steps() -> None:
            for step in kind.steps(job_id):
                if self._halt.is_set() or not self._store.holds_job(job_id, worker=self._me):
                    raise Stopped
                again(step)

        try:
            with patience(PATIENCE_SECONDS):
                try:
                    again(run_steps)  # a fault between two steps: from the first one, which finds its result
                    again(lambda: kind.finish(job_id))
                except Exception as failure:
                    if self._halt.is_set():
                        raise Stopped from None  # parts of this process are closed, so the failure is not the job's
                    if isinstance(failure, GaveUp):
                        cause = failure.__cause__
                        kind.give_up(job_id, describe(cause if isinstance(cause, Exception) else failure))
                    else:
                        kind.fail(job_id, describe(failure))
            is_recorded = True
        except Stopped:
            is_recorded = True  # by whoever cancelled it or took it over
        except Exception as error:
            if not isinstance(error, ProblemError):
                log_unexpected(error)
            is_recorded = False
        with suppress(ProblemError):  # the database is away: app.jobs.cleanup finds what is left
            kind.clean(job_id)
        self._running.discard(job_id)
        if not is_recorded:
            with self._claiming:  # else a claim in flight would reset it
                self._is_uncertain = True
        return is_recorded

    def _note(self, job_id: str, message: str) -> bool:
        return self._store.note(job_id, message, worker=self._me)
