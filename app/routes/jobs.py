"""/v1/jobs: long work, its progress, and how to stop it."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from app.api.openapi import PROBLEM_RESPONSES
from app.api.security import access
from app.api.service import Service
from app.core.errors import ProblemError, not_found
from app.core.limits import check_owner
from app.routes import Limit, Offset, Running, page
from app.store import UNFINISHED, JobRow, now
from lejepa_med.client.wire.common import Job, JobDetail, JobEvent, Jobs, JobState, Problem

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
CONFLICT: dict[int | str, dict[str, Any]] = {
    404: PROBLEM_RESPONSES[404],
    409: {**PROBLEM_RESPONSES[404], "description": "The job is in another state"},
}


@router.get("", summary="List the jobs")
@access()
def list_jobs(
    service: Running,
    request: Request,
    state: Annotated[JobState | None, Query(description="only jobs of this state")] = None,
    kind: Annotated[str | None, Query(max_length=40, description="only jobs of this kind")] = None,
    offset: Offset = 0,
    limit: Limit = 100,
) -> Jobs:
    """A page of the jobs, newest first."""
    found = service.store.jobs(offset=offset, limit=limit + 1, state=state, kind=kind)
    rows, more = page(found, request, offset=offset, limit=limit)
    return Jobs(jobs=[to_job(row) for row in rows], next=more)


@router.get("/{job_id}", summary="One job", responses={404: PROBLEM_RESPONSES[404]})
@access()
async def get_job(
    job_id: str,
    service: Running,
    request: Request,
    wait: Annotated[
        float,
        Query(ge=0, le=30, description="seconds that the answer may wait for the job's end; 0 answers at once"),
    ] = 0,
) -> JobDetail:
    """State, progress and log. With `wait` the answer comes as soon as the job has ended, or after those seconds.

    A script asks again with `wait=30` until the state is neither 'queued' nor 'running'; that costs the service less
    than polling. To show progress, wait for a second at a time.
    """
    found = await run_in_threadpool(_detail, service, job_id)
    if wait and found.state in UNFINISHED:
        await service.waits.until_ended(job_id, request, wait)
        found = await run_in_threadpool(_detail, service, job_id)
    return found


@router.delete("/{job_id}", summary="Cancel a job", responses=CONFLICT)
@access("embed", "probe")
def cancel_job(job_id: str, service: Running) -> Job:
    """The job ends as cancelled, and nothing of it becomes visible; work in progress stops at its next check.

    A dead job ends as cancelled, too, and what was sent for it is removed.
    """
    row = find_job(service, job_id)
    check_owner(row.key_id)
    if not service.cancel_job(job_id):
        raise ProblemError(
            409, "job-ended", "The job has ended already.", remedy="GET /v1/jobs/{id} shows its outcome."
        )
    return to_job(service.store.job(job_id) or row)


@router.post("/{job_id}/retry", status_code=202, summary="Queue a dead job again", responses=CONFLICT)
@access("embed", "probe")
def retry_job(job_id: str, service: Running) -> Job:
    """A dead job (its tries are used up) keeps what was sent for it, and begins anew with what is done already."""
    if not service.retry_job(job_id) and service.store.job(job_id) is not None:
        raise ProblemError(
            409,
            "job-not-dead",
            "Only a job in the state 'dead' can be queued again.",
            remedy="GET /v1/jobs/{id} shows its state. Send a failed or cancelled one again.",
        )
    return to_job(find_job(service, job_id))


def _detail(service: Service, job_id: str) -> JobDetail:
    row = find_job(service, job_id)
    events = [JobEvent(at=_time(event.at), message=event.message) for event in service.store.events(job_id)]
    return JobDetail(**to_job(row).model_dump(), events=events)


def find_job(service: Service, job_id: str) -> JobRow:
    """A job's row, or 404."""
    row = service.store.job(job_id)
    if row is None:
        raise not_found("job", remedy="GET /v1/jobs lists the jobs.")
    return row


def accepted(row: JobRow, response: Response) -> Job:
    """The answer 202 of every route that queues a job: the job, and its address in Location."""
    response.headers["Location"] = f"/v1/jobs/{row.id}"
    return to_job(row)


def to_job(row: JobRow) -> Job:
    """A job's row as the API tells it."""
    return Job.model_validate(
        {
            "id": row.id,
            "kind": row.kind,
            "state": row.state,
            "stage": row.stage,
            "progress": row.progress,
            "eta_seconds": _eta(row),
            "created": _time(row.created),
            "started": None if row.started is None else _time(row.started),
            "finished": None if row.finished is None else _time(row.finished),
            "attempts": row.attempts,
            "result": row.result,
            "error": None if row.error is None else Problem.model_validate(row.error),
        }
    )


def _eta(row: JobRow) -> float | None:
    """Seconds to go at the pace of the running attempt; None before there is a pace."""
    done = row.progress - row.start_progress
    if row.state != "running" or row.started is None or done <= 0.01:
        return None
    elapsed = max(0.0, now() - row.started)  # the clock may have been set back
    return round(elapsed * (1 - row.progress) / done, 1)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
