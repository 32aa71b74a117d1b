"""An index that lists every package and cannot deliver it: it hangs, cuts wheels short, or serves others than told."""

import contextlib
import hashlib
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from tests.babysitter.stand_in.wheels import make_wheel


class BrokenIndex(ThreadingHTTPServer):
    """`fault` is `hangs`, `truncated`, `hash` or nothing; over TLS with a `context`, and as an HTTP proxy for any host."""

    daemon_threads = True

    def __init__(self, fault: str, version: str, directory: Path, context: ssl.SSLContext | None) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.fault = fault
        self.version = version
        self.directory = directory
        self._wheels: dict[str, Path] = {}
        self.over = threading.Event()
        self.url = f"{'https' if context else 'http'}://127.0.0.1:{self.server_port}/simple/"

    def wheel(self, name: str) -> Path:
        """The wheel of a package, made when it is first asked for."""
        if name not in self._wheels:
            self._wheels[name] = make_wheel(self.directory, name, self.version)
        return self._wheels[name]


class _Answer(BaseHTTPRequestHandler):
    server: BrokenIndex

    def do_GET(self) -> None:
        parts = urlsplit(self.path).path.strip("/").split("/")
        if self.server.fault == "hangs":
            self.server.over.wait()
        elif parts[0] == "simple":
            wheel = self.server.wheel(parts[1])
            digest = hashlib.sha256(b"x" if self.server.fault == "hash" else wheel.read_bytes()).hexdigest()
            link = f'<a href="/files/{parts[1]}/{wheel.name}#sha256={digest}">{wheel.name}</a>'
            self._send(f"<!DOCTYPE html><html><body>{link}</body></html>".encode(), "text/html")
        else:
            self._send(self.server.wheel(parts[1]).read_bytes(), "application/octet-stream")

    def _send(self, raw: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        cut = self.server.fault == "truncated" and kind != "text/html"
        self.wfile.write(raw[: len(raw) // 2] if cut else raw)

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def broken_index(
    fault: str, version: str, directory: Path, context: ssl.SSLContext | None = None
) -> Iterator[BrokenIndex]:
    """An index that is ended whatever happens."""
    with BrokenIndex(fault, version, directory, context) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
