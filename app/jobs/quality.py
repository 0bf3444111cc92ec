"""The jobs that look at an archive's quality: the check for confounders, and the search for images to look at."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from app.core.errors import ProblemError, not_found
from app.core.settings import Settings
from app.encoders.library import Library
from app.jobs.base import JobKind, Step, check_unchanged, content_of
from app.jobs.train_probe import TrainProbe
from app.store import Store, now
from data_adapters.atomic import write_text
from lejepa_med.models.embed import EmbeddingTable, about
from lejepa_med.models.thumbnails import FILE, Thumbnails
from lejepa_med.probes.confounders import Value
from lejepa_med.probes.probe import Probe
from lejepa_med.quality.check import check_columns, sentences
from lejepa_med.quality.outliers import describe_pictures, find_outliers
from lejepa_med.quality.sheet import counts_of, rows_of, summary

Kind = Literal["check", "outliers"]
REPORT = "report.json"
MOST = 2000  # findings of one kind in a report; the rest is counted
NO_PICTURES = (
    "The archive was embedded without thumbnails, so copies, layouts, pen marks and empty images were not looked for."
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a job looks at; `content` names what the table held when the job was accepted."""

    archive: str
    content: str
    probe: str | None = None
    columns: list[str] | None = None
    leave_out: str | None = None
    share: float = 0.01


class QualityJob(JobKind):
    """A report lies in quality/<id>/; it is the job's result, and goes with `remove`."""

    results = "quality"
    what: Kind

    def __init__(self, settings: Settings, store: Store, library: Library, training: TrainProbe) -> None:
        super().__init__(settings, store)
        self._library, self._training = library, training

    def steps(self, job_id: str) -> Iterator[Step]:
        """One step, which looks for a cancellation at each column or hundred pictures."""
        yield partial(self._make, job_id)

    def finish(self, job_id: str) -> None:
        """Give the job its success."""
        self.succeed(job_id, f"/v1/qualities/{job_id}", ())

    def accept_plan(self, job_id: str, archive: str, **settings: Any) -> None:
        """Make the job's inputs durable; `settings` are further fields of `Plan`.

        Raises:
            ProblemError: 404 or 422, no such archive, probe or column, or a probe of another encoder.
        """
        table = self._library.table(archive)
        plan = Plan(archive=archive, content=content_of(table), **settings)
        self._probe(plan, table)
        self._refuse(plan, table)
        draft = self._settings.temporary(job_id)
        draft.parent.mkdir(exist_ok=True)
        self.accept(job_id, draft, asdict(plan))

    def report(self, job_id: str) -> dict[str, Any] | None:
        """The report of a job that has succeeded; None where there is none, or it was removed."""
        try:
            found: dict[str, Any] = json.loads((self.result_folder(job_id) / REPORT).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return found

    def remove(self, job_id: str) -> None:
        """Remove a report."""
        shutil.rmtree(self.result_folder(job_id), ignore_errors=True)

    # --- for the kinds ----------------------------------------------------------------------------------------------

    def _refuse(self, plan: Plan, table: EmbeddingTable) -> None:
        """Refuse what the kind cannot do."""

    def _look(self, job_id: str, plan: Plan, table: EmbeddingTable, probe: Probe | None) -> dict[str, Any]:
        """The kind's report, with `summary` in sentences."""
        raise NotImplementedError

    def _make(self, job_id: str) -> None:
        plan = Plan(**self.read_plan(job_id))
        target = self.result_folder(job_id) / REPORT
        if target.is_file():
            return
        table = self._library.table(plan.archive)
        check_unchanged(plan.content, content_of(table), remedy="Ask again.")
        self.note_progress(job_id, 0.0, "looking")
        found = self._look(job_id, plan, table, self._probe(plan, table))
        told = found.pop("summary")
        document = {
            "kind": self.what,
            "archive": plan.archive,
            "fingerprint": table.encoder,
            "created": now(),
            "summary": told,
            "report": found,
        }
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, json.dumps(document, ensure_ascii=False, allow_nan=False))

    def _probe(self, plan: Plan, table: EmbeddingTable) -> Probe | None:
        if plan.probe is None:
            return None
        row = self._training.find(plan.probe)
        if row is None:
            raise not_found("probe", remedy="GET /v1/probes lists the probes.")
        if row.fingerprint != table.encoder:
            raise ProblemError(
                422,
                "other-encoder",
                "The archive was embedded with another encoder than the probe's.",
                remedy="Name a probe of this archive's encoder.",
            )
        return self._training.probe(row.id)

    def _progress(self, job_id: str, done: int, total: int) -> None:
        self.note_progress(job_id, done / max(1, total), "looking")


class CheckArchive(QualityJob):
    """Does the encoder see how the images were made, and do the labels go with it?"""

    kind = "check-archive"
    what = "check"

    def _refuse(self, plan: Plan, table: EmbeddingTable) -> None:
        if not table.context:
            raise ProblemError(
                422,
                "no-columns",
                "The archive has no column that tells how its images were made.",
                remedy="Embed it again with a catalogue that has columns such as site or scanner.",
            )
        wanted = [*(plan.columns or ()), *((plan.leave_out,) if plan.leave_out else ())]
        if any(name not in table.context for name in wanted):
            raise ProblemError(
                422,
                "unknown-column",
                "The archive has no column of a name that was asked for.",
                remedy=f"Its columns are: {', '.join(sorted(table.context))}.",
            )

    def _look(self, job_id: str, plan: Plan, table: EmbeddingTable, probe: Probe | None) -> dict[str, Any]:
        labels: list[Value] | None = [label or None for label in table.labels] if any(table.labels) else None
        groups = list(table.groups)
        if probe is not None:
            labels = [None] * len(table.ids)
            rows = {name: row for row, name in enumerate(table.ids)}
            known = probe.examples
            for name, label, group in zip(known.ids, known.labels, known.groups, strict=True):
                row = rows.get(name.rpartition("/")[2])
                if row is not None:
                    labels[row] = ";".join(sorted(label)) if isinstance(label, tuple) else label
                    groups[row] = group
        report = check_columns(
            table.vectors,
            groups,
            {name: table.context[name] for name in plan.columns or table.context},
            labels=labels,
            leave_out=plan.leave_out,
            progress=partial(self._progress, job_id),
        )
        return {**report, "summary": sentences(report)}


class FindOutliers(QualityJob):
    """Odd images, copies across groups, marked and empty ones, unusual headers, doubtful labels."""

    kind = "find-outliers"
    what = "outliers"

    def _look(self, job_id: str, plan: Plan, table: EmbeddingTable, probe: Probe | None) -> dict[str, Any]:
        folder = self._library.tables().get(plan.archive)
        pictures, notes = None, []
        if folder is not None and (file := about(folder, FILE)).is_file():
            thumbnails = Thumbnails(Path(file))
            pictures = describe_pictures(thumbnails, progress=partial(self._progress, job_id))
        else:
            notes.append(NO_PICTURES)
        found = find_outliers(
            table.vectors,
            table.groups,
            ids=table.ids,
            pictures=pictures,
            columns=table.context,
            probe=probe,
            share=plan.share,
        )
        rows = rows_of(found, ids=table.ids, groups=table.groups, labels=table.labels)
        return {
            "images": len(table.ids),
            "groups": len(set(table.groups)),
            "notes": notes,
            "counts": counts_of(rows),
            "findings": [{k: v for k, v in row.items() if k != "exclude"} for row in rows if row["rank"] <= MOST],
            "summary": summary(rows, images=len(table.ids)),
        }
