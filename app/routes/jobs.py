"""/v1/jobs: long work, its progress, and how to stop it."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query

from app.errors import ProblemError, not_found
from app.forms import PROBLEM_RESPONSES
from app.limits import check_owner
from app.routes import Running
from app.schemas import Job, JobDetail, JobEvent, Jobs, Problem
from app.store import JobRow, now

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
CONFLICT: dict[int | str, dict[str, Any]] = {
    404: PROBLEM_RESPONSES[404],
    409: {**PROBLEM_RESPONSES[404], "description": "The job has ended already"},
}


@router.get("", summary="List the jobs")
def list_jobs(service: Running, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> Jobs:
    """Jobs, newest first."""
    return Jobs(jobs=[to_job(row) for row in service.store.jobs(limit=limit)])


@router.get("/{job_id}", summary="One job", responses={404: PROBLEM_RESPONSES[404]})
def get_job(job_id: str, service: Running) -> JobDetail:
    """State, progress and log; poll it about once a second."""
    row = service.store.job(job_id)
    if row is None:
        raise not_found("job", remedy="GET /v1/jobs lists the jobs.")
    events = [JobEvent(at=_time(event.at), message=event.message) for event in service.store.events(job_id)]
    return JobDetail(**to_job(row).model_dump(), events=events)


@router.delete("/{job_id}", summary="Cancel a job", responses=CONFLICT)
def cancel_job(job_id: str, service: Running) -> Job:
    """The job ends as cancelled, and nothing of it becomes visible; work in progress stops at its next check."""
    row = service.store.job(job_id)
    if row is None:
        raise not_found("job", remedy="GET /v1/jobs lists the jobs.")
    check_owner(row.key_id)
    if not service.cancel_job(job_id):
        raise ProblemError(
            409, "job-ended", "The job has ended already.", remedy="GET /v1/jobs/{id} tells its outcome."
        )
    return to_job(service.store.job(job_id) or row)


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
    return round((now() - row.started) * (1 - row.progress) / done, 1)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
