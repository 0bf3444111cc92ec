"""GET /metrics, for Prometheus: what app/metrics.py counts in this process, and the jobs out of the store."""

from collections.abc import Iterable, Sequence
from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from app.metrics import REGISTRY
from app.routes import Running
from app.security import access
from app.store.jobs import JobStatistic

router = APIRouter(tags=["health"])
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
JOB_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)
TEXT: dict[str, Any] = {"text/plain": {"schema": {"type": "string"}}}


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
