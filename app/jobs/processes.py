"""Processes that run jobs: each beats, watches the others, and takes over what a dead one left."""

import re
import shutil
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from app.errors import log_unexpected, problem
from app.executor import Presence, forget, has_ended, is_present, owners
from app.jobs.base import OWNER, JobWork
from app.jobs.engine import Claim, JobEngine
from app.store import JobRow, Store

BEAT_SECONDS = 2.0
MISSED_BEATS = 10  # looks in a row without a new beat, after which a process counts as dead
MISSED_STARTS = 3  # looks in a row that show a job as taken by this process, though it does not run here
MAX_LOSSES = 5  # a job that takes its worker down (memory) must not do so for ever
EXECUTOR = r"[a-z0-9]+-\d+-[0-9a-f]{8}"
SWEEP_LOOKS = 30  # looks between two searches for leftovers
ROWLESS_SWEEPS = 10  # sweeps in a row, a minute apart, after which inputs are not about to get a row any more


class Workers:
    """This process among the workers. Nothing here reads a clock: a look is counted, so that clocks may jump.

    A look is due every BEAT_SECONDS. A process is dead when its lock file says so (same machine: at once), or when its
    beat stood still for MISSED_BEATS looks. A job of a dead process is taken over by compare-and-set on its row.
    """

    def __init__(self, data: Path, store: Store, engine: JobEngine, works: Mapping[str, JobWork]) -> None:
        self._data, self._store, self._engine, self._works = data, store, engine, works
        self._presence = Presence(data)
        self._me = self._presence.executor
        self._beats: dict[str, tuple[int, int]] = {}  # by process: its last beat, and looks that saw no newer one
        self._unstarted: dict[str, int] = {}
        self._rowless: Counter[str] = Counter()
        self._looks = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="workers", daemon=True)

    def join(self) -> None:
        """Become known, before this process takes a job or receives a file."""
        self._store.beat(self._me)  # first: who has a lock file, or files, is always known to be somebody
        self._presence.take()

    def start(self) -> None:
        """Look once, then regularly.

        Raises:
            ProblemError: 503, the database is away.
        """
        self.look()
        self._thread.start()

    def stop(self) -> bool:
        """End the engine, give its running jobs back and say goodbye; True when there were any."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(5)  # it may wait for a database that is away
        self._engine.stop()
        running = self._engine.running()
        try:
            for job_id in running:
                self._store.take_over(job_id, holder=self._me, by=None)
            self._store.remove_worker(self._me)
        except Exception as error:
            log_unexpected(error)  # the others find out by themselves
        self._presence.leave()
        return bool(running)

    def look(self) -> None:
        """Beat, then put right what dead processes left."""
        left = {name for name in owners(self._data) if self._looks == 0 or re.fullmatch(EXECUTOR, name)}
        self._store.beat(self._me)
        alive = self._living()
        claims = self._engine.claims()  # before the rows: a job has its row first
        rows = {row.id: row for row in self._store.unfinished()}
        for claim in claims:
            self._check(claim, rows.get(claim.job_id), alive)
        claimed = {claim.job_id for claim in claims}
        for row in rows.values():
            if row.id not in claimed:
                self._queue(row)
        # A backup has a lock file and no row: it runs no jobs, and should not write into the store that it copies.
        others = {name for name in left - set(self._beats) if is_present(self._data, name)}
        for executor in (set(self._beats) | left) - alive - others:
            forget(self._data, executor)
            self._store.remove_worker(executor)
            self._beats.pop(executor, None)
        if self._looks % SWEEP_LOOKS == 0:
            self._sweep()
        self._looks += 1

    def _run(self) -> None:
        is_well = True
        while not self._end.wait(BEAT_SECONDS):
            try:
                self.look()
                is_well = True
            except Exception as error:
                self._beats.clear()  # while the database was away nobody could beat
                if is_well:
                    log_unexpected(error)
                is_well = False

    def _living(self) -> set[str]:
        now = {row.executor: row.beat for row in self._store.workers()}
        for executor, beat in now.items():
            before, missed = self._beats.get(executor, (beat - 1, 0))
            self._beats[executor] = (beat, 0 if beat != before else missed + 1)
        dead = {
            executor
            for executor, (_, missed) in self._beats.items()
            if executor not in now or missed >= MISSED_BEATS or has_ended(self._data, executor)
        }
        return set(now) - dead | {self._me}

    def _check(self, claim: Claim, row: JobRow | None, alive: set[str]) -> None:
        is_mine = claim.executor == self._me
        if is_mine and claim.job_id not in self._engine.running():
            self._unstarted[claim.workflow_id] = missed = self._unstarted.get(claim.workflow_id, 0) + 1
            if missed < MISSED_STARTS:
                return
        elif claim.executor in alive or (claim.executor is None and claim.is_current and row is not None):
            self._unstarted.pop(claim.workflow_id, None)
            return
        self._unstarted.pop(claim.workflow_id, None)
        if row is None:  # it has an outcome
            self._engine.cancel(claim.job_id)
        elif row.executor in (None, self._me) or row.executor not in alive:
            is_lost = row.state == "running" and row.executor not in (None, self._me)
            taken = self._store.take_over(row.id, holder=row.executor, by=self._me, is_lost=is_lost)
            if taken is not None and not self._gave_up(taken):
                self._engine.requeue(claim, row.kind)

    def _queue(self, row: JobRow) -> None:
        """A job that is not in the queue: accepted just before a kill, or its work ended without an outcome."""
        if row.state == "running":
            if self._engine.is_known(row.id):
                return  # begun since the claims were read
            taken = self._store.take_over(row.id, holder=row.executor, by=self._me, is_lost=True)
            if taken is None or self._gave_up(taken):
                return
        self._engine.submit(row.id, row.kind)

    def _gave_up(self, row: JobRow) -> bool:
        if row.losses < MAX_LOSSES:
            return False
        found = problem(
            500,
            "gave-up",
            f"The service stopped {MAX_LOSSES} times in a row while it worked on this job.",
            remedy="Most often memory is short: send fewer or smaller files, or give the service more memory.",
        )
        self._works[row.kind].give_up(row.id, found)
        self._engine.cancel(row.id)
        return True

    def _sweep(self) -> None:
        """Remove what jobs left that have ended, and inputs that were never accepted."""
        self._engine.tidy()
        inputs = self._data / "jobs"
        names = {entry.name for entry in inputs.iterdir()} if inputs.is_dir() else set()
        made = [self._data / work.made for work in self._works.values()]
        drafts = {path.name.split(".")[1] for folder in made for path in folder.glob(".*.*")}
        living = {row.executor for row in self._store.workers()}  # after the names: an owner is known before its files
        states = self._store.job_states(sorted(names | drafts))
        for job_id, (kind, _) in states.items():
            self._works[kind].clean(job_id)  # nothing, where the job has not ended
        # Without a row: it could not be written, so that there was no 202, or it is about to be written.
        rowless = names - set(states)
        self._rowless = Counter({job_id: self._rowless[job_id] + 1 for job_id in rowless})
        for job_id in rowless:
            owner = inputs / job_id / OWNER
            is_owned = owner.is_file() and owner.read_text(encoding="ascii") in living
            if not is_owned or self._rowless[job_id] >= ROWLESS_SWEEPS:
                shutil.rmtree(inputs / job_id, ignore_errors=True)
