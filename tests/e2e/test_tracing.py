"""A babysitter and a router as processes, a mock server, and a collector that gets the spans of both."""

import http.client
import http.server
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.ports import free_ports

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Collector(http.server.ThreadingHTTPServer):
    """Takes OTLP over HTTP; `spans` by service."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.spans: dict[str, list[Span]] = {}

    def take(self, body: bytes) -> None:
        for told in ExportTraceServiceRequest.FromString(body).resource_spans:
            attributes = {item.key: item.value.string_value for item in told.resource.attributes}
            known = self.spans.setdefault(attributes["service.name"], [])
            known.extend(span for scope in told.scope_spans for span in scope.spans)


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Collector)
        self.server.take(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it that
        del format, args


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def post(port: int, path: str, body: object) -> tuple[int, object]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    headers = {"Content-Type": "application/json", "traceparent": CALLER}
    try:
        connection.request("POST", path, json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, json.load(answer)
    finally:
        connection.close()


@pytest.mark.e2e
def test_router_and_babysitter_send_their_spans_to_the_collector(collector: Collector, tmp_path: Path) -> None:
    server, router = free_ports(2)
    endpoint = f"--trace-endpoint=http://127.0.0.1:{collector.server_port}"
    config = tmp_path / "mock.toml"
    config.write_text(f'name = "mock"\nport = {server}\n[backend]\ntype = "mock"\nmodels = ["m"]\n')
    static = tmp_path / "static.json"
    static.write_text(
        json.dumps([{"name": "mock", "host": "127.0.0.1", "port": server, "metadata": {"models": ["m"]}}])
    )
    folders = [f"--data-dir={tmp_path}", endpoint]
    commands = {
        "babysitter": [f"--config-file={config}", f"--log-dir={tmp_path}", "--drain=0", *folders],
        "router": [f"--port={router}", "--workers=1", f"--static-services={static}", *folders],
    }
    running = [subprocess.Popen([sys.executable, "-m", name, *words]) for name, words in commands.items()]
    try:
        status, limit = 0, time.monotonic() + 60
        asked = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
        while status != 200 and time.monotonic() < limit:
            time.sleep(0.1)
            try:
                status, _ = post(router, "/v1/chat/completions", asked)
            except OSError:
                continue
        assert status == 200
    finally:
        for process in running:
            process.send_signal(signal.SIGTERM)
        codes = [process.wait(60) for process in running]
    assert codes == [0, 0]
    start = {span.name: span for span in collector.spans["inference-svc-babysitter"]}
    assert start["waiting_for_ready"].parent_span_id == start["start mock"].span_id
    served = [span for span in collector.spans["inference-svc-router"] if span.name == "POST /v1/chat/completions"]
    assert {span.trace_id.hex() for span in served} == {CALLER[3:35]}
    attempts = [span for span in collector.spans["inference-svc-router"] if span.name == "attempt mock"]
    assert attempts[-1].parent_span_id == served[-1].span_id
