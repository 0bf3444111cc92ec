"""The parts of a running service, put together, and the order in which they start and stop."""

import os
import secrets
from io import TextIOWrapper

import torch

from app import datadir
from app.embedding import Embedding
from app.errors import log_unexpected
from app.jobs import DbosEngine, JobEngine
from app.library import Library
from app.settings import Settings
from app.store import JobRow, Store, database_url
from app.training import Training
from app.work import JobWork
from app.workers import Workers


class Service:
    """State of one process: the service, or with `is_worker` a process that runs its jobs and nothing else."""

    def __init__(self, settings: Settings, *, is_worker: bool = False) -> None:
        self.settings = settings
        self.is_worker = is_worker
        self.library = Library(settings)
        self.embedding = Embedding(settings)
        self.store: Store
        self.training: Training
        self.engine: JobEngine
        self.workers: Workers
        self._lock: TextIOWrapper | None = None

    def start(self) -> None:
        """Open the store, clean up after a kill, and continue the jobs that were accepted.

        Raises:
            UserError: the data directory cannot be written, another service works on it, or it belongs to another
                database.
        """
        data = self.settings.data
        secret = self.settings.database_url
        url = database_url(secret.get_secret_value() if secret else None, data=data)
        if self.is_worker:
            datadir.make(data)
        else:
            self._lock = datadir.take(data, shared=secret is not None)
        # Decoded uploads must not stay on disk, so the adapters' cache of volumes is off in this process.
        os.environ["LEJEPA_CACHE"] = "off"
        torch.set_num_threads(self.settings.threads)
        self.store = Store(url)
        datadir.check_pair(data, self.store)
        self.training = Training(self.settings, self.store, self.library, self.embedding)
        self.works: dict[str, JobWork] = {work.kind: work for work in (self.training,)}
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

    def stop(self) -> bool:
        """Stop everything; True when a job was running, which another worker or the next start continues."""
        active = self.workers.stop()
        self.library.close()
        self.embedding.close()
        self.store.close()
        if self._lock is not None:
            self._lock.close()
        return active

    def queue_job(self, job_id: str, kind: str) -> JobRow:
        """Accept a job whose inputs are durable: its row first, then the queue."""
        row = self.store.add_job(job_id, kind)
        self._submit(job_id, kind)
        return row

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

    def _submit(self, job_id: str, kind: str) -> None:
        try:
            self.engine.submit(job_id, kind)
        except Exception as error:
            log_unexpected(error)  # the row decides: the next look of any worker queues it


def new_id() -> str:
    """A random id of 128 bits; ids are names, not secrets."""
    return secrets.token_hex(16)
