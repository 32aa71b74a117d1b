"""Three nodes in network namespaces: a deployment is applied, scaled, moved off a node that is cut off, and off one that is drained.

node a: registry, router, agent ── a bridge ── node b: agent, node c: agent; the test is on the bridge, too
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.fleet import DEPLOYMENTS, Fleet, Place, Server, fleet_in, tell

pytestmark = [pytest.mark.e2e, pytest.mark.world, pytest.mark.timeout(600)]
ID = f"f{os.getpid() % 100_000}"
NET = f"10.{100 + os.getpid() % 100}.66"
NODES = ("a", "b", "c")
CLIENTS = 6
FLEET_FILE = """\
deployments:
  d:
    model: m
    template: mock
    parameters: {model: m, start_delay_s: 1, ttft_s: 0.1, token_delay_s: 0.05}
    accelerators: 1
    replicas: {min: 3, max: 3}
    placement: {spread: true}
    dwell_s: 0
"""


def ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=True, timeout=20)


class Net:
    """A bridge here, with a namespace for each node at it."""

    def __init__(self) -> None:
        self.places = {
            node: Place(("ip", "netns", "exec", f"{ID}{node}"), f"{NET}.{number}")
            for number, node in enumerate(NODES, 2)
        }

    def make(self) -> None:
        ip("link", "add", ID, "type", "bridge")
        ip("addr", "add", f"{NET}.1/24", "dev", ID)
        ip("link", "set", ID, "up")
        for node, place in self.places.items():
            name = f"{ID}{node}"
            ip("netns", "add", name)
            ip("link", "add", f"{name}x", "type", "veth", "peer", "name", "net", "netns", name)
            ip("link", "set", f"{name}x", "master", ID, "up")
            ip("-n", name, "addr", "add", f"{place.address}/24", "dev", "net")
            for device in ("lo", "net"):
                ip("-n", name, "link", "set", device, "up")

    def cable(self, node: str, state: str) -> None:
        ip("link", "set", f"{ID}{node}x", state)

    def remove(self) -> None:
        for node in NODES:
            ip("netns", "del", f"{ID}{node}", check=False)
        ip("link", "del", ID, check=False)


@dataclass
class Load:
    """Clients that ask all the time; `answers`: when each request ended, and its status, 0 for what was cut."""

    fleet: Fleet
    answers: list[tuple[float, int, str]] = field(default_factory=list)

    async def client(self) -> None:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
        while True:
            try:
                async with self.fleet.http.post(f"{self.fleet.router}/v1/chat/completions", json=body) as answer:
                    self.answers.append((time.monotonic(), answer.status, (await answer.text())[-200:]))
            except aiohttp.ClientError as error:
                self.answers.append((time.monotonic(), 0, repr(error)))
            await asyncio.sleep(0.1)

    def failed_since(self, moment: float) -> list[tuple[int, str]]:
        return [(status, said) for at, status, said in self.answers if at > moment and status != 200]


@pytest.fixture
async def net() -> AsyncIterator[Net]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    made = Net()
    try:
        made.make()
        yield made
    finally:
        made.remove()


@pytest.fixture
async def fleet(net: Net, tmp_path: Path) -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(fleet_in(tmp_path))
        fleet.add_registry("registry", place=net.places["a"])
        for node in NODES:
            fleet.add_agent(node, 2, place=net.places[node])

        async def all_known() -> bool:
            _, nodes = await fleet.call("GET", "/api/v1/nodes")
            return bool(nodes["total"] == len(NODES))

        await fleet.until("all nodes are known", all_known)
        flags = ("--workers", "1", "--health-interval", "1", "--health-timeout", "1", "--first-byte-timeout-s", "3")
        fleet.add_router("router", *flags, place=net.places["a"])
        await fleet.until("the router answers", lambda: fleet.status(f"{fleet.router}/health"), 120)
        yield fleet


async def svcctl(fleet: Fleet, *words: str) -> str:
    """What it prints."""
    where = ("--registry-url", fleet.registries[0], "--router-url", fleet.router)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ctl", *words, *where, cwd=Path(__file__).parents[2],
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    return said.decode()


def by_node(servers: list[Server]) -> Counter[str]:
    return Counter(one.node for one in servers)


async def request_ids(fleet: Fleet, node: str) -> set[str]:
    """Of the replicas that stand on its disk and are not deleted."""
    found = set()
    for path in fleet.root(node).glob("*/request.json"):
        found.add(json.loads(path.read_text())["request_id"])
    return found


async def settled(fleet: Fleet, wanted: dict[str, int]) -> None:
    """So many are ready and so many servers live on each node, and no accelerator has two."""

    async def look() -> bool:
        info, servers = await fleet.info("d"), fleet.servers.now()
        taken = Counter((one.node, one.accelerators) for one in servers)
        assert not taken or max(taken.values()) == 1, f"an accelerator is given twice: {taken}"
        return bool(info["ready"] == sum(wanted.values())) and by_node(servers) == Counter(wanted)

    await fleet.until(f"the fleet is {wanted}", look, 120)


async def test_three_nodes_apply_scale_cut_and_drain_C19(net: Net, fleet: Fleet) -> None:
    (fleet.folder / "fleet.yaml").write_text(FLEET_FILE)
    assert "created" in await svcctl(fleet, "apply", "-f", str(fleet.folder / "fleet.yaml"))
    await settled(fleet, {"a": 1, "b": 1, "c": 1})
    await fleet.listed("m", "ready")
    load = Load(fleet)
    clients = [asyncio.ensure_future(load.client()) for _ in range(CLIENTS)]
    began = time.monotonic()
    try:
        await svcctl(fleet, "scale", "d", "5")

        async def five() -> bool:
            return bool((await fleet.info("d"))["ready"] == 5)

        await fleet.until("five are ready", five, 120)
        await svcctl(fleet, "scale", "d", "3")

        async def three() -> bool:
            return len(fleet.servers.now()) == 3

        await fleet.until("three are left", three, 120)
        assert load.failed_since(began) == [], "scaling fails requests"
        await cut_off(net, fleet, load)
        await drain(fleet, load)
        tell(requests=Counter(status for _, status, _ in load.answers))
    finally:
        for client in clients:
            client.cancel()
    assert (await fleet.call("DELETE", f"{DEPLOYMENTS}/d"))[0] == 202

    async def nothing_left() -> bool:
        return not fleet.orphans()

    await fleet.until("nothing is left", nothing_left, 120)


async def cut_off(net: Net, fleet: Fleet, load: Load) -> None:
    """Node c is cut off: what it had is made elsewhere; when it is back, nothing runs twice."""
    assert by_node(fleet.servers.now())["c"] >= 1
    before = await request_ids(fleet, "c")
    moment = time.monotonic()
    net.cable("c", "down")

    async def elsewhere() -> bool:
        here = by_node([one for one in fleet.servers.now() if one.node != "c"])
        return here.total() == 3 and bool((await fleet.info("d"))["ready"] == 3)

    await fleet.until("what was at c is made elsewhere", elsewhere, 180)
    lost = load.failed_since(moment)
    assert len(lost) <= CLIENTS, f"only what was under way at c may be lost: {lost}"
    info = await fleet.info("d")
    names = {one["request_id"] for one in info["replicas"]}
    assert not names & before, "what is made elsewhere has another name"
    tell(made_elsewhere_after_s=round(time.monotonic() - moment, 1), lost=len(lost))
    moment = time.monotonic()
    net.cable("c", "up")

    async def tidy() -> bool:
        servers = fleet.servers.now()
        assert len([one for one in servers if one.node != "c"]) == 3, "the others stay"
        return len(servers) == 3

    await fleet.until("c is tidied up", tidy, 120)
    assert load.failed_since(moment) == [], "its return fails requests"


async def drain(fleet: Fleet, load: Load) -> None:
    """One node is drained for maintenance, without a failed request; then it is taken back."""
    node = by_node(fleet.servers.now()).most_common(1)[0][0]
    moment = time.monotonic()
    await svcctl(fleet, "nodes", "drain", node)

    async def moved() -> bool:
        servers = by_node(fleet.servers.now())
        return not servers[node] and servers.total() == 3 and bool((await fleet.info("d"))["ready"] == 3)

    await fleet.until(f"{node} is empty", moved, 180)
    await asyncio.sleep(1)
    assert load.failed_since(moment) == [], "the drain fails requests"
    tell(drained_after_s=round(time.monotonic() - moment, 1))
    await svcctl(fleet, "nodes", "undrain", node)
