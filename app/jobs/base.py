"""What all kinds of jobs share: durable inputs in jobs/<id>/, progress, passing faults, and the one outcome."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from app.executor import executor_id
from app.jobs.engine import Step, Stopped
from app.schemas import Problem
from app.settings import Settings
from app.store import UNFINISHED, Store
from data_adapters.atomic import sync

TELL_SECONDS = 0.25
OWNER = "owner"  # file in a job's inputs: the process that accepts it
AGAIN = "POST /v1/jobs/{id}/retry queues the job again, DELETE /v1/jobs/{id} removes what was sent for it."


class JobWork:
    """Base of the kinds of jobs: `Work` of the engine but for `steps` and `finish`.

    A kind keeps its parameters in plan.json. What a job makes lies in `made`/<job id>/, and goes unless it succeeds.
    """

    kind: ClassVar[str]
    made: ClassVar[str]
    """Folder of the data directory for the results of this kind."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings, self._store = settings, store
        self._told: dict[str, tuple[float, str]] = {}

    def folder(self, job_id: str) -> Path:
        """Inputs of a job."""
        return self._settings.data / "jobs" / job_id

    def result_folder(self, job_id: str) -> Path:
        """What a job made."""
        return self._settings.data / self.made / job_id

    def accept(self, job_id: str, draft: Path, plan: Mapping[str, Any], *, vectors: np.ndarray | None = None) -> None:
        """Make a job's inputs durable: plan, files in `draft`, vectors (n, dim) are on the disk when this returns."""
        draft.mkdir(parents=True, exist_ok=True)
        (draft / OWNER).write_text(executor_id(), encoding="ascii")  # until the job has a row, they are this process's
        (draft / "plan.json").write_text(json.dumps(plan, allow_nan=False), encoding="utf-8")
        if vectors is not None:
            np.save(draft / "vectors.npy", vectors.astype(np.float32, copy=False))
        target = self.folder(job_id)
        target.parent.mkdir(exist_ok=True)
        for path in (*draft.rglob("*"), draft):
            sync(path)
        os.rename(draft, target)
        sync(target.parent)

    def read_plan(self, job_id: str) -> dict[str, Any]:
        """The parameters that were accepted."""
        plan: dict[str, Any] = json.loads((self.folder(job_id) / "plan.json").read_text(encoding="utf-8"))
        return plan

    def plans(self) -> Iterator[dict[str, Any]]:
        """Parameters of the jobs of this kind that have no outcome yet."""
        for row in self._store.unfinished():
            if row.kind == self.kind:
                try:
                    yield self.read_plan(row.id)
                except OSError:
                    continue  # it ended at this moment

    def discard(self, job_id: str, forget: Callable[[str], None]) -> None:
        """Remove what a job made, for good; `forget` removes its row. After a kill the next start ends the work."""
        # The row outlives the name, never the reverse: what is not told of must not lie on the disk.
        grave = self._settings.temporary(f"{job_id}.removed")
        grave.parent.mkdir(exist_ok=True)
        try:
            os.rename(self.result_folder(job_id), grave)
        except FileNotFoundError:
            pass  # a kill came between folder and row
        forget(job_id)
        shutil.rmtree(grave, ignore_errors=True)

    # --- the engine's Work ------------------------------------------------------------------------------------------

    def start(self, job_id: str) -> bool:
        """Begin an attempt."""
        return self._store.start_job(job_id, executor=executor_id()) is not None

    def steps(self, job_id: str) -> Iterable[Step]:
        """The same steps at each call, a few seconds each."""
        raise NotImplementedError

    def finish(self, job_id: str) -> None:
        """Register what was made and the job's success in one transaction."""
        raise NotImplementedError

    def retry(self, job_id: str, reason: str) -> bool:
        """Note a passing fault in the job's log; False when the job is no longer this worker's."""
        row = self._store.job(job_id)
        if row is None or row.state != "running" or row.executor != executor_id():
            return False
        self._store.note(job_id, reason)
        return True

    def fail(self, job_id: str, found: Problem) -> None:
        """Record the failure."""
        self._end(job_id, "failed", found)

    def give_up(self, job_id: str, found: Problem) -> None:
        """Lay the job aside as dead: its inputs stay, and a request can queue it again."""
        self._end(job_id, "dead", found.model_copy(update={"remedy": f"{found.remedy} {AGAIN}".strip()}))

    def _end(self, job_id: str, state: str, found: Problem) -> None:
        error = found.model_dump(mode="json", exclude_none=True)
        self._store.finish_job(job_id, state, error=error, executor=executor_id())

    def clean(self, job_id: str) -> None:
        """Remove what an ended job needs no more: its inputs, and what it made unless it succeeded.

        A dead job keeps both, since it can be queued again.
        """
        row = self._store.job(job_id)
        if row is None or row.state in (*UNFINISHED, "dead"):
            return
        self._told.pop(job_id, None)
        shutil.rmtree(self.folder(job_id), ignore_errors=True)
        target = self.result_folder(job_id)
        for draft in target.parent.glob(f".{job_id}.*"):  # of a process that was killed while it wrote
            shutil.rmtree(draft, ignore_errors=True)
        if row.state != "succeeded":
            shutil.rmtree(target, ignore_errors=True)

    # --- for the kinds ----------------------------------------------------------------------------------------------

    def tell(self, job_id: str, progress: float, stage: str) -> None:
        """Note progress now and then.

        Raises:
            Stopped: the job was cancelled meanwhile.
        """
        at, before = self._told.get(job_id, (0.0, ""))
        if stage == before and time.monotonic() - at < TELL_SECONDS:
            return
        # 1.0 belongs to the registered result.
        if not self._store.advance(job_id, stage=stage, progress=min(progress, 0.99), executor=executor_id()):
            raise Stopped
        self._told[job_id] = (time.monotonic(), stage)
