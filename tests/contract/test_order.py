"""In which order the parts are replaced does not matter: every mix of old and new ones serves.

The old ones are doubles that are strict where the old programs are: their routers want a number for a weight, and their
registry calls every record unhealthy whose status is not `running`.
"""

import json
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.babysitter.conftest import Registry
from tests.babysitter.real import PROJECT, ask, running, until
from tests.common.ancestors import old_registry, read_services
from tests.ports import free_port

pytestmark = pytest.mark.e2e
CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
MIXES = [mix for mix in product(("old", "new"), repeat=3) if "new" in mix]


def say(handler: BaseHTTPRequestHandler, content: Any) -> None:
    raw = json.dumps(content).encode()
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(raw)))
    handler.end_headers()
    handler.wfile.write(raw)


class OldServer(BaseHTTPRequestHandler):
    """An engine and the old babysitter beside it, at one port each, which say little."""

    def do_GET(self) -> None:
        listed = {"object": "list", "data": [{"id": "m", "object": "model"}]}
        say(self, {"status": "healthy"} if self.path == "/health" else listed)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hello"}}
        say(self, {"id": "x", "object": "chat.completion", "model": "m", "choices": [choice]})

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


@contextmanager
def old_babysitter(registry: str) -> Iterator[None]:
    """Registers itself and its server as both ancestors did, without a weight, and sends empty heartbeats."""
    port, over = free_port(), threading.Event()
    servers = [ThreadingHTTPServer(("127.0.0.1", number), OldServer) for number in (port, port + 1)]
    for server in servers:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    kinds: dict[str, tuple[int, dict[str, Any]]] = {"old": (port + 1, {"type": "InfiniLM", "babysitter": "enhanced"})}
    served = {"type": "openai-api", "parent_service": "old", "models": ["m"], "models_list": [{"id": "m"}]}
    kinds["old-server"] = (port, served)
    for name, (number, metadata) in kinds.items():
        url = f"http://127.0.0.1:{number}"
        record = {"name": name, "host": "127.0.0.1", "hostname": "h", "port": number, "url": url, "status": "running"}
        told = ask(f"{registry}/services", {**record, "timestamp": "2026-01-01T00:00:00", "metadata": metadata})
        assert "error" not in told

    def beat() -> None:
        while not over.wait(0.5):
            for name in kinds:
                empty = urllib.request.Request(f"{registry}/services/{name}/heartbeat", data=b"", method="POST")  # noqa: S310 - our own
                urllib.request.urlopen(empty, timeout=5).close()  # noqa: S310 - our own

    heart = threading.Thread(target=beat)
    heart.start()
    try:
        yield
    finally:
        over.set()
        heart.join()
        for server in servers:
            server.shutdown()
            server.server_close()


@contextmanager
def new_router(folder: Path, registry: str) -> Iterator[str]:
    port = free_port()
    argv = [sys.executable, "-m", "router", "--router-port", str(port), "--registry-url", registry]
    argv += ["--data-dir", str(folder / "router"), "--registry-sync-interval", "0.3", "--workers", "1"]
    with (folder / "router.log").open("ab") as out:
        process = subprocess.Popen(argv, cwd=PROJECT, stdout=out, stderr=out)
    try:
        until("the router answers", lambda: ask(f"http://127.0.0.1:{port}/health"))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def asked_by_the_old_router(registry: str) -> Any:
    """What it does: reads the list, takes what is healthy and has the model, adds the weights up, asks one."""
    with urllib.request.urlopen(f"{registry}/services", timeout=5) as answer:  # noqa: S310 - our own
        services = read_services(answer.read())
    chosen = [
        service
        for service in services.values()
        if service.is_healthy and service.metadata.get("type") == "openai-api" and "m" in service.metadata["models"]
    ]
    if not chosen or sum(service.weight for service in chosen) <= 0:
        return None
    return ask(f"{chosen[0].url}/v1/chat/completions", CHAT)


@pytest.mark.parametrize(("registry", "router", "babysitter"), MIXES, ids="-".join)
def test_every_mix_of_old_and_new_serves(tmp_path: Path, registry: str, router: str, babysitter: str) -> None:
    with ExitStack() as stack:
        if registry == "new":
            made = Registry(tmp_path)
            stack.callback(made.kill)
            made.start()
            where = made.url
        else:
            old, where = stack.enter_context(old_registry())
        if babysitter == "new":
            node = stack.enter_context(
                running(tmp_path, top={"registry_url": where}, restarts={"heartbeat_interval": 0.3})
            )
            node.start()
            node.ready()
        else:
            stack.enter_context(old_babysitter(where))
        if router == "new":
            url = stack.enter_context(new_router(tmp_path, where))
            answered = until(
                "served", lambda: (said := ask(f"{url}/v1/chat/completions", CHAT)) and "choices" in said and said
            )
        else:
            answered = until("served", lambda: asked_by_the_old_router(where))
        assert answered["choices"][0]["message"]["role"] == "assistant"
        if registry == "old":
            assert (old.unhealthy(), old.refused) == ([], [])
