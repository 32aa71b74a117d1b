"""Two nodes in network namespaces, made through the fleet's API; the link between them is cut and healed under load.

this test ── 10.88.0.0/24 ── node a: etcd, registry, router, agent, a replica
                               │ 10.77.0.0/24, which is cut
                             node b: agent, a replica
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from babysitter.agent import processes

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]
ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 60.0
MARK = f"s{os.getpid() % 100_000}"
NET = f"10.{100 + os.getpid() % 100}"
SERVED_BY_BOTH = 2
CLIENTS = 4
MODEL = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def ip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=False, timeout=20)


def must(*words: str) -> None:
    done = ip(*words)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


@dataclass
class Net:
    """Namespaces `a` and `b`, with a link between them and one from here to `a`."""

    a: str = f"{MARK}a"
    b: str = f"{MARK}b"

    def make(self) -> None:
        for name in (self.a, self.b):
            must("netns", "add", name)
            must("-n", name, "link", "set", "lo", "up")
        must("link", "add", f"{MARK}x", "type", "veth", "peer", "name", "up0", "netns", self.a)
        must("-n", self.a, "link", "add", "ab", "type", "veth", "peer", "name", "ba", "netns", self.b)
        for where, device, address in (
            ((), f"{MARK}x", f"{NET}.88.1/24"),
            (("-n", self.a), "up0", f"{NET}.88.2/24"),
            (("-n", self.a), "ab", f"{NET}.77.1/24"),
            (("-n", self.b), "ba", f"{NET}.77.2/24"),
        ):
            must(*where, "addr", "add", address, "dev", device)
            must(*where, "link", "set", device, "up")

    def link(self, state: str) -> None:
        must("-n", self.a, "link", "set", "ab", state)

    def remove(self) -> None:
        for name in (self.a, self.b):
            ip("netns", "del", name)
        ip("link", "del", f"{MARK}x")


@dataclass
class Nodes:
    """Both nodes and what runs on them."""

    net: Net
    folder: Path
    http: aiohttp.ClientSession
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    registry: str = f"http://{NET}.88.2:18000"
    router: str = f"http://{NET}.88.2:8000"

    def root(self, node: str) -> Path:
        return self.folder / f"root-{node}"

    def run(self, namespace: str, name: str, *words: str) -> None:
        """Start a program in a namespace; its log is NAME.log."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        place = self.folder / name
        place.mkdir()
        with (self.folder / f"{name}.log").open("ab") as out:
            command = ["ip", "netns", "exec", namespace, *words]
            started = subprocess.Popen(
                command, cwd=place, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
        self.started.append(started)

    def run_ours(self, namespace: str, name: str, module: str, *flags: str) -> None:
        self.run(namespace, name, sys.executable, "-m", module, *flags)

    def run_agent(self, namespace: str, node: str, address: str) -> None:
        settings = {
            "node": node,
            "host": "0.0.0.0",
            "insecure_no_auth": True,
            "advertise_host": address,
            "registry_url": f"http://{NET}.77.1:18000",
            "local_workdir_root": str(self.root(node)),
            "heartbeat_interval": 1,
            "babysitter_command": [sys.executable, "-m", "tests.babysitter.agent.mock_babysitter"],
            "babysitter_config": str(self.folder / "babysitters.json"),
        }
        path = self.folder / f"agent-{node}.json"
        path.write_text(json.dumps(settings))
        self.run_ours(namespace, f"agent-{node}", "babysitter.agent", "--config", str(path))

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        async with self.http.request(method, f"{self.registry}{path}", json=body) as answer:
            return answer.status, await answer.json()

    async def infos(self) -> dict[str, dict[str, Any]]:
        _, listed = await self.ask("GET", "/api/v1/replicas")
        return {it["replica_id"]: it for it in listed["replicas"]}

    async def until(self, what: str, check: Callable[[], Awaitable[Any]]) -> Any:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            try:
                found = await check()
            except (aiohttp.ClientError, TimeoutError):
                found = None
            if found:
                return found
            await asyncio.sleep(0.1)
        logs = "".join(f"\n== {path}\n{path.read_text()[-2500:]}" for path in sorted(self.folder.rglob("*.log")))
        raise AssertionError(f"{what}: not within {WAIT_S:g} s{logs}")

    def end(self) -> None:
        for node in ("a", "b"):
            for babysitters in processes.scan(self.root(node)).values():
                for babysitter in babysitters:
                    psutil.Process(babysitter.process.pid).kill()
            for attempts in self.root(node).glob("*/attempts"):
                processes.end_servers(attempts)
        for process in reversed(self.started):
            process.send_signal(signal.SIGTERM)
        for process in self.started:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@dataclass
class Load:
    """Clients that ask all the time; `answers` has (when it ended, status, who answered) of each request."""

    nodes: Nodes
    answers: list[tuple[float, int, str]] = field(default_factory=list)

    async def client(self) -> None:
        while True:
            try:
                async with self.nodes.http.post(f"{self.nodes.router}/v1/chat/completions", json=MODEL) as answer:
                    await answer.read()
                    who = answer.headers.get("X-Served-By", "")
                    self.answers.append((time.monotonic(), answer.status, who))
            except (aiohttp.ClientError, TimeoutError):
                self.answers.append((time.monotonic(), 0, ""))
            await asyncio.sleep(0.02)

    def since(self, moment: float) -> Counter[int]:
        return Counter(status for at, status, _ in self.answers if at > moment)

    def served_since(self, moment: float) -> set[str]:
        return {who for at, status, who in self.answers if at > moment and status == 200}


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    if os.geteuid() != 0 or ip("netns", "list").returncode:
        pytest.skip("network namespaces need root and iproute2")
    if subprocess.run(["which", "etcd"], capture_output=True, check=False).returncode:
        pytest.skip("etcd is not installed")
    net = Net()
    async with AsyncExitStack() as stack:
        stack.callback(net.remove)
        net.make()
        http = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)))
        made = Nodes(net, tmp_path, http)
        stack.callback(made.end)
        yield made


async def launch(nodes: Nodes) -> None:
    """Everything on its node, until the registry knows both agents."""
    net = nodes.net
    babysitters = {
        "babysitter": {"heartbeat_interval": 1, "drain_s": 1, "stop_grace_s": 3},
        "probes": {"start_interval_s": 0.2},
    }
    (nodes.folder / "babysitters.json").write_text(json.dumps(babysitters))
    nodes.run(net.a, "etcd", "etcd", "--data-dir", str(nodes.folder / "etcd-data"))
    everywhere = ("--host", "0.0.0.0", "--insecure-no-auth")
    nodes.run_ours(net.a, "registry", "registry", *everywhere, "--store", "etcd://127.0.0.1:2379")
    flags = (
        "--served-by",
        "--workers",
        "1",
        "--health-interval",
        "1",
        "--health-timeout",
        "1",
        "--first-byte-timeout-s",
        "3",
    )
    nodes.run_ours(net.a, "router", "router", *everywhere, "--registry-url", "http://127.0.0.1:18000", *flags)
    nodes.run_agent(net.a, "a", f"{NET}.77.1")
    nodes.run_agent(net.b, "b", f"{NET}.77.2")

    async def both() -> bool:
        _, listed = await nodes.ask("GET", "/services")
        return {"agent-a", "agent-b"} <= {it["name"] for it in listed["services"]}

    await nodes.until("both agents are registered", both)


async def ready(nodes: Nodes, count: int) -> dict[str, str]:
    """Wait until so many replicas are ready and not stale; their nodes' names with their ids."""

    async def look() -> dict[str, str] | None:
        infos = (await nodes.infos()).values()
        good = {
            it["metadata"]["node"]: it["replica_id"]
            for it in infos
            if it["status"] == "ready" and not it["metadata"]["stale"]
        }
        return good if len(good) == count else None

    return dict(await nodes.until(f"{count} replicas are ready", look))


async def test_the_link_is_cut_and_healed_under_load_D21(nodes: Nodes) -> None:
    await launch(nodes)
    wanted = {"server_mode": "replica", "model_name": "m"}
    for _ in range(2):  # placed by load: one each
        status, content = await nodes.ask("POST", "/api/v1/replicas", wanted)
        assert status == 201, content
    ids = await ready(nodes, 2)
    assert set(ids) == {"a", "b"}
    pid_on_b = processes.scan(nodes.root("b"))[ids["b"]][0].process.pid
    load = Load(nodes)
    clients = [asyncio.ensure_future(load.client()) for _ in range(CLIENTS)]
    try:

        async def both_serve() -> bool:
            return len(load.served_since(time.monotonic() - 1)) == SERVED_BY_BOTH

        await nodes.until("both serve", both_serve)
        await cut(nodes, load, ids)
        assert psutil.pid_exists(pid_on_b), "nothing on b was ended or restarted for the lost link"
        nodes.net.link("up")
        assert await ready(nodes, 2) == ids
        await nodes.until("both serve again", both_serve)
        assert processes.scan(nodes.root("b"))[ids["b"]][0].process.pid == pid_on_b
        status, found = await nodes.ask("GET", f"/api/v1/replicas/{ids['b']}/timeline")
        assert status == 200
        assert "unhealthy" not in [move["to"] for move in found["transitions"]]
    finally:
        for client in clients:
            client.cancel()
        await asyncio.wait(clients)
    for replica_id in ids.values():
        assert (await nodes.ask("DELETE", f"/api/v1/replicas/{replica_id}"))[0] == 200

    async def all_gone() -> bool:
        return not any(processes.scan(nodes.root(node)) for node in ("a", "b"))

    await nodes.until("nothing runs any more", all_gone)


async def cut(nodes: Nodes, load: Load, ids: dict[str, str]) -> None:
    """Take the link down: requests go on at `a`, the fleet API says what it cannot do, and `b` is shown as stale."""
    before = load.since(0)
    assert set(before) == {200}
    moment = time.monotonic()
    nodes.net.link("down")
    began = time.monotonic()
    body = {"server_mode": "replica", "model_name": "m", "placement": {"node": "b"}, "request_id": "r1"}
    status, content = await nodes.ask("POST", "/api/v1/replicas", body)
    assert status in (503, 504), content
    assert time.monotonic() - began < 12  # ten seconds at most, whatever the agent does

    async def b_is_stale() -> bool:
        return bool((await nodes.infos())[ids["b"]]["metadata"]["stale"])

    await nodes.until("b is marked stale", b_is_stale)
    status, content = await nodes.ask("POST", "/api/v1/replicas", {"server_mode": "replica", "model_name": "other"})
    assert status == 201
    other = content["replica_id"]
    assert (nodes.root("a") / other).is_dir(), "the node that is heard of gets it"
    assert (await nodes.ask("DELETE", f"/api/v1/replicas/{other}"))[0] == 200
    failed = {status: count for status, count in load.since(moment).items() if status != 200}
    assert sum(failed.values()) <= CLIENTS, f"only what was under way at b may be lost: {failed}"
    assert set(load.since(time.monotonic() - 5)) == {200}
    assert load.served_since(time.monotonic() - 5) == {f"{ids['a']}-server"}
