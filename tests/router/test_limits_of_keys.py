"""Limits of keys: what workers take, what their master lends, and what clients are told. The registry is the real lender."""

import asyncio
import hashlib
import json
from datetime import UTC, datetime
from typing import Any, cast

import pytest
import structlog

from common.discovery.registry_client import RegistryUnavailable
from common.leases import Lender, Now, limits_of
from common.wire.leases import LeaseAnswer, LeaseCall, LeaseGrant, LeaseRow
from router import purses
from router.feed import Grants
from router.keys import Key
from router.lending import Lending
from router.policy.usage import Usage
from router.purses import Account, Charged, most_tokens
from tests.router.conftest import MakePlane
from tests.router.fakes import Call, FakeReplica, Plane, Reply, plain

CHAT = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
SHOWN = "authorization: Bearer secret\r\n"


def key(name: str = "team", **limits: Any) -> Key:
    return Key(name, hashlib.sha256(b"secret").hexdigest(), **limits)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> Now:
        return Now(self.now, datetime.fromtimestamp(self.now, UTC))


class Registry:
    """The fleet's lender, without HTTP; `away` makes it silent."""

    def __init__(self, clock: Clock, **limits: Any) -> None:
        self.clock = clock
        self.lender = Lender()
        self.lender.limit({"team": limits_of(key(**limits))})
        self.sessions: set[str] = set()
        self.away = False
        self.loses_answer = False
        self.calls: list[LeaseCall] = []

    async def lease(self, _name: str, call: LeaseCall) -> LeaseAnswer:
        if self.away:
            raise RegistryUnavailable("away")
        self.calls.append(call)
        is_new = call.session not in self.sessions
        self.sessions.add(call.session)
        if is_new:
            self.lender.add_recent(call.recent, self.clock())
        named = {f"{call.session}/{holder}": rows for holder, rows in call.holders.items()}
        granted = self.lender.report(named, self.clock(), is_new=is_new)
        if self.loses_answer:
            raise RegistryUnavailable("the answer is lost")
        return LeaseAnswer(
            routers=len(self.sessions), holders={name.partition("/")[2]: one for name, one in granted.items()}
        )


def router_of(registry: Registry, one: Key, *, fails_closed: bool = False) -> Lending:
    lending = Lending(fails_closed=fails_closed, now=registry.clock)
    lending.set_keys((one,), {one.name})
    lending._registry = (cast("Any", registry), "r")
    return lending


async def ask(lending: Lending, worker: str = "1", unit: str = "requests", **row: int) -> LeaseGrant | None:
    """What a worker is granted; None where nobody knows."""
    told: list[Grants] = []
    lending.heard(worker, {"team": {unit: LeaseRow(**row)}}, told.append)
    if not told:
        await lending.call()
    (answer,) = told
    return None if answer.closed else answer.grants["team"][unit]


def granted(grant: LeaseGrant | None) -> int:
    assert grant is not None
    return grant.granted


# -- an account ----------------------------------------------------------------------------------------------------


def filled(one: Account, amount: int = 1000) -> Account:
    for _, purse in one.purses():
        purse.grant(LeaseGrant(granted=amount, left=amount, limit=amount), 0.0)
    return one


def test_a_request_takes_all_that_it_needs_or_nothing() -> None:
    one = Account(10, 1000, 10)
    assert one.requests is not None
    assert one.tokens is not None
    assert one.in_flight is not None
    for purse in (one.requests, one.tokens, one.in_flight):
        assert one.admit(100) is purse
        assert (one.requests.used, one.tokens.bound, one.in_flight.bound) == (0, 0, 0)
        purse.grant(LeaseGrant(granted=200, limit=1000), 0.0)
    assert one.admit(100) is None
    assert (one.requests.used, one.tokens.bound, one.tokens.free, one.in_flight.bound) == (1, 100, 100, 1)


def test_what_was_taken_too_much_is_given_back_and_too_little_is_used_all_the_same() -> None:
    one = filled(Account(None, 1000, None))
    assert one.tokens is not None
    for usage, used, free in ((Usage(10, -1, 20, -1), 30, 970), (Usage(10, -1, 2000, -1), 2040, 0)):
        charged = one.charge(b"", 40, 1)
        one.tokens.free = max(one.tokens.free, 0)
        assert one.admit(charged.tokens) is None
        one.settle(charged, usage, 0, answered=True)
        assert (one.tokens.used, one.tokens.free, one.tokens.bound) == (used, free, 0)
    assert (
        one.charge(b"", 40, 1).tokens == 1000
    )  # it has learned how long answers are, and no request needs more than all


@pytest.mark.parametrize(
    ("usage", "pieces", "answered", "tokens"),
    [
        (None, 0, True, 300),  # told nothing: what was taken
        (None, 0, False, 0),  # refused, or nobody was there
        (None, 7, True, 107),  # a stream without usage: its prompt by its bytes, its pieces
        (None, 7, False, 107),  # one whose client went
        (Usage(50, 20, -1, -1), 7, False, 57),
        (Usage(-1, -1, 5, -1), 0, True, 105),
    ],
)
def test_tokens_are_those_of_the_usage_else_what_came(
    usage: Usage | None,
    pieces: int,
    answered: bool,  # noqa: FBT001 - a row of the table
    tokens: int,
) -> None:
    one = filled(Account(None, 1000, None))
    assert one.tokens is not None
    one.admit(300)
    one.settle(Charged(300, 400, 1), usage, pieces, answered=answered)
    assert one.tokens.used == tokens


@pytest.mark.parametrize(
    ("body", "most"),
    [
        (b'{"max_tokens": 7}', 7),
        (b'{"a":1,"max_completion_tokens":12}', 12),
        (b'{"max_output_tokens" :9}', 9),
        (b'{"content":"\\"max_tokens\\": 5"}', None),
        (b'{"max_tokens": null}', None),
        (b'{"max_tokens": "8"}', None),
        (b"{}", None),
    ],
)
def test_the_most_that_a_body_allows_is_found(body: bytes, most: int | None) -> None:
    assert most_tokens(body) == most


def test_max_tokens_bounds_what_is_taken_and_each_choice_takes_its_own() -> None:
    one = Account(None, 100_000, None)
    assert one.charge(b'{"max_tokens":3}', 400, 1).tokens == 103
    assert one.charge(b'{"max_tokens":3}', 400, 4).tokens == 112
    assert one.charge(b'{"max_tokens":999999999}', 400, 1).tokens == 100 + purses.FIRST_LENGTH


def test_what_is_not_needed_is_given_back_and_what_is_taken_steadily_is_held_ahead() -> None:
    one = filled(Account(100, None, None), 50)
    assert one.requests is not None
    for _ in range(5):
        assert one.admit(0) is None
    one.requests.beat()
    assert one.requests.free == 45
    assert one.requests.row(1).want == 1 + purses.AHEAD * 5
    for _ in range(purses.IDLE_BEATS):
        one.requests.beat()
    assert one.requests.row(0) == LeaseRow(held=0, used=5)


# -- the master ----------------------------------------------------------------------------------------------------


async def test_two_routers_together_get_no_more_than_the_limit() -> None:
    registry = Registry(Clock(), requests_per_minute=60)
    routers = [router_of(registry, key(requests_per_minute=60)) for _ in range(2)]
    used = dict.fromkeys(((index, worker) for index in range(2) for worker in ("1", "2")), 0)
    for turn in range(40):
        for index, worker in used:
            grant = await ask(routers[index], worker, held=0, used=used[index, worker], need=1 + turn % 3, want=9)
            used[index, worker] += granted(grant)
    assert sum(used.values()) == 60
    none = await ask(routers[0], used=used[0, "1"], need=1)
    assert none is not None
    assert 60 <= none.again_in_s <= 61
    registry.clock.now += 61
    assert granted(await ask(routers[0], used=used[0, "1"], need=5)) == 5


async def test_a_key_of_the_routers_file_is_lent_by_the_router_and_nobody_is_asked() -> None:
    registry = Registry(Clock(), requests_per_minute=4)
    lending = router_of(registry, key(requests_per_minute=4))
    lending.set_keys((key(requests_per_minute=4),), ())
    assert [granted(await ask(lending, worker, need=1)) for worker in "123"] == [1, 1, 1]
    registry.away = True
    assert granted(await ask(lending, "4", need=5)) == 1
    assert registry.calls == []


async def test_without_a_registry_a_router_goes_on_with_its_share_of_what_was_left() -> None:
    registry = Registry(Clock(), requests_per_minute=60)
    one, other = (router_of(registry, key(requests_per_minute=60)) for _ in range(2))
    await ask(other, used=40)
    await ask(one, used=10)  # ten are left, and both know of each other
    await ask(other, used=40)
    registry.away = True
    with structlog.testing.capture_logs() as lines:
        assert granted(await ask(one, used=10, need=30)) == 5
        assert granted(await ask(other, used=40, need=30)) == 0  # it is beyond its share already
        assert granted(await ask(one, used=15, need=30)) == 0
    assert [line["event"] for line in lines] == ["lending.alone", "lending.alone"]
    assert one.lost
    registry.clock.now += 61
    assert granted(await ask(one, used=15, need=60)) == 30
    registry.away = False
    with structlog.testing.capture_logs() as lines:
        await ask(one, used=45)
        await one.call()
    assert [line["event"] for line in lines] == ["lending.shared"]
    assert registry.lender.meters["team"]["requests"].left(registry.clock()) == 60 - 35


async def test_a_registry_that_begins_anew_hears_what_was_used_before_it_lends() -> None:
    clock = Clock()
    first, second = Registry(clock, requests_per_minute=60), Registry(clock, requests_per_minute=60)
    lending = router_of(first, key(requests_per_minute=60))
    await ask(lending, used=20, held=5)
    await ask(lending, used=25)
    lending._registry = (cast("Any", second), "r")
    assert granted(await ask(lending, used=25, need=60)) == 35


async def test_an_answer_that_is_lost_counts_nothing_twice() -> None:
    registry = Registry(Clock(), requests_per_minute=60)
    lending = router_of(registry, key(requests_per_minute=60))
    await ask(lending, used=1)
    registry.loses_answer = True
    await ask(lending, used=11, need=1)  # lent by the router itself
    registry.loses_answer = False
    await ask(lending, used=12, held=0)
    await lending.call()
    assert registry.lender.meters["team"]["requests"].left(registry.clock()) == 48


async def test_where_it_fails_closed_nobody_is_let_in_without_the_registry() -> None:
    registry = Registry(Clock(), requests_per_minute=60)
    lending = router_of(registry, key(requests_per_minute=60), fails_closed=True)
    assert granted(await ask(lending, need=1)) == 1
    registry.away = True
    assert await ask(lending, used=1, need=1) is None
    registry.away = False
    await lending.call()
    assert granted(await ask(lending, used=1, need=1)) == 1


async def test_what_a_killed_worker_held_counts_as_used_and_one_that_ended_well_held_nothing() -> None:
    registry = Registry(Clock(), requests_per_minute=60)
    lending = router_of(registry, key(requests_per_minute=60))
    assert granted(await ask(lending, "1", need=10)) == 10
    lending.gone("1")
    await lending.call()
    await ask(lending, "2", used=3)
    lending.gone("2")
    await lending.call()
    assert registry.lender.meters["team"]["requests"].left(registry.clock()) == 47
    assert not lending._rows
    assert not lending._told
    assert not lending._gone


# -- requests ------------------------------------------------------------------------------------------------------


async def answer_with_usage(call: Call) -> None:
    await call.send(plain(b'{"ok":1,"usage":{"prompt_tokens":30,"completion_tokens":70}}'))


def told(reply: Reply, unit: str = "requests") -> tuple[str | None, str | None]:
    return reply.header(f"x-ratelimit-limit-{unit}"), reply.header(f"x-ratelimit-remaining-{unit}")


async def test_requests_beyond_the_limit_are_429_with_what_is_left_and_when_there_is_more(plane: Plane) -> None:
    plane.route(await plane.add(answer_with_usage))
    plane.engine.set_keys((key(requests_per_minute=3),))
    replies = [await plane.post(CHAT, headers=SHOWN) for _ in range(5)]
    assert [reply.status for reply in replies] == [200, 200, 200, 429, 429]
    assert [told(reply) for reply in replies] == [("3", "2"), ("3", "1"), ("3", "0"), ("3", "0"), ("3", "0")]
    refused = replies[-1]
    assert json.loads(refused.body)["error"]["code"] == "rate_limited"
    assert 58 <= int(refused.header("retry-after") or 0) <= 61
    assert (refused.header("x-ratelimit-reset-requests") or "").endswith("s")


async def held(plane: Plane) -> tuple[asyncio.Event, FakeReplica]:
    """A replica that answers when it is told to."""
    go = asyncio.Event()

    async def answer(call: Call) -> None:
        await go.wait()
        await answer_with_usage(call)

    return go, await plane.add(answer)


async def test_tokens_are_settled_by_usage(plane: Plane) -> None:
    plane.route(await plane.add(answer_with_usage))
    plane.engine.set_keys((key(tokens_per_minute=1000),))
    statuses = [(await plane.post(CHAT, headers=SHOWN)).status for _ in range(12)]
    assert statuses == [200] * 10 + [429] * 2
    (account,) = plane.engine.budgets.accounts.values()
    assert account.tokens is not None
    assert (account.tokens.used, account.tokens.bound) == (1000, 0)


async def test_no_more_requests_are_under_way_than_the_key_may_have(plane: Plane) -> None:
    go, replica = await held(plane)
    plane.route(replica)
    plane.engine.set_keys((key(max_in_flight=2),))
    posts = [asyncio.ensure_future(plane.post(CHAT, headers=SHOWN)) for _ in range(2)]
    async with asyncio.timeout(5):
        while len(replica.calls) < 2:
            await asyncio.sleep(0.005)
    refused = await plane.post(CHAT, headers=SHOWN)
    assert (refused.status, refused.header("retry-after")) == (429, "1")
    go.set()
    assert [(await post).status for post in posts] == [200, 200]
    plane.engine.budgets.sweep(0.0)
    for account in plane.engine.budgets.accounts.values():
        assert account.in_flight is not None
        account.in_flight.none_until = 0.0  # a second has passed
    assert (await plane.post(CHAT, headers=SHOWN)).status == 200


async def test_a_request_that_nobody_answers_gives_back_what_it_took_for_its_tokens(plane: Plane) -> None:
    plane.engine.set_keys((key(tokens_per_minute=1000, max_in_flight=1),))
    for _ in range(3):
        assert (await plane.post(CHAT, headers=SHOWN)).status == 503
    for name, purse in plane.engine.budgets.accounts["team"].purses():
        assert (purse.bound, purse.used) == (0, 0), name


async def test_who_waits_for_a_lender_and_leaves_takes_nothing_and_one_that_is_silent_ends_in_503(
    planes: MakePlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.proxy.budgets.WAIT_S", 0.3)
    plane = await planes()
    plane.route(await plane.add(answer_with_usage))
    plane.engine.set_keys((key(requests_per_minute=3),))
    asked: list[Any] = []
    plane.engine.budgets.ask = asked.append
    _, writer = await plane.open()
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: r\r\n%bcontent-length: %d\r\n\r\n%b"
        % (SHOWN.encode(), len(CHAT), CHAT)
    )
    async with asyncio.timeout(5):
        while not asked:
            await asyncio.sleep(0.005)
    writer.transport.abort()
    late = await plane.post(CHAT, headers=SHOWN)
    assert (late.status, json.loads(late.body)["error"]["code"]) == (503, "limits_unknown")
    assert plane.engine.budgets._lines == {}


async def test_a_limit_that_is_taken_away_lets_in_who_waits_for_it(plane: Plane) -> None:
    plane.route(await plane.add(answer_with_usage))
    plane.engine.set_keys((key(requests_per_minute=3),))
    asked: list[Any] = []
    plane.engine.budgets.ask = asked.append
    waiting = asyncio.ensure_future(plane.post(CHAT, headers=SHOWN))
    async with asyncio.timeout(5):
        while not asked:
            await asyncio.sleep(0.005)
    plane.engine.set_keys((key(),))
    assert (await waiting).status == 200


async def test_where_nobody_knows_what_is_left_a_limited_key_is_503_and_another_goes_on(plane: Plane) -> None:
    plane.route(await plane.add(answer_with_usage))
    plane.engine.set_keys((key(requests_per_minute=3),))
    loop = asyncio.get_running_loop()

    def ask_nobody(_rows: object) -> None:
        loop.call_soon(lambda: plane.engine.budgets.take({}, closed=True))

    plane.engine.budgets.ask = ask_nobody
    refused = await plane.post(CHAT, headers=SHOWN)
    assert (refused.status, refused.header("retry-after")) == (503, "2")
    plane.engine.set_keys((key(),))
    assert (await plane.post(CHAT, headers=SHOWN)).status == 200


async def test_who_waits_is_let_in_by_what_another_request_gives_back_whatever_the_lender_does(plane: Plane) -> None:
    go, replica = await held(plane)
    plane.route(replica)
    plane.engine.set_keys((key(max_in_flight=2),))
    (account,) = plane.engine.budgets.accounts.values()
    assert account.in_flight is not None
    account.in_flight.grant(LeaseGrant(granted=1, left=1, limit=2), 0.0)
    asked: list[Any] = []
    plane.engine.budgets.ask = asked.append
    posts = [asyncio.ensure_future(plane.post(CHAT, headers=SHOWN)) for _ in range(2)]
    async with asyncio.timeout(5):
        while not (replica.calls and asked):
            await asyncio.sleep(0.005)
    go.set()
    assert [(await post).status for post in posts] == [200, 200]


async def test_what_nobody_takes_in_the_end_is_given_back_and_then_nothing_is_told_any_more(plane: Plane) -> None:
    plane.engine.set_keys((key(requests_per_minute=3),))
    budgets = plane.engine.budgets
    told: list[Any] = []
    budgets.ask = told.append
    budgets.soon = lambda call: call()
    (account,) = budgets.accounts.values()
    account.touched = True
    budgets._turn()
    budgets.take({"team": {"requests": LeaseGrant(granted=2, left=1, limit=3)}}, closed=False)  # who waited has left
    for _ in range(20):
        budgets.sweep(0.0)
        budgets.take({"team": {"requests": LeaseGrant(left=1, limit=3)}}, closed=False)
    assert [rows["team"]["requests"].held for rows in told] == [0, 2, 0]
    assert budgets._told == {}


async def test_a_worker_is_answered_that_asks_during_a_call_or_whose_key_is_gone_by_then() -> None:
    registry = Registry(Clock(), requests_per_minute=60)
    lending = router_of(registry, key(requests_per_minute=60))
    told: list[Grants] = []
    row = {"team": {"requests": LeaseRow(used=3)}}

    class Slow(Registry):
        async def lease(self, name: str, call: LeaseCall) -> LeaseAnswer:
            answer = await registry.lease(name, call)
            lending.heard("2", row, told.append)  # while the answer is on its way
            return answer

    lending.heard("1", row, told.append)
    lending._registry = (cast("Any", Slow(registry.clock)), "r")
    await lending.call()
    assert len(told) == 1
    lending._registry = (cast("Any", registry), "r")
    await lending.call()
    assert len(told) == 2
    lending.heard("1", row, told.append)
    lending.set_keys((), ())
    await lending.call()
    assert len(told) == 3


async def test_a_router_that_never_had_an_answer_waits_for_one_before_it_takes_itself_for_the_only_one() -> None:
    registry = Registry(Clock(), requests_per_minute=60)
    lending = router_of(registry, key(requests_per_minute=60))
    registry.away = True
    told: list[Grants] = []
    lending.heard("1", {"team": {"requests": LeaseRow(need=1)}}, told.append)
    await lending.call()
    registry.clock.now += 4
    await lending.call()
    assert (told, lending.lost) == ([], False)
    registry.clock.now += 1
    await lending.call()
    assert (told[0].grants["team"]["requests"].granted, lending.lost) == (1, True)
    other = router_of(registry, key(requests_per_minute=60))
    other.heard("1", {"team": {"requests": LeaseRow(need=1)}}, told.append)
    await other.call()
    registry.away = False
    await other.call()
    assert (told[1].grants["team"]["requests"].granted, other.lost) == (1, False)
