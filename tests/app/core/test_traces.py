"""Spans at a collector of the test's own: what they say, and what they never say."""

import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app.core.metrics import Telemetry, Traced, traces_wanted
from app.core.settings import Settings
from app.main import create_app
from data_adapters.errors import UserError
from tests.app.helpers import eventually

trace_service = pytest.importorskip(
    "opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="needs the extra 'otel'"
)


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """Bodies that arrive at the endpoint of the environment."""
    received: list[bytes] = []

    class Collect(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Collect)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    yield received
    server.shutdown()
    server.server_close()


def test_a_span_a_request_without_the_client_s_words(client: TestClient, collector: list[bytes]) -> None:
    assert traces_wanted()
    telemetry = Telemetry()
    traced = TestClient(Traced(client.app, telemetry))
    trace = "0af7651916cd43dd8448eb211c80319c"
    parent = {"traceparent": f"00-{trace}-b7ad6b7169203331-01", "baggage": "patient=Mustermann"}
    answer = traced.get("/v1/jobs/Mustermann?name=Mustermann", headers={**parent, "User-Agent": "Mustermann"})
    traced.get("/Mustermann/47110815")
    telemetry.stop()
    eventually(lambda: bool(collector))
    assert b"Mustermann" not in b"".join(collector) and b"47110815" not in b"".join(collector)
    (sent,) = [trace_service.ExportTraceServiceRequest.FromString(body) for body in collector]
    (resource,) = sent.resource_spans
    assert "lejepa-med" in {attribute.value.string_value for attribute in resource.resource.attributes}
    first, second = resource.scope_spans[0].spans
    assert (first.name, second.name) == ("GET /v1/jobs/{job_id}", "GET -")
    assert first.trace_id.hex() == trace and not first.events
    told = {attribute.key: attribute.value for attribute in first.attributes}
    assert told.keys() == {"http.request.method", "http.response.status_code", "http.route", "lejepa.request_id"}
    assert told["http.response.status_code"].int_value == 404
    assert told["lejepa.request_id"].string_value == answer.headers["x-request-id"]


def test_traces_without_the_extra_say_how_to_install_it(
    tmp_path: Path, collector: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(UserError, match="not installed") as caught:
        create_app(Settings(runs_dir=tmp_path))
    assert "lejepa-med[otel]" in caught.value.remedy


def test_without_an_endpoint_nothing_is_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    names = [middleware.cls.__name__ for middleware in create_app(Settings(runs_dir=tmp_path)).user_middleware]
    assert not traces_wanted() and names == ["Guard", "Auth"]
