"""Processes that share a data directory: each sends heartbeats, watches the others, and queues a dead one's jobs."""

import re
import threading
from pathlib import Path

from app.datadir import ProcessLock, forget, has_ended, is_locked, owners
from app.errors import log_unexpected, problem
from app.jobs.base import given_up
from app.store import Store

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
