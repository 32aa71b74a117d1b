import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp.test_utils import TestClient
from aiohttp.web import Application, Request
from msgspec import UNSET, UnsetType

from common.http.serve import ask_first
from common.wire.base import Message
from common.wire.record import Registration
from registry.app import make_app
from registry.core.store import Store
from registry.http.context import REGISTRY, Registry
from registry.http.quick import QuickHeartbeats
from registry.settings import RegistrySettings
from registry.store.etcd import EtcdStore
from registry.store.memory import MemoryStore
from registry.store.sqlite import SqliteStore
from tests.ports import free_port
from tests.registry.etcd import Etcd, require_etcd

Client = TestClient[Request, Application]
StartClient = Callable[..., Awaitable[Client]]


class FakeClock:
    """Time that moves when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def utcnow(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.now)

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    """A real etcd, ended with its test."""
    require_etcd()
    server = Etcd(tmp_path / "etcd", client_port=free_port(), peer_port=free_port())
    server.start()
    yield server
    server.kill()


@pytest.fixture(params=["memory", "sqlite", "etcd"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """Every kind of store in turn, open."""
    made: Store
    match request.param:
        case "memory":
            made = MemoryStore()
        case "sqlite":
            made = SqliteStore(tmp_path / "registry.sqlite3")
        case _:
            made = EtcdStore([f"http://{request.getfixturevalue('etcd').endpoint}"])
    await made.open()
    yield made
    await made.close()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def start_registry(aiohttp_client: Any, clock: FakeClock, tmp_path: Path) -> StartClient:
    """Start a registry over a store with a fake clock; its prober and sweeper stay idle unless told otherwise."""

    async def start(store: Store | None = None, *, quick: bool = True, **settings: Any) -> Client:
        chosen = RegistrySettings(**{"cleanup_interval": 3600, "data_dir": tmp_path, **settings})
        client: Client = await aiohttp_client(make_app(chosen, store or MemoryStore(), clock=clock))
        return _quickened(client) if quick else client

    return start


def _quickened(client: Client) -> Client:
    """As a registry serves: plain heartbeats are answered before the application."""
    runner = client.server.runner
    assert runner is not None
    ask_first(QuickHeartbeats(client.app), runner, asyncio.Event())
    return client


@pytest.fixture
def start_live(aiohttp_client: Any, tmp_path: Path) -> StartClient:
    """Start a registry on the machine's clock that probes several times a second."""

    async def start(store: Store | None = None, **settings: Any) -> Client:
        chosen = RegistrySettings(**{"health_interval": 0.05, "health_timeout": 2, "data_dir": tmp_path, **settings})
        return _quickened(await aiohttp_client(make_app(chosen, store or MemoryStore())))

    return start


@pytest.fixture
async def aiohttp_registry(start_live: StartClient) -> Client:
    return await start_live()


@pytest.fixture
async def client(start_registry: StartClient) -> Client:
    return await start_registry()


def parts(client: Client) -> Registry:
    """The inside of a started registry."""
    return client.app[REGISTRY]


def body(name: str = "svc", **changes: Any) -> dict[str, Any]:
    """A registration of the old kind."""
    made = {
        "name": name,
        "host": "127.0.0.1",
        "port": 9001,
        "hostname": "node-1",
        "url": "http://127.0.0.1:9001",
        "status": "running",
    }
    return {**made, **changes}


def ours(name: str = "svc", *, instance_id: str = "i-1", incarnation: int = 1, **changes: Any) -> dict[str, Any]:
    """A registration of our own babysitter."""
    return body(name, instance_id=instance_id, incarnation=incarnation, ttl_s=15, **changes)


def our_registration(name: str = "svc", **changes: Any) -> Registration:
    """The same as our client takes it."""
    return msgspec.convert(ours(name, **changes), Registration)


class Beating(Message, frozen=True, kw_only=True):
    """The body of a heartbeat of our own babysitter, or of nobody's."""

    instance_id: str | UnsetType = UNSET
    incarnation: int | UnsetType = UNSET


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what has no event of its own; a test that needs this long fails, on a busy machine too."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)
