"""/v1/archives: embedding tables, whose items can be labelled and predicted without sending files."""

import re
from collections import Counter
from datetime import UTC, datetime
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request, Response

from app.api.formats import PARQUET_RESPONSE, joined
from app.api.openapi import PROBLEM_RESPONSES, json_only
from app.api.security import access
from app.api.service import Service, new_id
from app.core.errors import ProblemError, not_found, removed_meanwhile
from app.core.limits import is_owner
from app.encoders.library import LIST, LIST_TABLES, modality_of
from app.jobs.embed_archive import failures, name_taken
from app.jobs.import_upload import Place
from app.routes import Running
from app.routes.jobs import accepted
from app.store import ArchiveRow
from app.uploads.bodies import json_body
from lejepa_med.client.wire.common import Job
from lejepa_med.client.wire.images import (
    ARCHIVE_NAME,
    Archive,
    ArchiveDetail,
    ArchiveId,
    ArchiveIds,
    ArchiveRequest,
    Archives,
    Leak,
    Reason,
)
from lejepa_med.search.base import info_key

router = APIRouter(prefix="/v1/archives", tags=["archives"])
TAKEN: dict[int | str, dict[str, Any]] = {409: {**PROBLEM_RESPONSES[404], "description": "The name is taken"}}
IN_USE: dict[int | str, dict[str, Any]] = {409: {**PROBLEM_RESPONSES[404], "description": "It cannot be removed now"}}


@router.get("", summary="List the embedding tables")
@access()
def list_archives(service: Running) -> Archives:
    """Tables that `lejepa-med embed` wrote into the runs directory, and those that jobs made."""
    own = {row.name: row for row in service.store.archives()}
    infos = service.library.table_infos()
    return Archives(archives=[Archive(**_facts(service, name, info, own.get(name))) for name, info in infos.items()])


@router.post(
    "",
    status_code=202,
    summary="Embed an archive",
    responses={**PROBLEM_RESPONSES, **TAKEN},
    openapi_extra=json_only(ArchiveRequest),
)
@access("embed")
async def create_archive(request: Request, response: Response, service: Running) -> Job:
    """An upload, or a folder that the operator has opened, becomes an embedding table by a job."""
    wanted = await json_body(request, ArchiveRequest, service.settings)
    return await run_sync(_accept, service, wanted, response)


def _accept(service: Service, wanted: ArchiveRequest, response: Response) -> Job:
    if (wanted.upload is None) == (wanted.folder is None):
        raise ProblemError(
            422, "invalid-request", "An archive is made from an upload or from a folder.", remedy="Give one of the two."
        )
    if wanted.upload is not None:
        upload, _ = service.archiving.upload(wanted.upload)
        modality = upload.modality
    plan = service.archiving.plan(**wanted.model_dump())
    if wanted.upload is not None:
        check_modality(service, plan.encoder, modality)
    job_id = new_id()
    with service.archiving.naming:
        check_name(service, wanted.name)
        service.archiving.accept_plan(job_id, plan)
        row = service.queue_job(job_id, service.archiving.kind)
    return accepted(row, response)


@router.get("/{name}", summary="One archive", responses={404: PROBLEM_RESPONSES[404]})
@access()
def get_archive(name: str, service: Running) -> ArchiveDetail:
    """What the table holds, and why items are missing in it."""
    table = service.library.table(name)
    own = own_archive(service, name)
    refused = Counter() if own is None else service.archiving.refused(own.id)
    reasons = failures(service.library.tables()[name]) + refused
    return ArchiveDetail(
        **_facts(service, name, table.info, own),
        failed=table.info["failed"] + refused.total(),
        failures=[Reason(reason=reason, count=count) for reason, count in reasons.most_common(100)],
        groups=len(set(table.groups)),
        labels=dict(Counter(label for label in table.labels if label).most_common(1000)),
        leak=None if (leak := table.leak()) is None else Leak(**leak.report(), first=list(leak.first)),
        notes=[] if own is None else service.archiving.notes(own.id),
        by_folder=table.info.get("by_folder"),
    )


@router.delete("/{name}", status_code=204, summary="Remove an archive", responses={**PROBLEM_RESPONSES, **IN_USE})
@access("embed")
def delete_archive(name: str, service: Running) -> Response:
    """Only those that the service made; the runs directory is only read. Probes that learnt from it stay."""
    row = own_archive(service, name)
    if row is None:
        if name in service.library.tables():
            raise ProblemError(
                409,
                "not-removable",
                "This archive was made with 'lejepa-med embed' and lies in the runs directory, which is only read.",
                remedy="The operator removes its folder.",
            )
        raise not_found("archive", remedy=LIST_TABLES)
    reading = (service.applying, service.checking, service.outliers)
    if any(plan["archive"] == name for kind in reading for plan in kind.plans()):
        raise ProblemError(
            409, "in-use", "A job reads this archive.", remedy="Wait for the job, or cancel it: DELETE /v1/jobs/{id}"
        )
    service.archiving.discard(row.id, service.store.remove_archive)
    service.search.tidy()
    return Response(status_code=204)


@router.get(
    "/{name}/table",
    summary="Download an archive",
    response_class=Response,
    responses={404: PROBLEM_RESPONSES[404], **PARQUET_RESPONSE},
)
@access()
def get_table(name: str, service: Running) -> Response:
    """Parquet: id, group, label, vector (a list of float32 of fixed length)."""
    service.library.table(name)  # 404 or 422
    folder, gone = service.library.tables().get(name), not_found("archive", remedy=LIST_TABLES)
    if folder is None:
        raise gone
    with removed_meanwhile(gone):
        return joined(folder, service.settings)


def check_name(service: Service, name: str) -> None:
    """409 where an archive has the name, or a job is making one. Hold `archiving.naming` meanwhile."""
    coming = [plan["name"] for plan in service.archiving.plans()]
    coming += [plan["archive"]["name"] for plan in service.importing.plans() if plan["archive"]]
    if name in coming or name in service.library.tables():
        raise name_taken()


def check_modality(service: Service, encoder_id: str, modality: str) -> None:
    """422 where an encoder is of another modality than the files."""
    if modality_of(service.library.info(service.library.encoders()[encoder_id])) != modality:
        raise ProblemError(
            422,
            "other-modality",
            f"The encoder reads another modality than that of the upload, '{modality}'.",
            remedy=f"Name an encoder of this modality. {LIST}",
        )


def own_archive(service: Service, name: str) -> ArchiveRow | None:
    """The row of an archive that the service made, or None."""
    return service.store.archive(name) if re.fullmatch(ARCHIVE_NAME, name) else None


def _facts(service: Service, name: str, info: dict[str, Any], own: ArchiveRow | None) -> dict[str, Any]:
    return {
        "name": name,
        "count": info["embedded"],
        "dim": info["dim"],
        "fingerprint": info["encoder"],
        "encoder": service.library.encoder_of(info["encoder"]),
        "created": None if own is None else datetime.fromtimestamp(own.created, UTC),
        "upload": None if own is None else own.upload_id,
        "cautions": info.get("cautions", []),
        "content": info_key(info) if "content" in info else None,
        "thumbnails": info.get("thumbnails", False),
    }


@router.get("/{name}/ids", summary="Ids of a table", responses={404: PROBLEM_RESPONSES[404]})
@access()
def list_ids(
    name: str,
    service: Running,
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> ArchiveIds:
    """A page of ids. Of an archive made from an upload, the sender is told each item's name in the zip and its key.

    Of a folder, manifest.parquet on the operator's machine tells which file an id is.
    """
    table = service.library.table(name)
    end = min(offset + limit, len(table.ids))
    known = _places(service, name)
    return ArchiveIds(
        archive=name,
        total=len(table.ids),
        offset=offset,
        items=[
            ArchiveId(id=one, group=group, name=known[one].name, key=known[one].key)
            if one in known
            else ArchiveId(id=one, group=group)
            for one, group in zip(table.ids[offset:end], table.groups[offset:end], strict=True)
        ],
        next=f"/v1/archives/{name}/ids?offset={end}&limit={limit}" if end < len(table.ids) else None,
    )


def _places(service: Service, name: str) -> dict[str, Place]:
    """By id, where the items of an upload's archive came from; empty for who did not send it."""
    own = own_archive(service, name)
    row = None if own is None or own.upload_id is None else service.store.upload(own.upload_id)
    if row is None or not is_owner(row.key_id):
        return {}
    try:
        manifest, places = service.importing.manifest(row.id), service.importing.places(row.id)
    except ProblemError:
        return {}  # removed at this moment
    return {item: places.of(path) for item, path in zip(manifest.column("id"), manifest.column("path"), strict=True)}
