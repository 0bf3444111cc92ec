"""/v1/uploads: files that are sent to become an archive, and stay until they are removed."""

import hashlib
import re
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request, Response
from pydantic import TypeAdapter, ValidationError

import data_adapters
from app.api.openapi import PROBLEM_RESPONSES, TEXT_FIELDS, body_of
from app.api.security import access
from app.api.service import Service, new_id
from app.core.errors import ProblemError, as_error, invalid, not_found
from app.core.limits import is_owner
from app.encoders.library import modality_of
from app.jobs.import_upload import Place, Plan
from app.routes import Limit, Offset, Running, page
from app.routes.archives import IN_USE, TAKEN, check_name
from app.routes.jobs import accepted
from app.store import JobRow, UploadRow, now
from app.uploads import catalogs
from app.uploads.bodies import Form, check_fields, parse_field, receive
from app.uploads.file_items import read_names
from data_adapters.base import Adapter
from lejepa_med.client.wire.common import Job, Name, Skipped
from lejepa_med.client.wire.images import (
    ArchiveName,
    Duplicate,
    Reason,
    RefusedItem,
    Upload,
    UploadDetail,
    UploadItem,
    UploadItems,
    Uploads,
)

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])
LISTED = 1000
FIELDS: dict[str, dict[str, Any]] = {
    "name": {"type": "string", "description": "what the upload is called"},
    "encoder": {**TEXT_FIELDS["encoder"], "description": "encoder id; the files are read as it reads them"},
    "modality": {"type": "string", "description": "in place of an encoder", "examples": ["mri"]},
    "embed": {"type": "boolean", "default": False, "description": "embed the upload with the encoder once imported"},
    "archive": {"type": "string", "description": "name of the archive that `embed` makes; by default `name`"},
    "group_column": {"type": "string", "description": "column of the catalogue that is the group; by default `group`"},
    "label_column": {"type": "string", "description": "column of the catalogue that is the label; by default `label`"},
    "keys": TEXT_FIELDS["keys"],
}
CATALOG: dict[str, Any] = {
    "type": "string",
    "format": "binary",
    "description": "CSV with the column path (file names as sent, or names in the zip), and group, label, split, mpp; "
    "or a BIDS participants.tsv, which is also found among the files",
}


@router.post(
    "",
    status_code=202,
    summary="Send files that become an archive",
    response_model=Job,
    responses={**PROBLEM_RESPONSES, **TAKEN},
    openapi_extra=body_of({**FIELDS, "catalog": CATALOG}),
)
@access("embed")
async def create_upload(request: Request, response: Response, service: Running) -> Job:
    """Files are kept, scanned and listed by a job, whose id the upload has; `embed` makes an archive of them, too."""
    async with receive(request, service.settings, catalog=True) as form:
        check_fields(form, set(FIELDS))
        row = await run_sync(_accept, service, form)
    return accepted(row, response)


@router.get("", summary="List the uploads")
@access()
def list_uploads(service: Running, request: Request, offset: Offset = 0, limit: Limit = 100) -> Uploads:
    """A page of them, newest first; those that are being imported come before the others, all on the first page."""
    found = service.store.uploads(offset=offset, limit=limit + 1)
    rows, more = page(found, request, offset=offset, limit=limit)
    listed = [Upload(**_facts(row)) for row in rows]
    if offset == 0:
        jobs = [row for row in service.store.unfinished() if row.kind == service.importing.kind]
        coming = [_importing(row, service) for row in reversed(jobs)]
        listed = [*(one for one in coming if one is not None), *listed]
    return Uploads(uploads=listed, next=more)


@router.get("/{upload_id}", summary="One upload", responses={404: PROBLEM_RESPONSES[404]})
@access()
def get_upload(upload_id: str, service: Running) -> UploadDetail:
    """What the import found. Names in zips and keys are told to the sender alone (and to administrators)."""
    job = service.store.job(_check_id(upload_id))
    if job is not None and job.kind == service.importing.kind and (coming := _importing(job, service)) is not None:
        return UploadDetail(**coming.model_dump())
    row, _ = service.importing.upload(upload_id)
    report = service.importing.report(row.id)
    places, is_sender = service.importing.places(row.id), is_owner(row.key_id)
    reasons = Counter(reason for _, reason, _ in report["refused"])
    return UploadDetail(
        **_facts(row),
        **{key: report[key] for key in ("items", "groups", "labels", "embedding")},
        refused=len(report["refused"]),
        reasons=[Reason(reason=reason, count=count) for reason, count in reasons.most_common(100)],
        refused_items=[
            RefusedItem(**_place(places.of(path), is_sender=is_sender), reason=reason, remedy=remedy)
            for path, reason, remedy in report["refused"][:LISTED]
        ],
        skipped=report["skipped"],
        skipped_files=[Skipped(file_index=index, name=name) for index, name in places.skipped[:LISTED]]
        if is_sender
        else None,
        duplicates=len(report["duplicates"]),
        leak=report.get("leak"),
        cautions=report.get("cautions", []),
        notes=report.get("notes", []),
        by_folder=report.get("by_folder") or None,
        duplicate_items=[Duplicate(id=one, same_as=other) for one, other in report["duplicates"][:LISTED]],
        **report.get("catalog", {}),
    )


@router.get("/{upload_id}/items", summary="Items of an upload", responses={404: PROBLEM_RESPONSES[404]})
@access()
def list_items(
    upload_id: str,
    service: Running,
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> UploadItems:
    """Which file of the request has which id. Names in zips and keys are told to the sender (and administrators)."""
    row, _ = service.importing.upload(_check_id(upload_id))
    manifest = service.importing.manifest(row.id)
    places, is_sender = service.importing.places(row.id), is_owner(row.key_id)
    page = manifest.rows.slice(offset, limit).to_pylist()
    end = offset + len(page)
    return UploadItems(
        upload=row.id,
        total=len(manifest),
        offset=offset,
        items=[
            UploadItem(
                **_place(places.of(found["path"]), is_sender=is_sender),
                id=found["id"],
                item=found["item"] or None,
                group=found["group"],
                label=found["label"],
            )
            for found in page
        ],
        next=f"/v1/uploads/{row.id}/items?offset={end}&limit={limit}" if page and end < len(manifest) else None,
    )


@router.delete("/{upload_id}", status_code=204, summary="Remove an upload", responses={**PROBLEM_RESPONSES, **IN_USE})
@access("embed")
def delete_upload(upload_id: str, service: Running) -> Response:
    """Its files go; archives that were made from it stay."""
    row = service.store.upload(_check_id(upload_id))  # also one whose removal was interrupted
    if row is None:
        raise _missing()
    service.importing.remove(row.id)
    return Response(status_code=204)


def _check_id(upload_id: str) -> str:
    if not re.fullmatch("[0-9a-f]{32}", upload_id):
        raise _missing()
    return upload_id


def _missing() -> ProblemError:
    return not_found("upload", remedy="GET /v1/uploads lists the uploads.")


def _accept(service: Service, form: Form) -> JobRow:
    names = read_names(form, service.settings)
    catalog = catalogs.translate(form, service.settings)
    adapter, modality = _adapter(service, form)
    digest = hashlib.sha256()
    for upload in form.uploads:
        with upload.path.open("rb") as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
    plan = Plan(
        name=_text(form, "name", Name, modality),
        modality=modality,
        adapter=adapter.describe(),
        files=[(upload.path.name, upload.size) for upload in form.uploads],
        sha256=digest.hexdigest(),
        catalog=asdict(catalog),
        received=now(),
        keys=list(names.keys),
    )
    job_id = new_id()
    if not parse_field(form, "embed", bool, False):
        service.importing.accept(job_id, form.folder, asdict(plan))
        return service.queue_job(job_id, service.importing.kind)
    name = _text(form, "archive", ArchiveName, form.fields.get("name", ""))
    archive = service.archiving.plan(name, form.fields.get("encoder") or None, upload=job_id)
    with service.archiving.naming:
        check_name(service, name)
        service.importing.accept(
            job_id, form.folder, {**asdict(plan), "embedding": new_id(), "archive": asdict(archive)}
        )
        return service.queue_job(job_id, service.importing.kind)


def _adapter(service: Service, form: Form) -> tuple[Adapter, str]:
    """How the files are read: as an encoder reads them, or with the defaults of a modality."""
    modality = form.fields.get("modality", "")
    if not modality:
        _, encoder, _ = service.library.encoder(form.fields.get("encoder") or None)
        return encoder.adapter, modality_of(encoder.info)
    if form.fields.get("encoder") or parse_field(form, "embed", bool, False):
        raise ProblemError(
            422,
            "invalid-request",
            "'modality' is for an upload without an encoder, and 'encoder' or 'embed' was given, too.",
            remedy="Leave out 'modality': the files are then read as the encoder reads them.",
        )
    known = data_adapters.names()
    if modality not in known:  # a name of a module or a file would be loaded as code
        raise ProblemError(
            422, "invalid-request", "The service knows no modality of this name.", remedy=f"Use {', '.join(known)}."
        )
    return data_adapters.create(modality), modality


def _text(form: Form, name: str, kind: Any, default: str) -> str:
    try:
        found: str = TypeAdapter(kind).validate_python(form.fields.get(name) or default)
    except ValidationError as error:
        raise as_error(invalid([{**issue, "loc": (name,)} for issue in error.errors(include_input=False)])) from None
    return found


def _importing(job: JobRow, service: Service) -> Upload | None:
    """An upload whose import has not ended; None when it ends at this moment, or has ended."""
    if job.state not in ("queued", "running"):
        return None
    try:
        plan = Plan(**service.importing.read_plan(job.id))
    except OSError:
        return None
    return Upload(**{**_facts(plan.row(job.id, key_id=job.key_id)), "state": "importing"})


def _facts(row: UploadRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "modality": row.modality,
        "state": "ready",
        "files": row.files,
        "bytes": row.bytes,
        "sha256": row.sha256,
        "created": datetime.fromtimestamp(row.created, UTC),
    }


def _place(place: Place, *, is_sender: bool) -> dict[str, Any]:
    found = asdict(place)
    return found if is_sender else {**found, "name": None, "key": None}
