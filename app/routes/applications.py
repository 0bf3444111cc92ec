"""/v1/probes/{id}/applications and /v1/applications: a probe applied to every item of an archive."""

import re
from datetime import UTC, datetime

import pyarrow.parquet as pq
from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response

from app.api.formats import TABLE_RESPONSE, table
from app.api.openapi import PROBLEM_RESPONSES, json_only
from app.api.security import access
from app.api.service import Service, new_id
from app.core.errors import ProblemError, not_found, removed_meanwhile
from app.routes import Limit, Offset, Running, page
from app.routes.jobs import accepted
from app.routes.maps import VALUES, column_answer, columns_answer, content_of
from app.routes.probes import find_probe
from app.store import PredictionRow
from app.uploads.bodies import json_body
from lejepa_med.client.wire.common import Job
from lejepa_med.client.wire.images import TableColumns
from lejepa_med.client.wire.probes import Application, ApplicationRequest, Applications

router = APIRouter(prefix="/v1", tags=["applications"], responses=PROBLEM_RESPONSES)


@router.post(
    "/probes/{probe_id}/applications",
    status_code=202,
    summary="Apply a probe to an archive",
    responses={status: PROBLEM_RESPONSES[status] for status in (408, 413, 507)},
    openapi_extra=json_only(ApplicationRequest),
)
@access("probe")
async def create_application(probe_id: str, request: Request, response: Response, service: Running) -> Job:
    """A job predicts every item of the archive; the application has the job's id."""
    wanted = await json_body(request, ApplicationRequest, service.settings)
    return await run_sync(_accept, service, probe_id, wanted, response)


def _accept(service: Service, probe_id: str, wanted: ApplicationRequest, response: Response) -> Job:
    row = find_probe(service, probe_id)
    job_id = new_id()
    service.applying.accept_plan(job_id, row.id, wanted.archive)
    return accepted(service.queue_job(job_id, service.applying.kind), response)


@router.get("/probes/{probe_id}/applications", summary="List the applications of a probe")
@access()
def list_applications(
    probe_id: str, service: Running, request: Request, offset: Offset = 0, limit: Limit = 100
) -> Applications:
    """A page of them, newest first."""
    found = service.store.predictions(find_probe(service, probe_id).id, offset=offset, limit=limit + 1)
    rows, more = page(found, request, offset=offset, limit=limit)
    return Applications(applications=[_application(row) for row in rows], next=more)


@router.get("/applications/{application_id}", summary="One application")
@access()
def get_application(application_id: str, service: Running) -> Application:
    """How many items have which label, and how many are unlike everything that was labelled."""
    return _application(_find(service, application_id))


@router.delete("/applications/{application_id}", status_code=204, summary="Remove an application")
@access("probe")
def delete_application(application_id: str, service: Running) -> Response:
    """Its predictions go; the probe stays."""
    service.applying.discard(_find(service, application_id).id, service.store.remove_prediction)
    return Response(status_code=204)


@router.get(
    "/applications/{application_id}/table",
    summary="Download the predictions",
    response_class=Response,
    responses=TABLE_RESPONSE,
)
@access()
def get_table(application_id: str, request: Request, service: Running) -> Response:
    """A row an item: id, what the probe predicts, a column `probability CLASS` for each class, and a note."""
    row = _find(service, application_id)
    with removed_meanwhile(_gone()):
        return table(service.applying.table_file(row.id), request.headers.get("accept", ""))


@router.get("/applications/{application_id}/columns", summary="The columns of the predictions")
@access()
def list_columns(application_id: str, service: Running) -> TableColumns:
    """Label or value, probabilities, uncertainty, novelty and others; rows are those of the archive."""
    row = _find(service, application_id)
    with removed_meanwhile(_gone()):
        found = pq.read_table(service.applying.table_file(row.id))
    return columns_answer(row.archive, content_of(service, row.archive), found)


@router.get(
    "/applications/{application_id}/columns/{column:path}",
    summary="One column of the predictions",
    response_class=Response,
    responses=VALUES,
)
@access()
def get_column(application_id: str, column: str, request: Request, service: Running) -> Response:
    """All values as one typed array, in the order of the archive's ids."""
    row = _find(service, application_id)
    with removed_meanwhile(_gone()):
        found = pq.read_table(service.applying.table_file(row.id))
    return column_answer(request, column, found, tag=row.id, content=content_of(service, row.archive))


def _find(service: Service, application_id: str) -> PredictionRow:
    row = service.store.prediction(application_id) if re.fullmatch("[0-9a-f]{32}", application_id) else None
    if row is None:
        raise _gone()
    return row


def _gone() -> ProblemError:
    return not_found("application", remedy="GET /v1/probes/{id}/applications lists them; see also GET /v1/jobs.")


def _application(row: PredictionRow) -> Application:
    summary = dict(row.summary)
    cautions = summary.pop("cautions", [])  # none of an earlier release
    return Application(
        id=row.id,
        probe=row.probe_id,
        archive=row.archive,
        fingerprint=row.fingerprint,
        count=row.count,
        summary=summary,
        cautions=cautions,
        created=datetime.fromtimestamp(row.created, UTC),
    )
