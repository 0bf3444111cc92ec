"""Traces for an OpenTelemetry collector (extra 'otel'), only where OTEL_EXPORTER_OTLP_ENDPOINT says where to send them.

A span a request, with the method, the route's pattern, the status and the request's id. The ready-made instrumentation
of FastAPI would send the address itself, its query and the words of exceptions, which may name a patient.
"""

import os
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.metrics import method_word
from data_adapters.errors import UserError
from lejepa_med import __version__

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
CONTEXT = (b"traceparent", b"tracestate")  # of the caller; baggage may hold anything, so it is not read
FLUSH_SECONDS = 2


def is_wanted() -> bool:
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
