"""The job that trains a probe: accepted with all its inputs on disk, then embedded in chunks, fitted and registered."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from app.embedding import Embedding
from app.errors import ProblemError, first_bad, log_unexpected
from app.items import Field, sources
from app.jobs import Step
from app.library import Library
from app.settings import Settings
from app.store import ProbeRow, Store, now
from app.uploads import Upload
from app.work import JobWork, sync
from data_adapters.errors import UserError
from lejepa_med.evaluation.probe import Probe, fit_probe

CHUNK = 8  # files of one embedding step: about a second of images, several of volumes
EMBED_SHARE = 0.8  # of the progress, where files are embedded first


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


class Training(JobWork):
    """A job's inputs lie in jobs/<id>/, the trained probe in probes/<id>/, under one id."""

    kind = "train-probe"
    made = "probes"

    def __init__(self, settings: Settings, store: Store, library: Library, embedding: Embedding) -> None:
        super().__init__(settings, store)
        self._library, self._embedding = library, embedding

    def probe(self, probe_id: str) -> Probe:
        """A trained probe, read from its folder.

        Raises:
            ProblemError: 500, the folder is damaged.
        """
        try:
            return Probe.load(self.result_folder(probe_id))
        except UserError as error:  # its words are for the operator and hold the folder's path
            reference = log_unexpected(error)
            raise ProblemError(
                500,
                "probe-unusable",
                "The probe's files are damaged.",
                remedy="Train the probe again from its labels.",
                reference=reference,
            ) from None

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
            series=job_id,
            version=1,
            kind="classification",
            name=plan.name,
            encoder=plan.encoder,
            fingerprint=plan.fingerprint,
            labels=list(probe.classes),
            count=len(plan.labels),
            created=now(),
            metrics=metrics,
            receipt=receipt,
        )
        self._store.finish_job(job_id, "succeeded", result=f"/v1/probes/{job_id}", made=row)

    # --- steps ------------------------------------------------------------------------------------------------------

    def _embed(self, job_id: str, plan: Plan, start: int) -> None:
        part = self.folder(job_id) / f"vectors-{start:06d}.npy"
        if part.exists():  # done, in a job that was dead meanwhile
            return
        count = len(plan.files)
        self.tell(job_id, EMBED_SHARE * start / count, "embedding")
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
            self.tell(job_id, EMBED_SHARE * (index + 1) / count, "embedding")
        draft = part.with_suffix(".part.npy")
        np.save(draft, np.stack(vectors))
        sync(draft)
        os.replace(draft, part)

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
            progress=lambda share, stage: self.tell(job_id, done + (1 - done) * share, "fitting"),
        )
        target = self.result_folder(job_id)
        target.parent.mkdir(exist_ok=True)
        probe.save(target)

    def _plan(self, job_id: str) -> Plan:
        return Plan(**self.read_plan(job_id))
