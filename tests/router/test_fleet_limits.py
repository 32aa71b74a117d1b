"""Two routers of two workers each over one registry, as processes: no key gets more than its limits, whoever it asks."""

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from tests.router.fakes import Call, FakeReplica, plain
from tests.router.test_process import Node, process, running

pytestmark = [pytest.mark.e2e, pytest.mark.world]
WORKERS = 4
TOKENS_EACH = 100


class Replica:
    """Answers a chat with its usage, and counts how many are under way, and what was used."""

    def __init__(self) -> None:
        self.under_way = self.most = self.requests = 0
        self.pause_s = 0.0

    async def __call__(self, call: Call) -> None:
        if call.line.startswith(b"GET"):
            await call.send(plain(b'{"object":"list","data":[{"id":"m"}]}'))
            return
        self.under_way += 1
        self.requests += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(self.pause_s)
        self.under_way -= 1
        usage = {"prompt_tokens": 40, "completion_tokens": TOKENS_EACH - 40}
        await call.send(plain(json.dumps({"ok": 1, "usage": usage}).encode()))


class Fleet:
    """A registry, two routers and a replica."""

    def __init__(self, folder: Path, http: aiohttp.ClientSession, replica: Replica) -> None:
        self.replica = replica
        self.registry = Node(folder, http)
        self.routers = [Node(folder, http) for _ in range(2)]
        for router in self.routers:
            router.registry_port = self.registry.registry_port
        self.secrets: dict[str, str] = {}
        self.masters: list[Any] = []
        self.process: Any = None

    def start_registry(self) -> Any:
        """One that remembers."""
        port = str(self.registry.registry_port)
        return process("registry", "--port", port, "--data-dir", "registry", cwd=self.registry.folder)

    async def key(self, name: str, **limits: int) -> None:
        url = f"http://127.0.0.1:{self.registry.registry_port}/api/v1/keys"
        async with self.registry.http.post(url, json={"name": name, **limits}) as answer:
            assert answer.status == 201
            self.secrets[name] = (await answer.json())["secret"]
        async with asyncio.timeout(20):
            for router in self.routers:
                while await self.ask(router, name, path="/v1/models") != 200:
                    await asyncio.sleep(0.05)

    async def ask(self, router: Node, name: str, path: str = "/v1/chat/completions") -> int:
        """One request over a connection of its own, as each lands at another worker."""
        method, body = ("GET", b"") if path == "/v1/models" else ("POST", b'{"model":"m","messages":[]}')
        reader, writer = await asyncio.open_connection("127.0.0.1", router.router_port)
        try:
            head = f"{method} {path} HTTP/1.1\r\nhost: r\r\nauthorization: Bearer {self.secrets[name]}\r\n"
            writer.write(f"{head}connection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
            async with asyncio.timeout(30):
                return int((await reader.read()).split(b" ", 2)[1])
        except (ConnectionError, IndexError):
            return 0  # its worker was killed
        finally:
            writer.close()

    async def storm(self, name: str, seconds: float, clients: int = 16) -> Counter[int]:
        """What clients of both routers get who never wait."""
        counts: Counter[int] = Counter()
        until = asyncio.get_running_loop().time() + seconds

        async def client(number: int) -> None:
            while asyncio.get_running_loop().time() < until:
                counts[await self.ask(self.routers[number % 2], name)] += 1
                await asyncio.sleep(0.01)

        await asyncio.gather(*(client(number) for number in range(clients)))
        return counts


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    replica = Replica()
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession())
        fake = await stack.enter_async_context(FakeReplica(replica))
        one = Fleet(tmp_path, http, replica)
        one.process = await stack.enter_async_context(one.start_registry())
        await one.registry.until_listening(one.registry.registry_port)
        await one.registry.register("a-server", fake.port)
        for router in one.routers:
            data = str(tmp_path / f"data-{router.router_port}")
            one.masters.append(await stack.enter_async_context(router.router("--registry-keys", "--data-dir", data)))
            await router.until_listening(router.router_port)
        yield one


async def test_no_limit_is_passed_by_storms_at_both_routers(fleet: Fleet) -> None:
    await fleet.key("requests", requests_per_minute=60)
    await fleet.key("tokens", tokens_per_minute=5000)
    await fleet.key("at-once", max_in_flight=5)
    requests = await fleet.storm("requests", 5)
    assert 60 - WORKERS <= requests[200] <= 60
    assert set(requests) == {200, 429}
    tokens = await fleet.storm("tokens", 5)
    used = tokens[200] * TOKENS_EACH
    assert 5000 - WORKERS * TOKENS_EACH <= used <= 5000 + WORKERS * TOKENS_EACH
    assert set(tokens) == {200, 429}
    fleet.replica.pause_s, fleet.replica.most = 0.2, 0
    at_once = await fleet.storm("at-once", 5)
    assert 4 <= fleet.replica.most <= 5
    assert at_once[200] > 5 * 4  # five at once, each 0.2 s, for five seconds
    assert set(at_once) == {200, 429}


async def test_a_registry_that_is_killed_and_comes_back_opens_no_limit(fleet: Fleet) -> None:
    await fleet.key("team", requests_per_minute=400)
    began = asyncio.get_running_loop().time()
    first = await fleet.storm("team", 1, clients=2)
    fleet.process.kill()
    await fleet.process.wait()
    alone = await fleet.storm("team", 3, clients=4)
    async with fleet.start_registry():
        await fleet.registry.until_listening(fleet.registry.registry_port)
        again = await fleet.storm("team", 8)
        assert asyncio.get_running_loop().time() - began < 55, "the machine is too slow: it may be another minute"
        assert first[200] + alone[200] + again[200] <= 400 + WORKERS
        assert alone[200] > 0
        assert set(first) | set(alone) | set(again) == {200, 429}


async def test_a_registry_that_hangs_keeps_nobody_waiting_for_long(fleet: Fleet) -> None:
    await fleet.key("team", requests_per_minute=6000)
    assert [await fleet.ask(router, "team") for router in fleet.routers] == [200, 200]
    fleet.process.send_signal(signal.SIGSTOP)
    try:
        await fleet.ask(fleet.routers[0], "team")
        counts = await fleet.storm("team", 3, clients=4)
    finally:
        fleet.process.send_signal(signal.SIGCONT)
    assert set(counts) == {200}
    assert counts[200] > 20


async def test_workers_that_are_killed_take_what_they_held_with_them(fleet: Fleet) -> None:
    await fleet.key("team", requests_per_minute=60)
    storm = asyncio.ensure_future(fleet.storm("team", 6, clients=8))
    for _ in range(3):
        await asyncio.sleep(0.5)
        for master in fleet.masters:
            os.kill(min(running(psutil.Process(master.pid))), signal.SIGKILL)
    counts = await storm
    assert fleet.replica.requests <= 60 + WORKERS
    assert counts[200] > 0
