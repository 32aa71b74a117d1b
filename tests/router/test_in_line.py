"""Requests that wait in the router for a replica that has enough to read: whose turn comes, and every way out of the line."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from router.model import Eligibility, Endpoint, Table
from router.policy.models import ModelRule, ModelRules
from tests.router.conftest import MakePlane
from tests.router.fakes import DONE, SSE_HEAD, Call, FakeReplica, Plane, Reply, event, request
from tests.router.test_policy_rules import facts, text
from tests.router.test_proxy_checks import until

BYTES_S = 4e-4
"""Seconds of reading for each byte of a prompt: 4 s for a long one."""


def chat(name: str, *, long: bool = True) -> bytes:
    content = name * (10_000 // len(name) if long else 10)
    return json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": content}]}).encode()


class Reader:
    """A replica that reads one prompt after the other, each until it is told to go on."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.go_on = asyncio.Semaphore(0)

    async def __call__(self, call: Call) -> None:
        self.calls.append(json.loads(call.body)["messages"][0]["content"][0])
        await self.go_on.acquire()
        for part in (SSE_HEAD, event("x"), DONE):
            await call.send(part)


class Pair:
    """Two such replicas, whose pace the router knows."""

    def __init__(self, plane: Plane) -> None:
        self.plane = plane
        self.readers = [Reader(), Reader()]
        self.endpoints: list[Endpoint] = []
        self.asked: list[asyncio.Task[Reply]] = []

    async def start(self) -> "Pair":
        replicas: list[FakeReplica] = [await self.plane.add(reader) for reader in self.readers]
        self.endpoints = self.plane.route(*replicas)
        fleet, now = self.plane.engine.chooser.fleet, self.plane.engine.now()
        fleet._shared.read_ahead_s = 0.5
        for endpoint in self.endpoints:
            for number in range(8):
                prompt = text(1000 + number)
                placement = fleet.view(endpoint).place(facts(prompt), now - 100 + number)
                placement.first_byte(now - 100 + number + len(prompt) * BYTES_S)
                placement.over(now - 90 + number)
        return self

    async def ask(self, name: str, *, long: bool = True, headers: str = "") -> asyncio.Task[Reply]:
        """Send one, and wait until it is placed."""
        before = self.plane.in_flight()
        raw = request(chat(name, long=long), headers=headers)
        task = asyncio.create_task(self.plane.send(raw, wait_s=10.0, until_close=True))
        self.asked.append(task)
        await until(lambda: self.plane.in_flight() > before)
        return task

    @property
    def calls(self) -> list[list[str]]:
        return [reader.calls for reader in self.readers]

    async def sent(self, count: int) -> None:
        """Wait until so many have been sent, in all; more do not follow at once."""
        await until(lambda: sum(len(calls) for calls in self.calls) >= count)
        await asyncio.sleep(0.05)
        assert sum(len(calls) for calls in self.calls) == count

    async def all_answered(self) -> list[Reply]:
        for reader in self.readers:
            for _ in self.asked:
                reader.go_on.release()
        return await asyncio.gather(*self.asked)

    def swap(self, change: Callable[[Endpoint], Endpoint | None]) -> None:
        """Change the first endpoint's row."""
        changed = change(self.endpoints[0])
        rows = (self.endpoints[1],) if changed is None else (changed, self.endpoints[1])
        self.plane.engine.set_table(Table.of(100, rows))


@pytest.fixture
async def pair(planes: MakePlane) -> Pair:
    return await Pair(await planes()).start()


async def test_each_replica_reads_one_and_the_short_one_is_next(pair: Pair) -> None:
    for name in "abcd":
        await pair.ask(name)
    await pair.ask("s", long=False)
    await pair.sent(2)
    assert sorted(calls[0] for calls in pair.calls) == ["a", "b"]
    assert pair.plane.in_flight() == 5
    number = next(
        number
        for number, view in enumerate(map(pair.plane.engine.chooser.fleet.view, pair.endpoints))
        if len(view.line) > 1
    )
    pair.readers[number].go_on.release()
    await until(lambda: len(pair.calls[number]) > 1)
    assert pair.calls[number][1] == "s"
    replies = await pair.all_answered()
    assert [reply.status for reply in replies] == [200] * 5
    assert [reply.header("x-queue-ms") is not None for reply in replies] == [False, False, True, True, True]


async def test_a_client_that_leaves_the_line_is_never_heard_of(pair: Pair) -> None:
    for name in "ab":
        await pair.ask(name)
    leaves = await pair.ask("c")
    await pair.sent(2)
    leaves.cancel()
    pair.asked.remove(leaves)
    await until(lambda: pair.plane.in_flight() == 2)
    assert all(not len(view.line) for view in map(pair.plane.engine.chooser.fleet.view, pair.endpoints))
    assert [reply.status for reply in await pair.all_answered()] == [200, 200]
    assert sorted(name for calls in pair.calls for name in calls) == ["a", "b"]


def _drains(endpoint: Endpoint) -> Endpoint:
    return replace(endpoint, eligibility=Eligibility.DRAINING)


async def _is_set_aside(pair: Pair) -> None:
    engine = pair.plane.engine
    assert engine.outliers.set_aside(pair.endpoints[0], pair.endpoints, engine.now())


async def _drains_now(pair: Pair) -> None:
    pair.swap(_drains)


@pytest.mark.parametrize("why", [_is_set_aside, _drains_now])
async def test_who_waits_for_a_replica_that_gets_nothing_more_goes_elsewhere(
    pair: Pair, why: Callable[[Pair], Awaitable[None]]
) -> None:
    for name in "abcdef":
        await pair.ask(name)
    await pair.sent(2)
    await why(pair)
    first, second = (
        pair.plane.engine.chooser.fleet.view(pair.endpoints[0]),
        pair.plane.engine.chooser.fleet.view(pair.endpoints[1]),
    )
    await until(lambda: (len(first.line), len(second.line)) == (0, 4))
    assert [reply.status for reply in await pair.all_answered()] == [200] * 6
    assert [len(calls) for calls in pair.calls] == [1, 5]


async def test_who_waits_for_a_replica_that_is_gone_is_answered_by_another(pair: Pair) -> None:
    for name in "abcd":
        await pair.ask(name)
    await pair.sent(2)
    pair.swap(lambda _endpoint: None)
    await pair.plane.replicas[0].stop()
    pair.plane.replicas.remove(pair.plane.replicas[0])
    replies = await pair.all_answered()
    assert [reply.status for reply in replies] == [200] * 4
    assert [len(calls) for calls in pair.calls] == [1, 4]


async def test_who_has_nowhere_else_to_go_goes_at_once(pair: Pair) -> None:
    for name in "abcd":
        await pair.ask(name)
    await pair.sent(2)
    rows = tuple(map(_drains, pair.endpoints))
    pair.plane.engine.set_table(Table.of(100, rows))
    await pair.sent(4)
    assert [reply.status for reply in await pair.all_answered()] == [200] * 4


async def test_a_clients_own_deadline_passes_in_line(pair: Pair) -> None:
    for name in "ab":
        await pair.ask(name)
    late = await pair.ask("c", headers="x-first-byte-timeout: 0.5\r\n")
    reply = await late
    assert reply.status == 504
    assert b"first_byte_timeout" in reply.body
    assert pair.plane.in_flight() == 2
    await pair.all_answered()
    assert all("c" not in calls for calls in pair.calls)


async def test_time_gives_a_turn_while_a_replica_says_nothing(pair: Pair) -> None:
    for name in "abcd":
        await pair.ask(name)
    await pair.sent(2)
    pair.plane.engine.chooser.fleet._shared.read_ahead_s = 3.0
    await until(lambda: sum(len(calls) for calls in pair.calls) == 4)
    await pair.all_answered()


async def test_a_request_in_line_gets_its_copy_like_any_other_A24(planes: MakePlane) -> None:
    rules = ModelRules(rules={"m": ModelRule(hedge=True)})
    pair = await Pair(await planes(rules=rules)).start()
    for name in "abcd":
        await pair.ask(name)
    await pair.sent(2)
    assert [reply.status for reply in await pair.all_answered()] == [200] * 4
