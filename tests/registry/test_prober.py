import asyncio

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from common.wire.record import Registration
from registry.core.model import Instance, Upsert
from registry.store.memory import MemoryStore
from tests.registry.conftest import Client, StartClient, body, parts, until


class Probed:
    """A server whose /health answers what it is told to, and counts."""

    def __init__(self) -> None:
        self.status = 200
        self.asked = asyncio.Event()
        self.held = asyncio.Event()
        self.held.set()
        self.at_once = self.most_at_once = self.count = 0

    async def answer(self, _request: web.Request) -> web.Response:
        self.at_once += 1
        self.count += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.asked.set()
        await self.held.wait()
        self.at_once -= 1
        return web.Response(status=self.status)

    def server(self, host: str = "127.0.0.1") -> TestServer:
        app = web.Application()
        app.router.add_get("/health", self.answer)
        return TestServer(app, host=host)


@pytest.fixture
def probed() -> Probed:
    return Probed()


async def until_health(client: Client, name: str, expected: str) -> None:
    hub = parts(client).hub
    async with asyncio.timeout(10):
        while True:
            revision = parts(client).catalogue.revision
            entry = parts(client).catalogue.get(name)
            if entry is not None and entry.instance.health.value == expected:
                return
            await hub.wait_for_change(revision, 10)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registry.probes.prober.TICK_S", 0.01)


async def test_prober_tells_healthy_then_unhealthy(aiohttp_registry: Client, probed: Probed) -> None:
    async with probed.server() as server:
        await aiohttp_registry.post("/services", json=body(url=f"http://127.0.0.1:{server.port}"))
        await until_health(aiohttp_registry, "svc", "healthy")
        probed.status = 500
        await until_health(aiohttp_registry, "svc", "unhealthy")
        probed.status = 200
        await until_health(aiohttp_registry, "svc", "healthy")


async def test_prober_asks_the_babysitter_of_a_routable_record(aiohttp_registry: Client, probed: Probed) -> None:
    async with probed.server() as server:
        assert server.port is not None
        record = body(port=server.port - 1, url="http://127.0.0.1:1024", metadata={"type": "openai-api"})
        await aiohttp_registry.post("/services", json=record)
        await until_health(aiohttp_registry, "svc", "healthy")


@pytest.mark.parametrize("host", ["::1", "[::1]"])
async def test_a_host_with_or_without_brackets_registers_is_probed_and_shown_as_given(
    aiohttp_registry: Client, probed: Probed, host: str
) -> None:
    client = aiohttp_registry
    async with probed.server("::1") as server:
        assert server.port is not None
        own = body("own", host=host, port=server.port, url=f"http://[::1]:{server.port}")
        metadata = {"type": "openai-api", "metrics_path": "/metrics"}
        routable = body(
            "server", host=host, port=server.port - 1, url=f"http://[::1]:{server.port - 1}", metadata=metadata
        )
        for record in (own, routable):
            async with client.post("/services", json=record) as answer:
                assert answer.status == 201
            async with client.get(f"/services/{record['name']}/health") as answer:
                assert (await answer.json())["health_status"] == "healthy"
            async with client.get(f"/services/{record['name']}") as answer:
                assert (await answer.json())["host"] == host
        async with client.get("/sd/prometheus") as answer:
            targets = {group["labels"]["service"]: group["targets"] for group in await answer.json()}
        assert targets["server"] == [f"[::1]:{server.port - 1}"]


async def test_prober_bounds_its_concurrency(start_live: StartClient, probed: Probed) -> None:
    client = await start_live(probe_concurrency=3)
    probed.held.clear()
    async with probed.server() as server:
        for number in range(12):
            await client.post("/services", json=body(f"s{number}", url=f"http://127.0.0.1:{server.port}"))
        await asyncio.wait_for(probed.asked.wait(), 5)
        await until(lambda: probed.at_once == 3)
        probed.held.set()
        for number in range(12):
            await until_health(client, f"s{number}", "healthy")
    assert probed.most_at_once == 3


async def test_restart_probes_nobody_out_of_turn(start_live: StartClient) -> None:
    store = MemoryStore()
    said = Registration(
        name="svc", host="127.0.0.1", port=9001, hostname="h", url="http://127.0.0.1:9001", status="running"
    )
    await store.write([Upsert(Instance(said, generation=3), durable=True)])
    client = await start_live(store, health_interval=3600)
    planned = dict(parts(client).prober._schedule._due)
    for number in range(3):
        await client.post("/services/svc/heartbeat", json={"replica_id": "r", "running": number})
    assert parts(client).prober._schedule._due == planned


async def test_prober_drops_what_is_gone(aiohttp_registry: Client, probed: Probed) -> None:
    async with probed.server() as server:
        await aiohttp_registry.post("/services", json=body(url=f"http://127.0.0.1:{server.port}"))
        await until_health(aiohttp_registry, "svc", "healthy")
        await aiohttp_registry.delete("/services/svc")
    prober = parts(aiohttp_registry).prober
    assert len(prober._schedule) == 0
    assert prober._streaks == {}


async def test_records_at_one_address_share_its_good_answers(start_live: StartClient, probed: Probed) -> None:
    client = await start_live(health_interval=0.2)
    async with probed.server() as server:
        assert server.port is not None
        await client.post("/services", json=body("own", port=server.port, url=f"http://127.0.0.1:{server.port}"))
        shared = body("server", port=server.port - 1, url="http://127.0.0.1:1024", metadata={"type": "openai-api"})
        await client.post("/services", json=shared)
        for name in ("own", "server"):
            await until_health(client, name, "healthy")
        before, streaks = probed.count, parts(client).prober._streaks
        many = streaks["own"][1] + streaks["server"][1] + 20
        await until(lambda: streaks["own"][1] + streaks["server"][1] >= many)
        assert probed.count - before <= 15
        probed.status = 500
        for name in ("own", "server"):
            await until_health(client, name, "unhealthy")


async def test_new_record_at_an_address_that_was_just_well_is_not_asked_for_itself(
    start_live: StartClient, probed: Probed
) -> None:
    client = await start_live(health_interval=3600)
    async with probed.server() as server:
        assert server.port is not None
        await client.post("/services", json=body("own", port=server.port, url=f"http://127.0.0.1:{server.port}"))
        await until_health(client, "own", "healthy")
        shared = body("server", port=server.port - 1, url="http://127.0.0.1:1024", metadata={"type": "openai-api"})
        await client.post("/services", json=shared)
        await until_health(client, "server", "healthy")
        assert probed.count == 1
        probed.status = 500
        parts(client).prober._well_at.clear()  # five seconds later
        await client.post("/services", json={**shared, "name": "late"})
        await until_health(client, "late", "unhealthy")


async def test_neighbours_of_one_that_does_not_answer_are_asked_soon_B20(
    start_live: StartClient, probed: Probed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that dies: the turn of its other records would come in an hour, and an answer of a moment ago proves nothing."""
    monkeypatch.setattr("registry.probes.schedule.AGAIN_S", 0.01)
    client = await start_live(health_interval=3600)
    async with probed.server() as server, probed.server() as elsewhere:
        for name, port, host in (
            ("first", server.port, "node-1.example"),
            ("second", server.port, "node-1.example"),
            ("third", elsewhere.port, "node-2.example"),
        ):
            await client.post("/services", json=body(name, host=host, port=port, url=f"http://127.0.0.1:{port}"))
            await until_health(client, name, "healthy")
        probed.status = 500
        parts(client).prober._well_at.clear()  # an hour later
        parts(client).prober._schedule.add("first", 0.0, within_s=0.0)
        for name in ("first", "second"):
            await until_health(client, name, "unhealthy")
        assert (await (await client.get("/services/third")).json())["health_status"] == "healthy"


async def test_one_in_doubt_is_asked_again_soon(
    start_live: StartClient, probed: Probed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.probes.schedule.AGAIN_S", 0.01)
    client = await start_live(health_interval=3600)
    probed.status = 500
    async with probed.server() as server:
        await client.post("/services", json=body(url=f"http://127.0.0.1:{server.port}"))
        await until_health(client, "svc", "unhealthy")
        for probed.status, health in ((200, "healthy"), (500, "unhealthy")):
            parts(client).prober._well_at.clear()  # an hour later
            parts(client).prober._schedule.add("svc", 0.0, within_s=0.0)
            await until_health(client, "svc", health)
