import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from common.tasks import TaskScope
from common.wire.record import Registration
from registry.core.catalogue import Catalogue, Revised
from registry.core.model import Change, Conflict, Deregister, Register, Renew, Sweep, Unknown
from registry.core.store import StoreFull, StoreUnavailable
from registry.core.writer import REGISTER_WITHIN_S, Writer
from registry.store.memory import MemoryStore
from tests.registry.conftest import FakeClock


class HeldStore(MemoryStore):
    """A store that waits for leave before each write, and can be told to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.arrived = asyncio.Event()
        self.leave = asyncio.Event()
        self.failure: Exception | None = None
        self.one_by_one = False

    async def write(self, changes: Sequence[Change]) -> Sequence[Change]:
        self.arrived.set()
        await self.leave.wait()
        if self.one_by_one:
            self.leave.clear()
        if self.failure:
            raise self.failure
        return await super().write(changes)


@pytest.fixture
def store() -> HeldStore:
    return HeldStore()


@pytest.fixture
async def writer(store: HeldStore, clock: FakeClock) -> AsyncIterator[Writer]:
    made = Writer(Catalogue(epoch="e"), store, clock)
    async with TaskScope("test") as scope:
        scope.spawn("writer", made.run(), service=True)
        yield made


def claim(name: str = "svc", instance_id: str = "a") -> Register:
    return Register(
        Registration(
            name=name, host="h", port=1, hostname="h", url="http://h:1", status="running", instance_id=instance_id
        )
    )


async def test_registration_is_shown_only_once_the_store_has_it(writer: Writer, store: HeldStore) -> None:
    seen: list[Revised] = []
    writer.listeners.append(seen.extend)
    task = asyncio.ensure_future(writer.submit(claim()))
    await store.arrived.wait()
    assert len(writer.catalogue) == 0
    store.leave.set()
    await task
    assert len(writer.catalogue) == 1
    assert [item.revision for item in seen] == [1]


async def test_failed_write_changes_nothing_C13(writer: Writer, store: HeldStore) -> None:
    store.leave.set()
    await writer.submit(claim("kept"))
    store.failure = StoreFull("no room")
    with pytest.raises(StoreFull):
        await writer.submit(claim("new"))
    with pytest.raises(StoreFull):
        await writer.submit(Deregister("kept"))
    assert [entry.instance.name for entry in writer.catalogue] == ["kept"]
    await writer.submit(Renew("kept"))


async def test_lease_ends_even_when_the_store_fails_C13(writer: Writer, store: HeldStore, clock: FakeClock) -> None:
    store.leave.set()
    await writer.submit(claim())
    store.failure = StoreFull("no room")
    clock.advance(301)
    await writer.submit(Sweep())
    assert len(writer.catalogue) == 0


async def test_heartbeat_without_news_needs_neither_store_nor_task(writer: Writer, store: HeldStore) -> None:
    store.leave.set()
    await writer.submit(claim())
    store.arrived.clear()
    coroutine = writer.submit(Renew("svc"))
    with pytest.raises(StopIteration):
        coroutine.send(None)
    assert not store.arrived.is_set()


async def test_commands_sent_during_a_write_are_done_in_their_order(writer: Writer, store: HeldStore) -> None:
    first = asyncio.ensure_future(writer.submit(claim()))
    await store.arrived.wait()
    second = asyncio.ensure_future(writer.submit(Renew("svc", status="stopping")))
    third = asyncio.ensure_future(writer.submit(Deregister("svc")))
    store.leave.set()
    await asyncio.gather(first, second, third)
    assert writer.catalogue.revision == 3
    assert len(writer.catalogue) == 0


async def test_parallel_claims_of_one_name_have_exactly_one_winner_C6(writer: Writer, store: HeldStore) -> None:
    store.leave.set()
    claims = [writer.submit(claim(instance_id=f"i{number}")) for number in range(100)]
    results = await asyncio.gather(*claims, return_exceptions=True)
    assert sum(isinstance(result, Conflict) for result in results) == 99


async def test_caller_that_gave_up_does_not_stop_the_writer(writer: Writer, store: HeldStore) -> None:
    task = asyncio.ensure_future(writer.submit(claim()))
    await store.arrived.wait()
    task.cancel()
    await asyncio.wait({task})
    store.leave.set()
    await writer.submit(claim("other"))
    assert len(writer.catalogue) == 2


async def test_a_slow_write_keeps_no_other_record_waiting_and_none_of_its_own_overtakes_it(
    writer: Writer, store: HeldStore, clock: FakeClock
) -> None:
    store.leave.set()
    for name in ("slow", "other"):
        await writer.submit(claim(name))
    store.leave.clear()
    store.arrived.clear()
    clock.now += 5.0
    leaving = asyncio.ensure_future(writer.submit(Deregister("slow")))
    await store.arrived.wait()
    waiting = asyncio.ensure_future(writer.submit(Renew("slow")))
    async with asyncio.timeout(1):
        await writer.submit(Renew("other"))
    assert not waiting.done()
    entry = writer.catalogue.get("other")
    assert entry is not None
    assert entry.renewed_at == clock.monotonic()
    store.leave.set()
    await leaving
    with pytest.raises(Unknown):
        await waiting
    assert await writer.submit(Renew("other"))
    assert not writer._busy


async def test_a_registration_that_waited_too_long_is_refused_and_not_done(
    writer: Writer, store: HeldStore, clock: FakeClock
) -> None:
    first = asyncio.ensure_future(writer.submit(claim("first")))
    await store.arrived.wait()
    waiting = [asyncio.ensure_future(writer.submit(it)) for it in (claim("late"), Renew("first"), Deregister("first"))]
    await asyncio.sleep(0)
    clock.advance(REGISTER_WITHIN_S + 0.1)
    writer.check_in_time()  # the one that is done now came in time
    store.leave.set()
    await first
    with pytest.raises(StoreUnavailable, match="2 commands are waiting"):
        await waiting[0]
    await asyncio.gather(*waiting[1:])
    assert len(writer.catalogue) == 0
    await writer.submit(claim("late"))
    assert [entry.instance.name for entry in writer.catalogue] == ["late"]


async def test_while_those_before_it_wait_too_long_a_registration_is_turned_away_before_it_waits(
    writer: Writer, store: HeldStore, clock: FakeClock
) -> None:
    store.one_by_one = True
    first = asyncio.ensure_future(writer.submit(claim("first")))
    await store.arrived.wait()
    store.arrived.clear()
    leaving = [asyncio.ensure_future(writer.submit(Deregister("first"))) for _ in range(2)]
    await asyncio.sleep(0)
    clock.advance(REGISTER_WITHIN_S + 0.1)
    store.leave.set()
    await first
    await store.arrived.wait()
    with pytest.raises(StoreUnavailable, match="1 commands are waiting"):
        writer.check_in_time()
    store.leave.set()
    await asyncio.gather(*leaving, return_exceptions=True)
    writer.check_in_time()
