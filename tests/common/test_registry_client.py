from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import aiohttp
import msgspec
import pytest

from common.discovery import registry_client
from common.discovery.registry_client import (
    RegistrationRefused,
    RegistryClient,
    RegistryError,
    RegistryUnavailable,
    StaleIncarnation,
    UnknownService,
    WatchUnsupported,
)
from common.wire.record import Beat, Registration, Snapshot, record_from_wire
from tests.common.fake_registry import HANG, Beating, FakeRegistry

Make = Callable[[], Awaitable[FakeRegistry]]
OURS = Registration(name="a", host="h", hostname="h", port=1, url="http://h:1", status="running")
RECORD = msgspec.to_builtins(OURS)
BEAT = Beat(epoch="e", revision=1)
NOWHERE = "http://127.0.0.1:1"


def client_of(session: aiohttp.ClientSession, *urls: str, token: str | None = None) -> RegistryClient:
    return RegistryClient(urls, session, token=token, first=0)


def test_clients_of_several_registries_spread(session: aiohttp.ClientSession) -> None:
    urls = ["http://a", "http://b", "http://c"]
    assert {RegistryClient(urls, session).url for _ in range(200)} == set(urls)
    assert {RegistryClient(urls, session, first=1).url for _ in range(20)} == {"http://b"}


def test_at_least_one_url_is_needed() -> None:
    with pytest.raises(ValueError, match="at least one"):
        RegistryClient([], None)  # type: ignore[arg-type]


async def test_calls_have_their_paths_bodies_and_token(registry: FakeRegistry, session: aiohttp.ClientSession) -> None:
    client = client_of(session, registry.url + "/", token="t" * 32)
    await client.register(OURS)
    await client.renew("a/b", Beating())
    await client.deregister("a", instance_id="i&d")
    await client.deregister("a")
    asked = [registry.asked.get_nowait() for _ in range(4)]
    assert [(one.method, one.path) for one in asked] == [
        ("POST", "/services"),
        ("POST", "/services/a%2Fb/heartbeat"),
        ("DELETE", "/services/a?instance_id=i%26d"),
        ("DELETE", "/services/a"),
    ]
    assert asked[0].body == RECORD
    assert asked[1].body == {"status": "running"}
    assert {one.authorization for one in asked} == {"Bearer " + "t" * 32}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (404, UnknownService),
        (409, StaleIncarnation),
        (400, RegistrationRefused),
        (401, RegistrationRefused),
        (422, RegistrationRefused),
        (408, RegistryUnavailable),
        (429, RegistryUnavailable),
        (500, RegistryUnavailable),
        (503, RegistryUnavailable),
        (302, RegistryUnavailable),
    ],
)
async def test_each_answer_is_an_exception_with_a_name(
    registry: FakeRegistry, session: aiohttp.ClientSession, status: int, expected: type[RegistryError]
) -> None:
    registry.script.append((status, {"error": "the reason"}))
    with pytest.raises(expected, match="the reason"):
        await client_of(session, registry.url).renew("a", Beating())


async def test_an_answer_that_is_no_json_is_told_by_its_status(
    registry: FakeRegistry, session: aiohttp.ClientSession
) -> None:
    registry.script.extend([(500, b"<html>"), (200, b"[1]")])
    client = client_of(session, registry.url)
    for status in (500, 200):
        with pytest.raises(RegistryUnavailable, match=f"answered {status}"):
            await client.renew("a", Beating())


async def test_a_registration_at_something_that_is_no_registry_is_to_be_tried_again_later(
    registry: FakeRegistry, session: aiohttp.ClientSession
) -> None:
    registry.script.append(404)
    with pytest.raises(RegistryUnavailable, match="is no registry"):
        await client_of(session, registry.url).register(OURS)


@pytest.mark.parametrize("status", [404, 409])
async def test_deregistering_what_is_gone_is_fine(
    registry: FakeRegistry, session: aiohttp.ClientSession, status: int
) -> None:
    registry.script.append(status)
    await client_of(session, registry.url).deregister("a", instance_id="i")


async def test_the_next_registry_takes_the_call_and_is_kept(
    make_registry: Make, session: aiohttp.ClientSession
) -> None:
    first, second = await make_registry(), await make_registry()
    first.script.append(503)
    client = client_of(session, NOWHERE, first.url, second.url)
    await client.renew("a", Beating())
    assert client.url == second.url
    await client.renew("a", Beating())
    assert (first.asked.qsize(), second.asked.qsize()) == (1, 2)


async def test_a_registry_that_refuses_is_not_asked_again_elsewhere(
    make_registry: Make, session: aiohttp.ClientSession
) -> None:
    first, second = await make_registry(), await make_registry()
    first.script.append(409)
    with pytest.raises(StaleIncarnation):
        await client_of(session, first.url, second.url).register(OURS)
    assert second.asked.empty()


async def test_when_none_answers_every_reason_is_told(registry: FakeRegistry, session: aiohttp.ClientSession) -> None:
    registry.script.append((500, {"error": "disk"}))
    with pytest.raises(RegistryUnavailable) as caught:
        await client_of(session, NOWHERE, registry.url).renew("a", Beating())
    assert NOWHERE in str(caught.value)
    assert f"{registry.url}: answered 500: disk" in str(caught.value)


async def test_a_registry_whose_name_cannot_be_asked_for_is_left_for_the_next(
    registry: FakeRegistry, session: aiohttp.ClientSession
) -> None:
    client = client_of(session, "http://gpu1..lab:18000", registry.url)
    await client.renew("a", Beating())
    assert client.url == registry.url


async def test_a_registry_that_hangs_is_left_at_the_deadline(
    make_registry: Make, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_client, "CALL_TIMEOUT_S", 0.05)
    first, second = await make_registry(), await make_registry()
    first.script.append(HANG)
    client = client_of(session, first.url, second.url)
    await client.renew("a", Beating())
    assert client.url == second.url


async def test_list_skips_records_that_cannot_be_read(registry: FakeRegistry, session: aiohttp.ClientSession) -> None:
    registry.script.append((200, {"services": [RECORD, {"name": "b"}, 5]}))
    assert [record.name for record in await client_of(session, registry.url).list()] == ["a"]


@pytest.mark.parametrize("answer", [(200, {}), (200, {"services": 5}), 404, 401, 500])
async def test_a_list_that_is_none_means_unavailable_and_never_empty(
    registry: FakeRegistry, session: aiohttp.ClientSession, answer: Any
) -> None:
    registry.script.append(answer)
    with pytest.raises(RegistryUnavailable):
        await client_of(session, registry.url).list()


async def collect(client: RegistryClient) -> tuple[list[Any], Exception]:
    """What a watch yields, and how it ends."""
    updates: list[Any] = []
    try:
        async for update in client.watch():
            updates.append(update)  # noqa: PERF401 - what came before the fault is wanted too
    except RegistryError as error:
        return updates, error
    raise AssertionError("a watch ended without a reason")


async def test_watch_yields_lines_however_they_are_cut(registry: FakeRegistry, session: aiohttp.ClientSession) -> None:
    snapshot = Snapshot(epoch="e", revision=1, services=[record_from_wire(RECORD)])
    line = msgspec.json.encode(snapshot) + b"\n"
    registry.watch_lines = [line[:5], line[5:] + b"\n\n" + line, msgspec.json.encode(BEAT) + b"\n"]
    updates, error = await collect(client_of(session, registry.url))
    assert updates == [snapshot, snapshot, BEAT]
    assert isinstance(error, RegistryUnavailable)


async def test_watch_takes_lines_longer_than_a_stream_buffer_D15(
    registry: FakeRegistry, session: aiohttp.ClientSession
) -> None:
    big = record_from_wire({**RECORD, "metadata": {"models": ["x" * 2_000_000]}})
    snapshot = Snapshot(epoch="e", revision=1, services=[big])
    registry.watch_lines = [msgspec.json.encode(snapshot) + b"\n"]
    updates, _ = await collect(client_of(session, registry.url))
    assert updates == [snapshot]


async def test_watch_gives_up_on_a_line_without_end(
    registry: FakeRegistry, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_client, "WATCH_LINE_LIMIT_BYTES", 1000)
    registry.watch_lines = [b"x" * 2000]
    updates, error = await collect(client_of(session, registry.url))
    assert updates == []
    assert "longer than 1000 bytes" in str(error)


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"type":"put"}', b"\xff"])
async def test_a_broken_line_ends_the_watch_and_moves_on(
    registry: FakeRegistry, session: aiohttp.ClientSession, line: bytes
) -> None:
    registry.watch_lines = [line + b"\n"]
    client = client_of(session, registry.url, NOWHERE)
    updates, error = await collect(client)
    assert updates == []
    assert isinstance(error, RegistryUnavailable)
    assert client.url == NOWHERE


async def test_a_silent_watch_is_dead(
    registry: FakeRegistry, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_client, "WATCH_SILENCE_S", 0.05)
    registry.watch_lines, registry.watch_stays = [msgspec.json.encode(BEAT) + b"\n"], True
    client = client_of(session, registry.url, NOWHERE)
    updates, error = await collect(client)
    assert updates == [BEAT]
    assert "watch broke" in str(error)
    assert client.url == NOWHERE


@pytest.mark.parametrize("status", [404, 405])
async def test_an_old_registry_has_no_watch(
    registry: FakeRegistry, session: aiohttp.ClientSession, status: int
) -> None:
    registry.watch_status = status
    _, error = await collect(client_of(session, registry.url))
    assert isinstance(error, WatchUnsupported)


async def test_a_watch_that_is_refused_for_now_is_unavailable(
    registry: FakeRegistry, session: aiohttp.ClientSession
) -> None:
    registry.watch_status = 503
    _, error = await collect(client_of(session, registry.url))
    assert isinstance(error, RegistryUnavailable)


async def test_follow_polls_an_old_registry(registry: FakeRegistry, session: aiohttp.ClientSession) -> None:
    registry.script.extend([(200, {"services": [RECORD]}), (200, {"services": []})])
    async with aclosing(client_of(session, registry.url).follow(poll_interval_s=0.01)) as updates:
        first, second = [await anext(updates) for _ in range(2)]
    assert isinstance(first, Snapshot)
    assert [record.name for record in first.services] == ["a"]
    assert isinstance(second, Snapshot)
    assert second.services == []


async def test_follow_yields_faults_and_goes_on(registry: FakeRegistry, session: aiohttp.ClientSession) -> None:
    registry.watch_lines = [msgspec.json.encode(BEAT) + b"\n"]
    client = client_of(session, NOWHERE, registry.url)
    async with aclosing(client.follow(poll_interval_s=0.01, retry_s=0.01)) as updates:
        seen = [await anext(updates) for _ in range(4)]
    kinds = [type(update) for update in seen]
    assert kinds == [RegistryUnavailable, Beat, RegistryUnavailable, RegistryUnavailable]


async def test_follow_survives_a_url_that_is_no_registry_at_all(
    registry: FakeRegistry, session: aiohttp.ClientSession
) -> None:
    registry.script.extend([404, 404])
    client = client_of(session, registry.url)
    async with aclosing(client.follow(poll_interval_s=0.01, retry_s=0.01)) as updates:
        seen = [await anext(updates) for _ in range(2)]
    assert [type(update) for update in seen] == [RegistryUnavailable, RegistryUnavailable]
