"""Whose turn it is where requests wait: parts by tokens, whatever the requests are like."""

import asyncio
import hashlib
import heapq
import json
from collections import Counter
from dataclasses import dataclass, field
from statistics import quantiles

import pytest

from router.admission import Waiting
from router.keys import Key
from router.policy.usage import UNTOLD, Usage
from router.shares import CLIENTS_MOST, Shares
from tests.router.fakes import Call, Plane, plain


@dataclass(frozen=True)
class Client:
    """A key that asks again as soon as it is answered, `at_once` times, or once each `each_s`."""

    name: str
    prompt: int
    written: int
    at_once: int = 0
    each_s: float = 0.0
    weight: float = 1.0
    cached: int = 0


@dataclass
class Room:
    """So many requests fit at once; a token of a prompt takes a tenth of a millisecond, one of an answer about five."""

    clients: list[Client]
    room: int
    had: Counter[str] = field(default_factory=Counter)
    waits: dict[str, list[float]] = field(default_factory=dict)

    def run(self, until: float) -> None:
        """Play it."""
        waiting: Waiting[tuple[Client, float]] = Waiting(100_000)
        shares, free, number = waiting.shares("m"), self.room, 0
        due: list[tuple[float, int, Client, float | None]] = []

        def later(at: float, client: Client, reckoned: float | None) -> None:
            nonlocal number
            number += 1
            heapq.heappush(due, (at, number, client, reckoned))

        for client in self.clients:
            for _ in range(client.at_once or 1):
                later(0.0, client, None)
        while due and due[0][0] < until:
            now, _, client, reckoned = heapq.heappop(due)
            if reckoned is not None:
                usage = Usage(client.prompt, client.cached, client.written, UNTOLD)
                shares.end(client.name, reckoned, usage, 0, 0)
                self.had[client.name] += client.prompt - client.cached + 2 * client.written
                free += 1
            if reckoned is None or client.at_once:
                waiting.join("m", client.name, (client, now))
            if reckoned is None and client.each_s:
                later(now + client.each_s, client, None)
            while free and (ticket := waiting.next("m", now)) is not None:
                goes, asked_at = ticket
                self.waits.setdefault(goes.name, []).append(now - asked_at)
                cost = shares.expected(goes.name, goes.prompt * 4)
                shares.begin(goes.name, goes.weight, cost)
                free -= 1
                later(now + goes.prompt * 1e-4 + goes.written * (0.5 + number * 0.37 % 1) * 5e-3, goes, cost)


def test_equal_keys_get_equal_parts_though_one_asks_ten_times_as_much_at_a_time() -> None:
    room = Room([Client("short", 400, 60, at_once=40), Client("long", 4000, 200, at_once=40)], room=8)
    room.run(60)
    assert room.had["short"] == pytest.approx(room.had["long"], rel=0.05)


def test_parts_are_by_weight() -> None:
    room = Room([Client("a", 300, 50, at_once=40), Client("b", 500, 90, at_once=40, weight=3.0)], room=8)
    room.run(60)
    assert 3 * room.had["a"] == pytest.approx(room.had["b"], rel=0.05)


def test_a_key_that_asks_for_a_hundred_times_its_part_does_not_keep_a_quiet_one_waiting() -> None:
    room = Room([Client("loud", 400, 60, at_once=1600), Client("quiet", 400, 60, each_s=0.7)], room=16)
    room.run(60)
    assert quantiles(room.waits["quiet"], n=20)[-1] < 0.1  # a sixteenth of a request's time, in the mean
    assert quantiles(room.waits["loud"], n=20)[-1] > 20


def test_what_was_in_the_cache_costs_a_tenth() -> None:
    shares = Shares()
    for client, cached in (("fresh", 0), ("cached", 1000)):
        cost = shares.expected(client, 4000)
        shares.begin(client, 1.0, cost)
        shares.end(client, cost, Usage(1000, cached, 50, UNTOLD), 0, 4000)
    assert shares.least(["fresh", "cached"]) == "cached"


@pytest.mark.parametrize("somebody_waits", [True, False])
def test_nobody_saves_up_a_claim_while_there_is_room(*, somebody_waits: bool) -> None:
    """Who was away while others were served goes beside them, not before them for as long as they were."""
    shares = Shares()
    for _ in range(100):
        shares.begin("busy", 1.0, 1000.0)
    shares.lift("back", ["busy"] if somebody_waits else [])
    shares.begin("back", 1.0, 1000.0)
    assert shares.least(["back", "busy"]) == "busy"


def test_usage_that_lies_or_is_missing_breaks_nothing() -> None:
    shares = Shares()
    shares.end("a", 10.0, Usage(5, 10**9, UNTOLD, UNTOLD), 3, 400)
    shares.end("a", 10.0, None, 3, 400)
    shares.end("unknown", 0.0, Usage(UNTOLD, 7, 4, UNTOLD), 0, 400)
    assert shares.least(["a", "unknown"]) == "a"


def test_clients_are_forgotten_beyond_a_number() -> None:
    shares = Shares()
    for number in range(CLIENTS_MOST + 10):
        shares.begin(str(number), 1.0, 1.0)
    assert len(shares._accounts) == CLIENTS_MOST
    assert "0" not in shares._accounts


async def test_what_answers_cost_by_their_usage_decides_whose_turn_it_is(plane: Plane) -> None:
    """Two keys wait for one place, with requests of one size; the answers of `dear` are said to be a hundred times as long."""
    served: list[str] = []

    async def answers(call: Call) -> None:
        name = json.loads(call.body)["user"]
        served.append(name)
        while len(served) == 1 and len(plane.engine.waiting) < 23:  # all others wait before the first is answered
            await asyncio.sleep(0.01)
        written = 1000 if name == "dear" else 10
        usage = {"prompt_tokens": 1, "completion_tokens": written}
        await call.send(plain(json.dumps({"choices": [{"finish_reason": "stop"}], "usage": usage}).encode()))

    plane.route(await plane.add(answers), limit=1)
    names = ("dear", "cheap")
    plane.engine.set_keys(tuple(Key(name=name, sha256=hashlib.sha256(name.encode()).hexdigest()) for name in names))
    asked = [
        plane.post(
            b'{"model":"m","user":"%b","messages":[]}' % name.encode(), headers=f"authorization: Bearer {name}\r\n"
        )
        for name in names * 12
    ]
    assert {reply.status for reply in await asyncio.gather(*asked)} == {200}
    assert served[:14].count("dear") <= 3
    assert served.count("dear") == 12
    assert not plane.engine.reckoned


async def test_a_request_that_goes_again_as_another_call_counts_once(plane: Plane) -> None:
    """Messages of a replica that has only chats: it is asked for both."""

    async def only_chats(call: Call) -> None:
        usage = {"prompt_tokens": 10, "completion_tokens": 5}
        answer = {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": usage}
        is_chat = b"/chat/" in call.line
        await call.send(plain(json.dumps(answer).encode()) if is_chat else plain(b"{}", status=b"404 Not Found"))

    replica = await plane.add(only_chats)
    plane.route(replica, limit=1)
    body = b'{"model":"m","max_tokens":8,"messages":[{"role":"user","content":"hi"}]}'
    assert (await plane.post(body, path="/v1/messages")).status == 200
    assert len(replica.calls) == 2
    (account,) = plane.engine.waiting.shares("m")._accounts.values()
    assert account.served == pytest.approx(10 + 2 * 5)
