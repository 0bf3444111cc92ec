"""/healthz and /readyz, for load balancers and container engines, and /metrics, for Prometheus.

The metrics are what app/core/metrics.py counts in this process, and the jobs out of the store.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from app.api.security import access
from app.core.errors import log_unexpected
from app.core.metrics import REGISTRY
from app.routes import Running
from app.store.jobs import JobStatistic
from lejepa_med.client.wire.common import Health, Readiness

router = APIRouter(tags=["health"])
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
JOB_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)
TEXT: dict[str, Any] = {"text/plain": {"schema": {"type": "string"}}}


@router.get("/healthz", summary="Does the process live?")
@access(is_open=True, any_host=True)
async def health() -> Health:
    """Always 200 while the process answers; needs no thread, of which a busy service may have none to spare."""
    return Health(status="ok")


@router.get("/readyz", summary="Can it work?", responses={503: {"model": Readiness}})
@access(is_open=True, any_host=True)
def ready(request: Request, response: Response, service: Running) -> Readiness:
    """200 when the store can be written and the first encoders are loaded and warmed up; tells which do not load.

    503 'draining' after SIGTERM: requests in flight are finished, and new work goes elsewhere.
    """
    try:
        service.store.check()
        store = True
    except Exception as error:
        log_unexpected(error)
        store = False
    encoders = service.library.usable()
    is_draining = request.app.state.drain.since is not None
    is_ready = store and service.library.is_warm and any(encoders.values()) and not is_draining
    response.status_code = 200 if is_ready else 503
    status: Literal["ready", "not ready", "draining"] = (
        "draining" if is_draining else "ready" if is_ready else "not ready"
    )
    return Readiness(status=status, store=store, warm=service.library.is_warm, encoders=encoders)


@router.get(
    "/metrics",
    summary="What the service counts, for Prometheus",
    response_class=Response,
    responses={200: {"description": "Prometheus' text format", "content": TEXT}},
)
@access("admin", opened_by="metrics_open")
def metrics(service: Running) -> Response:
    """Latencies by route, batches, queues, jobs, refusals by kind, memory and open handles of the process."""
    jobs = CollectorRegistry()
    jobs.register(_Jobs(service.store.job_statistics(JOB_SECONDS)))
    return Response(generate_latest(REGISTRY) + generate_latest(jobs), media_type=CONTENT_TYPE)


class _Jobs(Collector):
    """Jobs out of the store, so that every worker process and the time before the last start are counted."""

    def __init__(self, statistics: Sequence[JobStatistic]) -> None:
        self._statistics = statistics

    def collect(self) -> Iterable[Metric]:
        """The families."""
        jobs = GaugeMetricFamily("lejepa_jobs", "Jobs in the store.", labels=("kind", "state"))
        starts = GaugeMetricFamily(
            "lejepa_job_attempts",
            "Starts of the jobs in the store; beyond one a job, the service was stopped at it.",
            labels=("kind", "state"),
        )
        seconds = HistogramMetricFamily(
            "lejepa_job_seconds", "Seconds of the last attempt of ended jobs.", labels=("kind", "state")
        )
        for found in self._statistics:
            labels = (found.kind, found.state)
            jobs.add_metric(labels, found.count)
            starts.add_metric(labels, found.attempts)
            if found.timed:
                buckets = [(str(bound), n) for bound, n in zip(JOB_SECONDS, found.within, strict=True)]
                seconds.add_metric(labels, [*buckets, ("+Inf", found.timed)], found.seconds)
        return jobs, starts, seconds
