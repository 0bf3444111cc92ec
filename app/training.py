"""The job that trains a probe: accepted with all its inputs on disk, then embedded in chunks, fitted and registered."""

import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from app.embedding import Embedding
from app.errors import ProblemError, first_bad, log_unexpected, problem
from app.items import Field, sources
from app.jobs import Step, Stopped
from app.library import Library
from app.schemas import Problem
from app.settings import Settings
from app.store import UNFINISHED, ProbeRow, Store, now
from app.uploads import Upload
from data_adapters.errors import UserError
from lejepa_med.evaluation.probe import Probe, fit_probe

KIND = "train-probe"
CHUNK = 8  # files of one embedding step: about a second of images, several of volumes
MAX_ATTEMPTS = 5  # a job that kills the service (memory) must not do so for ever
EMBED_SHARE = 0.8  # of the progress, where files are embedded first
TELL_SECONDS = 0.25


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A job's inputs beside its vectors or files; `groups` are pseudonyms. `files` are (name, bytes), from uploads."""

    name: str
    encoder: str
    fingerprint: str
    labels: list[str]
    groups: list[str]
    folds: int
    seed: int
    files: list[tuple[str, int]]
    region: tuple[int, int, int, int] | None = None
    mpp: float | None = None


class Training:
    """Work of the job engine. A job's inputs lie in jobs/<id>/, the trained probe in probes/<id>/, under one id."""

    def __init__(self, settings: Settings, store: Store, library: Library, embedding: Embedding) -> None:
        self._settings, self._store, self._library, self._embedding = settings, store, library, embedding
        self._told: dict[str, tuple[float, str]] = {}

    def folder(self, job_id: str) -> Path:
        """Inputs of a job."""
        return self._settings.data / "jobs" / job_id

    def probe_folder(self, probe_id: str) -> Path:
        """A trained probe."""
        return self._settings.data / "probes" / probe_id

    def probe(self, probe_id: str) -> Probe:
        """A trained probe, read from its folder.

        Raises:
            ProblemError: 500, the folder is damaged.
        """
        try:
            return Probe.load(self.probe_folder(probe_id))
        except UserError as error:  # its words are for the operator and hold the folder's path
            reference = log_unexpected(error)
            raise ProblemError(
                500,
                "probe-unusable",
                "The probe's files are damaged.",
                remedy="Train the probe again from its labels.",
                reference=reference,
            ) from None

    def accept(self, job_id: str, draft: Path, plan: Plan, *, vectors: np.ndarray | None = None) -> None:
        """Make a job's inputs durable: files in `draft` and vectors (n, dim) are on the disk when this returns."""
        draft.mkdir(exist_ok=True)
        (draft / "plan.json").write_text(json.dumps(asdict(plan)), encoding="utf-8")
        if vectors is not None:
            np.save(draft / "vectors.npy", vectors.astype(np.float32, copy=False))
        target = self.folder(job_id)
        target.parent.mkdir(exist_ok=True)
        for path in (*(p for p in draft.rglob("*") if p.is_file()), draft):
            _sync(path)
        os.rename(draft, target)
        _sync(target.parent)

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

    def steps(self, job_id: str) -> Sequence[Step]:
        """Embedding in chunks where files were sent, then one fit."""
        plan = self._plan(job_id)
        chunks = range(0, len(plan.files), CHUNK)
        return [*(partial(self._embed, job_id, plan, start) for start in chunks), partial(self._fit, job_id, plan)]

    def finish(self, job_id: str) -> None:
        """Register the probe and the job's success in one transaction."""
        plan = self._plan(job_id)
        probe = self.probe(job_id)
        metrics = dict(probe.metrics)
        receipt = metrics.pop("split_receipt", None) or {}
        row = ProbeRow(
            id=job_id,
            name=plan.name,
            encoder=plan.encoder,
            fingerprint=plan.fingerprint,
            labels=list(probe.classes),
            count=len(plan.labels),
            created=now(),
            metrics=metrics,
            receipt=receipt,
        )
        self._store.finish_job(job_id, "succeeded", result=f"/v1/probes/{job_id}", probe=row)

    def fail(self, job_id: str, found: Problem) -> None:
        """Record the failure."""
        self._store.finish_job(job_id, "failed", error=found.model_dump(mode="json", exclude_none=True))

    def clean(self, job_id: str) -> None:
        """Remove what an ended job needs no more: its inputs, and its probe unless it succeeded."""
        row = self._store.job(job_id)
        if row is not None and row.state in UNFINISHED:
            return
        shutil.rmtree(self.folder(job_id), ignore_errors=True)
        if row is None or row.state != "succeeded":
            shutil.rmtree(self.probe_folder(job_id), ignore_errors=True)
        self._told.pop(job_id, None)

    # --- steps ------------------------------------------------------------------------------------------------------

    def _embed(self, job_id: str, plan: Plan, start: int) -> None:
        count = len(plan.files)
        self._tell(job_id, EMBED_SHARE * start / count, "embedding")
        encoder_id = self._library.encoder_of(plan.fingerprint)
        if encoder_id is None:
            raise ProblemError(
                422,
                "encoder-gone",
                "The encoder of this job is no longer in the runs directory.",
                remedy="Bring its run folder back and send the files again.",
            )
        _, encoder, batcher = self._library.encoder(encoder_id)
        uploads = [
            Upload(index, self.folder(job_id) / name, size)
            for index, (name, size) in enumerate(plan.files)
            if start <= index < start + CHUNK
        ]
        field = Field(region=None if plan.region is None else (*plan.region,), mpp=plan.mpp)
        found = sources(encoder.adapter, uploads, field, settings=self._settings)
        vectors: list[np.ndarray] = []
        for result in self._embedding.run(encoder.adapter, batcher, found, patient=True):
            index = start + len(vectors)
            if result.problem is not None:
                raise first_bad(result.problem, index, result.file_index)
            assert result.vector is not None
            vectors.append(result.vector)
            self._tell(job_id, EMBED_SHARE * (index + 1) / count, "embedding")
        draft = self.folder(job_id) / f"vectors-{start:06d}.part.npy"
        np.save(draft, np.stack(vectors))
        _sync(draft)
        os.replace(draft, draft.with_name(f"vectors-{start:06d}.npy"))

    def _fit(self, job_id: str, plan: Plan) -> None:
        folder = self.folder(job_id)
        parts = sorted(folder.glob("vectors-??????.npy")) or [folder / "vectors.npy"]
        vectors = np.concatenate([np.load(part, allow_pickle=False) for part in parts])
        done = EMBED_SHARE if plan.files else 0.0
        probe = fit_probe(
            vectors,
            plan.labels,
            plan.groups,
            seed=plan.seed,
            folds=plan.folds,
            encoder=plan.fingerprint,
            progress=lambda share, stage: self._tell(job_id, done + (1 - done) * share, "fitting"),
        )
        target = self.probe_folder(job_id)
        target.parent.mkdir(exist_ok=True)
        probe.save(target)

    def _tell(self, job_id: str, progress: float, stage: str) -> None:
        """Note progress now and then; raises Stopped when the job was cancelled meanwhile."""
        at, before = self._told.get(job_id, (0.0, ""))
        if stage == before and time.monotonic() - at < TELL_SECONDS:
            return
        # 1.0 belongs to the registered result.
        if not self._store.advance(job_id, stage=stage, progress=min(progress, 0.99)):
            raise Stopped
        self._told[job_id] = (time.monotonic(), stage)

    def _plan(self, job_id: str) -> Plan:
        return Plan(**json.loads((self.folder(job_id) / "plan.json").read_text(encoding="utf-8")))


def _sync(path: Path) -> None:
    """Fsync of a file or folder: what was accepted survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
