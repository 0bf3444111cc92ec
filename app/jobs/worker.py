"""What a process does for jobs: runs them, tells the other processes that it lives, and removes what nobody needs.

Threads claim a job, run its steps and give it an outcome. Each process sends heartbeats, watches the others, and queues
a dead one's jobs. Files of jobs that have ended, and of requests that never became one, are removed.
"""

import re
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from app.core.datadir import ProcessLock, forget, has_ended, is_locked, owners, this_process
from app.core.errors import ProblemError, describe, log_unexpected, problem
from app.jobs.base import OWNER, GaveUp, JobKind, Stopped, given_up, persevere
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
        with suppress(ProblemError):  # the database is away: app.jobs.worker finds what is left
            kind.clean(job_id)
        self._running.discard(job_id)
        if not is_recorded:
            with self._claiming:  # else a claim in flight would reset it
                self._is_uncertain = True
        return is_recorded

    def _note(self, job_id: str, message: str) -> bool:
        return self._store.note(job_id, message, worker=self._me)


HEARTBEAT_SECONDS = 2.0
MISSED_HEARTBEATS = 10  # looks in a row without a new heartbeat, after which a process counts as dead
MOST_LOSSES = 5  # a job that takes its worker down (memory) must not do so for ever
PROCESS = r"[a-z0-9]+-\d+-[0-9a-f]{8}"
TAKEN_DOWN = problem(
    500,
    "gave-up",
    f"The service stopped {MOST_LOSSES} times in a row while it worked on this job.",
    remedy="Most often memory is short: send fewer or smaller files, or give the service more memory.",
)


class Processes:
    """This process among the others. Nothing here reads a clock: a look is counted, so that clocks may jump.

    A look is due every HEARTBEAT_SECONDS. A process is dead when its lock file says so (same machine: at once), or when
    its heartbeat stood still for MISSED_HEARTBEATS looks.
    """

    def __init__(self, data: Path, store: Store) -> None:
        self._data, self._store = data, store
        self._lock = ProcessLock(data)
        self._me = self._lock.process
        self._heartbeats: dict[str, tuple[int, int]] = {}  # by process: its last one, and looks that saw no newer one
        self._is_first = True
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="processes", daemon=True)

    def join(self) -> None:
        """Become known, before this process takes a job or receives a file."""
        self._store.heartbeat(self._me)  # first: whoever has a lock file, or files, always has a row
        self._lock.acquire()

    def start(self) -> None:
        """Look once, then regularly.

        Raises:
            ProblemError: 503, the database is away.
        """
        self.look()
        self._thread.start()

    def stop(self) -> None:
        """Leave the others, who need not look for this process any more."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(5)  # it may wait for a database that is away
        try:
            self._store.remove_worker(self._me)
        except Exception as error:
            log_unexpected(error)  # the others find out by themselves
        self._lock.release()

    def look(self) -> None:
        """Send a heartbeat, then queue the jobs of dead processes again and remove what those were receiving."""
        left = {name for name in owners(self._data) if self._is_first or re.fullmatch(PROCESS, name)}
        self._store.heartbeat(self._me)
        running = self._store.running_jobs()  # before the workers: whoever claimed one of these has a row, or has ended
        alive = self._living()
        for job_id, worker in running.items():
            if worker not in alive:
                self._store.lose_job(job_id, worker=worker, most=MOST_LOSSES, error=given_up(TAKEN_DOWN))
        # A backup has a lock file and no row: it runs no jobs, and should not write into the store that it copies.
        others = {name for name in left - set(self._heartbeats) if is_locked(self._data, name)}
        for process in (set(self._heartbeats) | left) - alive - others:
            forget(self._data, process)
            self._store.remove_worker(process)
            self._heartbeats.pop(process, None)
        self._is_first = False

    def _run(self) -> None:
        is_well = True
        while not self._end.wait(HEARTBEAT_SECONDS):
            try:
                self.look()
                is_well = True
            except Exception as error:
                self._heartbeats.clear()  # while the database was away nobody could send one
                if is_well:
                    log_unexpected(error)
                is_well = False

    def _living(self) -> set[str]:
        now = {row.id: row.heartbeat for row in self._store.workers()}
        for process, heartbeat in now.items():
            before, missed = self._heartbeats.get(process, (heartbeat - 1, 0))
            self._heartbeats[process] = (heartbeat, 0 if heartbeat != before else missed + 1)
        dead = {
            process
            for process, (_, missed) in self._heartbeats.items()
            if process not in now or missed >= MISSED_HEARTBEATS or has_ended(self._data, process)
        }
        return set(now) - dead | {self._me}


SECONDS = 60.0  # between two rounds
ROWLESS_ROUNDS = 10  # in a row, after which inputs are not about to get a row any more


class Cleanup:
    """Cleans up now and every minute, on a thread: to remove large folders may take longer than a heartbeat."""

    def __init__(
        self, data: Path, store: Store, kinds: Mapping[str, JobKind], *, others: Sequence[Callable[[], None]] = ()
    ) -> None:
        """`others` are called in each round, too."""
        self._data, self._store, self._kinds = data, store, kinds
        self._tasks = (self.clean, *others)
        self._rowless: Counter[str] = Counter()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cleanup", daemon=True)

    def start(self) -> None:
        """Begin the first round."""
        self._thread.start()

    def stop(self) -> None:
        """End after the round in progress."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2.0)

    def clean(self) -> None:
        """Remove what ended jobs left, and inputs that were never accepted."""
        inputs = self._data / "jobs"
        names = {entry.name for entry in inputs.iterdir()} if inputs.is_dir() else set()
        results = [self._data / kind.results for kind in self._kinds.values()]
        drafts = {path.name.split(".")[1] for folder in results for path in folder.glob(".*.*")}
        living = {row.id for row in self._store.workers()}  # after the names: an owner is known before its files
        states = self._store.job_states(sorted(names | drafts))
        for job_id, (kind, _) in states.items():
            if kind in self._kinds:
                self._kinds[kind].clean(job_id)  # nothing, where the job has not ended
        # Without a row: it could not be written, so that there was no 202, or it is about to be written.
        rowless = names - set(states)
        self._rowless = Counter({job_id: self._rowless[job_id] + 1 for job_id in rowless})
        for job_id in rowless:
            owner = inputs / job_id / OWNER
            is_owned = owner.is_file() and owner.read_text(encoding="ascii") in living
            if not is_owned or self._rowless[job_id] >= ROWLESS_ROUNDS:
                shutil.rmtree(inputs / job_id, ignore_errors=True)

    def _run(self) -> None:
        while True:
            for task in self._tasks:
                try:
                    task()
                except Exception as error:  # a database that is away now may be there in a minute
                    log_unexpected(error)
            if self._end.wait(SECONDS):
                return
