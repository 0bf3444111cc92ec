"""The job that applies a probe to a whole archive: predicted in chunks, written as one Parquet table."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from app.core.errors import ProblemError
from app.core.settings import Settings
from app.encoders.library import Library
from app.encoders.run_probes import gone
from app.jobs.base import JobKind, Step, check_unchanged, content_of
from app.jobs.train_probe import TrainProbe
from app.store import PredictionRow, Store, now
from data_adapters.atomic import new_file, sync
from lejepa_med.models.embed import EmbeddingTable
from lejepa_med.probes.novelty import seen_counts
from lejepa_med.probes.output import prediction_columns
from lejepa_med.probes.probe import Probe

TABLE = "predictions.parquet"
CELLS = 1 << 26  # cosines of one step, archive rows x labelled images: about a second on one core


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A probe and an archive; the digests are what they held when the job was accepted.

    Only a probe of the runs directory has one: the operator may train it anew. `cautions` are those of the archive.
    """

    probe: str
    archive: str
    digest: str
    chunk: int
    probe_digest: str = ""
    cautions: list[str] = field(default_factory=list)


class ApplyProbe(JobKind):
    """The table lies in predictions/<id>/."""

    kind = "apply-probe"
    results = "predictions"

    def __init__(self, settings: Settings, store: Store, library: Library, training: TrainProbe) -> None:
        super().__init__(settings, store)
        self._library, self._training = library, training

    def steps(self, job_id: str) -> Iterator[Step]:
        """Chunks, then the table."""
        plan = Plan(**self.read_plan(job_id))
        starts = range(0, len(self._table(plan).ids), plan.chunk)
        for start in starts:
            yield partial(self._predict, job_id, plan, start)
        yield partial(self._join, job_id, [self._chunk(job_id, start) for start in starts])

    def finish(self, job_id: str) -> None:
        """Register the table and the job's success in one transaction."""
        plan = Plan(**self.read_plan(job_id))
        probe = self._training.find(plan.probe)
        if probe is None:
            raise gone()
        self._library.see(self._store, probe.fingerprint)
        file = self.table_file(job_id)
        row = PredictionRow(
            id=job_id,
            probe_id=plan.probe,
            archive=plan.archive,
            fingerprint=probe.fingerprint,
            count=pq.read_metadata(file).num_rows,
            summary=summary(file, self._training.probe(plan.probe)) | {"cautions": plan.cautions},
            created=now(),
        )
        self.succeed(job_id, f"/v1/applications/{job_id}", row)

    # --- what the routes ask ----------------------------------------------------------------------------------------

    def accept_plan(self, job_id: str, probe_id: str, archive: str) -> None:
        """Make the job's inputs durable.

        Raises:
            ProblemError: 404 or 422, no such archive, or one of another encoder.
        """
        table, row = self._library.table(archive), self._training.find(probe_id)
        if row is None or table.encoder != row.fingerprint:
            raise ProblemError(
                422,
                "other-encoder",
                "The archive was embedded with another encoder than the probe's.",
                remedy="Embed the archive with the probe's encoder: POST /v1/archives, or lejepa-med embed",
            )
        chunk = max(256, min(8192, CELLS // max(1, row.count)))
        plan = Plan(
            probe=probe_id,
            archive=archive,
            digest=content_of(table),
            chunk=chunk,
            probe_digest=self._probe_digest(probe_id),
            cautions=table.info.get("cautions", []),
        )
        draft = self._settings.temporary(job_id)
        draft.parent.mkdir(exist_ok=True)
        self.accept(job_id, draft, asdict(plan))

    def _probe_digest(self, probe_id: str) -> str:
        known = self._training.run_probes.find(probe_id)
        return "" if known is None else known.digest

    def table_file(self, job_id: str) -> Path:
        """Where the predictions of an application lie."""
        return self.result_folder(job_id) / TABLE

    # --- steps ------------------------------------------------------------------------------------------------------

    def _table(self, plan: Plan) -> EmbeddingTable:
        table = self._library.table(plan.archive)
        check_unchanged(plan.digest, content_of(table), remedy="Apply the probe again.")
        return table

    def _chunk(self, job_id: str, start: int) -> Path:
        return self.folder(job_id) / f"predicted-{start:09d}.parquet"

    def _predict(self, job_id: str, plan: Plan, start: int) -> None:
        table = self._table(plan)
        if self._chunk(job_id, start).is_file():
            return
        self.note_progress(job_id, start / len(table.ids), "predicting")
        rows = slice(start, start + plan.chunk)
        probe = self._training.probe(plan.probe)
        if self._probe_digest(plan.probe) != plan.probe_digest:
            raise ProblemError(
                422,
                "probe-changed",
                "The probe in the runs directory was trained anew while it was applied.",
                remedy="Apply it again.",
            )
        found = prediction_columns(probe.predict(table.vectors[rows], ids=table.ids[rows], groups=table.groups[rows]))
        _write(pa.table({"id": pa.array(table.ids[rows], pa.string()), **found}), self._chunk(job_id, start))

    def _join(self, job_id: str, chunks: Sequence[Path]) -> None:
        target = self.table_file(job_id)
        if target.is_file():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        # A column may be without any value in one chunk, and so of no type or absent, and have values in another.
        schema = pa.unify_schemas([pq.read_schema(file) for file in chunks], promote_options="permissive")
        with new_file(target) as draft, pq.ParquetWriter(draft, schema) as writer:
            for file in chunks:
                tables = [schema.empty_table(), pq.read_table(file)]
                writer.write_table(pa.concat_tables(tables, promote_options="permissive"))
        sync(target.parent.parent)


def summary(file: Path, probe: Probe) -> dict[str, Any]:
    """Counts by label, or the spread of a quantity, the share unlike the labelled items, and what was seen of them."""
    found: dict[str, Any] = {}
    names = pq.read_schema(file).names
    rows = pq.read_metadata(file).num_rows
    wanted = ("label", "labels", "value", "note", "seen", "in_sample")
    table = pq.read_table(file, columns=[name for name in wanted if name in names])
    if "label" in names:
        found["counts"] = dict(Counter(table.column("label").to_pylist()).most_common())
    elif "labels" in names:
        counts = Counter(label for labels in table.column("labels").to_pylist() for label in labels)
        found["counts"] = dict(counts.most_common())
    if "value" in names:
        values = table.column("value").to_numpy()
        found["value"] = {
            "mean": float(values.mean()),
            "min": float(values.min()),
            "max": float(values.max()),
            "standard_deviation": float(values.std()),
        }
    notes = table.column("note").to_pylist() if "note" in names else []
    found["unlike"] = sum(map(bool, notes)) / rows
    if "seen" in names:  # a job that an earlier release began has none
        found["seen"] = seen_counts(table.column("seen").to_pylist(), table.column("in_sample").to_pylist())
        found["notes"] = probe.remarks(found["seen"])
    return found


def _write(table: pa.Table, file: Path) -> None:
    with new_file(file) as draft:
        pq.write_table(table, draft)
