import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from msgspec.structs import replace

from common.discovery import lease as lease_module
from common.discovery.lease import Lease
from common.discovery.registry_client import RegistryClient
from common.wire.record import Doubt, HeartbeatAnswer, Registration
from tests.common.fake_registry import Asked, Beating, FakeRegistry

RECORD = Registration(name="a", host="h", hostname="h", port=1, url="http://h:1", status="running", instance_id="mine")
LONG_S = 3600.0
REGISTER = ("POST", "/services")
RENEW = ("POST", "/services/a/heartbeat")
LEAVE = ("DELETE", "/services/a?instance_id=mine")


@asynccontextmanager
async def kept(lease: Lease) -> AsyncIterator[asyncio.Task[None]]:
    """The lease's loop, as a task that is ended with the test."""
    task = asyncio.create_task(lease.keep())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def make(session: aiohttp.ClientSession, *urls: str, interval_s: float = LONG_S, record: Any = None) -> Lease:
    return Lease(
        client=RegistryClient(urls, session, first=0),
        registration=(lambda: RECORD) if record is None else record,
        report=Beating,
        interval_s=interval_s,
    )


async def next_asked(registry: FakeRegistry) -> Asked:
    return await asyncio.wait_for(registry.asked.get(), 5)


async def calls(registry: FakeRegistry, count: int) -> list[tuple[str, str]]:
    found = [await next_asked(registry) for _ in range(count)]
    return [(asked.method, asked.path) for asked in found]


async def registered(registry: FakeRegistry, lease: Lease) -> None:
    """Wait until it has registered, and beaten once."""
    await calls(registry, 1)
    lease.wake()
    await calls(registry, 1)


async def test_a_lease_registers_then_renews(registry: FakeRegistry, session: aiohttp.ClientSession) -> None:
    async with kept(make(session, registry.url, interval_s=0.01)):
        assert await calls(registry, 3) == [REGISTER, RENEW, RENEW]


async def test_one_that_reports_at_once_is_heard_of_right_after_each_registration(
    registry: FakeRegistry, session: aiohttp.ClientSession
) -> None:
    lease = make(session, registry.url)
    lease.reports_at_once = True
    registry.script.extend([201, 404])
    async with kept(lease):
        assert await calls(registry, 4) == [REGISTER, RENEW, REGISTER, RENEW]


async def test_a_change_is_told_at_once(registry: FakeRegistry, session: aiohttp.ClientSession) -> None:
    lease = make(session, registry.url)
    async with kept(lease):
        assert await calls(registry, 1) == [REGISTER]
        lease.wake()
        assert await calls(registry, 1) == [RENEW]


async def test_a_forgotten_record_is_registered_again_in_the_same_second_C1(
    registry: FakeRegistry, session: aiohttp.ClientSession
) -> None:
    registry.script.extend([201, 404, 201])
    lease = make(session, registry.url)
    async with kept(lease):
        await calls(registry, 1)
        lease.wake()
        async with asyncio.timeout(1):
            assert await calls(registry, 2) == [RENEW, REGISTER]


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of each pause of a lease, none of which is made."""
    noted: list[float] = []

    async def note(_lease: Lease, seconds: float) -> None:
        noted.append(seconds)

    monkeypatch.setattr(Lease, "_sleep", note)
    return noted


async def test_a_registry_that_goes_away_is_asked_with_growing_pauses_C3(
    registry: FakeRegistry, session: aiohttp.ClientSession, pauses: list[float]
) -> None:
    lease = make(session, registry.url)
    registry.script.extend([201] + [503] * 6)
    async with kept(lease):
        await calls(registry, 8)
    pauses = pauses[1:]  # but for the interval that follows its registration
    expected = [0.5, 1.0, 2.0, 4.0, 8.0, 10.0]
    for pause, most in zip(pauses, expected, strict=False):
        assert most / 2 <= pause <= most
    assert len(set(pauses[:6])) == 6


async def test_a_large_fleet_asks_registries_that_do_not_answer_little_more_often_than_it_beats_C3(
    registry: FakeRegistry, session: aiohttp.ClientSession, pauses: list[float]
) -> None:
    """Each asking every ten seconds for what it has once in minutes, they would never have less to do."""
    lease = make(session, registry.url)
    registry.usual = {"heartbeat_interval_s": 160.0}
    registry.script.extend([201] + [503] * 10)
    async with kept(lease):
        await calls(registry, 11)
    for pause, most in zip(pauses[1:], [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 80.0], strict=False):
        assert most / 2 <= pause <= most


async def test_a_url_that_is_no_registry_is_no_reason_to_spin(
    registry: FakeRegistry, session: aiohttp.ClientSession
) -> None:
    registry.script.extend([404] * 50)
    lease = make(session, registry.url)
    async with kept(lease):
        await calls(registry, 1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await calls(registry, 1)
    assert lease.registered_as is None


@pytest.mark.parametrize("status", [409, 400, 422])
async def test_a_refused_claim_is_repeated_slowly_and_told(
    registry: FakeRegistry, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(lease_module, "RETRY_LAST_S", 0.01)
    registry.script.extend([(status, {"error": "another owns it"}), 201])
    lease = make(session, registry.url)
    async with kept(lease):
        assert await calls(registry, 2) == [REGISTER, REGISTER]
        lease.wake()
        assert await calls(registry, 1) == [RENEW]
    assert lease.registered_as == "a"
    assert lease.last_error is None


async def test_the_same_fault_is_told_once(
    registry: FakeRegistry,
    session: aiohttp.ClientSession,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(lease_module, "RETRY_FIRST_S", 0.001)
    monkeypatch.setattr(lease_module, "RETRY_LAST_S", 0.001)
    registry.script.extend([503] * 5)
    async with kept(make(session, registry.url)):
        await calls(registry, 6)
    assert capsys.readouterr().out.count("lease.registry_unavailable") == 1


async def test_a_lease_without_anything_to_register_waits_until_woken(
    registry: FakeRegistry, session: aiohttp.ClientSession
) -> None:
    record: Registration | None = None
    lease = make(session, registry.url, record=lambda: record)
    async with kept(lease):
        await asyncio.sleep(0)
        assert registry.asked.empty()
        record = RECORD
        lease.wake()
        assert await calls(registry, 1) == [REGISTER]
        record = None
        lease.wake()
        # The registration is gone, yet only our own record may be removed (C5).
        assert await calls(registry, 1) == [LEAVE]


async def test_leaving_removes_the_record_once(registry: FakeRegistry, session: aiohttp.ClientSession) -> None:
    lease = make(session, registry.url)
    async with kept(lease):
        await registered(registry, lease)
    await lease.leave()
    await lease.leave()
    assert await calls(registry, 1) == [LEAVE]
    assert registry.asked.empty()


async def test_who_left_is_not_registered_again_by_the_loop_that_still_runs(
    registry: FakeRegistry, session: aiohttp.ClientSession
) -> None:
    lease = make(session, registry.url)
    async with kept(lease):
        await registered(registry, lease)
        await lease.leave()
        assert await calls(registry, 1) == [LEAVE]
        lease.wake()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(registry.asked.get(), 0.3)


async def test_a_registration_that_was_under_way_at_the_leave_is_taken_back(
    registry: FakeRegistry, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = make(session, registry.url)
    register, under_way, go_on = RegistryClient.register, asyncio.Event(), asyncio.Event()

    async def slowly(client: RegistryClient, registration: Any) -> None:
        under_way.set()
        await go_on.wait()
        await register(client, registration)

    monkeypatch.setattr(RegistryClient, "register", slowly)
    async with kept(lease):
        await under_way.wait()
        await lease.leave()
        go_on.set()
        assert await calls(registry, 2) == [REGISTER, LEAVE]


@pytest.mark.parametrize("ticks", range(5))
async def test_a_loop_that_is_ended_just_when_it_is_woken_ends(session: aiohttp.ClientSession, ticks: int) -> None:
    lease = make(session, "http://127.0.0.1:1", record=lambda: None)
    task = asyncio.create_task(lease.keep())
    for _ in range(5):
        await asyncio.sleep(0)
    lease.wake()
    for _ in range(ticks):
        await asyncio.sleep(0)
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=1)
    assert done
    assert task.cancelled()


async def test_leaving_while_the_registry_is_away_is_no_error(
    registry: FakeRegistry, session: aiohttp.ClientSession
) -> None:
    lease = make(session, registry.url)
    async with kept(lease):
        await registered(registry, lease)
    registry.script.append(503)
    await lease.leave()
    assert lease.registered_as is None


async def test_leaving_what_was_never_registered_asks_nobody(
    registry: FakeRegistry, session: aiohttp.ClientSession
) -> None:
    await make(session, registry.url).leave()
    assert registry.asked.empty()


async def test_the_next_registry_takes_over(registry: FakeRegistry, session: aiohttp.ClientSession) -> None:
    async with kept(make(session, "http://127.0.0.1:1", registry.url)):
        assert await calls(registry, 1) == [REGISTER]


async def test_record_that_changed_is_registered_again_W15(
    registry: FakeRegistry, session: aiohttp.ClientSession
) -> None:
    record = replace(RECORD, metadata={"models": ["a"]}, timestamp=1)
    lease = make(session, registry.url, record=lambda: record)
    async with kept(lease):
        await registered(registry, lease)
        record = replace(record, status="unhealthy", timestamp=2)
        lease.wake()
        assert await calls(registry, 1) == [RENEW]
        record = replace(record, metadata={"models": ["a", "lora"]})
        lease.wake()
        asked = await next_asked(registry)
        assert (asked.method, asked.path, asked.body["metadata"]) == (*REGISTER, {"models": ["a", "lora"]})
        assert await calls(registry, 1) == [RENEW]
        lease.wake()
        assert await calls(registry, 1) == [RENEW]


async def test_refusal_is_a_state_with_its_reason_until_the_record_is_taken_W16(
    registry: FakeRegistry, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "RETRY_LAST_S", 0.01)
    registry.script.extend([(400, {"error": "metadata too long"})] * 3)
    lease, told = make(session, registry.url), []
    lease.refused = lambda: told.append(lease.refusal)
    async with kept(lease):
        await calls(registry, 4)
        async with asyncio.timeout(5):
            while lease.registered_as is None or lease.refusal is not None:
                await asyncio.sleep(0.01)
    assert told == [f"{registry.url} answered 400: metadata too long", None]


async def test_what_the_registry_answers_to_a_heartbeat_is_heard_W26(
    registry: FakeRegistry, session: aiohttp.ClientSession
) -> None:
    heard: list[HeartbeatAnswer] = []
    lease = make(session, registry.url, interval_s=0.01)
    lease.heard = heard.append
    registry.script.extend([201, (200, {"message": "x", "doubt": {"router": "r", "reason": "y"}})])
    async with kept(lease):
        await calls(registry, 3)
    assert heard[0] == HeartbeatAnswer(message="x", doubt=Doubt(router="r", reason="y"))


PACED_S = 1000.0


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases of another length are had with the next heartbeat."""
    monkeypatch.setattr(lease_module, "CHANGES_SHARE", 1.0)


async def paced(registry: FakeRegistry, lease: Lease) -> None:
    """Have it beat as seldom as the registry wants."""
    registry.usual = {"heartbeat_interval_s": PACED_S}
    registry.script.append((201, {}))
    assert await calls(registry, 3) == [REGISTER, RENEW, REGISTER]
    assert lease.registered_as is not None


@pytest.mark.usefixtures("at_once")
async def test_a_longer_lease_is_had_before_heartbeats_come_further_apart(
    registry: FakeRegistry, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "RETRY_FIRST_S", 0.001)
    lease = make(session, registry.url, interval_s=0.01, record=lambda: replace(RECORD, ttl_s=15.0))
    registry.usual = {"heartbeat_interval_s": PACED_S}
    registry.script.extend([(201, {}), 200, 503, 200, 404, 200, 503, 200, 201])
    async with kept(lease):
        asked = [await next_asked(registry) for _ in range(9)]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(registry.asked.get(), 0.3)
    assert [(it.method, it.path) for it in asked] == [REGISTER, *[RENEW, REGISTER] * 4]
    lengths = [it.body["ttl_s"] for it in asked if (it.method, it.path) == REGISTER]
    assert lengths == [15.0, *[15.0 + 1.1 * PACED_S] * 4]


@pytest.mark.usefixtures("at_once")
async def test_what_changes_is_told_at_once_however_far_apart_heartbeats_are(
    registry: FakeRegistry, session: aiohttp.ClientSession
) -> None:
    record = replace(RECORD, ttl_s=15.0)
    lease = make(session, registry.url, interval_s=0.01, record=lambda: record)
    async with kept(lease):
        await paced(registry, lease)
        lease.wake()
        assert await calls(registry, 1) == [RENEW]
        record = replace(record, metadata={"models": ["a"]})
        lease.wake()
        asked = await next_asked(registry)
        assert (asked.body["metadata"], asked.body["ttl_s"]) == ({"models": ["a"]}, 15.0 + 1.1 * PACED_S)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    "told",
    [{}, {"heartbeat_interval_s": 0.005}, {"heartbeat_interval_s": -1}, {"heartbeat_interval_s": "often", "doubt": 7}],
)
async def test_a_smaller_fleet_gets_its_short_interval_back_then_its_short_lease(
    registry: FakeRegistry, session: aiohttp.ClientSession, told: dict[str, Any]
) -> None:
    lease = make(session, registry.url, interval_s=0.01, record=lambda: replace(RECORD, ttl_s=15.0))
    async with kept(lease):
        await paced(registry, lease)
        registry.usual = told
        lease.wake()
        asked = [await next_asked(registry) for _ in range(4)]
    assert [(it.method, it.path) for it in asked] == [RENEW, REGISTER, RENEW, RENEW]
    assert asked[1].body["ttl_s"] == 15.0


@pytest.mark.usefixtures("at_once")
async def test_a_registry_that_does_not_know_yet_leaves_everything_as_it_is(
    registry: FakeRegistry, session: aiohttp.ClientSession
) -> None:
    lease = make(session, registry.url, interval_s=0.01, record=lambda: replace(RECORD, ttl_s=15.0))
    async with kept(lease):
        await paced(registry, lease)
        registry.script.extend([(200, {"heartbeat_interval_s": None})] * 2)
        for _ in range(2):
            lease.wake()
            assert await calls(registry, 1) == [RENEW]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(registry.asked.get(), 0.2)


@pytest.mark.usefixtures("at_once")
async def test_a_forgotten_record_is_registered_for_the_long_lease_at_once_C1(
    registry: FakeRegistry, session: aiohttp.ClientSession
) -> None:
    lease = make(session, registry.url, interval_s=0.01, record=lambda: replace(RECORD, ttl_s=15.0))
    async with kept(lease):
        await paced(registry, lease)
        registry.script.append(404)
        lease.wake()
        assert await calls(registry, 1) == [RENEW]
        assert (await next_asked(registry)).body["ttl_s"] == 15.0 + 1.1 * PACED_S
        with pytest.raises(TimeoutError):  # all of a fleet would beat within one short interval
            await asyncio.wait_for(registry.asked.get(), 0.3)


async def test_a_fleet_does_not_get_its_longer_leases_all_at_once(
    registry: FakeRegistry, session: aiohttp.ClientSession
) -> None:
    registry.usual = {"heartbeat_interval_s": PACED_S}
    registry.script.append((201, {}))
    lease = make(session, registry.url, interval_s=0.01, record=lambda: replace(RECORD, ttl_s=15.0))
    lease._rng = random.Random(3)
    async with kept(lease):
        asked = [(await next_asked(registry)).path for _ in range(3)]
        assert asked == [REGISTER[1], RENEW[1], RENEW[1]], "not with the first"
        async with asyncio.timeout(5):
            while (await next_asked(registry)).path != REGISTER[1]:
                pass


async def test_one_that_is_new_has_the_long_lease_at_once_and_tells_of_itself_before_it_rests(
    registry: FakeRegistry, session: aiohttp.ClientSession
) -> None:
    registry.usual = {"heartbeat_interval_s": PACED_S}
    lease = make(session, registry.url, interval_s=0.01, record=lambda: replace(RECORD, ttl_s=15.0))
    async with kept(lease):
        asked = [await next_asked(registry) for _ in range(3)]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(registry.asked.get(), 0.3)
    assert [(it.method, it.path) for it in asked] == [REGISTER, REGISTER, RENEW]
    assert [it.body["ttl_s"] for it in asked[:2]] == [15.0, 15.0 + 1.1 * PACED_S]


async def test_a_record_that_does_not_say_how_long_it_lasts_beats_as_before(
    registry: FakeRegistry, session: aiohttp.ClientSession
) -> None:
    registry.usual = {"heartbeat_interval_s": PACED_S}
    async with kept(make(session, registry.url, interval_s=0.01)):
        assert await calls(registry, 5) == [REGISTER, *[RENEW] * 4]
