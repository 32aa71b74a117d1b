"""A small real fleet as processes on loopback: a registry, a router, babysitters with mock servers, perhaps an agent."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 60.0
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
CONFIG = """
name = "{name}"
port = {port}
registry_url = "http://127.0.0.1:{registry}"

[babysitter]
restart_delay = 1
heartbeat_interval = 1
drain_s = 0.1

[backend]
type = "mock"
models = ["{model}"]
"""


def get(url: str) -> bytes:
    """The body of a GET that must succeed."""
    with _open(url, timeout=10) as answer:
        return bytes(answer.read())


def post(url: str, body: Any = None, *, token: str | None = None) -> bytes:
    """The body of a POST that must succeed."""
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    request = urllib.request.Request(url, data=json.dumps(body).encode(), headers=headers)  # noqa: S310 - http
    with _open(request, timeout=30) as answer:
        return bytes(answer.read())


def until(what: str, holds: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
    """Wait until `holds()` is true, and return it; what it raises while it waits counts as not yet."""
    end = time.monotonic() + deadline_s
    last: object = None
    while time.monotonic() < end:
        try:
            if found := holds():
                return found
        except urllib.error.HTTPError as error:
            last = str(error)
            error.close()
        except (OSError, ValueError, KeyError) as error:
            last = error
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {deadline_s:g} s ({last})")


@contextmanager
def process(folder: Path, *command: str, log: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process with its output in a file; ended by SIGTERM, or killed when that does not help."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SVC_")}
    with (folder / f"{log}.log").open("wb") as output:
        child = subprocess.Popen(
            command,
            cwd=folder,
            env={**kept, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@dataclass(frozen=True)
class Fleet:
    """Where its parts are reached; `babysitters` by name."""

    registry: str
    router: str
    agent: str
    babysitters: dict[str, str]

    def chat(self, model: str) -> None:
        """One request through the router."""
        post(f"{self.router}/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": "hi"}]})


@contextmanager
def fleet(folder: Path, replicas: dict[str, str], *, agent: bool = False) -> Iterator[Fleet]:
    """A fleet whose every replica is ready and known to the router.

    Args:
        folder: For files and logs.
        replicas: Model by name.
        agent: With a node's agent, which has none of them.
    """
    registry_port, router_port, agent_port = free_port(), free_port(), free_port()
    here = "http://127.0.0.1"
    made = Fleet(f"{here}:{registry_port}", f"{here}:{router_port}", f"{here}:{agent_port}", {})
    python = sys.executable
    with ExitStack() as stack:
        registry = (python, "-m", "registry", "--port", str(registry_port), "--health-interval", "1")
        stack.enter_context(process(folder, *registry, log="registry"))
        router = (python, "-m", "router", "--router-port", str(router_port), "--registry-url", made.registry)
        stack.enter_context(process(folder, *router, "--workers", "1", "--health-interval", "1", log="router"))
        if agent:
            flags = ("--port", str(agent_port), "--registry-url", made.registry, "--node", "node-1")
            stack.enter_context(process(folder, python, "-m", "babysitter.agent", *flags, log="agent"))
        for name, model in replicas.items():
            port = free_port()
            config = folder / f"{name}.toml"
            config.write_text(CONFIG.format(name=name, port=port, registry=registry_port, model=model))
            babysitter = (python, "-m", "babysitter", "--config-file", str(config))
            stack.enter_context(process(folder, *babysitter, log=name))
            made.babysitters[name] = f"http://127.0.0.1:{port + 1}"
        wanted = set(replicas.values())

        def all_ready() -> bool:
            listed = json.loads(get(f"{made.router}/models"))["data"]
            return {model["id"] for model in listed} == wanted

        until("the fleet is ready", all_ready)
        until("the router is known", lambda: b"router-" in get(f"{made.registry}/ui/routers"))
        yield made
