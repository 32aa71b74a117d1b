"""Two registries over one etcd, 200 clients, and the registries killed in turn: nothing acknowledged is lost."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from common.discovery.registry_client import RegistryClient, RegistryError, RegistryUnavailable
from common.http.client import make_session
from common.wire.record import Delete, Put, Snapshot
from tests.registry.conftest import Beating, our_registration
from tests.registry.etcd import Etcd
from tests.registry.processes import running

pytestmark = pytest.mark.e2e
CLIENTS = 200
LIVES = 4


@dataclass
class Clientele:
    """200 babysitters: each registers, beats, and restarts as a later incarnation."""

    urls: list[str]
    session: aiohttp.ClientSession
    acknowledged: dict[str, int] = field(default_factory=dict)
    generations: dict[str, list[int]] = field(default_factory=dict)
    lives: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    async def live(self, number: int) -> None:
        name = f"replica-{number:03}"
        urls = self.urls if number % 2 else self.urls[::-1]
        client = RegistryClient(urls, self.session)
        for incarnation in range(1, LIVES + 1):
            await self.lives.acquire()
            answer = await self._insist(
                client.register, our_registration(name, instance_id=name, incarnation=incarnation)
            )
            self.acknowledged[name] = incarnation
            self.generations.setdefault(name, []).append(answer["service"]["generation"])
            await self._insist(client.renew, name, Beating(instance_id=name, incarnation=incarnation))

    @staticmethod
    async def _insist(call: Any, *arguments: Any) -> Any:
        """Repeat until a registry answers, as a babysitter does."""
        while True:
            try:
                return await call(*arguments)
            except RegistryUnavailable:
                await asyncio.sleep(random.uniform(0.05, 0.2))

    def release(self, lives: int) -> None:
        """Let each client live so many lives more."""
        for _ in range(lives * CLIENTS):
            self.lives.release()

    async def reached(self, share: float) -> None:
        async with asyncio.timeout(30):
            while sum(self.acknowledged.values()) < share * CLIENTS * LIVES:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def observed(url: str, seen: dict[str, list[int]]) -> AsyncIterator[None]:
    """Follow a registry's watch and note every generation of every name in the order shown."""

    async def follow() -> None:
        async with make_session(timeout_s=5) as session:
            try:
                async for update in RegistryClient([url], session).watch():
                    match update:
                        case Snapshot(services=services):
                            for record in services:
                                seen.setdefault(record.name, []).append(record.generation)
                        case Put(service=record):
                            seen.setdefault(record.name, []).append(record.generation)
                        case Delete(name=name):
                            seen.setdefault(f"deleted {name}", []).append(0)
            except RegistryError:
                return

    task = asyncio.ensure_future(follow())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def listed(url: str, session: aiohttp.ClientSession) -> dict[str, dict[str, Any]]:
    async with session.get(f"{url}/services") as answer:
        return {service["name"]: service for service in (await answer.json())["services"]}


async def test_two_registries_lose_nothing_when_either_is_killed_J3(etcd: Etcd, tmp_path: Path) -> None:
    store = ("--store", f"etcd://{etcd.endpoint}", "--health-interval", "600")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    seen_one: dict[str, list[int]] = {}
    seen_two: dict[str, list[int]] = {}
    with ExitStack() as stack:
        first, first_url = stack.enter_context(running(tmp_path / "one", *store))
        port = first_url.rpartition(":")[2]
        second, second_url = stack.enter_context(running(tmp_path / "two", *store))
        async with make_session(timeout_s=5) as session, observed(second_url, seen_two):
            clients = Clientele([first_url, second_url], session)
            everyone = asyncio.gather(*(clients.live(number) for number in range(CLIENTS)))
            clients.release(2)
            await clients.reached(0.3)
            first.kill()
            first.wait()
            await clients.reached(0.5)
            again, _ = stack.enter_context(running(tmp_path / "one", *store, "--port", port))
            async with observed(first_url, seen_one):
                clients.release(1)
                await clients.reached(0.65)
                assert set(await listed(second_url, session)) == set(clients.acknowledged)
                second.kill()
                second.wait()
                clients.release(1)
                await asyncio.wait_for(everyone, 40)
                found = await listed(first_url, session)
            again.terminate()
            assert again.wait(10) == 0
    assert {name: service["incarnation"] for name, service in found.items()} == clients.acknowledged
    assert set(clients.acknowledged.values()) == {LIVES}
    assert len(found) == CLIENTS
    assert seen_one
    assert seen_two
    for seen in (seen_one, seen_two, clients.generations):
        for name, generations in seen.items():
            assert generations == sorted(generations), name
            assert not name.startswith("deleted")
