"""A fleet whose replicas are jobs of a cluster: agent, registry and router as processes, and clients that ask all the time."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.babysitter.agent.agent_process import AgentProcess
from tests.babysitter.agent.slurm.cluster import Cluster
from tests.babysitter.real import PROJECT, ask, until
from tests.ports import free_port
from tests.registry.processes import environment, running

LONG_S = 240.0
TEMPLATE = """
[parameters.model]
required = true
[parameters.partition]
[parameters.account]
[parameters.gres]
[parameters.time_s]
type = "integer"
[parameters.token_delay_s]
type = "number"
default = 0
[slurm]
partition = "{partition}"
account = "{account}"
gres = "{gres}"
time_s = "{time_s}"
[babysitter]
drain_timeout_s = 15
stop_grace_s = 2
[probes]
start_interval_s = 0.2
[backend]
type = "mock"
models = ["{served_name}"]
args = ["--token-delay-s={token_delay_s}"]
"""


@dataclass
class Fleet:
    """What runs."""

    folder: Path
    cluster: Cluster
    agent: AgentProcess
    registry: str
    router: str

    def deployment(self, name: str) -> dict[str, Any]:
        return ask(f"{self.registry}/api/v1/deployments/{name}") or {}

    def call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        url = f"{self.registry}/api/v1/deployments/{path}"
        headers = {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method), timeout=30) as answer:  # noqa: S310
            return json.load(answer)

    def ready(self, name: str, count: int, revision: int | None = None) -> dict[str, Any]:
        def check() -> Any:
            info = self.deployment(name)
            fits = revision is None or {it["revision"] for it in info.get("replicas", ())} == {revision}
            return info.get("ready") == count and len(info["replicas"]) == count and fits and info

        try:
            return dict(until(f"{name} has {count} ready", check, LONG_S))
        except AssertionError as error:
            raise AssertionError(
                f"{error}: {self.deployment(name)}\n{self.cluster.jobs()}\n{self.agent.log[-3000:]}"
            ) from error

    @property
    def trouble(self) -> str:
        """What router and agent complain of."""
        lines = (self.folder / "router.log").read_text().splitlines() + self.agent.log.splitlines()
        return "\n".join(line for line in lines if '"level":"info"' not in line)[-3000:]

    def jobs(self) -> list[tuple[int, str, str]]:
        return [job for job in self.cluster.jobs() if job[1].startswith("isvc-")]


@dataclass
class Load:
    """Clients that ask a model one after the other, and what they were answered."""

    url: str
    model: str
    clients: int = 4
    answered: int = 0
    failed: list[str] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._threads = [threading.Thread(target=self._ask_on) for _ in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask_on(self) -> None:
        body = {"model": self.model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 8}
        while not self._over.is_set():
            request = urllib.request.Request(  # noqa: S310 - ours
                f"{self.url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            try:
                with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310 - ours
                    json.load(answer)["choices"][0]
                self.answered += 1
            except urllib.error.HTTPError as error:
                self.failed.append(f"{error.code}: {error.read()[:300]!r}")
            except (OSError, ValueError, KeyError) as error:
                self.failed.append(repr(error))
            time.sleep(0.05)


@contextmanager
def fleet_on(slurm: Cluster, folder: Path, **env: str) -> Iterator[Fleet]:
    """A fleet on a cluster, ended with its jobs; its agent gets `env` as well."""
    router_port = free_port()
    with ExitStack() as stack:
        _, url = stack.enter_context(running(folder))
        (folder / "templates").mkdir()
        (folder / "templates" / "mock.toml").write_text(TEMPLATE)
        shutil.copy(PROJECT / "config" / "templates" / "llama-cpp.toml", folder / "templates")
        settings = {
            "node": "cluster",
            "registry_url": url,
            "runner": "slurm",
            "slurm": {"poll_s": 1, "notice_s": 60},
            "accelerators": {"kind": "cuda", "count": 8},
            "heartbeat_interval": 0.5,
            "babysitter_command": [sys.executable, "-m", "babysitter"],
            "templates_dir": str(folder / "templates"),
        }
        made = AgentProcess(folder, settings=settings, env={**slurm.env, **env})
        made.start()
        with (folder / "router.log").open("ab") as log:
            router = subprocess.Popen(
                [sys.executable, "-m", "router", "--port", str(router_port), "--registry-url", url],
                cwd=folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            until("the registry knows the agent", lambda: (ask(f"{url}/api/v1/nodes") or {}).get("total"))
            yield Fleet(folder, slurm, made, url, f"http://127.0.0.1:{router_port}")
        finally:
            if made.process is not None and made.process.poll() is None:
                made.end(signal.SIGKILL)
            os.kill(router.pid, signal.SIGTERM)
            router.wait(30)
            slurm.run("scancel", "--user=root")
            until("no job is left", lambda: not slurm.jobs())


def wanted(model: str, **changes: Any) -> dict[str, Any]:
    parameters = {"model": model, **changes.pop("parameters", {})}
    return {"template": "mock", "parameters": parameters, "dwell_s": 0, **changes}
