"""The job that embeds an archive: scanned, embedded in chunks that are not computed twice, written as a table."""

import csv
import json
import shutil
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from sqlalchemy.exc import IntegrityError

from app.core.errors import ProblemError, as_error, not_found
from app.core.settings import Settings
from app.encoders.library import Library
from app.jobs.base import JobKind, Step
from app.jobs.scan import Refusal, owned, read_manifest, scan
from app.store import ArchiveRow, Store, UploadRow, now
from app.uploads import catalogs
from app.uploads.embedding import Embedding
from app.uploads.file_items import RequestItem
from data_adapters.atomic import new_file, write_text
from data_adapters.base import Adapter, BaseAdapter
from data_adapters.catalog import NEEDS, Catalog, participants_of
from data_adapters.errors import UserError
from data_adapters.manifest import Manifest
from data_adapters.tables import Table
from lejepa_med.models.embed import ABOUT, Feature, TableWriter, about, cautions_of, in_parts, read_info
from lejepa_med.models.thumbnails import thumbnails_of

SHARD_ROWS = 2048
LARGEST_CHUNK = 128  # rows of a step; a divisor of SHARD_ROWS
SCAN_SHARE = 0.05  # of the progress
MANIFEST, REFUSED, REPORT = "manifest.parquet", "refused.json", "report.json"
CATALOG = "catalog.json"  # of a job or table: what became of its catalogue


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is embedded, with what, and under which name: an upload, or a folder below the operator's archives.

    `catalog` is a table in the folder; without, its participants.tsv is the catalogue.
    """

    name: str
    encoder: str
    fingerprint: str
    dim: int
    chunk: int
    upload: str | None = None
    folder: str | None = None
    columns: tuple[str, ...] = ()
    catalog: str | None = None
    group_column: str | None = None
    label_column: str | None = None
    thumbnails: bool = False
    pool: Literal["mean", "none"] = "mean"


def chunk_of(adapter: Adapter, *, views: int, pool: str = "mean") -> int:
    """Rows of one step, a power of two: a few seconds on a CPU, at 128 passes of 224 px or 4 volumes and more.

    `views`: passes of each image or volume. `pool`: as in `Plan`; with "none" a row is one image.
    """
    images = adapter.most_images if isinstance(adapter, BaseAdapter) and pool == "mean" else 1
    wanted = LARGEST_CHUNK // (views * (32 if adapter.spec.dims == 3 else images))
    return 1 << max(2, wanted.bit_length() - 1)


class EmbedArchive(JobKind):
    """The table lies in archives/<id>/, in the format of `lejepa-med embed`."""

    kind = "embed-archive"
    results = "archives"

    def __init__(self, settings: Settings, store: Store, library: Library, embedding: Embedding) -> None:
        super().__init__(settings, store)
        self._library, self._embedding = library, embedding
        self.naming = threading.Lock()
        """Lock held from checking that a name is free until a job has claimed it."""

    def steps(self, job_id: str) -> Iterator[Step]:
        """One scan, chunks of embedding, and the end of the table."""
        plan = Plan(**self.read_plan(job_id))
        yield partial(self._scan, job_id, plan)
        manifest = read_manifest(self.folder(job_id) / MANIFEST, self._root(plan))
        columns, cautions = plan.columns, self._cautions(job_id, plan, manifest)
        if plan.pool == "none":
            manifest, places = in_parts(self._adapter(plan), manifest)
            columns = tuple(dict.fromkeys([*columns, *places]))
        table = TableWriter(
            self.result_folder(job_id),
            manifest,
            encoder=plan.fingerprint,
            encoder_name=plan.encoder,
            dim=plan.dim,
            shard_rows=SHARD_ROWS,
            columns=columns,
            cautions=cautions,
            thumbnails=plan.thumbnails,
        )
        for start in range(0, len(manifest), plan.chunk):
            yield partial(self._embed, job_id, plan, manifest, table, start)
        yield partial(self._close, job_id, table)

    def finish(self, job_id: str) -> None:
        """Register the archive and the job's success in one transaction."""
        plan = Plan(**self.read_plan(job_id))
        self._library.see(self._store, plan.fingerprint)
        row = ArchiveRow(
            id=job_id,
            name=plan.name,
            upload_id=plan.upload,
            encoder=plan.encoder,
            fingerprint=plan.fingerprint,
            count=read_info(self.result_folder(job_id))["embedded"],
            dim=plan.dim,
            created=now(),
        )
        try:
            self.succeed(job_id, f"/v1/archives/{plan.name}", row)
        except IntegrityError:  # another service on the same database was faster
            self.fail(job_id, name_taken().problem)

    # --- what the routes ask ----------------------------------------------------------------------------------------

    def plan(
        self,
        name: str,
        encoder: str | None,
        *,
        upload: str | None = None,
        folder: str | None = None,
        columns: Sequence[str] = (),
        catalog: str | None = None,
        group_column: str | None = None,
        label_column: str | None = None,
        pool: Literal["mean", "none"] = "mean",
    ) -> Plan:
        """The plan of a job, checked against what is there.

        Raises:
            ProblemError: 404 or 422, no such encoder, folder, table or column, or a modality without parts.
        """
        encoder_id, loaded, _ = self._library.encoder(encoder)
        if pool == "none" and not getattr(loaded.adapter, "part_columns", ()):
            raise ProblemError(
                422,
                "no-parts",
                f"The modality '{loaded.adapter.name}' gives no rows for single tiles: an item has one vector.",
                remedy="Leave out 'pool', or name an encoder of slides.",
            )
        plan = Plan(
            name=name,
            encoder=encoder_id,
            fingerprint=loaded.fingerprint,
            dim=loaded.dim,
            chunk=chunk_of(loaded.adapter, views=loaded.formation.views, pool=pool),
            upload=upload,
            folder=folder,
            columns=tuple(columns),
            catalog=catalog,
            group_column=group_column,
            label_column=label_column,
            thumbnails=self._settings.thumbnails,
            pool=pool,
        )
        if catalog or group_column or label_column:
            self._check_table(plan)
        elif folder is not None:
            self._root(plan)
        return plan

    def accept_plan(self, job_id: str, plan: Plan) -> None:
        """Make the job's inputs durable."""
        draft = self._settings.temporary(job_id)
        draft.parent.mkdir(exist_ok=True)
        self.accept(job_id, draft, asdict(plan))

    def tables(self) -> dict[str, Path]:
        """The service's own tables by name."""
        return {row.name: self.result_folder(row.id) for row in self._store.archives()}

    def refused(self, archive_id: str) -> Counter[str]:
        """Reasons why files were no items of an archive that the service made; those of an upload it tells itself."""
        file = about(self.result_folder(archive_id), REFUSED)
        return Counter(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else Counter()

    def notes(self, archive_id: str) -> list[str]:
        """What became of the catalogue of a folder, in sentences."""
        file = about(self.result_folder(archive_id), CATALOG)
        return list(json.loads(file.read_text(encoding="utf-8"))["notes"]) if file.is_file() else []

    def upload(self, upload_id: str) -> tuple[UploadRow, Path]:
        """An imported upload and its folder.

        Raises:
            ProblemError: 404, there is none, or its import has not ended.
        """
        row = self._store.upload(upload_id)
        folder = self._settings.data / "uploads" / upload_id
        if row is None or not folder.is_dir():
            raise no_upload()
        return row, folder

    # --- steps ------------------------------------------------------------------------------------------------------

    def _root(self, plan: Plan) -> Path:
        if plan.upload is not None:
            return self.upload(plan.upload)[1] / "files"
        assert plan.folder is not None
        return archive_folder(self._settings, plan.folder)

    def _table(self, plan: Plan) -> Path | None:
        """The catalogue of a folder."""
        if plan.upload is not None:
            return None
        root = self._root(plan)
        return participants_of(root) if plan.catalog is None else archive_table(self._settings, root, plan.catalog)

    def _check_table(self, plan: Plan) -> None:
        if plan.upload is not None:
            raise ProblemError(
                422,
                "invalid-request",
                "'catalog', 'group_column' and 'label_column' are for a folder: an upload's catalogue came with it.",
                remedy="Send the files again with the right catalogue and columns: POST /v1/uploads",
            )
        file = self._table(plan)
        if file is None:
            raise ProblemError(
                422,
                "invalid-request",
                "'group_column' and 'label_column' are columns of a catalogue, and the folder has no participants.tsv.",
                remedy="Name a table in the folder in 'catalog'.",
            )
        try:
            Table(file, needs=NEEDS, public=True, group_column=plan.group_column, label_column=plan.label_column)
        except UserError as error:
            raise ProblemError(422, "bad-catalog", error.cause, remedy=error.remedy) from None

    def _catalog(self, plan: Plan) -> tuple[Catalog | None, list[str]]:
        """The catalogue of a folder, and why it is one, or what is wrong with a participants.tsv nobody asked for.

        Raises:
            ProblemError: 422, the table that the request names cannot be read.
        """
        file = self._table(plan)
        if file is None:
            return None, []
        chosen = plan.catalog is not None or plan.group_column is not None or plan.label_column is not None
        try:
            found = Catalog(file, group_column=plan.group_column, label_column=plan.label_column, public=True)
        except UserError as error:
            if chosen:
                raise ProblemError(422, "bad-catalog", error.cause, remedy=error.remedy) from None
            return None, [catalogs.unusable(error.cause, error.remedy)]
        return found, [] if plan.catalog is not None else [
            catalogs.taken(group=plan.group_column, label=plan.label_column)
        ]

    def _cautions(self, job_id: str, plan: Plan, manifest: Manifest) -> list[str]:
        """What to know before using the vectors and the groups of a table."""
        give = "Give a table with a column '{fact}' as the request's 'catalog'"
        if plan.upload is not None:
            give = "Send the upload again with a catalogue that has a column '{fact}' (form field 'catalog')"
        file = self.folder(job_id) / CATALOG
        told = json.loads(file.read_text(encoding="utf-8"))["cautions"] if file.is_file() else []
        return [*cautions_of(self._adapter(plan), manifest.records(), give=give), *told]

    def _adapter(self, plan: Plan) -> Adapter:
        return self._library.with_fingerprint(plan.fingerprint)[1].adapter

    def _scan(self, job_id: str, plan: Plan) -> None:
        target = self.folder(job_id) / MANIFEST
        if target.is_file():
            return
        adapter, root = self._adapter(plan), self._root(plan)
        catalog, notes = self._catalog(plan)
        said: dict[str, list[str]] = {"notes": notes, "cautions": []}
        if plan.upload is not None:
            report = json.loads((root.parent / REPORT).read_text(encoding="utf-8"))
            write_text(self.folder(job_id) / CATALOG, json.dumps(said | {"cautions": report.get("cautions", [])}))
            file = root.parent / catalogs.FILE
            catalog = Catalog(file, public=True) if file.is_file() else None
            known = read_manifest(root.parent / MANIFEST, root)
            if known.adapter == adapter.describe():
                known.write(target)
                return
        found = scan(
            adapter,
            root,
            journal=self.folder(job_id) / "scan",
            settings=self._settings,
            sandbox=self._embedding.sandbox,
            verify=False,  # the embedding reads every pixel, and tells what cannot be read
            files=1 << 20 if plan.upload is None else 0,
            catalog=catalog,
            inside=root.resolve() if plan.upload is not None else archives_root(self._settings),
            tell=lambda share: self.note_progress(job_id, SCAN_SHARE * share, "scanning"),
        )
        if not len(found.manifest):
            raise ProblemError(
                422,
                "nothing-readable",
                f"The archive holds no image of the encoder's modality, {adapter.name}"
                + (f"; most often: {_first(found.refused)}." if found.refused else "."),
                remedy="Name an encoder of the archive's modality (GET /v1/encoders), or another archive.",
            )
        if plan.upload is None and catalog is not None:
            group = catalog.group_note()
            said["notes"] += [note for note in catalog.notes() if note != group]
            said["cautions"] = [] if group is None else [f"In the catalogue, {group}"]
        if plan.upload is None:
            write_text(self.folder(job_id) / CATALOG, json.dumps(said))
        reasons = Counter(one.reason for one in found.refused)
        write_text(self.folder(job_id) / REFUSED, json.dumps(dict(reasons.most_common())))
        (found.manifest if plan.upload is None else owned(found.manifest, plan.upload)).write(target)

    def _embed(self, job_id: str, plan: Plan, manifest: Manifest, table: TableWriter, start: int) -> None:
        shard = start // SHARD_ROWS
        if table.has(shard):
            return
        rows = table.rows(shard)
        stop = min(start + plan.chunk, rows.stop)
        if not self._chunk(job_id, start).is_file():
            self._compute(job_id, plan, manifest, range(start, stop))
        if stop == rows.stop:
            chunks = [self._chunk(job_id, first) for first in range(rows.start, rows.stop, plan.chunk)]
            table.write(shard, read_chunks(chunks))
            for chunk in chunks:
                chunk.unlink(missing_ok=True)

    def _compute(self, job_id: str, plan: Plan, manifest: Manifest, rows: range) -> None:
        _, encoder, batcher = self._library.with_fingerprint(plan.fingerprint)
        first = rows.start % SHARD_ROWS
        found = [RequestItem(0, record=manifest.record(row)) for row in rows]
        features: list[Feature] = []
        small = thumbnails_of(encoder.adapter) if plan.thumbnails else None
        results = self._embedding.run(encoder.adapter, batcher, found, patient=True, thumbnail=small)
        for number, result in enumerate(results):
            if result.problem is not None and result.problem.status >= 500:  # no fault of the item
                raise as_error(result.problem)
            reason = "" if result.problem is None else result.problem.detail
            features.append(Feature(first + number, result.vector, reason, result.thumbnail))
            share = (rows.start + number + 1) / len(manifest)
            self.note_progress(job_id, SCAN_SHARE + (1 - SCAN_SHARE) * share, "embedding")
        write_chunk(self._chunk(job_id, rows.start), features, dim=plan.dim)

    def _chunk(self, job_id: str, start: int) -> Path:
        return self.folder(job_id) / f"vectors-{start:09d}.npz"

    def _close(self, job_id: str, table: TableWriter) -> None:
        reasons = failures(self.result_folder(job_id))
        if not table.embedded:
            raise ProblemError(
                422,
                "nothing-readable",
                f"Not one item of the archive could be embedded; most often: {reasons.most_common(1)[0][0]}",
                remedy="Check the files in another program.",
            )
        for name in (REFUSED, CATALOG):
            if (self.folder(job_id) / name).is_file():
                shutil.copyfile(self.folder(job_id) / name, self.result_folder(job_id) / ABOUT / name)
        table.finish()


def _first(refused: Sequence[Refusal]) -> str:
    return Counter(one.reason for one in refused).most_common(1)[0][0]


def no_upload() -> ProblemError:
    """404: there is none, or none yet."""
    return not_found("upload", remedy="GET /v1/uploads lists the uploads; one is there when its job has ended.")


def name_taken() -> ProblemError:
    """409: names are unique."""
    return ProblemError(
        409,
        "name-taken",
        "There is an archive with this name already, or a job is making one.",
        remedy="Take another name, or remove the archive: DELETE /v1/archives/NAME",
    )


# --- folders of the operator's archives: named by clients, read only, and never left ---------------------------------


def archive_folder(settings: Settings, relative: str) -> Path:
    """A folder below the operator's archives, links resolved.

    Raises:
        ProblemError: 422, the operator has opened none; 404, no such folder, or one outside.
    """
    root = archives_root(settings)
    missing = not_found("folder", remedy="Name a folder below the one that the operator set as LEJEPA_ARCHIVES_DIR.")
    if "\x00" in relative or Path(relative).is_absolute() or ".." in Path(relative).parts:
        raise missing
    try:
        folder = (root / relative).resolve(strict=True)
    except (OSError, RuntimeError):  # not there, a name that is too long, or links in a circle
        raise missing from None
    if not (folder.is_relative_to(root) and folder.is_dir()):
        raise missing
    return folder


def archive_table(settings: Settings, folder: Path, relative: str) -> Path:
    """A table in a folder of the operator's archives, links resolved.

    Raises:
        ProblemError: 404, no such table, or one outside of the archives.
    """
    missing = not_found("table in the folder", remedy="Name a table by its path below the folder.")
    if "\x00" in relative or Path(relative).is_absolute() or ".." in Path(relative).parts:
        raise missing
    try:
        file = (folder / relative).resolve(strict=True)
    except (OSError, RuntimeError):
        raise missing from None
    if not (file.is_relative_to(archives_root(settings)) and file.is_file()):
        raise missing
    return file


def archives_root(settings: Settings) -> Path:
    """Where all archives of the operator lie.

    Raises:
        ProblemError: 422, the operator has opened none.
    """
    if settings.archives_dir is None:
        raise ProblemError(
            422,
            "no-archives",
            "This service embeds no folders of its own machine.",
            remedy="Send the files to POST /v1/uploads, or the operator sets LEJEPA_ARCHIVES_DIR.",
        )
    return settings.archives_dir.resolve()


# --- vectors on their way into the table: files of a few rows that are whole or absent --------------------------------


def write_chunk(file: Path, features: Iterable[Feature], *, dim: int) -> None:
    """Write features, `index` as it is."""
    found = list(features)
    good = [(feature.index, feature.vector) for feature in found if feature.vector is not None]
    small = [feature.thumbnail for feature in found if feature.vector is not None]
    bad = [(feature.index, feature.error) for feature in found if feature.vector is None]
    with new_file(file) as draft, draft.open("wb") as stream:
        np.savez(
            stream,
            rows=np.array([row for row, _ in good], np.int64),
            vectors=np.stack([vector for _, vector in good]) if good else np.empty((0, dim), np.float32),
            bad=np.array([row for row, _ in bad], np.int64),
            reasons=np.array([reason for _, reason in bad], np.str_),
            thumbnails=np.frombuffer(b"".join(small), np.uint8),
            sizes=np.array([len(one) for one in small], np.int64),
        )


def read_chunks(files: Iterable[Path]) -> Iterator[Feature]:
    """The features of the files, one after the other."""
    for file in files:
        with np.load(file, allow_pickle=False) as stored:
            rows, vectors = stored["rows"].tolist(), stored["vectors"]
            bad, reasons = stored["bad"].tolist(), stored["reasons"].tolist()
            joined, ends = stored["thumbnails"].tobytes(), np.cumsum(stored["sizes"]).tolist()
        small = [joined[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        yield from (Feature(row, vector, "", one) for row, vector, one in zip(rows, vectors, small, strict=True))
        yield from (Feature(row, None, reason) for row, reason in zip(bad, reasons, strict=True))


def failures(folder: Path) -> Counter[str]:
    """Reasons why items of a table have no vector, with their counts."""
    found: Counter[str] = Counter()
    for file in sorted([*folder.glob("failed-*.csv"), *folder.glob(f"{ABOUT}/failed-*.csv")]):
        with file.open(newline="", encoding="utf-8") as stream:
            found.update(row["reason"] for row in csv.DictReader(stream))
    return found
