"""/v1/archives/{name}/checks and /outliers, /v1/qualities: confounders, odd images, copies and doubtful labels."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request, Response

from app.api.openapi import PROBLEM_RESPONSES, json_only
from app.api.security import access
from app.api.service import Service, new_id
from app.core.errors import ProblemError, not_found
from app.jobs.quality import QualityJob
from app.routes import Limit, Offset, Running, page
from app.routes.jobs import accepted
from app.uploads.bodies import json_body
from lejepa_med.client.wire.common import Job
from lejepa_med.client.wire.quality import CheckRequest, OutliersRequest, Qualities, Quality, QualitySummary

router = APIRouter(prefix="/v1", tags=["quality"], responses=PROBLEM_RESPONSES)
BODY: dict[int | str, dict[str, Any]] = {status: PROBLEM_RESPONSES[status] for status in (408, 413, 507)}


@router.post(
    "/archives/{name}/checks",
    status_code=202,
    summary="Check an archive for confounders",
    responses=BODY,
    openapi_extra=json_only(CheckRequest),
)
@access("probe")
async def create_check(name: str, request: Request, response: Response, service: Running) -> Job:
    """A job measures whether the vectors give away scanner, site or survey, and whether the labels go with it."""
    wanted = await json_body(request, CheckRequest, service.settings)
    return await run_sync(_accept, service, service.checking, name, wanted.model_dump(), response)


@router.post(
    "/archives/{name}/outliers",
    status_code=202,
    summary="Find odd images, copies and doubtful labels",
    responses=BODY,
    openapi_extra=json_only(OutliersRequest),
)
@access("probe")
async def create_outliers(name: str, request: Request, response: Response, service: Running) -> Job:
    """A job lists the images that a person should look at. Labels are doubted where a probe is named."""
    wanted = await json_body(request, OutliersRequest, service.settings)
    return await run_sync(_accept, service, service.outliers, name, wanted.model_dump(), response)


def _accept(service: Service, kind: QualityJob, name: str, wanted: dict[str, Any], response: Response) -> Job:
    job_id = new_id()
    kind.accept_plan(job_id, name, **wanted)
    return accepted(service.queue_job(job_id, kind.kind), response)


@router.get("/archives/{name}/qualities", summary="List an archive's quality reports")
@access()
def list_qualities(
    name: str,
    request: Request,
    service: Running,
    report: Annotated[Literal["check", "outliers"] | None, Query(description="only those of this kind")] = None,
    offset: Offset = 0,
    limit: Limit = 100,
) -> Qualities:
    """A page of them, newest first, without the findings."""
    service.library.table(name)  # 404 or 422
    found: list[QualitySummary] = []
    for one in (service.checking, service.outliers):
        if report in (None, one.what):
            rows = service.store.jobs(offset=0, limit=1000, state="succeeded", kind=one.kind)
            documents = ((row.id, one.report(row.id)) for row in rows)
            found += [
                QualitySummary(**_facts(job_id, told))
                for job_id, told in documents
                if told is not None and told["archive"] == name
            ]
    found.sort(key=lambda one: one.created, reverse=True)
    rows_, more = page(found[offset : offset + limit + 1], request, offset=offset, limit=limit)
    return Qualities(qualities=list(rows_), next=more)


@router.get("/qualities/{quality_id}", summary="One quality report")
@access()
def get_quality(quality_id: str, service: Running) -> Quality:
    """What was found, in sentences and in full."""
    told = _report(service, quality_id)
    return Quality(**_facts(quality_id, told), report=told["report"])


@router.delete("/qualities/{quality_id}", status_code=204, summary="Remove a quality report")
@access("probe")
def delete_quality(quality_id: str, service: Running) -> Response:
    """The archive and its probes stay as they are."""
    _report(service, quality_id)
    service.checking.remove(quality_id)
    return Response(status_code=204)


def _report(service: Service, quality_id: str) -> dict[str, Any]:
    row = service.store.job(quality_id) if re.fullmatch("[0-9a-f]{32}", quality_id) else None
    is_done = (
        row is not None and row.state == "succeeded" and row.kind in (service.checking.kind, service.outliers.kind)
    )
    told = service.checking.report(quality_id) if is_done else None
    if told is None:
        raise _gone()
    return told


def _gone() -> ProblemError:
    return not_found("quality report", remedy="GET /v1/archives/{name}/qualities lists them; see also GET /v1/jobs.")


def _facts(quality_id: str, told: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": quality_id,
        "kind": told["kind"],
        "archive": told["archive"],
        "fingerprint": told["fingerprint"],
        "created": datetime.fromtimestamp(told["created"], UTC),
        "summary": told["summary"],
    }
