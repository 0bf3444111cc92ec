"""The job that imports an upload: files moved to where they stay, zips unpacked, all scanned, the upload registered."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import data_adapters
from app import catalogs
from app.errors import CHECK_FILE, ProblemError, removed_meanwhile
from app.jobs import Step
from app.kinds.archiving import Archiving, no_upload
from app.kinds.scanning import Found, Refusal, owned, read_manifest, refusal, scan
from app.sandbox.pool import Sandbox
from app.settings import Settings
from app.store import Store, UploadRow, new_job, now
from app.unzip import unzip
from app.work import JobWork, sync
from data_adapters.errors import BadFileError
from data_adapters.manifest import Manifest
from data_adapters.tables import FIRST
from lejepa_med.atomic import write_text

FILES, MANIFEST, REPORT = "files", "manifest.parquet", "report.json"
REFUSED, SCREENED = "zips.json", "screened.json"
UNPACK_SHARE = 0.1  # of the progress


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An upload as it was accepted; `files` are (name here, bytes), `adapter` describes how they are read.

    `catalog` holds the fields of `catalogs.Translated`, where a catalogue was sent.
    `embedding` is the id of the job that embeds the upload once it is imported, whose inputs `archive` holds.
    """

    name: str
    modality: str
    adapter: dict[str, Any]
    files: list[tuple[str, int]]
    sha256: str
    received: float
    catalog: dict[str, Any] | None = None
    embedding: str | None = None
    archive: dict[str, Any] | None = None

    def row(self, upload_id: str, *, key_id: str | None) -> UploadRow:
        """The upload as it is registered."""
        return UploadRow(
            id=upload_id,
            name=self.name,
            modality=self.modality,
            files=len(self.files),
            bytes=sum(size for _, size in self.files),
            sha256=self.sha256,
            created=self.received,
            key_id=key_id,
        )


class Importing(JobWork):
    """What was sent lies in jobs/<id>/ until the job runs, then in uploads/<id>/files/, under names of our own."""

    kind = "import-upload"
    made = "uploads"

    def __init__(
        self,
        settings: Settings,
        store: Store,
        archiving: Archiving,
        sandbox: Sandbox,
        *,
        submit: Callable[[str, str], None],
    ) -> None:
        super().__init__(settings, store)
        self._archiving, self._sandbox, self._submit = archiving, sandbox, submit

    def steps(self, job_id: str) -> Iterator[Step]:
        """Unpacking, screening, then one scan that goes on where it was interrupted."""
        plan = Plan(**self.read_plan(job_id))
        yield partial(self._place, job_id, plan)
        yield partial(self._screen, job_id, plan)
        yield partial(self._scan, job_id, plan)

    def finish(self, job_id: str) -> None:
        """Register the upload, the job's success, and the job that embeds it, in one transaction."""
        plan = Plan(**self.read_plan(job_id))
        job = self._store.job(job_id)
        key_id = None if job is None else job.key_id
        row = plan.row(job_id, key_id=key_id)
        follow = []
        if plan.embedding is not None and plan.archive is not None:
            if not self._archiving.folder(plan.embedding).is_dir():
                draft = self._settings.temporary(plan.embedding)
                draft.parent.mkdir(exist_ok=True)
                self._archiving.accept(plan.embedding, draft, plan.archive)
            follow = [new_job(plan.embedding, self._archiving.kind, key_id=key_id)]
        self._store.finish_job(job_id, "succeeded", result=f"/v1/uploads/{job_id}", made=[row, *follow])

    def clean(self, job_id: str) -> None:
        """As for every job; before, see that the embedding was queued, which a kill may have prevented."""
        row = self._store.job(job_id)
        if row is not None and (row.kind, row.state) == (self.kind, "succeeded") and self.folder(job_id).is_dir():
            plan = Plan(**self.read_plan(job_id))
            if plan.embedding is not None:
                self._submit(plan.embedding, self._archiving.kind)
        super().clean(job_id)

    # --- uploads ----------------------------------------------------------------------------------------------------

    def upload(self, upload_id: str) -> tuple[UploadRow, Path]:
        """An imported upload and its folder.

        Raises:
            ProblemError: 404, there is none, or its import has not ended.
        """
        return self._archiving.upload(upload_id)

    def report(self, upload_id: str) -> dict[str, Any]:
        """What the import found: items, groups, labels, refused files, duplicates, rows of the catalogue unused.

        Raises:
            ProblemError: 404, it has been removed.
        """
        with removed_meanwhile(no_upload()):
            text = (self.result_folder(upload_id) / REPORT).read_text(encoding="utf-8")
        report: dict[str, Any] = json.loads(text)
        return report

    def manifest(self, upload_id: str) -> Manifest:
        """The readable items of an upload.

        Raises:
            ProblemError: 404, it has been removed.
        """
        folder = self.result_folder(upload_id)
        with removed_meanwhile(no_upload()):
            return read_manifest(folder / MANIFEST, folder / FILES)

    def remove(self, upload_id: str) -> None:
        """Remove an upload with its files.

        Raises:
            ProblemError: 409, a job reads it.
        """
        if any(plan["upload"] == upload_id for plan in self._archiving.plans()):
            raise ProblemError(
                409, "in-use", "A job embeds this upload.", remedy="Wait for the job, or cancel it: DELETE /v1/jobs/ID"
            )
        self.discard(upload_id, self._store.remove_upload)

    def expire(self) -> None:
        """Remove the uploads that are older than the operator keeps them, but for those that a job reads."""
        days = self._settings.keep_uploads_days
        if days is None:
            return
        for row in self._store.uploads():
            if now() - row.created > days * 86_400:
                try:
                    self.remove(row.id)
                except ProblemError:
                    continue

    # --- steps ------------------------------------------------------------------------------------------------------

    def _place(self, job_id: str, plan: Plan) -> None:
        source, folder = self.folder(job_id), self.result_folder(job_id)
        files = folder / FILES
        files.mkdir(parents=True, exist_ok=True)
        zips = [name for name, _ in plan.files if name.endswith(".zip")]
        if not (folder / REFUSED).is_file():
            refused = [one for number, name in enumerate(zips) if (one := self._unpack(job_id, number, zips))]
            write_text(folder / REFUSED, json.dumps([vars(one) for one in refused]))
        for name, _ in plan.files:
            if name in zips:
                (source / name).unlink(missing_ok=True)  # it would keep the entries' names
            elif (source / name).is_file():
                os.rename(source / name, files / name)
        if (source / catalogs.FILE).is_file():
            os.rename(source / catalogs.FILE, folder / catalogs.FILE)
        for place in (files, folder, folder.parent):
            sync(place)

    def _unpack(self, job_id: str, number: int, zips: list[str]) -> Refusal | None:
        self.tell(job_id, UNPACK_SHARE * number / len(zips), "unpacking")
        files = self.result_folder(job_id) / FILES
        packed = self.folder(job_id) / zips[number]
        target, draft = files / packed.stem, files / f".{packed.stem}"
        if target.is_dir():
            return None
        shutil.rmtree(draft, ignore_errors=True)
        budget = self._settings.max_unzipped_bytes - sum(f.stat().st_size for f in files.rglob("*") if f.is_file())
        try:
            unzip(packed, draft, settings=self._settings, budget=budget)
        except BadFileError as error:
            shutil.rmtree(draft, ignore_errors=True)
            return Refusal(packed.stem, error.cause, error.remedy)
        for path in (*draft.iterdir(), draft):
            sync(path)
        os.rename(draft, target)
        return None

    def _screen(self, job_id: str, plan: Plan) -> None:
        """Remove what no reader may see, such as files that unpack to any size."""
        self.tell(job_id, UNPACK_SHARE, "screening")
        folder = self.result_folder(job_id)
        found = self._sandbox.screen(data_adapters.from_description(plan.adapter), folder / FILES)
        refused = [refusal(one, folder / FILES) for one in found]
        write_text(folder / SCREENED, json.dumps([vars(one) for one in refused]))

    def _scan(self, job_id: str, plan: Plan) -> None:
        folder = self.result_folder(job_id)
        catalog = folder / catalogs.FILE
        found = scan(
            data_adapters.from_description(plan.adapter),
            folder / FILES,
            journal=self.folder(job_id) / "scan",
            settings=self._settings,
            sandbox=self._sandbox,
            verify=True,
            files=len(plan.files),
            catalog=catalog if catalog.is_file() else None,
            inside=(folder / FILES).resolve(),
            tell=lambda share: self.tell(job_id, UNPACK_SHARE + (1 - UNPACK_SHARE) * share, "scanning"),
        )
        texts = ((folder / name).read_text(encoding="utf-8") for name in (REFUSED, SCREENED))
        refused = [*(Refusal(**one) for text in texts for one in json.loads(text)), *found.refused]
        told = {one.path for one in refused}
        for name, _ in plan.files:  # a kill came between the removal of a file and the word of it
            if not (name.endswith(".zip") or name in told or (folder / FILES / name).exists()):
                refused.append(Refusal(name, "refused before it was read", CHECK_FILE))
        if not len(found.manifest):
            reason = Counter(one.reason for one in refused).most_common(1)
            raise ProblemError(
                422,
                "nothing-readable",
                f"None of the files can be read by the {plan.modality} adapter"
                + (f"; most often: {reason[0][0]}" if reason else "."),
                remedy="Send files of this modality, complete and of the format that their suffix says.",
            )
        manifest = owned(found.manifest, job_id)
        manifest.write(folder / MANIFEST)
        write_text(folder / REPORT, json.dumps(_report(found, manifest, refused, plan)))


def place_of(path: str) -> tuple[int, int | None]:
    """File of the request and entry of the zip, from a path below uploads/<id>/files."""
    first, _, rest = path.partition("/")
    return int(first[:5]), int(rest[:5]) if rest[:5].isdigit() else None


def _report(found: Found, manifest: Manifest, refused: list[Refusal], plan: Plan) -> dict[str, Any]:
    firsts: dict[tuple[str, str], int] = {}
    copies = []
    for row, key in enumerate(zip(manifest.column("digest"), manifest.column("item"), strict=True)):
        first = firsts.setdefault(key, row)
        if first != row:
            copies.append([manifest.value("id", row), manifest.value("id", first)])
    labels = Counter(label for label in manifest.column("label") if label)
    leak = manifest.leak()
    return {
        "items": len(manifest),
        "groups": len(set(manifest.column("group"))),
        "labels": dict(labels.most_common()),
        "refused": [[*place_of(one.path), one.reason, one.remedy] for one in refused],
        "duplicates": copies,
        "leak": None if leak is None else {**leak.report(), "first": leak.first},
        "catalog": {} if plan.catalog is None else _catalog(found, catalogs.Translated(**plan.catalog)),
        "embedding": plan.embedding,
    }


def _catalog(found: Found, catalog: catalogs.Translated) -> dict[str, Any]:
    """What became of the catalogue, as UploadDetail has it."""
    return {
        "catalog_unused": catalog.unused + found.unused,
        "catalog_unused_rows": sorted({*catalog.first, *found.first_unused})[:FIRST],
        "catalog_missing": catalog.missing,
        "catalog_without_row": found.without_row,
    }
