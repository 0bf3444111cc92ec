"""What all kinds of jobs share: durable inputs in jobs/<id>/, steps, progress, results, and retries.

What fails for a passing reason is tried again: a full disk, a database that restarts, too little memory.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from threading import Event
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from app.core.datadir import this_process
from app.core.errors import ProblemError
from app.core.settings import Settings
from app.store import UNFINISHED, Store
from data_adapters.atomic import sync
from lejepa_med.client.wire.common import Problem
from lejepa_med.models.embed import EmbeddingTable

T = TypeVar("T")
PASSING_STATUS = (503, 507)  # a full queue, a database that is away, a full disk


class GaveUp(Exception):
    """A fault did not pass within the limit; its cause is the fault."""


class Stopped(BaseException):
    """An attempt ends without an outcome: the job was cancelled or taken over, or the process stops.

    No Exception, so that nothing between the job and its worker handles or records it.
    """


def why_passing(error: BaseException) -> str | None:
    """In words without paths, why the same may succeed later; None for what would only fail again."""
    if isinstance(error, ProblemError):
        return error.problem.detail.rstrip(".") if error.problem.status in PASSING_STATUS else None
    if isinstance(error, OSError):
        return error.strerror or "a file cannot be read or written"
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return "memory is short"
    if isinstance(error, OperationalError | InterfaceError | PoolTimeoutError):
        return "the database cannot be reached or written"
    return None


def persevere(call: Callable[[], T], *, retries: int, note: Callable[[str], bool], halt: Event) -> T:
    """What `call` returns, tried again after 1, 2, 4, ... seconds while its faults are passing ones.

    Args:
        call: may be repeated.
        retries: how often it is tried again.
        note: is called with a sentence about each fault; it returns False when the work has lost its purpose.
        halt: ends the waiting.

    Raises:
        GaveUp: the last try failed, too.
        Stopped: `halt` was set, or `note` returned False.
        Exception: a fault of `call` that does not pass.
    """
    tried = 0
    while True:
        try:
            return call()
        except Exception as error:
            reason = why_passing(error)
            if reason is None:
                raise
            if tried == retries:
                raise GaveUp from error
        seconds = 2.0**tried
        tried += 1
        try:
            is_wanted = note(f"{reason}: trying again in {seconds:.0f} s ({tried} of {retries})")
        except ProblemError:
            is_wanted = True  # the store itself is away
        if not is_wanted or halt.wait(seconds):
            raise Stopped


Step = Callable[[], None]
REPORT_SECONDS = 0.25  # between two notes of progress in one stage
OWNER = "owner"  # file in a job's inputs: the process that accepts it
AGAIN = "POST /v1/jobs/{id}/retry queues the job again, DELETE /v1/jobs/{id} removes what was sent for it."


def content_of(table: EmbeddingTable) -> str:
    """Return what a plan keeps of a table, so that the job notices when the archive was embedded anew."""
    return f"{table.encoder} {table.info.get('content', table.info.get('archive'))} {len(table.ids)}"


def check_unchanged(accepted: str, found: str, *, remedy: str) -> None:
    """Compare a table's content with what it was when the job was accepted.

    Raises:
        ProblemError: they differ.
    """
    if accepted != found:
        text = "The archive was embedded anew while the job waited or ran."
        raise ProblemError(422, "archive-changed", text, remedy=remedy)


class JobKind:
    """One kind of job, as the worker runs it.

    A kill may come at any instant, and then all steps run again. So a step first looks whether its result is on the
    disk, and a file appears there whole or not at all. Parameters lie in plan.json.
    """

    kind: ClassVar[str]
    results: ClassVar[str]
    """Folder of the data directory: a job's result lies in <results>/<job id>/, and is removed unless it succeeds."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings, self._store = settings, store
        self._reported: dict[str, tuple[float, str]] = {}

    def steps(self, job_id: str) -> Iterable[Step]:
        """The same steps at each call. A few seconds each, since a cancelled job ends between two of them.

        A generator may read for a later step what an earlier one wrote.
        """
        raise NotImplementedError

    def finish(self, job_id: str) -> None:
        """Register the result and the job's success in one transaction."""
        raise NotImplementedError

    # --- inputs and results -----------------------------------------------------------------------------------------

    def folder(self, job_id: str) -> Path:
        """Inputs of a job."""
        return self._settings.data / "jobs" / job_id

    def result_folder(self, job_id: str) -> Path:
        """Result of a job."""
        return self._settings.data / self.results / job_id

    def accept(self, job_id: str, draft: Path, plan: Mapping[str, Any], *, vectors: np.ndarray | None = None) -> None:
        """Make a job's inputs durable: plan, files in `draft`, vectors (n, dim) are on the disk when this returns."""
        draft.mkdir(parents=True, exist_ok=True)
        (draft / OWNER).write_text(this_process(), encoding="ascii")  # until the job has a row, they are this process's
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
        """Remove a job's result for good; `forget` removes its row. After a kill the same request does the rest."""
        # First the files, then the row, so that no file is left without a row.
        removed = self._settings.temporary(f"{job_id}.removed")
        removed.parent.mkdir(exist_ok=True)
        try:
            os.rename(self.result_folder(job_id), removed)
        except FileNotFoundError:
            pass  # a kill came between folder and row
        forget(job_id)
        shutil.rmtree(removed, ignore_errors=True)

    def clean(self, job_id: str) -> None:
        """Remove the files that an ended job does not need: its inputs, and its result unless it succeeded.

        A dead job keeps both, since it can be queued again.
        """
        row = self._store.job(job_id)
        if row is None or row.state in (*UNFINISHED, "dead"):
            return
        self._reported.pop(job_id, None)
        shutil.rmtree(self.folder(job_id), ignore_errors=True)
        target = self.result_folder(job_id)
        for draft in target.parent.glob(f".{job_id}.*"):  # of a process that was killed while it wrote
            shutil.rmtree(draft, ignore_errors=True)
        if row.state != "succeeded":
            shutil.rmtree(target, ignore_errors=True)

    # --- for the steps ----------------------------------------------------------------------------------------------

    def note_progress(self, job_id: str, progress: float, stage: str) -> None:
        """Note progress now and then.

        Raises:
            Stopped: the job was cancelled or taken over meanwhile.
        """
        at, before = self._reported.get(job_id, (0.0, ""))
        if stage == before and time.monotonic() - at < REPORT_SECONDS:
            return
        # 1.0 belongs to the registered result.
        if not self._store.advance(job_id, stage=stage, progress=min(progress, 0.99), worker=this_process()):
            raise Stopped
        self._reported[job_id] = (time.monotonic(), stage)

    def succeed(self, job_id: str, result: str, made: Any) -> None:
        """Give a job its success; `result` is the address of what it made, `made` its rows."""
        self._store.finish_job(job_id, "succeed", worker=this_process(), result=result, made=made)

    def fail(self, job_id: str, found: Problem) -> None:
        """Record that another attempt would fail, too."""
        error = found.model_dump(mode="json", exclude_none=True)
        self._store.finish_job(job_id, "fail", worker=this_process(), error=error)

    def give_up(self, job_id: str, found: Problem) -> None:
        """Record that retries are used up: the inputs stay, and a request can queue the job again."""
        self._store.finish_job(job_id, "give up", worker=this_process(), error=given_up(found))


def given_up(found: Problem) -> dict[str, Any]:
    """The problem document of a job that becomes dead."""
    remedy = f"{found.remedy} {AGAIN}".strip()
    return found.model_copy(update={"remedy": remedy}).model_dump(mode="json", exclude_none=True)
