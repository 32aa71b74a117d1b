"""What only a shared store has: other registries, leases of its own, and absence. Over a real etcd."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from common.clock import SystemClock
from common.tasks import TaskScope
from common.wire.record import Registration
from registry.core.catalogue import Catalogue
from registry.core.model import (
    Change,
    Conflict,
    Deregister,
    Instance,
    Register,
    Renew,
    SetDraining,
    Sweep,
    Unknown,
    Upsert,
)
from registry.core.store import Back, StoreConflict, StoreFull, StoreUnavailable, Vanished, Written
from registry.core.writer import Writer
from registry.store import etcd as etcd_store
from registry.store import gateway
from registry.store.codec import encode
from registry.store.etcd import SERVICES, EtcdStore
from registry.store.leases import grant
from tests.ports import free_port
from tests.registry.conftest import until
from tests.registry.etcd import Etcd, require_etcd
from tests.registry.records import registration

SHORTEST_S = 2.0
"""etcd gives no shorter lease."""


@dataclass
class Peer:
    """One registry without its HTTP."""

    writer: Writer
    store: EtcdStore

    def held(self, name: str = "svc") -> Instance | None:
        entry = self.writer.catalogue.get(name)
        return None if entry is None else entry.instance

    def names(self) -> set[str]:
        return {entry.instance.name for entry in self.writer.catalogue}

    async def register(self, name: str = "svc", **changes: Any) -> Instance:
        decision = await self.writer.submit(Register(said(name, **changes)))
        assert decision.answer is not None
        found = self.held(name)
        assert found is not None
        return found


def said(name: str = "svc", **changes: Any) -> Registration:
    return registration(name, **{"instance_id": "a", "incarnation": 1, "ttl_s": SHORTEST_S, **changes})


@asynccontextmanager
async def joined(*members: Etcd) -> AsyncIterator[Peer]:
    store = EtcdStore([f"http://{member.endpoint}" for member in members])
    loaded = await store.open()
    clock = SystemClock()
    catalogue = Catalogue(epoch="e", shared=True)
    catalogue.load(loaded.instances, clock.monotonic(), generation_floor=loaded.generation_floor)
    writer = Writer(catalogue, store, clock)
    async with TaskScope("peer") as scope:
        scope.spawn("writer", writer.run(), service=True)
        scope.spawn("follower", writer.follow(), service=True)
        try:
            yield Peer(writer, store)
        finally:
            await scope.close()
            await store.close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_store, "PULSE_S", 0.2)


@pytest.fixture
async def pair(etcd: Etcd) -> AsyncIterator[tuple[Peer, Peer]]:
    async with joined(etcd) as one, joined(etcd) as other:
        yield one, other


async def beat(peer: Peer, name: str = "svc", **more: Any) -> None:
    await peer.writer.submit(Renew(name, instance_id="a", incarnation=1, **more))


async def test_what_one_registry_is_told_the_other_shows(pair: tuple[Peer, Peer]) -> None:
    one, other = pair
    registered = await one.register(ttl_s=30.0)
    await until(lambda: other.held() == registered)
    await other.writer.submit(SetDraining("svc", on=True))
    await until(lambda: (it := one.held()) is not None and it.is_draining)
    await beat(other, status="stopping")
    await until(lambda: (it := one.held()) is not None and it.registration.status == "stopping")
    await one.writer.submit(Deregister("svc"))
    await until(lambda: other.held() is None)
    with pytest.raises(Conflict):
        await beat(other)  # the tombstone travelled along (C7)


@pytest.mark.parametrize("count", [2, 3, 7])
async def test_a_snapshot_in_pages_has_every_record_once(
    etcd: Etcd, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(gateway, "PAGE", 3)
    names = {f"svc-{number}" for number in range(count)}
    async with joined(etcd) as peer:
        for name in names:
            await peer.register(name)
    store = EtcdStore([f"http://{etcd.endpoint}"])
    loaded = await store.open()
    await store.close()
    assert sorted(one.name for one in loaded.instances) == sorted(names)


async def test_heartbeats_through_either_keep_the_lease(pair: tuple[Peer, Peer]) -> None:
    one, other = pair
    await one.register()
    await until(lambda: other.held() is not None)
    for _ in range(7):
        await asyncio.sleep(0.5)
        await beat(other)
    for peer in pair:
        await peer.writer.submit(Sweep())
        found = peer.held()
        assert found is not None
        assert not found.stale


async def test_lease_that_nobody_renews_ends_at_both(pair: tuple[Peer, Peer]) -> None:
    for peer in pair:
        await until(lambda it=peer: it.writer.away is None)  # type: ignore[misc]
    await pair[0].register()
    async with asyncio.timeout(6):
        for peer in pair:
            await until_stale(peer)


async def until_stale(peer: Peer, name: str = "svc") -> None:
    """As a registry lives: a record whose key went while its lease held by our own clock, as that began later, is written once more."""
    while not ((it := peer.held(name)) is not None and it.stale):
        await peer.writer.rewrite()
        await asyncio.sleep(0.02)


async def test_heartbeat_on_a_lost_lease_writes_the_record_again(etcd: Etcd) -> None:
    async with joined(etcd) as one:
        before = await one.register(ttl_s=60.0)
        lease = one.store._known["svc"].lease
        etcd.ctl("lease", "revoke", f"{lease:x}")
        await beat(one)
        await until(lambda: "svc" in one.writer.unwritten)
        await one.writer.rewrite()
        await until(lambda: "svc" in etcd.ctl("get", SERVICES, "--prefix", "--keys-only"))
        assert one.held() == before
        assert one.store._known["svc"].lease != lease


async def test_another_instance_gets_a_name_only_after_its_lease_C6(pair: tuple[Peer, Peer]) -> None:
    one, other = pair
    first = await one.register()
    with pytest.raises(Conflict):
        await other.register(instance_id="b")
    async with asyncio.timeout(6):
        await until_stale(other)
    second = await other.register(instance_id="b")
    assert second.generation > first.generation
    await until(lambda: one.held() == second)
    with pytest.raises(Conflict):
        await beat(one)


async def test_parallel_claims_at_both_have_exactly_one_winner_C6(pair: tuple[Peer, Peer]) -> None:
    claims = [pair[number % 2].register(instance_id=f"i{number}", ttl_s=30.0) for number in range(40)]
    results = await asyncio.gather(*claims, return_exceptions=True)
    won = [result for result in results if isinstance(result, Instance)]
    assert len(won) == 1
    assert sum(isinstance(result, Conflict) for result in results) == 39
    await until(lambda: pair[0].held() == pair[1].held() == won[0])


async def test_repeat_at_the_other_registry_before_it_knows_is_idempotent_C8(pair: tuple[Peer, Peer]) -> None:
    one, other = pair
    results = await asyncio.gather(one.register(ttl_s=30.0), other.register(ttl_s=30.0))
    assert results[0].generation == results[1].generation


async def test_generation_rises_over_deregistration_at_another_registry(pair: tuple[Peer, Peer]) -> None:
    one, other = pair
    last = 0
    for number in range(6):
        peer = pair[number % 2]
        registered = await peer.register(instance_id=f"i{number}", ttl_s=30.0)
        assert registered.generation > last
        last = registered.generation
        await until(lambda: one.held() == other.held() and one.held() is not None)
        await pair[(number + 1) % 2].writer.submit(Deregister("svc"))
        await until(lambda: one.held() is None and other.held() is None)


async def test_etcd_lost_serves_what_is_known_and_takes_heartbeats(etcd: Etcd) -> None:
    async with joined(etcd) as one:
        await one.register("old")
        etcd.kill()
        await until(lambda: one.writer.away is not None)
        with pytest.raises(StoreUnavailable):
            await one.register("new")
        with pytest.raises(StoreUnavailable):
            await one.writer.submit(Deregister("old"))
        await one.register("old")  # the same life again: nothing to write
        await beat(one, "old", status="stopping")
        await asyncio.sleep(SHORTEST_S * 1.6)
        await one.writer.submit(Sweep())  # does not expire anything
        found = one.held("old")
        assert found is not None
        assert (found.status, found.stale) == ("stopping", False)
        etcd.start()
        await until(lambda: one.writer.away is None)
        await one.writer.rewrite()
        await one.register("new")
        assert '"stopping"' in etcd.ctl("get", SERVICES + "old")


async def test_etcd_paused_is_noticed_and_its_return_too_C10(etcd: Etcd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registry.store.gateway.CALL_TIMEOUT_S", 0.3)
    async with joined(etcd) as one:
        await one.register(ttl_s=30.0)
        etcd.pause()
        await until(lambda: one.writer.away is not None)
        await beat(one)
        etcd.resume()
        await until(lambda: one.writer.away is None)
        await one.register("new", ttl_s=30.0)
        assert one.names() == {"svc", "new"}


async def test_a_heartbeat_while_etcd_does_not_answer_renews_when_it_does_C10(
    etcd: Etcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where heartbeats are minutes apart, the next one would come after the lease's end."""
    monkeypatch.setattr("registry.store.gateway.CALL_TIMEOUT_S", 0.3)
    async with joined(etcd) as one:
        await one.register("before", ttl_s=60.0)
        await one.register("away", ttl_s=60.0)
        lease = {name: f"{one.store._known[name].lease:x}" for name in ("before", "away")}
        await asyncio.sleep(3.0)
        etcd.pause()
        await beat(one, "before")
        await until(lambda: one.writer.away is not None)
        await beat(one, "away")
        etcd.resume()
        await until(lambda: one.writer.away is None)
        await until(lambda: one.store.renewed == 2)
        left = {name: int(etcd.ctl("lease", "timetolive", it).split("remaining(")[1][:2]) for name, it in lease.items()}
        assert min(left.values()) >= 58, left


async def test_of_many_that_beat_at_once_every_lease_is_renewed_by_the_first_call_C23(
    etcd: Etcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway drops what it has not read of a call when it begins to answer."""
    async with joined(etcd) as one:
        gateway, keepalives = one.store._calls(), one.store._keepalives
        assert keepalives is not None
        leases = [(await grant(gateway, 60.0))[0] for _ in range(300)]
        failed: list[str] = []
        send = keepalives._send

        async def note(some: list[int]) -> None:
            try:
                await send(some)
            except StoreUnavailable as error:
                failed.append(str(error))
                raise

        monkeypatch.setattr(keepalives, "_send", note)
        for times in range(1, 11):
            for lease in leases:
                keepalives.renew(lease)
            await until(lambda so_many=300 * times: keepalives.renewed >= so_many)  # type: ignore[misc]
        assert keepalives.renewed == 3000
        assert failed == []


async def test_what_one_record_meets_keeps_no_other_from_being_written_again(
    etcd: Etcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with joined(etcd) as one:
        names = [f"svc-{number}" for number in range(3)]
        for name in names:
            await one.register(name, ttl_s=60.0)
        write = one.store.write

        async def refuses_the_first(changes: Sequence[Change]) -> Sequence[Change]:
            if changes[0].name == names[0]:
                raise StoreUnavailable("not this one")
            return await write(changes)

        monkeypatch.setattr(one.store, "write", refuses_the_first)
        one.writer.unwritten.update(names)
        await one.writer.rewrite()
        assert one.writer.unwritten == {names[0]}


async def test_expiry_begins_again_one_lease_after_etcd_is_back(etcd: Etcd) -> None:
    async with joined(etcd) as one:
        await one.register(ttl_s=60.0)
        await one.register("unheard")
        etcd.kill()
        etcd.wipe()
        await until(lambda: one.writer.away is not None)
        etcd.start()
        await until(lambda: one.writer.away is None)
        assert one.names() == {"svc", "unheard"}  # an empty etcd is no reason to forget
        await beat(one)
        assert "svc" in etcd.ctl("get", SERVICES, "--prefix", "--keys-only")
        await one.writer.submit(Sweep())
        assert not (one.held("unheard") or pytest.fail("forgotten")).stale
        await asyncio.sleep(SHORTEST_S)
        await one.writer.submit(Sweep())
        assert (one.held("unheard") or pytest.fail("forgotten")).stale
        assert not (one.held() or pytest.fail("forgotten")).stale


async def test_compaction_during_absence_leads_to_a_snapshot_C9(etcd: Etcd) -> None:
    async with joined(etcd) as one, joined(etcd) as other:
        await one.register("kept", ttl_s=60.0)
        await one.register("gone", ttl_s=60.0)
        await until(lambda: other.names() == {"kept", "gone"})
        other.store._revision = 1  # as one that slept through everything
        await one.writer.submit(Deregister("gone"))
        revision = (await one.store._snapshot()).version
        etcd.ctl("compact", str(revision))
        etcd.kill()
        etcd.start()
        await until(lambda: other.names() == {"kept"} and one.writer.away is None)
        await one.register("new", ttl_s=60.0)
        await until(lambda: other.names() == {"kept", "new"})


async def test_deregistered_record_is_not_written_again_by_one_that_was_cut_off(etcd: Etcd) -> None:
    async with joined(etcd) as one, joined(etcd) as other:
        registered = await one.register(ttl_s=60.0)
        await until(lambda: other.held() == registered)
        await other.writer.submit(Deregister("svc"))
        one.store._known.pop("svc", None)
        with pytest.raises(StoreConflict) as caught:
            await one.store.write([Upsert(registered, durable=True)])
        assert caught.value.current is None
        await one.store.write([Upsert(registered, durable=True, claims=True)])  # but its client may register


async def test_lost_events_are_found_out_by_counting_C9(etcd: Etcd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_store, "PULSE_S", 0.5)  # three of them may be needed
    async with joined(etcd) as one:
        await one.register(ttl_s=60.0)
        # The watch may tell before the write is answered; what it told then waits for its turn.
        await until(lambda: one.store._revision == one.store._known["svc"].revision and not one.writer._busy)
        snapshots = 0
        real = one.store._snapshot

        async def counted() -> Back:
            nonlocal snapshots
            snapshots += 1
            return await real()

        one.store._snapshot = counted  # type: ignore[method-assign]
        del one.store._known["svc"]  # as if the watch had never told
        await until(lambda: snapshots == 1 and one.writer.away is None)
        assert "svc" in one.store._known
        await asyncio.sleep(etcd_store.PULSE_S * 4)
        assert snapshots == 1


async def test_stale_event_does_not_undo_a_later_write_J3(etcd: Etcd) -> None:
    async with joined(etcd) as one:
        await one.register(ttl_s=60.0)
        version = one.store._known["svc"].revision
        await one.register(incarnation=2, ttl_s=60.0)
        old = Written(Instance(said(), generation=1), version)
        assert not one.store.accept(old)
        assert not one.store.accept(Vanished("svc", version, deregistered=False))
        await one.writer.submit(Deregister("svc"))
        await until(
            lambda: one.store._revision > version + 1
        )  # the watch is past it: what came before may still wait its turn
        assert not one.store.accept(old)


async def test_foreign_rubbish_in_etcd_is_ignored_with_a_warning(etcd: Etcd) -> None:
    etcd.ctl("put", SERVICES + "bad", "{}")
    etcd.ctl("put", SERVICES + "liar", encode(Instance(said("other"), generation=1)).decode())
    async with joined(etcd) as one:
        assert one.names() == set()
        await one.register("good", ttl_s=60.0)
        with pytest.raises(StoreUnavailable, match="no record"):
            await one.register("bad", ttl_s=60.0)
        etcd.ctl("put", SERVICES + "worse", "[]")
        await asyncio.sleep(etcd_store.PULSE_S * 4)
        assert one.writer.away is None  # three odd keys are no reason to distrust the watch


async def test_heartbeat_of_a_stranger_renews_nothing_C5(etcd: Etcd) -> None:
    async with joined(etcd) as one:
        await one.register()
        with pytest.raises(Conflict):
            await one.writer.submit(Renew("svc", instance_id="b", incarnation=1))
        with pytest.raises(Unknown):
            await one.writer.submit(Renew("none"))


async def test_what_a_watch_told_before_the_store_was_asked_counts_as_well_J3(etcd: Etcd) -> None:
    """The watch overtakes the question: the answer holds nothing new, and the refusal would be about what was."""
    async with joined(etcd) as one, joined(etcd) as two:
        await one.register(ttl_s=60.0)
        await until(lambda: two.held() is not None)
        real, read, go_on = two.store.look, asyncio.Event(), asyncio.Event()

        async def slow(name: str) -> Written | Vanished | None:
            found = await real(name)
            read.set()
            await go_on.wait()
            return found

        two.store.look = slow  # type: ignore[method-assign]
        stranger = asyncio.ensure_future(two.writer.submit(Renew("svc", instance_id="b", incarnation=1)))
        await read.wait()
        heartbeat = asyncio.ensure_future(two.writer.submit(Renew("svc", instance_id="a", incarnation=2)))
        await asyncio.sleep(0)  # in line behind the question
        await one.register(incarnation=2, ttl_s=60.0)
        waiting = two.writer._queue
        await until(lambda: waiting.qsize() == 1)  # what the watch told: the heartbeat before it is out of the queue
        go_on.set()
        await heartbeat
        with pytest.raises(Conflict):
            await stranger


async def test_who_cannot_be_asked_about_is_not_refused_C5(etcd: Etcd) -> None:
    async with joined(etcd) as one:
        await one.register(ttl_s=60.0)

        async def away(name: str) -> Written | Vanished | None:
            raise StoreUnavailable(f"no answer about {name}")

        one.store.look = away  # type: ignore[method-assign]
        for beat in (Renew("none"), Renew("svc", instance_id="b", incarnation=1)):
            with pytest.raises(StoreUnavailable, match="no answer"):
                await one.writer.submit(beat)
        await one.writer.submit(Renew("svc", instance_id="a", incarnation=1))


async def test_leader_of_three_killed_costs_no_record(tmp_path: Path) -> None:
    require_etcd()
    members = Etcd.cluster(tmp_path, [(free_port(), free_port()) for _ in range(3)])
    try:
        for member in members:
            member.start(wait=False)
        for member in members:
            member.await_health()
        async with joined(*members) as one, joined(*reversed(members)) as other:
            for number in range(10):
                await one.register(f"a{number}", ttl_s=60.0)
            await until(lambda: len(other.names()) == 10)
            next(member for member in members if member.leads()).kill()

            async def insist(peer: Peer, name: str) -> None:
                async with asyncio.timeout(10):
                    while True:
                        try:
                            await peer.register(name, ttl_s=60.0)
                        except StoreUnavailable:
                            await asyncio.sleep(0.1)
                        else:
                            return

            for number in range(5):
                await insist(one, f"b{number}")
                await insist(other, f"c{number}")
            await until(lambda: len(one.names()) == 20)
            await until(lambda: one.names() == other.names())
    finally:
        for member in members:
            member.kill()


async def test_etcd_without_room_is_full_and_heartbeats_go_on_C13(tmp_path: Path) -> None:
    require_etcd()
    small = Etcd(tmp_path / "small", client_port=free_port(), peer_port=free_port())
    small.start("--quota-backend-bytes=120000")
    try:
        async with joined(small) as one:
            await one.register("svc", ttl_s=60.0)

            async def fill() -> None:
                for number in range(60):
                    await one.register(f"n{number}", ttl_s=60.0, metadata={"padding": "x" * 7000})

            with pytest.raises(StoreFull):
                await fill()
            await beat(one, status="stopping")
            found = one.held()
            assert found is not None
            assert found.status == "stopping"
            assert "svc" in one.writer.unwritten
    finally:
        small.kill()


async def test_a_record_for_a_longer_lease_has_it_wherever_it_is_renewed(pair: tuple[Peer, Peer]) -> None:
    one, other = pair
    await one.register()
    await one.register(ttl_s=30.0)
    await until(lambda: (it := other.held()) is not None and it.registration.ttl_s == 30.0)
    await beat(other)  # renews the new lease, not the one that it had
    await asyncio.sleep(SHORTEST_S + 1.5)
    assert one.held() == other.held()
    assert (it := one.held()) is not None
    assert not it.stale
    await other.register(ttl_s=SHORTEST_S)
    async with asyncio.timeout(6):
        for peer in pair:
            await until_stale(peer)


async def test_a_lease_made_longer_while_etcd_is_away_is_as_long_when_it_is_back(etcd: Etcd) -> None:
    async with joined(etcd) as peer:
        await peer.register()
        etcd.kill()
        await until(lambda: peer.writer.away is not None)
        with pytest.raises(StoreUnavailable):
            await peer.register(ttl_s=30.0)  # its client goes on at the old pace
        assert (it := peer.held()) is not None
        assert it.registration.ttl_s == SHORTEST_S
        etcd.start()
        await until(lambda: peer.writer.away is None)
        await peer.register(ttl_s=30.0)
        await asyncio.sleep(SHORTEST_S + 1.5)
        assert (it := peer.held()) is not None
        assert not it.stale
