"""Spans reach an exporter with everything they say, and a collector over real HTTP; off, nothing is imported."""

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from common.exits import ConfigurationError
from common.span import Span
from common.tracing import TracedSettings, Tracing, open_tracing, require_tracing

TRACE, ROOT, CHILD = 2**127 + 5, 2**63 + 1, 77
FAILED = Span("attempt r1", TRACE, CHILD, ROOT, 100.0, 100.25, "client", {"inference.replica": "r1", "n": 2}, "died")


def test_a_span_arrives_with_its_ids_times_attributes_and_fault() -> None:
    exporter = InMemorySpanExporter()
    tracing = Tracing(SimpleSpanProcessor(exporter), "router", **{"inference.worker": "1"})
    tracing.send(FAILED)
    [seen] = exporter.get_finished_spans()
    assert seen.context is not None
    assert seen.parent is not None
    assert (seen.context.trace_id, seen.context.span_id, seen.parent.span_id) == (TRACE, CHILD, ROOT)
    assert (seen.name, seen.kind) == ("attempt r1", SpanKind.CLIENT)
    assert (seen.start_time, seen.end_time) == (100_000_000_000, 100_250_000_000)
    assert seen.attributes == {"inference.replica": "r1", "n": 2}
    assert (seen.status.status_code, seen.status.description) == (StatusCode.ERROR, "died")
    assert seen.resource.attributes["service.name"] == "inference-svc-router"
    assert seen.resource.attributes["inference.worker"] == "1"


def test_a_span_without_parent_and_fault_has_neither() -> None:
    exporter = InMemorySpanExporter()
    Tracing(SimpleSpanProcessor(exporter), "router").send(Span("a", TRACE, ROOT, None, 1.0, 2.0))
    [seen] = exporter.get_finished_spans()
    assert seen.parent is None
    assert seen.status.status_code is StatusCode.UNSET


class Collector(http.server.BaseHTTPRequestHandler):
    """The far end of OTLP over HTTP."""

    bodies: list[tuple[str, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.bodies.append((self.path, body))  # type: ignore[attr-defined]  # the fixture put it there
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it that
        del format, args


@pytest.fixture
def collector() -> Iterator[http.server.HTTPServer]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        server.bodies = []  # type: ignore[attr-defined]  # what it got
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_collector_gets_the_spans_over_http_at_the_end(collector: http.server.HTTPServer) -> None:
    settings = TracedSettings(trace_endpoint=f"http://127.0.0.1:{collector.server_port}/")
    tracing = open_tracing(settings, "babysitter")
    assert tracing is not None
    tracing.send(FAILED)
    tracing.close()
    [(path, body)] = collector.bodies  # type: ignore[attr-defined]  # what it got
    assert path == "/v1/traces"
    told = ExportTraceServiceRequest.FromString(body).resource_spans[0].scope_spans[0].spans[0]
    assert told.name == "attempt r1"
    assert int.from_bytes(told.trace_id) == TRACE


def test_it_is_off_unless_an_endpoint_is_set() -> None:
    assert open_tracing(TracedSettings(), "router") is None
    require_tracing(TracedSettings())


def test_nothing_of_opentelemetry_is_imported_while_it_is_off() -> None:
    program = "import router.worker, babysitter.supervisor, sys; sys.exit('opentelemetry' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0


def test_a_missing_extra_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'inference-svc\[tracing\]'"):
        require_tracing(TracedSettings(trace_endpoint="http://localhost:4318"))
