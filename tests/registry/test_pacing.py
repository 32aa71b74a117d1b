import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from msgspec.structs import replace

from common.discovery import lease
from common.discovery.lease import Lease
from common.discovery.registry_client import RegistryClient
from common.http.client import make_session
from registry.core.catalogue import Catalogue
from registry.core.model import Deregister, Learn, Register, Renew
from registry.core.pacing import LONGEST_S, Pace, next_step
from tests.ports import free_port
from tests.registry.conftest import Beating, Client, body, our_registration, parts
from tests.registry.etcd import Etcd
from tests.registry.processes import running
from tests.registry.records import registration

NAMES = {f"svc-{number}" for number in range(6)}
PACED = ("--max-heartbeats-per-second", "1", "--health-interval", "3600")
SHORT_S, LONG_S = 8.0, 19.0
"""Leases of those that beat each second, and of those that beat each ten."""


@pytest.mark.parametrize(
    ("told_s", "enough_s", "next_s"),
    [
        (0, 0.0, 0),
        (0, 5.0, 0),
        (0, 5.1, 10),
        (0, 10.1, 20),
        (0, 14.0, 20),
        (10, 10.0, 10),
        (10, 10.1, 20),
        (10, 3.5, 10),
        (10, 3.4, 0),
        (20, 7.0, 20),
        (20, 6.9, 10),
        (40, 1.0, 0),
        (80, 1000.0, LONGEST_S),
        (LONGEST_S, 1000.0, LONGEST_S),
    ],
)
def test_steps_double_and_go_back_only_with_room_to_spare(told_s: int, enough_s: float, next_s: int) -> None:
    assert next_step(told_s, enough_s) == next_s


def test_a_fleet_that_keeps_its_size_is_told_one_thing() -> None:
    for tenths in range(2000):
        from_below, from_above = next_step(0, tenths / 10), next_step(LONGEST_S, tenths / 10)
        assert from_below <= from_above
        for told_s in (from_below, from_above):
            assert next_step(told_s, tenths / 10) == told_s


def test_everybody_stays_as_it_is_before_it_is_known_who_beats_here() -> None:
    pace = Pace(10.0, 100.0, None)
    pace.judge(2000, 99.0)
    assert (pace.interval_s, pace.said) == (None, b',"heartbeat_interval_s":null')
    pace.judge(2000, 100.0)
    assert (pace.interval_s, pace.said) == (160, b',"heartbeat_interval_s":160')
    pace.judge(1, 101.0)
    assert (pace.interval_s, pace.said) == (0, b"")


def test_only_those_that_beat_here_and_say_how_long_they_last_are_counted() -> None:
    catalogue = Catalogue(epoch="e", shared=True)

    def beating(now: float) -> int:
        return sum(entry.beats(now) for entry in catalogue)

    for name, ttl_s in (("short", 15.0), ("long", 60.0), ("elsewhere", 60.0)):
        catalogue.apply(Register(registration(name, instance_id="a", ttl_s=ttl_s)), 0.0)
    catalogue.apply(Register(registration("old-kind")), 0.0)
    elsewhere = catalogue.get("elsewhere")
    assert elsewhere is not None
    assert beating(1.0) == 3
    catalogue.apply(Deregister("elsewhere"), 1.0)
    catalogue.apply(Learn(elsewhere.instance), 1.0)
    assert beating(1.0) == 2
    assert beating(15.0) == 1
    catalogue.apply(Renew("short"), 16.0)
    assert beating(17.0) == 2


async def test_the_pace_is_told_with_every_answer_to_a_heartbeat(client: Client) -> None:
    registry = parts(client)
    await client.post("/services", json=body("svc"))
    for told_s, doubted in ((0, False), (40, False), (None, False), (40, True), (None, True), (0, True)):
        registry.pace.interval_s = told_s
        if doubted:
            await client.post("/v1/routers/r/failing", json={"failing": {"svc": "nothing comes"}})
        for content in ({"status": "running"}, {"status": "draining"}):
            async with client.post("/services/svc/heartbeat", json=content) as answer:
                told = await answer.json()
            assert told.get("heartbeat_interval_s", 0) == told_s
            assert ("heartbeat_interval_s" in told) is (told_s != 0)
            assert ("doubt" in told) is doubted
        async with client.post("/services", json=body("svc")) as answer:
            assert (await answer.json()).get("heartbeat_interval_s", 0) == told_s


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fleet gets leases of another length in about two heartbeats, not ten."""
    monkeypatch.setattr(lease, "CHANGES_SHARE", 0.5)


@asynccontextmanager
async def kept(session: aiohttp.ClientSession, urls: Sequence[str], name: str, incarnation: int) -> AsyncIterator[None]:
    """One life of a babysitter's record; killed at its end, so that nothing more is heard of it."""
    lease = Lease(
        RegistryClient(urls, session, first=0),
        registration=lambda: replace(our_registration(name, instance_id=name, incarnation=incarnation), ttl_s=SHORT_S),
        report=lambda: Beating(instance_id=name, incarnation=incarnation),
        interval_s=1.0,
    )
    keeping = asyncio.create_task(lease.keep())
    try:
        yield
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


async def listed(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    async with session.get(f"{url}/services") as answer:
        return {one["name"]: one for one in (await answer.json())["services"]}


async def until_paced(session: aiohttp.ClientSession, url: str) -> None:
    """Wait until every record lasts for as long as it takes."""
    async with asyncio.timeout(30):
        while {name: one["ttl_s"] for name, one in (await listed(session, url)).items()} != dict.fromkeys(
            NAMES, LONG_S
        ):
            await asyncio.sleep(0.1)


async def nothing_is_lost(session: aiohttp.ClientSession, url: str, seconds: float) -> None:
    """Every record is there, and holds, all the time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = await listed(session, url)
        assert found.keys() == NAMES
        assert [one for one in found.values() if one["stale"] or not one["is_healthy"]] == []
        await asyncio.sleep(0.2)


@pytest.mark.e2e
async def test_one_of_two_registries_killed_and_a_babysitter_too_loses_no_record(etcd: Etcd, tmp_path: Path) -> None:
    store = ("--store", f"etcd://{etcd.endpoint}", *PACED)
    port = str(free_port())
    async with make_session(timeout_s=5) as session, AsyncExitStack() as lives:
        with running(tmp_path, *store) as (_, staying):
            with running(tmp_path, *store, "--port", port) as (process, url):
                killed = AsyncExitStack()
                for name in sorted(NAMES - {"svc-0"}):
                    await lives.enter_async_context(kept(session, (url, staying), name, 1))
                await killed.enter_async_context(kept(session, (url, staying), "svc-0", 1))
                await until_paced(session, staying)
                process.kill()
                process.wait()
            await killed.aclose()
            await lives.enter_async_context(kept(session, (url, staying), "svc-0", 2))
            await nothing_is_lost(session, staying, 2.0)
            with running(tmp_path, *store, "--port", port) as (_, url):
                await nothing_is_lost(session, staying, LONG_S + 2.0)  # each must have beaten meanwhile
                await nothing_is_lost(session, url, 1.0)
                assert (await listed(session, url))["svc-0"]["incarnation"] == 2


@pytest.mark.e2e
async def test_the_only_registry_killed_loses_no_record_and_tells_the_same_when_it_is_back(tmp_path: Path) -> None:
    port = str(free_port())
    async with make_session(timeout_s=5) as session, AsyncExitStack() as lives:
        with running(tmp_path, *PACED, "--port", port) as (process, url):
            for name in NAMES:
                await lives.enter_async_context(kept(session, (url,), name, 1))
            await until_paced(session, url)
            process.kill()
            process.wait()
        with running(tmp_path, *PACED, "--port", port) as (_, url):
            await nothing_is_lost(session, url, LONG_S + 2.0)
            await until_paced(session, url)


@pytest.mark.e2e
async def test_a_fleet_that_shrinks_gets_its_short_leases_back(tmp_path: Path) -> None:
    async with make_session(timeout_s=5) as session, AsyncExitStack() as staying:
        with running(tmp_path, *PACED) as (_, url):
            async with AsyncExitStack() as leaving:
                for name in NAMES:
                    lives = staying if name == "svc-0" else leaving
                    await lives.enter_async_context(kept(session, (url,), name, 1))
                await until_paced(session, url)
            for name in NAMES - {"svc-0"}:
                await session.delete(f"{url}/services/{name}")
            async with asyncio.timeout(30):
                while (await listed(session, url))["svc-0"]["ttl_s"] != SHORT_S:
                    await asyncio.sleep(0.1)
