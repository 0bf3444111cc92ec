"""A process that runs the service's jobs and nothing else: `lejepa-med work`."""

import logging
import os
import signal
import threading
from typing import Any

from app.api.service import Service
from app.core import logs
from app.core.settings import Settings
from data_adapters.errors import UserError

log = logging.getLogger("lejepa_med.app")


def run(**options: Any) -> None:
    """`work` with Settings from keyword arguments; what is not given comes from LEJEPA_ variables.

    Raises:
        UserError: see `work`.
    """
    work(Settings(**options))


def work(settings: Settings) -> None:
    """Run jobs until SIGINT or SIGTERM; what is running then goes back into the queue.

    Raises:
        UserError: the data directory cannot be used, or there is nothing to do for a worker.
    """
    if settings.job_workers == 0:
        raise UserError(
            "--job-workers must be at least 1 for a worker process.",
            remedy="Give --job-workers 1 or more; LEJEPA_JOB_WORKERS=0 is for the service only.",
        )
    logs.configure(level=settings.log_level, format=settings.log_format)
    end = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: end.set())
    service = Service(settings, is_worker=True)
    service.start()
    log.info("worker ready")
    end.wait()
    if service.stop():
        # A job's step may take long. Another worker repeats it, so the process does not wait for its thread.
        logging.shutdown()
        os._exit(0)
