"""A server on Python's own `http.server`, as small embeddings servers are: what it does not know it refuses unread (W65)."""

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BODY = b'{"data":[{"embedding":[1.0]}]}'


class Handler(BaseHTTPRequestHandler):
    """Knows `/v1/embeddings` alone, and keeps connections."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        found = self.path == "/v1/embeddings"
        if found:
            self.rfile.read(int(self.headers["content-length"]))
        body = BODY if found else b"{}"
        self.send_response(200 if found else 404)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_words: object) -> None:
        """Nobody reads it."""


@contextlib.contextmanager
def simple_server() -> Iterator[int]:
    """Its port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever, daemon=True)
        serving.start()
        yield server.server_port
        server.shutdown()
        serving.join()
