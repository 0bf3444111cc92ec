"""Removal of files that nobody needs any more: of jobs that have ended, of requests that never became one."""

import shutil
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from app.errors import log_unexpected
from app.jobs.base import OWNER, JobKind
from app.store import Store

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
