"""The parts of a running service, put together, and the order in which they start and stop."""

import logging
import os
import secrets
import shutil
import sys
from io import TextIOWrapper

import torch
from anyio import CapacityLimiter

from app import datadir
from app.backup import RESTORING
from app.embedding import Embedding
from app.jobs.apply_probe import ApplyProbe
from app.jobs.base import JobKind
from app.jobs.cleanup import Cleanup
from app.jobs.embed_archive import EmbedArchive
from app.jobs.import_upload import ImportUpload
from app.jobs.processes import Processes
from app.jobs.train_probe import TrainProbe
from app.jobs.waiting import JobWaits
from app.jobs.worker import Worker
from app.keys import KeyRing
from app.library import Library
from app.limits import RateLimits, key_id, too_many_jobs
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
        self.limits = RateLimits(settings)
        self.store: Store
        self.keys: KeyRing
        self.training: TrainProbe
        self.archiving: EmbedArchive
        self.importing: ImportUpload
        self.applying: ApplyProbe
        self.kinds: dict[str, JobKind] = {}
        self.search: Indexes
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
        kinds: tuple[JobKind, ...] = (self.training, self.archiving, self.importing, self.applying)
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
