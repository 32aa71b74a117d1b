"""Second copies of requests that wait unusually long: when they are sent, and that nothing is left of the loser."""

import asyncio
import json
from typing import Any

import pytest

from router.counters import HEDGES, HEDGES_WON, IN_FLIGHT, OUTCOMES, AttemptOutcome
from router.model import Endpoint
from router.policy.models import ModelRule, ModelRules
from router.streams.hedging import SAVED, SHARE, Hedges, busy_share
from tests.router.conftest import MakePlane
from tests.router.fakes import Call, FakeReplica, Plane, Reply, plain, request

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
KIND = ("m", b"/chat/completions", False, 3)
OK = plain(b'{"choices":[]}')


def taught(usual_s: float = 0.02, credit: float = SAVED) -> Hedges:
    """Has seen requests like CHAT, all of which waited so long."""
    hedges = Hedges()
    hedges._credit = credit
    kind, _ = hedges.begin("m", b"/chat/completions", len(json.dumps(CHAT)), stream=False)
    for _ in range(64):
        hedges.note(kind, "r0", usual_s)
    return hedges


def test_a_copy_is_due_a_tenth_after_the_95th_percentile_of_the_same_kind_A24() -> None:
    hedges = Hedges()
    kind, due = hedges.begin("m", b"/chat/completions", 100, stream=True)
    assert due == 0
    for wait in range(64):
        for replica in ("a", "b", "c"):
            hedges.note(kind, replica, wait / 100)
        hedges.note(kind, "straggler", wait / 10)
    assert 0.62 <= hedges.begin("m", b"/chat/completions", 90, stream=True)[1] <= 0.68
    for other in (("n", 100, True), ("m", 100_000, True), ("m", 100, False)):
        assert hedges.begin(other[0], b"/chat/completions", other[1], stream=other[2])[1] == 0


def test_copies_are_five_percent_of_the_requests_at_most_A24() -> None:
    hedges, sent = Hedges(), 0
    for _ in range(10_000):
        hedges.begin(*KIND[:2], 10, stream=False)
        sent += hedges.take()
    assert 0.9 * SHARE * 10_000 <= sent <= SHARE * 10_000


def test_a_pool_is_busy_by_its_limits_else_by_its_engines_queues_and_else_nobody_knows_A24() -> None:
    def one(**more: Any) -> Endpoint:
        return Endpoint(id="a", name="a", host="h", port=1, slot=0, **more)

    assert busy_share([(one(limit=4), 1), (one(limit=4), 3)]) == 0.5
    assert busy_share([(one(waiting=0), 9), (one(waiting=2), 9)]) == 0.5
    assert busy_share([(one(), 0)]) == busy_share([]) == 1.0


def test_who_loses_one_after_the_other_is_passed_over_for_a_while_A24() -> None:
    hedges = taught()
    assert not any(hedges.was_beaten("a", 0.0, 1.0) for _ in range(2))
    hedges.was_first("a")
    assert not any(hedges.was_beaten("a", 0.0, 1.0) for _ in range(2))
    assert hedges.passed_over(1.0) == set()
    assert hedges.was_beaten("a", 0.0, 1.0)
    assert not hedges.was_beaten("a", 0.9, 1.1)  # sent before the others lost: nothing new
    assert hedges.passed_over(5.9) == {"a"}
    assert hedges.passed_over(6.1) == set()


def test_one_request_tries_who_was_passed_over_and_no_other_until_that_is_decided_A24() -> None:
    hedges = taught()
    assert not hedges.tries("a", 0.0)
    for _ in range(3):
        hedges.was_beaten("a", 0.0, 1.0)
    assert hedges.tries("a", 7.0)
    assert hedges.passed_over(8.0) == {"a"}
    assert hedges.was_beaten("a", 7.0, 8.0)
    assert hedges.passed_over(17.9) == {"a"}  # twice as long
    assert hedges.passed_over(18.1) == set()
    hedges._credit = 0.5
    assert hedges.passed_over(18.1) == {"a"}  # there would be no copy of the one that tries
    hedges.was_first("a")
    assert hedges.passed_over(18.1) == set()


@pytest.fixture
async def plane(planes: MakePlane) -> Plane:
    plane = await planes(rules=ModelRules(rules={"m": ModelRule(hedge=True, policy="round_robin")}))
    plane.engine.hedges = taught()
    return plane


class Pair:
    """Two replicas: the first request anywhere is held, whatever else comes is answered."""

    def __init__(self) -> None:
        self.held: list[Call] = []
        self.gone = asyncio.Event()
        self.answer = OK
        self.replicas: list[FakeReplica] = []

    async def __call__(self, call: Call) -> None:
        if self.held:
            await call.send(self.answer)
        else:
            self.held.append(call)
            await call.until_gone()
            self.gone.set()

    async def route(self, plane: Plane, **more: Any) -> None:
        self.replicas = [await plane.add(self) for _ in range(2)]
        plane.route(*self.replicas, **{"limit": 8, **more})


async def ask(plane: Plane, path: str = "/v1/chat/completions", **more: Any) -> Reply:
    return await plane.send(request(json.dumps(CHAT | more).encode(), path), wait_s=0.5)


def total(plane: Plane, field: int) -> int:
    plane.engine.counters.flush()
    return sum(plane.engine.counters.total(slot, field) for slot in range(2))


async def test_a_copy_answers_and_the_first_one_is_dropped_at_once_A24(plane: Plane) -> None:
    pair = Pair()
    await pair.route(plane)
    assert (await ask(plane)).status == 200
    await asyncio.wait_for(pair.gone.wait(), 10)
    assert total(plane, HEDGES) == total(plane, HEDGES_WON) == 1
    assert total(plane, OUTCOMES + AttemptOutcome.MOVED) == total(plane, OUTCOMES + AttemptOutcome.OK) == 1
    assert plane.in_flight() == 0


async def test_an_answer_that_came_late_for_want_of_a_copy_speaks_for_nobody_A24(plane: Plane) -> None:
    """Else the slowest replica would be as good as any whenever the copies are used up."""
    hedges = plane.engine.hedges = taught(usual_s=0.001, credit=0.0)

    async def late(call: Call) -> None:
        await asyncio.sleep(0.05)
        await call.send(OK)

    for one in plane.route(await plane.add(late), await plane.add(late), limit=8):
        for _ in range(2):
            hedges.was_beaten(one.id, 0.0, 0.0)
    await ask(plane)
    assert sorted(beaten.losses for beaten in hedges._beaten.values()) == [2, 2]
    hedges._waits = taught(usual_s=9.0)._waits
    await ask(plane)
    assert [beaten.losses for beaten in hedges._beaten.values()] == [2]  # the other one was in time


async def test_who_loses_gets_nothing_from_then_on_not_from_the_next_sweep_A24(plane: Plane) -> None:
    async def answer(call: Call) -> None:
        if call is slow.calls[-1]:
            await call.until_gone()
        await call.send(OK)

    slow = await plane.add(answer)
    plane.route(slow, await plane.add(lambda call: call.send(OK)), limit=8)
    for _ in range(12):
        await ask(plane)
    assert total(plane, HEDGES_WON) == len(slow.calls) == 3


async def test_a_head_is_no_first_byte_A24(plane: Plane) -> None:
    """Engines send it before they have read the prompt."""
    pair = Pair()
    await pair.route(plane)
    task = asyncio.ensure_future(ask(plane))
    while not pair.held:
        await asyncio.sleep(0.005)
    await pair.held[0].send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    assert (await task).body == b'{"choices":[]}'


@pytest.mark.parametrize("status", [b"503 Busy", b"400 Bad Request"])
async def test_a_copy_that_is_refused_leaves_the_first_one_alone_A24(plane: Plane, status: bytes) -> None:
    pair = Pair()
    pair.answer = plain(b"{}", status=status)
    await pair.route(plane)
    task = asyncio.ensure_future(ask(plane))
    while not total(plane, HEDGES):
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.05)  # the refusal has come
    await pair.held[0].send(OK)
    assert (await task).status == 200
    assert total(plane, HEDGES_WON) == 0


async def test_the_first_one_may_fail_while_its_copy_is_under_way_A24(plane: Plane) -> None:
    calls: list[Call] = []
    both = asyncio.Event()

    async def answer(call: Call) -> None:
        calls.append(call)
        if len(calls) == 2:
            both.set()
        await call.until_gone()

    plane.route(await plane.add(answer), await plane.add(answer), limit=8)
    task = asyncio.ensure_future(ask(plane))
    await asyncio.wait_for(both.wait(), 10)
    calls[0].reset()
    await asyncio.sleep(0.05)
    await calls[1].send(OK)
    assert (await task).status == 200


NEVER: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("/v1/chat/completions", {"store": True}, {}),
    ("/v1/responses", {}, {}),
    ("/v1/images/generations", {}, {}),
    ("/v1/audio/speech", {}, {}),
    ("/v1/chat/completions/batch", {}, {}),
    ("/v1/chat/completions", {"model": "n"}, {"models": ("m", "n")}),
    ("/v1/chat/completions", {}, {"limit": 0}),
]


@pytest.mark.parametrize(("path", "more", "table"), NEVER)
async def test_who_never_gets_a_copy_A24(plane: Plane, path: str, more: dict[str, Any], table: dict[str, Any]) -> None:
    pair = Pair()
    await pair.route(plane, **table)
    await ask(plane, path, **more)
    assert total(plane, HEDGES) == 0
    assert len(pair.held) == 1


@pytest.mark.parametrize(("in_flight", "credit"), [(5, SAVED), (0, 0.0)])
async def test_nobody_gets_a_copy_while_the_pool_is_busy_or_the_budget_spent_A24(
    plane: Plane, in_flight: int, credit: float
) -> None:
    plane.engine.hedges = taught(credit=credit)
    pair = Pair()
    await pair.route(plane)
    for slot in range(2):
        plane.engine.counters.add(slot, IN_FLIGHT, in_flight)
    await ask(plane)
    for slot in range(2):
        plane.engine.counters.add(slot, IN_FLIGHT, -in_flight)
    assert total(plane, HEDGES) == 0
    assert len(pair.held) == 1


async def test_a_client_that_leaves_cancels_both_copies_A24(plane: Plane) -> None:
    both, gone = asyncio.Event(), asyncio.Semaphore(0)
    calls: list[Call] = []

    async def answer(call: Call) -> None:
        calls.append(call)
        if len(calls) == 2:
            both.set()
        await call.until_gone()
        gone.release()

    plane.route(await plane.add(answer), await plane.add(answer), limit=8)
    _, writer = await plane.open()
    writer.write(request(json.dumps(CHAT).encode()))
    await asyncio.wait_for(both.wait(), 10)
    assert plane.in_flight() == 2  # both are load
    writer.close()
    for _ in range(2):
        await asyncio.wait_for(gone.acquire(), 10)
    assert plane.in_flight() == 0
