"""A stream whose replica is lost goes on at another: by plane and fakes, byte for byte (docs/streams.md)."""

import asyncio
import json
import socket
from typing import Any

import pytest

from router.counters import OUTCOMES, RESCUES, RESCUES_FAILED, AttemptOutcome
from router.policy.models import ModelRule, ModelRules
from tests.router.conftest import MakePlane
from tests.router.fakes import SSE_HEAD, Call, FakeReplica, Plane, Reply, request
from tests.router.seeded import CHAT, CHATS, COMPLETIONS, CONTINUES, TEXTS, USAGE, Then, seeded, told, whole

TCP_REPAIR = 19
"""Linux's option (linux/tcp.h): a socket that is closed in this mode says nothing to its peer."""
RULES = ModelRules(rules={"m": ModelRule(rescue=True)})


@pytest.fixture(autouse=True)
def _quick_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.proxy.engine.SWEEP_S", 0.02)


@pytest.fixture
async def plane(planes: MakePlane) -> Plane:
    return await planes(rules=RULES, idle_timeout_s=0.3)


async def fin(call: Call) -> None:
    call.close()


async def rst(call: Call) -> None:
    await asyncio.sleep(0.05)  # turns of the loop, which is the router's too: what was sent is read before it
    call.reset()


async def cut_clean(call: Call) -> None:
    await call.send(b"0\r\n\r\n")


async def half_an_event(call: Call) -> None:
    half = b'data: {"id":"id-one","choices":[{"index":0,"del'
    await call.send(b"%x\r\n%b\r\n" % (len(half), half))
    await rst(call)


async def hang(call: Call) -> None:
    await call.until_gone()


async def half_open(call: Call) -> None:
    """The machine is gone without a word: no FIN, no RST."""
    raw = call.writer.get_extra_info("socket")
    try:
        raw.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    except PermissionError:
        pytest.skip("only root may close a connection without a word")
    call.writer.transport.abort()


async def two(plane: Plane, *cuts: tuple[int, Then], **more: Any) -> tuple[FakeReplica, FakeReplica]:
    """Two replicas; the first requests are cut, whoever gets them."""
    left = list(reversed(cuts))
    one, other = await plane.add(seeded("one", left)), await plane.add(seeded("other", left))
    plane.route(one, other, **{"continues": CONTINUES, **more})
    return one, other


async def ask(plane: Plane, body: dict[str, Any], path: str = CHATS) -> Reply:
    return await plane.send(request(json.dumps(body).encode(), path), until_close=True)


def undisturbed(reply: bytes, body: dict[str, Any], *, chat: bool = True) -> bool:
    """Whether these are the bytes of the stream of one of the two."""
    return reply in (whole(body, "one", chat=chat), whole(body, "other", chat=chat))


def total(plane: Plane, field: int) -> int:
    plane.engine.counters.flush()
    return sum(plane.engine.counters.total(slot, field) for slot in range(2))


@pytest.mark.parametrize("then", [fin, rst, cut_clean, half_an_event, hang, half_open])
@pytest.mark.parametrize("after", [1, 5, 11])
async def test_a_chat_goes_on_elsewhere_with_the_bytes_of_an_undisturbed_stream_A22(
    plane: Plane, then: Then, after: int
) -> None:
    replicas = await two(plane, (after, then))
    body = CHAT | USAGE
    got, comments = told(await ask(plane, body))
    assert undisturbed(got, body)
    assert comments in ([b": continued on r0\n"], [b": continued on r1\n"])
    assert total(plane, RESCUES) == 1
    assert total(plane, RESCUES_FAILED) == 0
    first, second = sorted((json.loads(call.body) for one in replicas for call in one.calls), key=len)
    assert first == body
    assert second["messages"][-1]["role"] == "assistant"
    assert (second["continue_final_message"], second["add_generation_prompt"]) == (True, False)
    assert second["max_tokens"] == 12 - after


@pytest.mark.parametrize("after", [1, 7])
async def test_completions_go_on_by_their_prompt_A22(plane: Plane, after: int) -> None:
    await two(plane, (after, rst))
    body = COMPLETIONS | USAGE
    got, _ = told(await ask(plane, body, TEXTS))
    assert undisturbed(got, body, chat=False)


@pytest.mark.parametrize("after", [12, 13])
async def test_a_stream_that_lacks_its_end_only_gets_that_A22(plane: Plane, after: int) -> None:
    """All was said (12 words), or the reason of the end as well; what is missing are usage and end mark."""
    replicas = await two(plane, (after, rst))
    body = CHAT | USAGE
    got, _ = told(await ask(plane, body))
    assert undisturbed(got, body)
    assert {json.loads(call.body)["max_tokens"] for one in replicas for call in one.calls} == {12, 1}


@pytest.mark.parametrize("then", [rst, hang])
async def test_a_stream_whose_end_mark_came_is_over_whatever_its_connection_does_A22(plane: Plane, then: Then) -> None:
    async def marked(call: Call) -> None:
        await call.send(b"e\r\ndata: [DONE]\n\n\r\n")
        await then(call)

    replicas = await two(plane, (14, marked))
    body = CHAT | USAGE
    reply = await ask(plane, body)
    assert told(reply) in ((whole(body, "one"), []), (whole(body, "other"), []))
    assert reply.raw.endswith(b"0\r\n\r\n")
    assert sum(len(one.calls) for one in replicas) == 1
    assert total(plane, RESCUES) == total(plane, RESCUES_FAILED) == plane.in_flight() == 0


@pytest.mark.parametrize(("name", "is_whole"), [("x-first-byte-timeout", True), ("x-request-timeout", False)])
async def test_a_rescue_is_bound_by_the_whole_answers_deadline_and_not_by_the_first_bytes_A22(
    plane: Plane, name: str, *, is_whole: bool
) -> None:
    """The client has had its first byte; what it waits for is the answer."""

    async def answer(call: Call) -> None:
        goes_on = b"continue_final" in call.body
        if goes_on:
            await asyncio.sleep(0.6)
        await seeded("one", [] if goes_on else [(3, rst)])(call)

    plane.route(await plane.add(answer), await plane.add(answer), continues=CONTINUES)
    raw = request(json.dumps(CHAT).encode(), headers=f"{name}: 0.3\r\n")
    reply = await plane.send(raw, until_close=True)
    assert (b"request_timeout" in reply.body) is not is_whole
    assert not is_whole or told(reply)[0] == whole(CHAT, "one")
    assert plane.in_flight() == 0


async def test_http_1_0_and_a_stream_without_a_word_yet_A22(plane: Plane) -> None:
    async def comment_only(call: Call) -> None:
        await call.send(SSE_HEAD + b"8\r\n: ping\n\n\r\n")
        call.reset()

    left = [True]

    async def answer(call: Call) -> None:
        await (comment_only(call) if left and left.pop() else seeded("one", [])(call))

    plane.route(await plane.add(answer), await plane.add(answer), continues=CONTINUES)
    raw = request(json.dumps(CHAT).encode()).replace(b"HTTP/1.1", b"HTTP/1.0")
    got, comments = told(await plane.send(raw, until_close=True))
    assert got.lstrip() == whole(CHAT, "one")
    assert len(comments) == 2


async def broken(plane: Plane, body: dict[str, Any], path: str = CHATS) -> bytes:
    reply = await ask(plane, body, path)
    assert reply.status == 200
    assert b"[DONE]" not in reply.body
    assert b": continued" not in reply.body
    return reply.body


MORE: list[dict[str, Any]] = [
    {"response_format": {"type": "json_object"}},
    {"n": 2},
    {"logprobs": True},
    {"guided_regex": "a+"},
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]},
]


@pytest.mark.parametrize("more", MORE, ids=lambda more: next(iter(more)))
async def test_what_text_alone_does_not_restore_ends_in_an_error_event_A22(plane: Plane, more: dict[str, Any]) -> None:
    await two(plane, (3, rst))
    assert b"upstream_died" in await broken(plane, CHAT | more)
    assert total(plane, RESCUES) == 0


def said(delta: dict[str, Any]) -> bytes:
    payload = b'data: {"id":"x","choices":[{"index":0,"delta":%b}]}\n\n' % json.dumps(delta).encode()
    return b"%x\r\n%b\r\n" % (len(payload), payload)


DELTAS: list[list[dict[str, Any]]] = [
    [{"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": ""}}]}],
    [{"reasoning_content": "hm"}],
    [{"content": "x" * 200_000}, {"content": "y" * 70_000}],
]


@pytest.mark.parametrize("deltas", DELTAS, ids=["tools", "reasoning", "long"])
async def test_tools_reasoning_and_long_texts_are_not_continued_A22(plane: Plane, deltas: list[dict[str, Any]]) -> None:
    async def answer(call: Call) -> None:
        await call.send(SSE_HEAD + b"".join(map(said, deltas)))
        await asyncio.sleep(0.05)
        call.reset()

    plane.route(await plane.add(answer), await plane.add(answer), continues=CONTINUES)
    assert b"upstream_died" in await broken(plane, CHAT)
    assert total(plane, RESCUES_FAILED) == 1


async def test_reasoning_is_kept_apart_from_the_text_A22(plane: Plane) -> None:
    bodies: list[dict[str, Any]] = []

    async def answer(call: Call) -> None:
        bodies.append(json.loads(call.body))
        if len(bodies) == 1:
            await call.send(SSE_HEAD + said({"role": "assistant", "reasoning": "hm"}) + said({"content": "so \n"}))
            await asyncio.sleep(0.05)
            call.reset()
        else:
            await call.send(SSE_HEAD + said({"role": "assistant", "content": ""}) + said({"content": " \nit is"}))
            await call.send(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    plane.route(await plane.add(answer), await plane.add(answer), continues=CONTINUES)
    got, _ = told(await ask(plane, CHAT))
    assert bodies[1]["messages"][-1] == {"role": "assistant", "reasoning": "hm", "content": "so"}
    assert [json.loads(line[6:])["choices"][0]["delta"] for line in got.splitlines() if line[:7] == b"data: {"] == [
        {"role": "assistant", "reasoning": "hm"},
        {"content": "so \n"},
        {"content": "it is"},  # what templates strip is said anew, and told once
    ]


async def test_another_revision_or_tokenizer_and_who_cannot_continue_are_no_candidates_A22(plane: Plane) -> None:
    one, other = await two(plane, (3, rst), continues=())
    assert b"upstream_died" in await broken(plane, CHAT)
    assert len(one.calls) + len(other.calls) == 1
    left: list[tuple[int, Then]] = [(3, rst)]
    one, other = await plane.add(seeded("one", left)), await plane.add(seeded("other", left))
    table = [*plane.route(one, other, continues=CONTINUES)]
    for endpoint, line in zip(table, ("revision=a", "revision=b"), strict=True):
        object.__setattr__(endpoint, "lineages", {"m": line})
    assert b"upstream_died" in await broken(plane, CHAT)
    assert len(one.calls) + len(other.calls) == 1


async def test_a_stream_is_rescued_once_and_a_cut_one_within_the_retry_budget_A22(plane: Plane) -> None:
    await two(plane, (3, rst), (3, rst))
    reply = await ask(plane, CHAT)
    assert b": continued" in reply.body
    assert b"upstream_died" in reply.body
    while plane.engine.retries.allows(plane.engine.now()):
        plane.engine.retries.note_retry()
    await two(plane, (3, cut_clean))
    assert b"upstream_truncated" in await broken(plane, CHAT)
    await two(plane, (3, rst))
    assert undisturbed(told(await ask(plane, CHAT))[0], CHAT)  # who is gone does no work for it any more


async def test_a_replica_that_refuses_to_continue_is_followed_by_the_next_or_the_error_A22(plane: Plane) -> None:
    async def refuse(call: Call) -> None:
        await call.send(b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")

    async def first(call: Call) -> None:
        await (seeded("one", [(3, rst)]) if b"continue_final" not in call.body else refuse)(call)

    plane.route(*[await plane.add(first) for _ in range(2)], continues=CONTINUES)
    assert b"upstream_died" in await broken(plane, CHAT)
    assert total(plane, RESCUES_FAILED) == 1
    plane.route(await plane.add(first), await plane.add(seeded("other", [])), continues=CONTINUES)
    for _ in range(4):
        assert b"[DONE]" in (await ask(plane, CHAT)).body


async def test_a_client_that_leaves_during_a_rescue_cancels_it_A22(plane: Plane) -> None:
    waits, gone = asyncio.Event(), asyncio.Event()

    async def answer(call: Call) -> None:
        if b"continue_final" not in call.body:
            await seeded("one", [(3, rst)])(call)
        else:
            waits.set()
            await call.until_gone()
            gone.set()

    plane.route(await plane.add(answer), await plane.add(answer), continues=CONTINUES)
    _, writer = await plane.open()
    writer.write(request(json.dumps(CHAT).encode()))
    await asyncio.wait_for(waits.wait(), 10)
    writer.close()
    await asyncio.wait_for(gone.wait(), 10)
    assert total(plane, OUTCOMES + AttemptOutcome.CLIENT_GONE) == 1
    assert plane.in_flight() == 0  # and when the plane stops, nothing is left of bodies and requests


async def test_a_rescued_stream_waits_for_room_like_any_request_A22(plane: Plane) -> None:
    held, release = asyncio.Event(), asyncio.Event()

    async def hold(call: Call) -> None:
        if b"hold" in call.body:
            held.set()
            await release.wait()
        await seeded("other", [])(call)

    other = await plane.add(hold)
    plane.route(other, continues=CONTINUES, limit=1)
    holder = asyncio.ensure_future(ask(plane, CHAT | {"messages": [{"role": "user", "content": "hold"}]}))
    await asyncio.wait_for(held.wait(), 10)
    plane.route(other, await plane.add(seeded("one", [(3, rst)])), continues=CONTINUES, limit=1)
    stream = asyncio.ensure_future(ask(plane, CHAT))
    while not len(plane.engine.waiting):
        await asyncio.sleep(0.01)
    release.set()
    assert told(await stream)[0] == whole(CHAT, "one")
    await holder


async def test_without_the_setting_nothing_is_kept_and_nothing_continued_A1(planes: MakePlane) -> None:
    plane = await planes(rules=ModelRules(rules={"other": ModelRule(rescue=True)}))
    await two(plane, (3, rst))
    assert b"upstream_died" in await broken(plane, CHAT)
    assert total(plane, RESCUES_FAILED) == 0
