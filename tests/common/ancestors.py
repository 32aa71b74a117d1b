"""The ancestors' programs as far as they read our words: strict where they are, and no more than that.

Their router in Rust reads `GET /services` into structs (`weight` a `u32`, or absent), the one in Python adds weights up.
Their registry wants every member of a registration, and calls a record unhealthy whose status is not `running`.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Annotated, Any

import msgspec

U32 = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
U16 = Annotated[int, msgspec.Meta(ge=0, lt=2**16)]


class Service(msgspec.Struct):
    """One record, as both their routers read it."""

    name: str
    host: str
    hostname: str
    port: U16
    url: str
    status: str
    timestamp: str | float
    last_heartbeat: float
    health_status: str
    metadata: dict[str, Any]
    is_healthy: bool
    weight: U32 = 1


class Services(msgspec.Struct):
    """`GET /services`."""

    services: list[Service]
    total: int
    timestamp: str | float


def read_services(raw: bytes) -> dict[str, Service]:
    """What their routers take from `GET /services`; raises where they would fail."""
    read = msgspec.json.decode(raw, type=Services)
    plain = json.loads(raw)["services"]
    assert sum(service.get("weight", 1) for service in plain) >= 0
    for service in plain:
        assert None not in service["metadata"].values()
    return {service.name: service for service in read.services}


class OldRegistry:
    """Their registry: keeps what it is told, and judges it as they did."""

    def __init__(self) -> None:
        self.records: dict[str, dict[str, Any]] = {}
        self.refused: list[str] = []
        self.beats = 0
        self.said: dict[str, set[str]] = {}
        """Every status that a heartbeat of each record ever said."""

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """`POST /services` or a heartbeat."""
        if path == "/services":
            wrong = [
                name for name in ("name", "host", "hostname", "url", "status") if not isinstance(body.get(name), str)
            ]
            weight = body.get("weight", 1)
            if wrong or not isinstance(body.get("port"), int) or not isinstance(weight, int):
                self.refused.append(f"{body.get('name')}: {wrong or 'port or weight'}")
                return 400, {"error": f"Missing required field: {wrong}"}
            self.records[body["name"]] = dict(body)
            return 201, {"message": "ok", "service": body}
        record = self.records.get(path.split("/")[2])
        if record is None:
            return 404, {"error": "Service not found"}
        self.beats += 1
        if "status" in body:
            record["status"] = body["status"]
            self.said.setdefault(record["name"], set()).add(body["status"])
        return 200, {"message": "Heartbeat received"}

    def get(self, path: str) -> tuple[int, Any]:
        """`GET /health`, `/services` and `/services/NAME`."""
        if path == "/health":
            return 200, {"status": "healthy", "registry": "running", "registered_services": len(self.records)}
        shown = {
            name: {
                "weight": 1,
                "metadata": {},
                **record,
                "last_heartbeat": time.time(),
                "health_status": "unknown",
                "is_healthy": record["status"] == "running",
            }
            for name, record in self.records.items()
        }
        if path.startswith("/services/"):
            found = shown.get(path.split("/")[2])
            return (200, found) if found else (404, {"error": "Service not found"})
        if path == "/services":
            return 200, {"services": list(shown.values()), "total": len(shown), "timestamp": time.time()}
        return 404, {"error": "Not found"}

    def unhealthy(self) -> list[str]:
        """Names of records that it would show as unhealthy."""
        return [name for name, record in self.records.items() if record["status"] != "running"]


@contextmanager
def old_registry() -> Iterator[tuple[OldRegistry, str]]:
    """Their registry on a port of its own, and its URL."""
    registry = OldRegistry()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._say(*registry.post(self.path, json.loads(raw) if raw else {}))

        def do_GET(self) -> None:
            self._say(*registry.get(self.path.partition("?")[0]))

        def do_DELETE(self) -> None:
            gone = registry.records.pop(self.path.partition("?")[0].split("/")[2], None)
            self._say(200 if gone else 404, {})

        def _say(self, status: int, content: Any) -> None:
            raw = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield registry, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
