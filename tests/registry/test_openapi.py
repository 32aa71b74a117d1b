"""The description of the API is true: schemathesis sends what it allows, and what it does not, to a real registry."""

import json
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance
from schemathesis.specs.openapi.schemas import OpenApiSchema

from common.http.openapi import Route
from registry.http.routes import ROUTES
from tests.registry.conftest import ours
from tests.registry.processes import running

EXCLUDED: list[Any] = [
    # What may be registered depends on the network and on who owns a name, which no schema can say.
    positive_data_acceptance,
    # Unknown members and parameters are ignored: clients of both ancestors send some.
    negative_data_rejection,
]
ENDING = [route for route in ROUTES if not route.endless]  # these have no end; their own tests know their form


class Agent(BaseHTTPRequestHandler):
    """A node's agent that takes every replica and knows none."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        made = {"replica_id": "abc123def456", "status": "pending", "message": "", "base_url": None, "request_id": "r"}
        self._send(201, made) if self.path == "/api/v1/replicas" else self._send(404, {"error": "not found"})

    def do_GET(self) -> None:
        self._send(404, {"error": "not found"})

    def do_DELETE(self) -> None:
        self.do_GET()

    def _send(self, status: int, content: object) -> None:
        raw = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@contextmanager
def agent_of(registry: str) -> Iterator[None]:
    """A registered agent, so that a create call has somewhere to go."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Agent) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        place = {"host": "127.0.0.1", "port": server.server_port, "url": f"http://127.0.0.1:{server.server_port}"}
        said = {**ours("agent-n1"), **place, "ttl_s": 3600, "metadata": {"type": "node-agent", "node": "n1"}}
        body = json.dumps(said).encode()
        with urllib.request.urlopen(f"{registry}/services", data=body, timeout=10) as answer:  # noqa: S310 - our own URL
            assert answer.status == 201
        yield
        server.shutdown()


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenApiSchema]:
    directory: Path = tmp_path_factory.mktemp("registry")
    with running(directory, "--store", "memory://", "--health-interval", "3600", "--health-timeout", "0.1") as (_, url):
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        assert isinstance(schema, OpenApiSchema)
        with agent_of(url):
            yield schema


@pytest.mark.parametrize(
    ("route", "mode"),
    [
        pytest.param(route, mode, id=f"{route.method} {route.path} {mode.value}")
        for route in ENDING
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
        if mode is GenerationMode.POSITIVE or route.body or route.query  # else nothing could be wrong
    ],
)
def test_api_answers_as_it_is_described(api: OpenApiSchema, route: Route, mode: GenerationMode) -> None:
    operation = api[route.path][route.method]

    @given(operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=20,
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    def call(case: Any) -> None:
        case.call_and_validate(excluded_checks=EXCLUDED, timeout=5)

    call()


def test_every_route_is_described(api: OpenApiSchema) -> None:
    described = {(method.upper(), path) for path, item in api.raw_schema["paths"].items() for method in item}
    assert described == {(route.method, route.path) for route in ROUTES}
