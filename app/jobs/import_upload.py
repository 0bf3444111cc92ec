"""The job that imports an upload: files moved to where they stay, zips unpacked, all scanned, the upload registered.

Names of clients' files at rest are unreadable without the installation's salt, which lies outside the data directory:
a backup or a stolen disk then tells no names.
"""

import base64
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cryptography.fernet import Fernet, InvalidToken

import data_adapters
from app.core.errors import CHECK_FILE, ProblemError, removed_meanwhile
from app.core.settings import Settings
from app.jobs.base import JobKind, Step
from app.jobs.embed_archive import MANIFEST, REPORT, EmbedArchive, no_upload
from app.jobs.scan import Found, Refusal, owned, read_manifest, refusal, scan
from app.store import Store, UploadRow, new_job, now
from app.uploads import catalogs
from app.uploads.file_items import FileNames
from app.uploads.sandbox import Sandbox
from app.uploads.unzip import Contents, contents, unzip
from data_adapters.atomic import sync, write_text
from data_adapters.base import foreign_format
from data_adapters.catalog import Catalog, tidy
from data_adapters.errors import BadFileError
from data_adapters.identity import salt
from data_adapters.manifest import Manifest
from data_adapters.tables import FIRST
from lejepa_med.client.wire.common import FileKey, Skipped


def seal(text: str, secret: bytes) -> str:
    """`text`, unreadable without the secret, the installation's salt: a Fernet token (AES-128-CBC, HMAC-SHA256)."""
    return _fernet(secret).encrypt(text.encode()).decode("ascii")


def unseal(text: str, secret: bytes) -> str | None:
    """What was sealed; None with another secret, or where it was changed."""
    try:
        return _fernet(secret).decrypt(text).decode()
    except InvalidToken:
        return None


def _fernet(secret: bytes) -> Fernet:
    """The key is made for this use, so that a token tells nothing of the pseudonyms' key, which is of the same salt."""
    key = hashlib.blake2b(b"names", key=hashlib.sha256(secret).digest(), person=b"lejepa-med names", digest_size=32)
    return Fernet(base64.urlsafe_b64encode(key.digest()))


FILES, NAMES = "files", "names.sealed"
REFUSED, SCREENED = "zips.json", "screened.json"
UNPACK_SHARE = 0.1  # of the progress


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An upload as it was accepted; `files` are (name here, bytes), `adapter` describes how they are read.

    `catalog` holds the fields of `catalogs.Translated`, `keys` the client's keys.
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
    keys: list[Any] = field(default_factory=list)

    def row(self, upload_id: str, *, key_id: str | None = None) -> UploadRow:
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


@dataclass(frozen=True)
class Place:
    """Where a file of an upload came from: place in the request, and in a zip place, name and key."""

    file_index: int
    entry: int | None = None
    name: str | None = None
    key: FileKey | None = None


@dataclass(frozen=True)
class Places:
    """The files of an upload by their paths below uploads/<id>/files, and what in its zips is no image."""

    files: dict[str, Place]
    skipped: list[tuple[int, str]]

    def of(self, path: str) -> Place:
        """The place of an item's file."""
        return self.files.get(path) or Place(int(path[:5]))


class ImportUpload(JobKind):
    """What was sent lies in jobs/<id>/ until the job runs, then in uploads/<id>/files/, under names of our own."""

    kind = "import-upload"
    results = "uploads"

    def __init__(self, settings: Settings, store: Store, archiving: EmbedArchive, sandbox: Sandbox) -> None:
        super().__init__(settings, store)
        self._archiving, self._sandbox = archiving, sandbox
        self._secret = salt()

    def steps(self, job_id: str) -> Iterator[Step]:
        """Unpacking, screening, then one scan that goes on where it was interrupted."""
        plan = Plan(**self.read_plan(job_id))
        yield partial(self._place, job_id, plan)
        yield partial(self._screen, job_id, plan)
        yield partial(self._scan, job_id, plan)

    def finish(self, job_id: str) -> None:
        """Register the upload, the job's success, and the job that embeds it, in one transaction."""
        plan = Plan(**self.read_plan(job_id))
        follow = []
        if plan.embedding is not None and plan.archive is not None:
            if not self._archiving.folder(plan.embedding).is_dir():
                draft = self._settings.temporary(plan.embedding)
                draft.parent.mkdir(exist_ok=True)
                self._archiving.accept(plan.embedding, draft, plan.archive)
            follow = [new_job(plan.embedding, self._archiving.kind)]
        self.succeed(job_id, f"/v1/uploads/{job_id}", [plan.row(job_id), *follow])

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

    def places(self, upload_id: str) -> Places:
        """Which file of the request lies where, with the sender's names and keys; none under another salt.

        Raises:
            ProblemError: 404, it has been removed.
        """
        with removed_meanwhile(no_upload()):
            text = unseal((self.result_folder(upload_id) / NAMES).read_text(encoding="ascii"), self._secret)
        known = json.loads(text) if text is not None else {"names": {}, "skipped": []}
        files = {
            path: Place(index, entry, *known["names"].get(path, (None, None)))
            for path, (index, entry) in self.report(upload_id)["places"].items()
        }
        return Places(files, [(index, name) for index, name in known["skipped"]])

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
                (source / name).unlink(missing_ok=True)
            elif (source / name).is_file():
                os.rename(source / name, files / name)
        if (source / catalogs.FILE).is_file():
            os.rename(source / catalogs.FILE, folder / catalogs.FILE)
        for place in (files, folder, folder.parent):
            sync(place)

    def _unpack(self, job_id: str, number: int, zips: list[str]) -> Refusal | None:
        self.note_progress(job_id, UNPACK_SHARE * number / len(zips), "unpacking")
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
        write_text(self._names_in(job_id, packed.stem), json.dumps(asdict(contents(packed, self._settings))))
        os.rename(draft, target)
        return None

    def _names_in(self, job_id: str, stem: str) -> Path:
        return self.folder(job_id) / f"names-{stem}.json"

    def _screen(self, job_id: str, plan: Plan) -> None:
        """Remove what no reader may see, such as files that unpack to any size."""
        folder = self.result_folder(job_id)
        if (folder / SCREENED).is_file():  # a second screening would not find, nor list, what the first has removed
            return
        self.note_progress(job_id, UNPACK_SHARE, "screening")
        found = self._sandbox.screen(data_adapters.from_description(plan.adapter), folder / FILES)
        refused = [refusal(one, folder / FILES) for one in found]
        write_text(folder / SCREENED, json.dumps([vars(one) for one in refused]))

    def _scan(self, job_id: str, plan: Plan) -> None:
        folder = self.result_folder(job_id)
        if (folder / REPORT).is_file():
            return
        catalog = folder / catalogs.FILE
        adapter = data_adapters.from_description(plan.adapter)
        found = scan(
            adapter,
            folder / FILES,
            journal=self.folder(job_id) / "scan",
            settings=self._settings,
            sandbox=self._sandbox,
            verify=True,
            files=len(plan.files),
            catalog=Catalog(catalog, public=True) if catalog.is_file() else None,
            inside=(folder / FILES).resolve(),
            origins=self._origins(job_id, plan),
            tell=lambda share: self.note_progress(job_id, UNPACK_SHARE + (1 - UNPACK_SHARE) * share, "scanning"),
        )
        texts = ((folder / name).read_text(encoding="utf-8") for name in (REFUSED, SCREENED))
        refused = [*(Refusal(**one) for text in texts for one in json.loads(text)), *found.refused]
        foreign = foreign_format(adapter.name)
        skipped = {one.path for one in refused if one.reason == foreign and "/" in one.path}  # README in a zip
        refused = [one for one in refused if one.path not in skipped]
        told = {one.path for one in refused}
        for name, _ in plan.files:  # a kill came between the removal of a file and the word of it
            if not (name.endswith(".zip") or name in told or (folder / FILES / name).exists()):
                refused.append(Refusal(name, "refused before it was read", CHECK_FILE))
        if not len(found.manifest):
            reason = Counter(one.reason for one in refused).most_common(1)
            raise ProblemError(
                422,
                "nothing-readable",
                f"None of the files is a readable image of the modality {plan.modality}"
                + (f"; most often: {reason[0][0]}" if reason else "."),
                remedy="Send files of this modality, complete and of the format that their suffix says, or name an "
                "encoder of the files' modality: GET /v1/encoders",
            )
        manifest = owned(found.manifest, job_id)
        manifest.write(folder / MANIFEST)
        places = self._places(job_id, plan, skipped)
        names = {path: (place.name, place.key) for path, place in places.files.items()}
        write_text(folder / NAMES, seal(json.dumps({"names": names, "skipped": places.skipped}), self._secret))
        listed = {
            "places": {path: (place.file_index, place.entry) for path, place in places.files.items()},
            "skipped": len(places.skipped),
        }
        write_text(folder / REPORT, json.dumps(_report(found, manifest, refused, plan) | listed))

    def _zips(self, job_id: str, plan: Plan) -> dict[int, Contents]:
        """What lies in the zips that were unpacked, by position in the request."""
        return {
            index: Contents(**json.loads(told.read_text(encoding="utf-8")))
            for index, (name, _) in enumerate(plan.files)
            if (told := self._names_in(job_id, Path(name).stem)).is_file()
        }

    def _origins(self, job_id: str, plan: Plan) -> dict[Path, Path]:
        """Map unpacked files to the client's own paths. A zip without folders counts as a folder; other zips do not."""
        root = (self.result_folder(job_id) / FILES).resolve()
        origins: dict[Path, Path] = {}
        for index, found in self._zips(job_id, plan).items():
            stem = Path(plan.files[index][0]).stem
            names = {unpacked: tidy(name) for unpacked, name in found.names.items()}
            lay = root if any("/" in name for name in names.values()) else root / stem
            origins |= {root / stem / unpacked: lay / name for unpacked, name in names.items()}
        return origins

    def _places(self, job_id: str, plan: Plan, skipped: Set[str]) -> Places:
        """Which file of the request lies where. `skipped`: paths in zips that turned out to be no images."""
        zips = self._zips(job_id, plan)
        names = FileNames(plan.keys, zips)
        files: dict[str, Place] = {}
        others = list(names.skipped)
        for index, (name, _) in enumerate(plan.files):
            stem = Path(name).stem
            files[stem if name.endswith(".zip") else name] = Place(index, key=names.of(index, "")[1])
            inside = zips[index].names if index in zips else {}
            entry = 0
            for unpacked, original in inside.items():
                path = f"{stem}/{unpacked}"
                if path in skipped:
                    others.append(Skipped(file_index=index, name=original))
                    continue
                _, key = names.of(index, unpacked)
                files[path] = Place(index, entry, original, key)
                entry += 1
        return Places(files, [(one.file_index, one.name) for one in others])


def _report(found: Found, manifest: Manifest, refused: list[Refusal], plan: Plan) -> dict[str, Any]:
    firsts: dict[tuple[str, str], int] = {}
    copies = []
    for row, key in enumerate(zip(manifest.column("digest"), manifest.column("item"), strict=True)):
        first = firsts.setdefault(key, row)
        if first != row:
            copies.append([manifest.value("id", row), manifest.value("id", first)])
    labels = Counter(label for label in manifest.column("label") if label)
    leak = manifest.leak()
    catalog = catalogs.Translated(**(plan.catalog or {"used": False}))
    return {
        "items": len(manifest),
        "groups": len(set(manifest.column("group"))),
        "labels": dict(labels.most_common()),
        "refused": [[one.path, one.reason, one.remedy] for one in refused],
        "duplicates": copies,
        "leak": None if leak is None else {**leak.report(), "first": leak.first},
        "catalog": _catalog(found, catalog) if catalog.used else {},
        "cautions": catalog.cautions,
        "notes": catalog.notes,
        "by_folder": found.manifest.by_folder,
        "embedding": plan.embedding,
    }


def _catalog(found: Found, catalog: catalogs.Translated) -> dict[str, Any]:
    """What became of the catalogue, as UploadDetail has it."""
    unused, first = found.unused, found.first_unused
    if catalog.rows:  # a participant's row is unused where no file of the participant can be read
        read = {catalog.rows.get(path) for path in found.manifest.column("path")}
        first = sorted(set(catalog.rows.values()) - read)
        unused = len(first)
    return {
        "catalog_unused": catalog.unused + unused,
        "catalog_unused_rows": sorted({*catalog.first, *first})[:FIRST],
        "catalog_missing": catalog.missing,
        "catalog_without_row": found.without_row,
    }
