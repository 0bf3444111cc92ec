"""What all kinds of jobs share: durable inputs in jobs/<id>/, attempts with a limit, progress, and the one outcome."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from app.errors import problem
from app.jobs import Step, Stopped
from app.schemas import Problem
from app.settings import Settings
from app.store import UNFINISHED, Store

MAX_ATTEMPTS = 5  # a job that kills the service (memory) must not do so for ever
TELL_SECONDS = 0.25


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
        draft.mkdir(exist_ok=True)
        (draft / "plan.json").write_text(json.dumps(plan, allow_nan=False), encoding="utf-8")
        if vectors is not None:
            np.save(draft / "vectors.npy", vectors.astype(np.float32, copy=False))
        target = self.folder(job_id)
        target.parent.mkdir(exist_ok=True)
        for path in (*(p for p in draft.rglob("*") if p.is_file()), draft):
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
        grave = self._settings.data / "tmp" / f"{job_id}.removed"
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
        row = self._store.start_job(job_id)
        if row is None:
            return False
        if row.attempts > MAX_ATTEMPTS:
            self.fail(
                job_id,
                problem(
                    500,
                    "gave-up",
                    f"The service stopped {MAX_ATTEMPTS} times while it worked on this job.",
                    remedy="Most often memory is short: send fewer or smaller files, or give the service more memory.",
                ),
            )
            return False
        return True

    def steps(self, job_id: str) -> Iterable[Step]:
        """The same steps at each call, a few seconds each."""
        raise NotImplementedError

    def finish(self, job_id: str) -> None:
        """Register what was made and the job's success in one transaction."""
        raise NotImplementedError

    def fail(self, job_id: str, found: Problem) -> None:
        """Record the failure."""
        self._store.finish_job(job_id, "failed", error=found.model_dump(mode="json", exclude_none=True))

    def clean(self, job_id: str) -> None:
        """Remove what an ended job needs no more: its inputs, and what it made unless it succeeded."""
        row = self._store.job(job_id)
        if row is not None and row.state in UNFINISHED:
            return
        shutil.rmtree(self.folder(job_id), ignore_errors=True)
        if row is None or row.state != "succeeded":
            shutil.rmtree(self.result_folder(job_id), ignore_errors=True)
        self._told.pop(job_id, None)

    def tell(self, job_id: str, progress: float, stage: str) -> None:
        """Note progress now and then.

        Raises:
            Stopped: the job was cancelled meanwhile.
        """
        at, before = self._told.get(job_id, (0.0, ""))
        if stage == before and time.monotonic() - at < TELL_SECONDS:
            return
        # 1.0 belongs to the registered result.
        if not self._store.advance(job_id, stage=stage, progress=min(progress, 0.99)):
            raise Stopped
        self._told[job_id] = (time.monotonic(), stage)


def sync(path: Path) -> None:
    """Fsync of a file or folder: what was accepted survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
