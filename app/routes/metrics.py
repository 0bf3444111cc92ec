"""GET /metrics, for Prometheus."""

from typing import Any

from fastapi import APIRouter, Response

from app.metrics import CONTENT_TYPE, JOB_SECONDS, exposition
from app.routes import Running

router = APIRouter(tags=["health"])
TEXT: dict[str, Any] = {"text/plain": {"schema": {"type": "string"}}}


@router.get(
    "/metrics",
    summary="What the service counts, for Prometheus",
    response_class=Response,
    responses={
        200: {"description": "Prometheus' text format", "content": {"text/plain": {"schema": {"type": "string"}}}}
    },
)
def metrics(service: Running) -> Response:
    """Latencies by route, batches, queues, jobs, refusals by kind, memory and open handles of the process."""
    return Response(exposition(service.store.job_statistics(JOB_SECONDS)), media_type=CONTENT_TYPE)
