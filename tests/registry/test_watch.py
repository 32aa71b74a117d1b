"""The watch and the long poll, over HTTP with the suite's own client, and the hub by itself."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiohttp import ClientResponse

from common.discovery.registry_client import RegistryClient
from common.wire.record import Beat, Delete, Put, Registration, Snapshot, Update, decode_update
from registry.core.catalogue import Catalogue
from registry.core.model import Deregister, Register
from registry.http import listing
from registry.views import watch
from registry.views.render import Renderer
from registry.views.watch import TooManyWatchers, WatchHub
from tests.registry.conftest import Client, FakeClock, StartClient, body, our_registration, ours, parts, until


@asynccontextmanager
async def watching(client: Client, query: str = "") -> AsyncIterator[AsyncIterator[Update]]:
    async with client.get(f"/v1/watch{query}") as answer:
        assert answer.status == 200
        yield lines(answer)


async def lines(answer: ClientResponse) -> AsyncIterator[Update]:
    async for line in answer.content:
        yield decode_update(line)


async def test_watch_begins_with_a_snapshot_then_sends_changes(client: Client) -> None:
    await client.post("/services", json=body("a"))
    async with watching(client) as updates:
        first = await anext(updates)
        assert isinstance(first, Snapshot)
        assert [record.name for record in first.services] == ["a"]
        assert first.revision == 1
        await client.post("/services", json=ours("b", metadata={"type": "openai-api"}))
        second = await anext(updates)
        assert isinstance(second, Put)
        assert (second.epoch, second.revision) == (first.epoch, 2)
        assert (second.service.name, second.service.type, second.service.instance_id) == ("b", "openai-api", "i-1")
        assert second.service.last_heartbeat > 0
        await client.post("/services/b/drain")
        third = await anext(updates)
        assert isinstance(third, Put)
        assert third.service.draining
        await client.delete("/services/b")
        fourth = await anext(updates)
        assert fourth == Delete(epoch=first.epoch, revision=4, name="b", reason="deregistered")


async def test_watch_since_a_known_revision_sends_only_what_was_missed_C9(client: Client) -> None:
    for name in ("a", "b", "c"):
        await client.post("/services", json=body(name))
    await client.delete("/services/c")
    epoch = parts(client).catalogue.epoch
    async with watching(client, f"?since=1&epoch={epoch}") as updates:
        put, delete = await anext(updates), await anext(updates)
        assert isinstance(put, Put)
        assert (put.service.name, put.revision) == ("b", 2)
        assert delete == Delete(epoch=epoch, revision=4, name="c", reason="deregistered")


@pytest.mark.parametrize("query", ["?since=99&epoch={epoch}", "?since=0&epoch=other", "?since=0"])
async def test_watch_since_an_unknown_revision_or_epoch_sends_a_snapshot_C9(client: Client, query: str) -> None:
    await client.post("/services", json=body("a"))
    async with watching(client, query.format(epoch=parts(client).catalogue.epoch)) as updates:
        assert isinstance(await anext(updates), Snapshot)


async def test_watch_beats_when_nothing_happens(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "BEAT_S", 0.02)
    async with watching(client) as updates:
        assert isinstance(await anext(updates), Snapshot)
        assert isinstance(await anext(updates), Beat)


async def test_watch_with_a_bad_revision_is_400(client: Client) -> None:
    async with client.get("/v1/watch?since=x") as answer:
        assert answer.status == 400


async def test_watch_beyond_the_limit_is_503_and_room_returns_C14(start_registry: StartClient) -> None:
    client = await start_registry(max_watchers=1)
    async with watching(client) as updates:
        await anext(updates)
        async with client.get("/v1/watch") as refused:
            assert refused.status == 503
    hub = parts(client).hub
    await client.post("/services", json=body())  # the write that meets the closed connection
    await until(lambda: len(hub) == 0)
    async with watching(client) as updates:
        assert isinstance(await anext(updates), Snapshot)


async def test_watch_ends_when_the_registry_stops(start_registry: StartClient) -> None:
    client = await start_registry()
    async with watching(client) as updates:
        await anext(updates)
        parts(client).hub.close()
        with pytest.raises(StopAsyncIteration):
            await anext(updates)


async def test_the_suites_client_follows_the_watch(client: Client) -> None:
    registry = RegistryClient([str(client.make_url(""))], client.session)
    await registry.register(our_registration("a"))
    async with aclosing(registry.watch()) as updates:
        assert isinstance(await anext(updates), Snapshot)
        await registry.deregister("a", instance_id="i-1")
        assert isinstance(await anext(updates), Delete)


async def get_list(client: Client, query: str) -> tuple[int, str, dict[str, Any]]:
    async with client.get(f"/services{query}") as answer:
        assert answer.status == 200
        return int(answer.headers["X-Index"]), answer.headers["X-Epoch"], await answer.json()


async def test_long_poll_answers_when_something_changes(client: Client) -> None:
    index, _, _ = await get_list(client, "")
    task = asyncio.ensure_future(get_list(client, f"?index={index}&wait=30s"))
    await until(lambda: len(parts(client).hub) == 1)
    await client.post("/services", json=body("a"))
    after, _, content = await asyncio.wait_for(task, 5)
    assert after == index + 1
    assert content["total"] == 1


@pytest.mark.parametrize(
    "query", ["?index=7&wait=30s", "?index=0&wait=30s&epoch=other", "?index=0", "?index=0&wait=1ms"]
)
async def test_long_poll_never_waits_for_what_cannot_come_C9(client: Client, query: str) -> None:
    index, epoch, _ = await asyncio.wait_for(get_list(client, query), 5)
    assert (index, epoch) == (0, parts(client).catalogue.epoch)


@pytest.mark.parametrize("query", ["?index=x&wait=1s", "?index=0&wait=soon", "?index=-1"])
async def test_long_poll_with_bad_parameters_is_400(client: Client, query: str) -> None:
    async with client.get(f"/services{query}") as answer:
        assert answer.status == 400


class Hubbed:
    """A hub over a catalogue of its own."""

    def __init__(self, limit: int = 10) -> None:
        clock = FakeClock()
        self.catalogue = Catalogue(epoch="e")
        self.hub = WatchHub(self.catalogue, Renderer(self.catalogue, clock), limit=limit)

    def register(self, name: str) -> None:
        said = Registration(name=name, host="h", port=1, hostname="h", url="http://h:1", status="running")
        self.hub.publish(self.catalogue.apply(Register(said), 0.0)[1])


def kinds(pieces: list[bytes]) -> list[str]:
    return [msgspec.json.decode(line)["type"] for line in b"".join(pieces).splitlines()]


async def test_slow_watcher_is_resynced_and_bounded_C9(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "QUEUE_LIMIT", 5)
    it = Hubbed()
    slow, quick = it.hub.subscribe(since=None, epoch=None), it.hub.subscribe(since=None, epoch=None)
    await it.hub.take(slow)
    await it.hub.take(quick)
    for number in range(20):
        it.register(f"n{number}")
        assert kinds(await it.hub.take(quick)) == ["put"]
        assert len(slow.pending) <= 5
    assert kinds(await it.hub.take(slow)) == ["snapshot"]
    it.register("after")
    assert kinds(await it.hub.take(slow)) == ["put"]


async def test_pending_changes_of_one_name_are_one_line() -> None:
    it = Hubbed()
    watcher = it.hub.subscribe(since=None, epoch=None)
    await it.hub.take(watcher)
    for _ in range(100):
        it.register("same")
    (line,) = b"".join(await it.hub.take(watcher)).splitlines()
    assert msgspec.json.decode(line)["revision"] == 100


async def test_history_that_does_not_reach_back_means_snapshot_C9(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "HISTORY_LIMIT", 3)
    it = Hubbed()
    for number in range(5):
        it.register(f"n{number}")
    assert kinds(await it.hub.take(it.hub.subscribe(since=1, epoch="e"))) == ["snapshot"]
    assert kinds(await it.hub.take(it.hub.subscribe(since=2, epoch="e"))) == ["put"] * 3
    assert kinds(await it.hub.take(it.hub.subscribe(since=5, epoch="e"))) == []


async def test_removed_record_is_not_kept_by_the_renderer() -> None:
    it = Hubbed()
    it.register("a")
    await it.hub.take(it.hub.subscribe(since=None, epoch=None))
    it.hub.publish(it.catalogue.apply(Deregister("a"), 0.0)[1])
    assert it.hub._renderer._cache == {}


async def test_watchers_and_long_polls_share_the_limit() -> None:
    it = Hubbed(limit=1)
    watcher = it.hub.subscribe(since=None, epoch=None)
    with pytest.raises(TooManyWatchers):
        await it.hub.wait_for_change(0, 1.0)
    it.hub.unsubscribe(watcher)
    await it.hub.wait_for_change(0, 0.001)
    assert len(it.hub) == 0
