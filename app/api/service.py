"""The parts of a running service, put together; the order in which they start and stop; and waits for a job's end."""

import asyncio
import logging
import os
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from io import TextIOWrapper

import torch
from anyio import CapacityLimiter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from app.api.keys import KeyRing
from app.core import datadir
from app.core.limits import RateLimits, key_id, too_many_jobs
from app.core.middleware import WAITED
from app.core.settings import Settings
from app.encoders.library import Library
from app.jobs.apply_probe import ApplyProbe
from app.jobs.base import JobKind
from app.jobs.embed_archive import EmbedArchive
from app.jobs.import_upload import ImportUpload
from app.jobs.map_archive import MapArchive
from app.jobs.quality import CheckArchive, FindOutliers
from app.jobs.train_probe import TrainProbe
from app.jobs.worker import Cleanup, Processes, Worker
from app.store import UNFINISHED, JobRow, Store, open_store
from app.store.backup import RESTORING
from app.uploads.embedding import Embedding
from app.vectors import Indexes, Maps
from data_adapters.errors import UserError
from data_adapters.identity import salt

LOOK_SECONDS = 0.05  # between two looks: the most that an end is heard of late
AWAY_SECONDS = 0.5  # after which a request notices that its client has gone, or that the service is to end
MOST = 256  # requests that wait at the same time; further ones are answered at once, as if they had not asked to wait

States = Callable[[Sequence[str]], Mapping[str, tuple[str, str]]]
"""(kind, state) of those of the jobs that exist: `Store.job_states`."""


class JobWaits:
    """All requests of one process that wait; of its event loop only."""

    def __init__(self, states: States) -> None:
        self._states = states
        self._events: dict[str, set[asyncio.Event]] = {}
        self._watcher: asyncio.Task[None] | None = None

    async def until_ended(self, job_id: str, request: Request, seconds: float) -> None:
        """Return when the job has ended or is gone; at the latest after `seconds`, or when nobody waits any more."""
        if sum(map(len, self._events.values())) >= MOST:
            return
        began, event = time.monotonic(), asyncio.Event()
        self._events.setdefault(job_id, set()).add(event)
        if self._watcher is None:
            self._watcher = asyncio.create_task(self._watch())
        try:
            while (rest := began + seconds - time.monotonic()) > 0:
                if request.app.state.drain.since is not None or await request.is_disconnected():
                    return
                with suppress(TimeoutError):
                    await asyncio.wait_for(event.wait(), min(rest, AWAY_SECONDS))
                    return
        finally:
            self._events[job_id].discard(event)
            if not self._events[job_id]:
                del self._events[job_id]
            request.scope[WAITED] = time.monotonic() - began

    async def _watch(self) -> None:
        while self._events:
            await asyncio.sleep(LOOK_SECONDS)
            ids = list(self._events)
            try:
                states = await run_in_threadpool(self._states, ids)
            except Exception:  # the database is away: each request finds out by itself, and answers 503
                states = {}
            for job_id in ids:
                if states.get(job_id, ("", ""))[1] not in UNFINISHED:
                    for event in self._events.get(job_id, ()):
                        event.set()
        self._watcher = None


log = logging.getLogger("lejepa_med.app")


class Service:
    """State of one process: the service, or with `is_worker` a process that runs its jobs and nothing else."""

    def __init__(self, settings: Settings, *, is_worker: bool = False) -> None:
        self.settings = settings
        self.is_worker = is_worker
        self.library = Library(settings, own_tables=lambda: self.archiving.tables())
        self.embedding = Embedding(settings)
        # Threads of requests that wait for vectors: a number of their own, so that other routes always find one.
        self.waiting = CapacityLimiter(settings.queue_items)
        self.looking = threading.Lock()  # held while a request computes the overlay of a picture
        self.limits = RateLimits(settings)
        self.store: Store
        self.keys: KeyRing
        self.training: TrainProbe
        self.archiving: EmbedArchive
        self.importing: ImportUpload
        self.applying: ApplyProbe
        self.kinds: dict[str, JobKind] = {}
        self.mapping: MapArchive
        self.checking: CheckArchive
        self.outliers: FindOutliers
        self.search: Indexes
        self.maps: Maps
        self.waits: JobWaits
        self.worker: Worker
        self.processes: Processes
        self.cleanup: Cleanup
        self._lock: TextIOWrapper | None = None

    def start(self) -> None:
        """Open the store, clean up after a kill, and continue the jobs that were accepted.

        Raises:
            UserError: the data directory cannot be written, another service works on it, or it belongs to another
                database.
        """
        data = self.settings.data
        if self.is_worker:
            datadir.make(data)
        else:
            self._lock = datadir.take(data, shared=self.settings.database_url is not None)
        if (data / RESTORING).exists():
            raise UserError(
                f"A restore of the data directory {data} has not ended.",
                remedy="Empty the folder, and repeat: lejepa-med restore",
            )
        salt()  # made now, or refused with what to do; not in the middle of a request
        # Decoded uploads must not stay on disk, so the adapters' cache of volumes is off in this process.
        os.environ["LEJEPA_CACHE"] = "off"
        torch.set_num_threads(min(self.settings.cores, torch.get_num_threads()))
        # A forward pass takes the interpreter's lock back after each operator. With Python's 5 ms a pass of one image
        # beside busy request threads took twice as long (benchmarks/serve.py).
        sys.setswitchinterval(0.0005)
        self.store = open_store(self.settings)
        datadir.check_database(data, self.store.belongs_to)
        self.waits = JobWaits(self.store.job_states)
        self.keys = KeyRing(self.store)
        if self.settings.auth == "on" and not self.store.has_keys():
            log.warning("no API key yet, so nobody is let in; make one: lejepa-med key create NAME --scopes admin")
        self.training = TrainProbe(self.settings, self.store, self.library, self.embedding)
        self.search = Indexes(self.settings, self.library, engine=self.store.engine if self.store.is_postgres else None)
        self.archiving = EmbedArchive(self.settings, self.store, self.library, self.embedding)
        self.importing = ImportUpload(self.settings, self.store, self.archiving, self.embedding.sandbox)
        self.applying = ApplyProbe(self.settings, self.store, self.library, self.training)
        self.maps = Maps(self.settings, self.search)
        self.mapping = MapArchive(self.settings, self.store, self.search, self.maps)
        self.checking = CheckArchive(self.settings, self.store, self.library, self.training)
        self.outliers = FindOutliers(self.settings, self.store, self.library, self.training)
        kinds: tuple[JobKind, ...] = (
            *(self.training, self.archiving, self.importing, self.applying),
            *(self.mapping, self.checking, self.outliers),
        )
        self.kinds = {kind.kind: kind for kind in kinds}
        self.worker = Worker(
            self.store, self.kinds, threads=self.settings.job_workers, retries=self.settings.job_retries
        )
        self.processes = Processes(data, self.store)
        expire = () if self.is_worker else (self.importing.expire,)
        self.cleanup = Cleanup(data, self.store, self.kinds, others=expire)
        self.processes.join()
        self.processes.start()
        self.worker.start()
        self.cleanup.start()
        if not self.is_worker:
            self.library.start_warm_up(self.embedding.sandbox.warm)

    def stop(self) -> bool:
        """Stop everything; True when work was running, which another worker or the next start continues."""
        self.cleanup.stop()
        active = self.worker.stop()
        self.processes.stop()
        active |= self.search.close()
        self.embedding.close()
        self.library.close()
        self.store.close()
        if self._lock is not None:
            self._lock.close()
        return active

    def queue_job(self, job_id: str, kind: str) -> JobRow:
        """Accept a job whose inputs are durable: from its row on, any worker may claim it.

        Raises:
            ProblemError: 429, the caller's key has as many unfinished jobs as it may have.
        """
        if self.store.unfinished_of(key_id()) >= self.settings.jobs_per_key:
            shutil.rmtree(self.kinds[kind].folder(job_id), ignore_errors=True)
            raise too_many_jobs(self.settings.jobs_per_key)
        row = self.store.add_job(job_id, kind, key_id=key_id())
        self.worker.wake()
        return row

    def cancel_job(self, job_id: str) -> bool:
        """Give a job the outcome 'cancelled', also a dead one; False when it has another outcome already."""
        before = self.store.cancel_job(job_id)
        if before is None:
            return False
        if before[1] != "running":  # else its worker cleans up, once it has stopped
            self.kinds[before[0]].clean(job_id)
        return True

    def retry_job(self, job_id: str) -> bool:
        """Queue a dead job again; False when it is not dead."""
        is_queued = self.store.retry_job(job_id)
        self.worker.wake()
        return is_queued


def new_id() -> str:
    """A random id of 128 bits; ids are names, not secrets."""
    return secrets.token_hex(16)
