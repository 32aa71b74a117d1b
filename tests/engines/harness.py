"""A real engine behind a real babysitter, and before it a real registry and router.

    with fleet(tmp_path) as where, engine_node(ENGINES["llama_cpp"], tmp_path / "e", registry=where.registry.url) as node:
        node.start()
        node.ready(START_S)

The babysitter's file is the example of config/examples, its model, port and program put in place (tests/engines/catalogue.py).
"""

import contextlib
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.babysitter import real
from tests.babysitter.conftest import Registry
from tests.babysitter.real import PROJECT, Node, ask
from tests.engines.catalogue import ENGINES, Change, Engine
from tests.ports import free_port

START_S = 900.0
"""vLLM takes half a minute, and seven minutes on a machine with fifteen times its work; only a failure reaches this."""


def until(what: str, check: Callable[[], Any], wait_s: float = START_S) -> Any:
    """As of tests/babysitter/real.py, but for engines, which take all processors that there are."""
    return real.until(what, check, wait_s)


@dataclass
class EngineNode(Node):
    """A node whose file is an engine's example; `top`, `probes` and `restarts` are laid over it."""

    engine: Engine = field(kw_only=True)
    args: tuple[str, ...] = ()
    """Added to the command, after those of the catalogue."""
    change: Change = field(default_factory=Change)

    @property
    def config(self) -> Path:
        """The settings file, written anew."""
        text = (PROJECT / "config" / "examples" / self.engine.example).read_text()
        example = tomllib.loads(text)
        settings: dict[str, Any] = put(example, {**self.change.words, str(example["port"]): str(self.port)})
        backend = settings["backend"]
        path = {"PATH": f"{self.change.path}:{os.environ['PATH']}"} if self.change.path else {}
        settings |= {
            "name": self.name,
            "port": self.port,
            "data_dir": str(self.directory / "data"),
            "log_dir": str(self.directory / "logs"),
            "registry_url": [],
            **self.top,
            "babysitter": {**settings.get("babysitter", {}), "restart_delay": 0.2, "drain_s": 1, **self.restarts},
            "probes": {**settings.get("probes", {}), "start_interval_s": 0.2, **self.probes},
            "backend": {
                **backend,
                "args": [*backend["args"], *self.change.args, *self.args],
                "env": {**backend.get("env", {}), **self.change.env, **path},
            },
        }
        written = self.directory / "babysitter.json"
        written.write_text(json.dumps(settings))
        return written

    @property
    def url(self) -> str:
        """The engine's own."""
        return f"http://127.0.0.1:{self.port}"

    def ready(self, wait_s: float = START_S) -> int:
        """Wait until the replica is ready; returns the server's pid."""
        return super().ready(wait_s)

    @property
    def model(self) -> str:
        """As the engine tells it."""
        return self.engine.model()

    def stop(self) -> None:
        """By the babysitter's call, as an operator would."""
        assert ask(f"http://127.0.0.1:{self.port + 1}/stop", {}) is not None

    def output(self) -> str:
        """What the engine printed."""
        return "".join(path.read_text(errors="replace") for path in sorted((self.directory / "logs").glob("server_*")))


def put(value: Any, words: Mapping[str, str]) -> Any:
    """`value` with words put in place of others in each of its strings."""
    match value:
        case str():
            for old, new in words.items():
                value = value.replace(old, new)
            return value
        case dict():
            return {name: put(one, words) for name, one in value.items()}
        case list():
            return [put(one, words) for one in value]
        case _:
            return value


@contextlib.contextmanager
def engine_node(
    engine: Engine | str, directory: Path, *, registry: str | None = None, **more: Any
) -> Iterator[EngineNode]:
    """A node of that engine, not yet started; ended whatever happens. `more`: members of `EngineNode`."""
    engine = ENGINES[engine] if isinstance(engine, str) else engine
    directory.mkdir(parents=True, exist_ok=True)
    node = EngineNode(directory, engine=engine, change=engine.change(directory), **more)
    if registry:
        node.top = {"registry_url": registry, **node.top}
    try:
        yield node
    finally:
        node.close()


@dataclass
class Fleet:
    """A registry and a router."""

    registry: Registry
    router_port: int

    @property
    def url(self) -> str:
        """The router's."""
        return f"http://127.0.0.1:{self.router_port}"

    def until_routed(self, model: str) -> None:
        """Until the router lists it."""
        until("routed", lambda: model in self.models())

    def models(self) -> list[str]:
        """Ids that the router lists."""
        return [one["id"] for one in (ask(f"{self.url}/v1/models") or {}).get("data", [])]

    def service(self, port: int) -> dict[str, Any]:
        """What the router's `/services` says of the server at `port`; `{}`: nothing."""
        services = (ask(f"{self.url}/services") or {}).get("services", [])
        return dict(next((one for one in services if one["port"] == port), {}))


@contextlib.contextmanager
def fleet(directory: Path, *flags: str) -> Iterator[Fleet]:
    """A registry and a router of two workers, ended whatever happens; `flags`: the router's."""
    registry = Registry(directory)
    try:
        registry.start()
        port = free_port()
        argv = [sys.executable, "-m", "router", "--router-port", str(port), "--registry-url", registry.url, *flags]
        with (
            (directory / "router.log").open("wb") as out,
            subprocess.Popen(argv, cwd=PROJECT, stdout=out, stderr=out) as router,
        ):
            try:
                until("the router answers", lambda: ask(f"http://127.0.0.1:{port}/health"))
                yield Fleet(registry, port)
            finally:
                router.terminate()
    finally:
        registry.kill()
