"""A server of a few lines that starts fast, for tests that need a process and no knobs: `light_server.py PORT [ADDRESS]`."""

import json
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Answer(BaseHTTPRequestHandler):
    """Health and models."""

    def do_GET(self) -> None:
        health = {"status": "ok"}
        models = {"object": "list", "data": [{"id": "m", "object": "model"}]}
        raw = json.dumps(health if self.path == "/health" else models).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    address = sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1"
    ThreadingHTTPServer.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = ThreadingHTTPServer((address, int(sys.argv[1])), Answer)
    print(f"start service at {address}:{server.server_port}", flush=True)  # noqa: T201 - as the real ones do
    server.serve_forever()
