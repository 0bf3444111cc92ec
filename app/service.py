"""The parts of a running service, put together, and the order in which they start and stop."""

import logging
import os
import secrets
import shutil
import sys
from contextvars import Context
from io import TextIOWrapper

import torch
from anyio import CapacityLimiter

from app import datadir
from app.embedding import Embedding
from app.errors import log_unexpected
from app.jobs.apply_probe import Applying
from app.jobs.base import JobWork
from app.jobs.embed_archive import Archiving
from app.jobs.engine import DbosEngine, JobEngine
from app.jobs.import_upload import Importing
from app.jobs.processes import Workers
from app.jobs.sweeper import Sweeper
from app.jobs.train_probe import Training
from app.jobs.waiting import JobWaits
from app.keys import KeyRing
from app.library import Library
from app.limits import Limits, key_id, too_many_jobs
from app.restore import MARK
from app.settings import Settings
from app.store import JobRow, Store, open_store
from app.vectors import Indexes
from data_adapters.errors import UserError
from data_adapters.identity import salt

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
        self.limits = Limits(settings)
        self.store: Store
        self.keys: KeyRing
        self.training: Training
        self.archiving: Archiving
        self.importing: Importing
        self.applying: Applying
        self.engine: JobEngine
        self.search: Indexes
        self.waits: JobWaits
        self.workers: Workers
        self.works: dict[str, JobWork] = {}
        self._sweeper: Sweeper | None = None
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
        if (data / MARK).exists():
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
        datadir.check_pair(data, self.store)
        self.waits = JobWaits(self.store.job_states)
        self.keys = KeyRing(self.store)
        if self.settings.auth == "on" and not self.store.has_keys():
            log.warning("no API key yet, so nobody is let in; make one: lejepa-med key create NAME --scopes admin")
        self.training = Training(self.settings, self.store, self.library, self.embedding)
        self.search = Indexes(self.settings, self.library, engine=self.store.engine if self.store.is_postgres else None)
        self.archiving = Archiving(self.settings, self.store, self.library, self.embedding)
        self.importing = Importing(
            self.settings, self.store, self.archiving, self.embedding.sandbox, submit=self._submit
        )
        self.applying = Applying(self.settings, self.store, self.library, self.training)
        works: tuple[JobWork, ...] = (self.training, self.archiving, self.importing, self.applying)
        self.works = {work.kind: work for work in works}
        self.engine = DbosEngine(
            self.works,
            database=self.store.url if self.store.is_postgres else f"sqlite:///{data / 'jobs.sqlite'}",
            workers=self.settings.job_workers,
            retries=self.settings.job_retries,
        )
        self.workers = Workers(data, self.store, self.engine, self.works)
        self.workers.join()
        self.engine.start()
        self.workers.start()
        if not self.is_worker:
            self.library.start_warm_up(self.embedding.sandbox.warm)
            self._sweeper = Sweeper(self.importing.expire)

    def stop(self) -> bool:
        """Stop everything; True when work was running, which another worker or the next start continues."""
        if self._sweeper is not None:
            self._sweeper.stop()
        active = self.workers.stop()
        active |= self.search.close()
        self.embedding.close()
        self.library.close()
        self.store.close()
        if self._lock is not None:
            self._lock.close()
        return active

    def queue_job(self, job_id: str, kind: str) -> JobRow:
        """Accept a job whose inputs are durable: its row first, then the queue.

        Raises:
            ProblemError: 429, the caller's key has as many unfinished jobs as it may have.
        """
        if self.store.unfinished_of(key_id()) >= self.settings.jobs_per_key:
            shutil.rmtree(self.works[kind].folder(job_id), ignore_errors=True)
            raise too_many_jobs(self.settings.jobs_per_key)
        row = self.store.add_job(job_id, kind, key_id=key_id())
        self._submit(job_id, kind)
        return row

    def _submit(self, job_id: str, kind: str) -> None:
        """Queue a job whose row is there; before the engine is, a look of its workers will do so."""
        engine: JobEngine | None = getattr(self, "engine", None)
        if engine is not None:
            try:
                # In a context of its own: inside of a job, the engine would take the new one for a part of it.
                Context().run(engine.submit, job_id, kind)
            except Exception as error:
                log_unexpected(error)  # the row decides: the next look of any worker queues it

    def cancel_job(self, job_id: str) -> bool:
        """Give a job the outcome 'cancelled', also a dead one; False when it has another outcome already."""
        before = self.store.job(job_id)
        if before is None or not (self.store.finish_job(job_id, "cancelled") or self.store.discard_job(job_id)):
            return False
        self.engine.cancel(job_id)
        if before.state != "running":
            self.works[before.kind].clean(job_id)
        return True

    def retry_job(self, job_id: str) -> bool:
        """Queue a dead job again; False when it is not dead."""
        row = self.store.job(job_id)
        if row is None or not self.store.reopen_job(job_id):
            return False
        self._submit(job_id, row.kind)
        return True


def new_id() -> str:
    """A random id of 128 bits; ids are names, not secrets."""
    return secrets.token_hex(16)
