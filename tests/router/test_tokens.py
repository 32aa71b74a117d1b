"""Tokens as answers' usage tells them: counted by replica, while streams flow and exactly at their end, and in the access line."""

import asyncio
import json
from collections.abc import Mapping

import pytest

from router.counters import (
    CACHED_TOKENS,
    ESTIMATED_TOKENS,
    FINISHED,
    PROMPT_TOKENS,
    REASONING_TOKENS,
    REASONS,
    WRITTEN_TOKENS,
)
from router.policy.usage import UNTOLD, finish_reason, usage_of
from tests.router.conftest import MakePlane
from tests.router.fakes import DONE, SSE_HEAD, Call, Plane, event, plain

CELLS = (PROMPT_TOKENS, CACHED_TOKENS, WRITTEN_TOKENS, REASONING_TOKENS, ESTIMATED_TOKENS)
CHAT_USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 7,
    "total_tokens": 107,
    "prompt_tokens_details": {"cached_tokens": 64},
    "completion_tokens_details": {"reasoning_tokens": 3},
}
RESPONSES_USAGE = {
    "input_tokens": 100,
    "input_tokens_details": {"cached_tokens": 64},
    "output_tokens": 7,
    "output_tokens_details": {"reasoning_tokens": 3},
    "total_tokens": 107,
}
CHAT_STREAM = b'{"model":"m","stream":true,"messages":[]}'


def counted(plane: Plane) -> list[int]:
    plane.engine.counters.flush()
    return [plane.engine.counters.total(0, cell) for cell in CELLS]


def ended(plane: Plane) -> dict[str, int]:
    plane.engine.counters.flush()
    counts = (plane.engine.counters.total(0, FINISHED + number) for number in range(len(REASONS)))
    return {reason: count for reason, count in zip(REASONS, counts, strict=True) if count}


def said(text: str, reason: str | None = None, **more: object) -> bytes:
    return chunk({"choices": [{"delta": {"content": text}, "finish_reason": reason}], **more})


def chunk(said: Mapping[str, object], name: bytes = b"") -> bytes:
    data = (b"event: %b\n" % name if name else b"") + b"data: " + json.dumps(said).encode() + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


@pytest.mark.parametrize(
    ("path", "answer", "reasons"),
    [
        ("/v1/chat/completions", {"choices": [{"finish_reason": "length"}], "usage": CHAT_USAGE}, {"length": 1}),
        ("/v1/responses", {"id": "resp_1", "status": "completed", "usage": RESPONSES_USAGE, "user": None}, {}),
    ],
)
async def test_an_answer_in_one_piece(
    plane: Plane, path: str, answer: dict[str, object], reasons: dict[str, int]
) -> None:
    async def answers(call: Call) -> None:
        await call.send(plain(json.dumps(answer).encode()))

    plane.route(await plane.add(answers))
    assert (await plane.post(b'{"model":"m","messages":[]}', path=path)).status == 200
    assert counted(plane) == [100, 64, 7, 3, 0]
    assert ended(plane) == reasons


@pytest.mark.parametrize("pieces", [2, 30])
async def test_a_stream_is_counted_as_it_flows_and_put_right_by_its_usage(plane: Plane, pieces: int) -> None:
    """Several tokens in a piece, or several pieces of a token: what is counted never falls."""
    more, seen = asyncio.Event(), asyncio.Event()

    async def stream(call: Call) -> None:
        await call.send(SSE_HEAD + said(""))
        for number in range(pieces):
            await asyncio.sleep(0.001)
            await call.send(said("x", "stop" if number == pieces - 1 else None))
        seen.set()
        await more.wait()
        await call.send(chunk({"choices": [], "usage": CHAT_USAGE}) + DONE)

    plane.route(await plane.add(stream))
    asked = asyncio.ensure_future(plane.post(CHAT_STREAM))
    await seen.wait()
    await asyncio.sleep(0.02)
    while_it_flows = counted(plane)[2]
    more.set()
    assert (await asked).status == 200
    assert 0 < while_it_flows <= pieces
    assert counted(plane) == [100, 64, max(7, while_it_flows), 3, 0]
    plane.engine.counters.tally(0).written += while_it_flows  # the next stream's pieces
    assert counted(plane)[2] == 7 + while_it_flows
    assert ended(plane) == {"stop": 1}


async def test_messages_tell_the_prompt_at_the_beginning_and_the_answer_at_the_end(plane: Plane) -> None:
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 36, "cache_read_input_tokens": 64}}}
    delta = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}}

    async def stream(call: Call) -> None:
        await call.send(SSE_HEAD + chunk(start, b"message_start"))
        await asyncio.sleep(0.01)
        await call.send(
            chunk(delta, b"message_delta") + chunk({"type": "message_stop"}, b"message_stop") + b"0\r\n\r\n"
        )

    plane.route(await plane.add(stream))
    assert (
        await plane.post(b'{"model":"m","stream":true,"max_tokens":9,"messages":[]}', path="/v1/messages")
    ).status == 200
    assert counted(plane) == [100, 64, 7, 0, 0]
    assert ended(plane) == {"stop": 1}


async def test_a_stream_without_usage_is_estimated_by_its_pieces_and_says_so(planes: MakePlane) -> None:
    plane = await planes(access_log_sample=1.0)

    async def stream(call: Call) -> None:
        await call.send(SSE_HEAD + event("0"))
        for number in range(3):
            await asyncio.sleep(0.02)
            await call.send(event(str(number)))
        await call.send(DONE)

    plane.route(await plane.add(stream))
    assert (await plane.post(CHAT_STREAM)).status == 200
    prompt, cached, written, reasoning, estimated = counted(plane)
    assert (prompt, cached, reasoning) == (0, 0, 0)
    assert written == estimated >= 3
    [line] = plane.engine.log_lines
    assert line["estimated_tokens"] == estimated
    assert not {"prompt_tokens", "completion_tokens"} & line.keys()


async def test_the_access_line_tells_tokens_and_the_reason(planes: MakePlane) -> None:
    plane = await planes(access_log_sample=1.0)
    answer = {
        "choices": [{"message": {"content": '"usage":{"prompt_tokens":9}'}, "finish_reason": "stop"}],
        "usage": CHAT_USAGE,
    }

    async def answers(call: Call) -> None:
        await call.send(plain(json.dumps(answer).encode()))

    plane.route(await plane.add(answers))
    await plane.post(b'{"model":"m","messages":[]}')
    [line] = plane.engine.log_lines
    told = {name: line[name] for name in ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")}
    assert told == {"prompt_tokens": 100, "cached_tokens": 64, "completion_tokens": 7, "reasoning_tokens": 3}
    assert line["finish_reason"] == "stop"
    assert "estimated_tokens" not in line


async def test_what_a_model_says_is_not_taken_for_its_usage(plane: Plane) -> None:
    """Its text stands in quotes, which are escaped there."""
    text = '"usage":{"prompt_tokens":999999,"completion_tokens":999999},"finish_reason":"length"'
    answer = json.dumps({"choices": [{"finish_reason": "stop", "message": {"content": text}}]}).encode()

    async def answers(call: Call) -> None:
        await call.send(plain(answer))

    plane.route(await plane.add(answers))
    await plane.post(b'{"model":"m","messages":[]}')
    assert counted(plane) == [0, 0, 0, 0, 0]
    assert ended(plane) == {"stop": 1}


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        (b'{"choices":[{"finish_reason":"length","stop_reason":null}]}', b"length"),
        (b'{"choices": [{"finish_reason": "tool_calls", "logprobs": null}]}', b"tool_calls"),
        (b'{"type":"message","stop_reason":"end_turn","stop_sequence":null}', b"end_turn"),
        (b'{"choices":[{"finish_reason":null}]}', b""),
        (b'{"finish_reason":"stop', b""),
        (b'{"finish_reason":"St op"}', b""),
        (b'{"finish_reason":"%b"}' % (b"x" * 33), b""),
        (b'{"finish_reason"', b""),
        (b"[]", b""),
    ],
)
def test_why_an_answer_ended_in_the_words_of_its_api(tail: bytes, reason: bytes) -> None:
    assert finish_reason(tail) == reason


@pytest.mark.parametrize("count", ["-1", "1.5", "1e3", '"7"', "null", "true", "[7]", "1" + 18 * "0", "", "7"])
def test_what_is_no_count_is_passed_over(count: str) -> None:
    """The last is cut off: nobody knows whether it goes on."""
    end = "" if count == "7" else "}}"
    usage = usage_of(b'{"usage":{"completion_tokens":3,"prompt_tokens":' + count.encode() + end.encode())
    assert usage is not None
    assert (usage.prompt, usage.cached, usage.written, usage.reasoning) == (UNTOLD, UNTOLD, 3, UNTOLD)


@pytest.mark.parametrize(
    "text", ['"prompt_tokens" :\t12 ,"x":0', '"prompt_tokens":\n12\r\n', '"x":0,"prompt_tokens":12']
)
def test_usage_may_have_blanks(text: str) -> None:
    usage = usage_of(b'{"usage" : {' + text.encode() + b"}}")
    assert usage is not None
    assert usage.prompt == 12


def test_a_count_that_a_chunk_s_border_cuts_is_passed_over() -> None:
    assert usage_of(b'{"usage":{"prompt_tokens":12\r\n5\r\n34}}}') is None
