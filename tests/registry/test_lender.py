"""The registry that leads lends keys' budgets: over HTTP, over a restart, and never as two."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from common.clock import Clock
from common.discovery.registry_client import RegistryClient, RegistryUnavailable
from common.http.client import make_session
from common.leases import Period
from common.wire.keys import KeyRecord
from common.wire.leases import LeaseCall, LeaseRow
from registry.core.documents import Fence
from registry.core.store import DocumentConflict
from registry.keys import book, lender
from registry.keys.book import KEYS, KeyBook
from registry.keys.lender import FleetLender, NotLending
from registry.store.etcd import EtcdStore
from registry.store.memory import MemoryStore
from registry.store.sqlite import SqliteStore
from tests.registry.conftest import Client, FakeClock, StartClient, parts, until
from tests.registry.etcd import Etcd

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Led:
    """A lender whose leadership the test holds."""

    def __init__(self, store: MemoryStore, clock: Clock) -> None:
        self.fence: Fence | None = Fence(1)
        self.book = KeyBook(store.documents)
        self.lender = FleetLender(store.documents, self.book, clock, lambda: self.fence)

    async def round(self) -> None:
        await self.book.look()
        await self.lender._round()

    def ask(self, unit: str = "requests", session: str = "s", **row: int) -> Any:
        call = LeaseCall(session=session, holders={"1": {"k": {unit: LeaseRow(**row)}}})
        return self.lender.answer(call).holders["1"]["k"][unit]


async def stored(store: MemoryStore, **limits: Any) -> None:

    record = KeyRecord(name="k", created_at=NOW, sha256="0" * 64, **limits)
    await store.documents.write(KEYS + "k", msgspec.json.encode(record), version=0)


@pytest.fixture
async def led(clock: FakeClock) -> Led:
    store = MemoryStore()
    await stored(store, requests_per_minute=60, tokens_per_day=1000)
    return Led(store, clock)


async def test_who_does_not_lead_lends_nothing_and_a_new_leader_listens_first(led: Led, clock: FakeClock) -> None:
    led.fence = None
    await led.round()
    with pytest.raises(NotLending, match="another registry leads"):
        led.ask(need=1)
    led.fence = Fence(2)
    await led.round()
    with pytest.raises(NotLending, match="just begun"):
        led.ask(used=10, told=10, held=5, need=1)
    clock.advance(lender.GATHER_S)
    assert led.ask("requests", "other", need=100).granted == 55  # it knows what was held before it lent
    led.fence = Fence(3)
    with pytest.raises(NotLending):  # another led meanwhile: what was lent here is known no more
        led.ask(need=1)


async def test_what_routers_used_in_the_last_minute_counts_for_a_new_leader(led: Led, clock: FakeClock) -> None:
    await led.round()
    call = LeaseCall(session="s", holders={}, recent={"k": {"requests": 40}, "gone": {"requests": 7}})
    with pytest.raises(NotLending):
        led.lender.answer(call)
    clock.advance(2)
    assert led.ask(used=40, told=40, need=60).granted == 20


async def test_who_says_nothing_for_long_holds_nothing_any_more(led: Led, clock: FakeClock) -> None:
    await led.round()
    clock.advance(2)
    assert led.ask(need=50).granted == 50
    clock.advance(lender.SILENCE_S + 1)
    await led.round()
    assert led.lender._sessions == {}
    assert led.ask("requests", "other", need=60).granted == 10  # the fifty may have been used
    clock.advance(61)
    assert led.ask("requests", "other", used=10, need=60).granted == 50


async def test_days_are_written_and_read_again_by_the_next_leader(led: Led, clock: FakeClock) -> None:
    await led.round()
    clock.advance(2)
    led.ask("tokens", used=700)
    await led.round()
    led.fence = Fence(2)
    await led.round()
    clock.advance(2)
    assert led.ask("tokens", "other", need=1000).granted == 300
    document = (await led.lender._documents.read("spent"))["spent"]
    assert document.value == b'{"k":{"tokens":{"day":["2026-01-01",700]}}}'


async def test_a_write_that_somebody_else_was_quicker_with_is_done_again(led: Led, clock: FakeClock) -> None:
    await led.round()
    clock.advance(2)
    led.ask("tokens", used=1)
    await led.lender._documents.write("spent", b"{}", version=0)
    await led.round()
    await led.round()
    assert b'"day"' in (await led.lender._documents.read("spent"))["spent"].value
    with pytest.raises(DocumentConflict):
        await led.lender._documents.write("spent", b"{}", version=0)


async def test_what_cannot_be_read_begins_anew(led: Led) -> None:
    await led.lender._documents.write("spent", b"{", version=0)
    await led.round()
    windows = led.lender._lender.meters["k"]["tokens"].windows.values()
    assert [window.total for window in windows if isinstance(window, Period)] == [0]


async def lent(client: Client, **row: int) -> tuple[int, Any]:
    body = {"session": "s", "holders": {"1": {"k": {"tokens": row}}}}
    async with client.post("/v1/routers/r/leases", json=body) as answer:
        return answer.status, await answer.json()


async def test_over_http_and_over_a_restart(
    start_live: StartClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lender, "WRITE_S", 0.02)
    monkeypatch.setattr(lender, "GATHER_S", 0.0)
    client = await start_live(SqliteStore(tmp_path / "registry.sqlite3"))
    async with client.post("/api/v1/keys", json={"name": "k", "tokens_per_month": 500}) as answer:
        assert answer.status == 201
    await until(lambda: parts(client).lender._led is not None)
    status, content = await lent(client, need=100, used=0)
    assert (status, content["routers"], content["holders"]["1"]["k"]["tokens"]["granted"]) == (200, 1, 100)
    await lent(client, used=120)
    await until(lambda: bool(parts(client).lender._written))
    await client.close()
    again = await start_live(SqliteStore(tmp_path / "registry.sqlite3"))
    await until(lambda: parts(again).lender._led is not None)
    status, content = await lent(again, used=130, told=120)
    assert content["holders"]["1"]["k"]["tokens"]["left"] == 370


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"session": "s", "holders": {"1": {"k": {"requests": {"used": -1}}}}},
        {"session": "s", "holders": {"1": {"k": {"requests": {"used": 10**18}}}}},
        {"session": "s", "holders": {"1": {"k": {"requests": {"need": "many"}}}}},
        {"session": "s", "holders": {str(number): {} for number in range(600)}},
        {"session": "s", "recent": {"k": {"requests": -5}}},
    ],
)
async def test_what_is_no_lease_is_refused(client: Client, body: dict[str, Any]) -> None:
    async with client.post("/v1/routers/r/leases", json=body) as answer:
        assert answer.status == 422


async def test_of_two_registries_over_etcd_one_lends_and_the_other_goes_on_where_it_ended(
    start_live: StartClient, etcd: Etcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lender, "WRITE_S", 0.05)
    monkeypatch.setattr(lender, "GATHER_S", 0.0)
    monkeypatch.setattr(book, "LOOK_S", 0.05)
    clients = [await start_live(EtcdStore([f"http://{etcd.endpoint}"])) for _ in range(2)]
    async with clients[1].post("/api/v1/keys", json={"name": "k", "tokens_per_month": 500}) as answer:
        assert answer.status == 201
    async with asyncio.timeout(30):
        while not any(parts(client).lender._led for client in clients):
            await asyncio.sleep(0.05)
    first, second = sorted(clients, key=lambda client: parts(client).lender._led is None)
    async with make_session(timeout_s=5) as session:
        urls = [str(client.make_url("")) for client in (second, first)]
        router = RegistryClient(urls, session, first=0)
        call = LeaseCall(session="s", holders={"1": {"k": {"tokens": LeaseRow(used=100, need=1)}}})
        assert (await router.lease("r", call)).holders["1"]["k"]["tokens"].left == 399  # the second was asked first
        assert (await lent(second))[0] == 421
        await asyncio.sleep(0.5)
        await first.close()
        call = LeaseCall(session="s", holders={"1": {"k": {"tokens": LeaseRow(used=150, told=100)}}})
        async with asyncio.timeout(30):
            while True:
                try:
                    answered = await router.lease("r", call)
                except RegistryUnavailable:
                    await asyncio.sleep(0.05)
                else:
                    break
        assert answered.holders["1"]["k"]["tokens"].left == 350
