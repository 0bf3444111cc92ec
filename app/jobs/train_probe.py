"""The job that trains a probe: accepted with all its inputs on disk, then embedded in chunks, fitted and registered."""

import dataclasses
import hashlib
import json
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy.exc import IntegrityError

from app.core.errors import ProblemError, first_bad, log_unexpected
from app.core.settings import Settings
from app.encoders.library import Library
from app.encoders.run_probes import ID, RunProbes
from app.jobs.base import JobKind, Step
from app.jobs.labels import Plan
from app.store import ProbeRow, Store, now
from app.uploads.bodies import ReceivedFile
from app.uploads.embedding import Embedding
from app.uploads.file_items import Area, request_items
from data_adapters.atomic import new_file, write_text
from data_adapters.errors import UserError
from data_adapters.identity import pseudonym
from lejepa_med.probes.confounders import acquisition_columns
from lejepa_med.probes.examples import Labelled
from lejepa_med.probes.probe import OtherFormatError, Probe, fit_probe

CHUNK = 8  # files of one embedding step: about a second of images, several of volumes
EMBED_SHARE = 0.8  # of the progress, where files are embedded first
LOADED = 4  # probes kept in memory; they never change
LINEAGE = "lineage.json"  # of a job's folder: which version the fit took over from


class TrainProbe(JobKind):
    """A job's inputs lie in jobs/<id>/, the trained probe in probes/<id>/, under one id."""

    kind = "train-probe"
    results = "probes"

    def __init__(self, settings: Settings, store: Store, library: Library, embedding: Embedding) -> None:
        super().__init__(settings, store)
        self._library, self._embedding = library, embedding
        self.run_probes = RunProbes(settings, library)
        self._loaded: dict[str, Probe] = {}
        self._lock = threading.Lock()

    def find(self, probe_id: str) -> ProbeRow | None:
        """A probe's row: the service's own, or one that `lejepa-med probe` wrote below the runs directory.

        Raises:
            ProblemError: 422, its folder below the runs directory is damaged.
        """
        row = self._store.probe(probe_id) if ID.fullmatch(probe_id) else None
        if row is None and (known := self.run_probes.find(probe_id)) is not None:
            row = known.row
        return row

    def probe(self, probe_id: str) -> Probe:
        """A trained probe, read from its folder.

        Raises:
            ProblemError: 422, written by another release, or damaged below the runs directory; 500, damaged otherwise.
        """
        if not ID.fullmatch(probe_id):
            return self.run_probes.load(probe_id)
        with self._lock:
            if probe_id not in self._loaded:
                while len(self._loaded) >= LOADED:
                    self._loaded.pop(next(iter(self._loaded)))
                self._loaded[probe_id] = _load(self.result_folder(probe_id))
            return self._loaded[probe_id]

    def steps(self, job_id: str) -> Sequence[Step]:
        """Embedding in chunks where files were sent, then one fit."""
        plan = self._plan(job_id)
        chunks = range(0, len(plan.files), CHUNK)
        return [*(partial(self._embed, job_id, plan, start) for start in chunks), partial(self._fit_once, job_id, plan)]

    def finish(self, job_id: str) -> None:
        """Register the probe and the job's success in one transaction.

        Two jobs may add labels to one version. The second finds its place in the series taken, and learns again on top
        of the first one's result, so that no label is lost.
        """
        plan = self._plan(job_id)
        while True:
            try:
                self.succeed(job_id, f"/v1/probes/{job_id}", self._row(job_id, plan))
                return
            except IntegrityError:
                self._fit(job_id, plan)

    def _row(self, job_id: str, plan: Plan) -> ProbeRow:
        probe = _load(self.result_folder(job_id))
        metrics = dict(probe.metrics)
        receipt = metrics.pop("split_receipt", None) or {}
        lineage = json.loads((self.folder(job_id) / LINEAGE).read_text(encoding="utf-8"))
        return ProbeRow(
            id=job_id,
            series=plan.series or job_id,
            version=lineage["version"],
            parent=lineage["parent"],
            kind=probe.kind,
            name=plan.name,
            encoder=plan.encoder,
            fingerprint=plan.fingerprint,
            labels=list(probe.classes),
            count=len(probe.examples.ids),
            created=now(),
            metrics=metrics,
            receipt=receipt,
        )

    # --- steps ------------------------------------------------------------------------------------------------------

    def _embed(self, job_id: str, plan: Plan, start: int) -> None:
        part = self.folder(job_id) / f"vectors-{start:06d}.npy"
        if part.exists():
            return
        count = len(plan.files)
        self.note_progress(job_id, EMBED_SHARE * start / count, "embedding")
        _, encoder, batcher = self._library.with_fingerprint(plan.fingerprint)
        uploads = [
            ReceivedFile(plan.places[index], self.folder(job_id) / name, size)
            for index, (name, size) in enumerate(plan.files)
            if start <= index < start + CHUNK
        ]
        field = Area(region=None if plan.region is None else (*plan.region,), mpp=plan.mpp)
        found = request_items(encoder.adapter, uploads, field, settings=self._settings, sandbox=self._embedding.sandbox)
        vectors: list[np.ndarray] = []
        for result in self._embedding.run(encoder.adapter, batcher, found, patient=True):
            index = start + len(vectors)
            if result.problem is not None:
                raise first_bad(result.problem, plan.places[index], result.file_index)
            assert result.vector is not None
            vectors.append(result.vector)
            self.note_progress(job_id, EMBED_SHARE * (index + 1) / count, "embedding")
        with new_file(part) as draft, draft.open("wb") as stream:
            np.save(stream, np.stack(vectors))

    def _fit_once(self, job_id: str, plan: Plan) -> None:
        if not (self.folder(job_id) / LINEAGE).is_file():
            self._fit(job_id, plan)

    def _fit(self, job_id: str, plan: Plan) -> None:
        examples, parent, version = self._given(job_id, plan), None, 1
        before: list[str] = []  # cautions on the examples of the parent
        if plan.series is not None:
            newest = self._store.versions(plan.series)[0]
            if plan.label_set is None:
                examples = self.probe(newest.id).examples.updated(examples)
            parent, version = newest.id, newest.version + 1
            before = newest.metrics.get("cautions", [])
        done = EMBED_SHARE if plan.files else 0.0
        probe = fit_probe(
            examples.vectors,
            examples.labels,
            examples.groups,
            ids=examples.ids,
            seed=plan.seed,
            folds=plan.folds,
            balanced=plan.balanced,
            encoder=plan.fingerprint,
            progress=lambda share, stage: self.note_progress(job_id, done + (1 - done) * share, "fitting"),
            table_groups=examples.table_groups,
            relatives=examples.relatives,
            columns=self._columns(examples.ids),
        )
        told: dict[str, Any] = {} if plan.table is None else {"table": plan.table}
        cautions = list(dict.fromkeys([*before, *plan.cautions]))
        told |= {"cautions": cautions} if cautions else {}
        told |= {} if plan.label_set is None else {"label_set": plan.label_set}
        probe = dataclasses.replace(probe, metrics={**probe.metrics, **told})
        target = self.result_folder(job_id)
        target.parent.mkdir(exist_ok=True)
        probe.save(target)
        # After the probe. A kill between the two leaves no lineage, or an older one whose place is taken: both mean
        # that the fit runs again.
        write_text(self.folder(job_id) / LINEAGE, json.dumps({"parent": parent, "version": version}))

    def _columns(self, ids: Sequence[str]) -> dict[str, list[str | float | None]]:
        """How the examples that lie in embedding tables were made, as far as these tables know it, by column name."""
        places = [name.rpartition("/")[::2] for name in ids]
        known: dict[str, dict[str, dict[str, str | float | None]]] = {}
        for archive in {archive for archive, _ in places} - {"", "file"}:
            try:
                table = self._library.table(archive)
            except ProblemError:
                continue  # removed meanwhile; the probe keeps its vectors
            columns = acquisition_columns(table.context)
            known[archive] = {
                name: {column: values[row] for column, values in columns.items()} for row, name in enumerate(table.ids)
            }
        facts = [known.get(archive, {}).get(name, {}) for archive, name in places]
        names = sorted({column for row in facts for column in row})
        return {column: [row.get(column) for row in facts] for column in names}

    def _given(self, job_id: str, plan: Plan) -> Labelled:
        """What the request labelled. A file's id is that of its content: sent again, it is the same item."""
        folder = self.folder(job_id)
        parts = sorted(folder.glob("vectors-??????.npy")) or [folder / "vectors.npy"]
        vectors = np.concatenate([np.load(part, allow_pickle=False) for part in parts])
        ids = plan.ids or [file_id(folder / name) for name, _ in plan.files]
        first: dict[str, int] = {}
        for row, name in enumerate(ids):
            same = first.setdefault(name, row)
            for what, given in (("label", plan.labels), ("group", plan.groups)):
                if given[same] != given[row]:
                    files = [plan.places[same], plan.places[row]]
                    raise ProblemError(
                        422,
                        f"two-{what}s",
                        f"Files {files[0]} and {files[1]} are the same (counted from 0), but have different {what}s.",
                        remedy=f"Send each image once, with the right {what}.",
                        file_index=files[1],
                    )
        rows = list(first.values())
        return Labelled(
            ids=tuple(ids[row] for row in rows),
            vectors=vectors[rows],
            labels=tuple(plan.labels[row] for row in rows),
            groups=tuple(plan.groups[row] or ids[row] for row in rows),
            table_groups=tuple(plan.table_groups[row] for row in rows) if plan.table_groups else (),
            relatives=plan.relatives,
        )

    def _plan(self, job_id: str) -> Plan:
        return Plan(**self.read_plan(job_id))


def _load(folder: Path) -> Probe:
    try:
        return Probe.load(folder)
    except OtherFormatError:
        raise ProblemError(
            422,
            "probe-format",
            "The probe was made by another release of the service, which this one cannot read.",
            remedy="Train the probe again from its labels.",
        ) from None
    except UserError as error:  # its words are for the operator and hold the folder's path
        reference = log_unexpected(error)
        raise ProblemError(
            500,
            "probe-unusable",
            "The probe's files are damaged.",
            remedy="Train the probe again from its labels.",
            reference=reference,
        ) from None


def file_id(file: Path) -> str:
    """The id of a file as an example: that of its content, so a file that is sent again is found."""
    with file.open("rb") as stream:
        return "file/" + pseudonym("content", hashlib.file_digest(stream, "sha256").hexdigest())
