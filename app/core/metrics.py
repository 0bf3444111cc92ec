"""What the service counts, in Prometheus' terms, and traces for an OpenTelemetry collector.

Other modules import the objects below and increment them. Labels are words of our own vocabulary (route patterns,
problem kinds, states), never a client's text: a path or a name would leave the service with them, and each new one
would cost memory for ever.

Traces (extra 'otel') are made only where OTEL_EXPORTER_OTLP_ENDPOINT says where to send them: a span a request, with
the method, the route's pattern, the status and the request's id. The ready-made instrumentation of FastAPI would send
the address itself, its query and the words of exceptions, which may name a patient.
"""

import os
from collections.abc import Sequence
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from data_adapters.errors import UserError
from lejepa_med import __version__

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

disable_created_metrics()  # a second series beside each counter, which nobody asks for
REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)  # resident memory, CPU seconds, open file handles, start time

REQUEST_SECONDS = Histogram(
    "lejepa_request_seconds",
    "Seconds from a request's head to the end of its answer, without those that it asked to wait for a job.",
    ("method", "route", "status"),
    buckets=SECONDS,
    registry=REGISTRY,
)
IN_FLIGHT = Gauge("lejepa_requests_in_flight", "Requests that are being answered.", registry=REGISTRY)
REJECTED = Counter("lejepa_rejected", "Requests answered with a problem, by its kind.", ("kind",), registry=REGISTRY)
EMBEDDED = Counter("lejepa_embedded_items", "Items (images, volumes, slides) that got a vector.", registry=REGISTRY)
BATCH_ITEMS = Histogram("lejepa_batch_items", "Items of one forward pass.", buckets=SIZES, registry=REGISTRY)
BATCH_IMAGES = Histogram(
    "lejepa_batch_images", "Slices, tiles or images of one forward pass.", buckets=SIZES, registry=REGISTRY
)
QUEUE_ITEMS = Gauge("lejepa_queue_items", "Items that wait for an encoder.", registry=REGISTRY)
QUEUE_SECONDS = Histogram(
    "lejepa_queue_wait_seconds", "Seconds that an item waited for its forward pass.", buckets=SECONDS, registry=REGISTRY
)
LOADED_ENCODERS = Gauge("lejepa_loaded_encoders", "Encoders in memory.", registry=REGISTRY)
WORKER_RESTARTS = Counter(
    "lejepa_worker_restarts", "Helping processes or threads that were started again.", ("worker",), registry=REGISTRY
)
Gauge("lejepa_build_info", "1; the version is a label.", ("version",), registry=REGISTRY).labels(__version__).set(1)


def saw_batch(*, images: int, waits: Sequence[float]) -> None:
    """Note that a batch leaves the queue for its forward pass.

    Args:
        images: slices, tiles or images in it.
        waits: seconds that each of its items waited.
    """
    QUEUE_ITEMS.dec(len(waits))
    BATCH_ITEMS.observe(len(waits))
    BATCH_IMAGES.observe(images)
    for seconds in waits:
        QUEUE_SECONDS.observe(seconds)


def method_word(method: str) -> str:
    """A request's method, or 'other' for words that HTTP does not have, which are the client's own."""
    return method if method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS") else "other"


def saw_request(*, method: str, route: str, status: int, seconds: float) -> None:
    """Note an answered request; `method` is a `method_word`, `route` the pattern of its path and never the path."""
    REQUEST_SECONDS.labels(method, route, f"{status // 100}xx").observe(seconds)


ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
CONTEXT = (b"traceparent", b"tracestate")  # of the caller; baggage may hold anything, so it is not read
FLUSH_SECONDS = 2


def traces_wanted() -> bool:
    """Whether the environment names a collector."""
    return any(os.environ.get(name) for name in ENDPOINTS)


class Telemetry:
    """A provider of our own and not the process's, so that no library's spans are sent with ours."""

    def __init__(self) -> None:
        """Begin to send.

        Raises:
            UserError: the extra 'otel' is not installed.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise UserError(
                "OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry is not installed.",
                remedy="Install it with: pip install 'lejepa-med[otel]'. Or unset the variable.",
            ) from error
        name = os.environ.get("OTEL_SERVICE_NAME") or "lejepa-med"
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": name, "service.version": __version__}),
            shutdown_on_exit=False,  # a collector that is away must not hold up the end
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(timeout=FLUSH_SECONDS)))

    def tracer(self) -> Any:
        """Makes the spans."""
        return self._provider.get_tracer("lejepa_med.app", __version__)

    def stop(self) -> None:
        """Send what waits, for two seconds at most."""
        self._provider.force_flush(1000 * FLUSH_SECONDS)


class Traced:
    """A span around each request, within the caller's trace where there is one."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self.app, self._tracer, self._propagator = app, telemetry.tracer(), TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        from opentelemetry.trace import SpanKind, StatusCode

        carrier = {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in CONTEXT}
        context = self._propagator.extract(carrier)
        method = method_word(scope["method"])
        attributes: dict[str, Any] = {"http.request.method": method}

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                attributes["http.response.status_code"] = message["status"]
                sent = dict(message["headers"])
                attributes["lejepa.request_id"] = sent.get(b"x-request-id", b"").decode()
            await send(message)

        with self._tracer.start_as_current_span(
            scope["method"],
            context=context,
            kind=SpanKind.SERVER,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            await self.app(scope, receive, answer)
            attributes["http.route"] = route = getattr(scope.get("route"), "path", "-")
            span.update_name(f"{method} {route}")
            span.set_attributes(attributes)
            if attributes.get("http.response.status_code", 500) >= 500:
                span.set_status(StatusCode.ERROR)
