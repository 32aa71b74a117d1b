"""Anthropic's official client against servers that have only chat completions, and against such as have its API."""

import asyncio
import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import anthropic
import msgspec
import pytest

from common.settings import Layer, SettingsError, build
from router.keys import Key
from router.model import Eligibility, Table
from router.policy.models import ModelRule, ModelRules
from router.settings import RouterSettings
from tests.router.conftest import MakePlane
from tests.router.fakes import DONE, SSE_HEAD, Call, FakeReplica, Plane, Script, plain, request
from tests.router.test_real_clients import node_program

HELLO: Any = [{"role": "user", "content": "hi"}]
USAGE = {"prompt_tokens": 100, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 75}}
WEATHER: Any = {
    "name": "weather",
    "description": "of a town",
    "input_schema": {"type": "object", "properties": {"town": {"type": "string"}}},
}
NOT_FOUND = plain(b'{"detail":"Not Found"}', status=b"404 Not Found")


def client(plane: Plane, key: str = "k") -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=f"http://127.0.0.1:{plane.port}", api_key=key, max_retries=0)


def completion(finish_reason: str = "stop", **message: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason}
    return msgspec.json.encode({"id": "chatcmpl-1", "model": "m", "choices": [choice], "usage": USAGE})


def chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def piece(finish_reason: str | None = None, **delta: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return b"data: %b\n\n" % msgspec.json.encode({"id": "chatcmpl-1", "model": "m", "choices": [choice]})


COUNTED = b"data: %b\n\n" % msgspec.json.encode({"id": "chatcmpl-1", "model": "m", "choices": [], "usage": USAGE})
CALLS = [
    {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"town":"Ulm"}'}},
    {"index": 1, "id": "call_2", "type": "function", "function": {"name": "weather", "arguments": '{"town":"Bonn"}'}},
]


def only_chats(answer: bytes | Iterable[bytes]) -> Script:
    """A server that answers to chats, and to nothing else: a whole answer, or the events of a stream."""

    async def script(call: Call) -> None:
        if b" /v1/chat/completions " not in call.line:
            await call.send(NOT_FOUND)
        elif isinstance(answer, bytes):
            await call.send(answer)
        else:
            await call.send(SSE_HEAD)
            for event in answer:
                await call.send(chunk(event))
            await call.send(DONE)

    return script


async def chatting(plane: Plane, answer: bytes | Iterable[bytes]) -> FakeReplica:
    replica = await plane.add(only_chats(answer))
    plane.route(replica, messages=False)
    return replica


async def test_a_message_is_a_chat_for_a_server_that_has_only_those(plane: Plane) -> None:
    replica = await chatting(plane, plain(completion(content="hello", reasoning_content="hm")))
    async with client(plane) as claude:
        said = await claude.messages.create(
            model="m", max_tokens=8, system="be short", messages=HELLO, stop_sequences=["X"], metadata={"user_id": "u"}
        )
    assert [block.type for block in said.content] == ["thinking", "text"]
    assert said.content[0].to_dict() == {"type": "thinking", "thinking": "hm", "signature": "reasoning_content"}
    assert (said.id, said.model, said.role, said.stop_reason) == ("chatcmpl-1", "m", "assistant", "end_turn")
    assert (said.usage.input_tokens, said.usage.cache_read_input_tokens, said.usage.output_tokens) == (25, 75, 7)
    [call] = replica.calls
    assert call.line == b"POST /v1/chat/completions HTTP/1.1"
    assert json.loads(call.body) == {
        "model": "m",
        "messages": [{"role": "system", "content": "be short"}, *HELLO],
        "max_tokens": 8,
        "stop": ["X"],
        "user": "u",
    }
    assert call.header("authorization") == "Bearer k"
    assert call.header("x-api-key") is call.header("anthropic-version") is None


async def test_the_clients_stream_reads_text_thought_and_calls_in_their_order(plane: Plane) -> None:
    events = [
        piece(role="assistant", content=""),
        piece(reasoning="h"),
        piece(reasoning="m"),
        piece(content="Let me "),
        piece(content="see."),
        piece(tool_calls=[{**CALLS[0], "function": {"name": "weather", "arguments": ""}}]),
        piece(tool_calls=[{"index": 0, "function": {"arguments": '{"town":'}}]),
        piece(tool_calls=[{"index": 0, "function": {"arguments": '"Ulm"}'}}]),
        piece(tool_calls=[CALLS[1]]),
        piece("tool_calls"),
        COUNTED,
    ]
    replica = await chatting(plane, events)
    async with (
        client(plane) as claude,
        claude.messages.stream(model="m", max_tokens=8, messages=HELLO, tools=[WEATHER]) as stream,
    ):
        kinds = [
            event.type async for event in stream if event.type not in ("text", "thinking", "input_json", "signature")
        ]
        said = await stream.get_final_message()
    assert kinds == [
        "message_start",
        *("content_block_start", *["content_block_delta"] * 3, "content_block_stop"),
        *("content_block_start", *["content_block_delta"] * 2, "content_block_stop"),
        *("content_block_start", *["content_block_delta"] * 2, "content_block_stop"),
        *("content_block_start", "content_block_delta", "content_block_stop"),
        *("message_delta", "message_stop"),
    ]
    assert [block.to_dict() for block in said.content] == [
        {"type": "thinking", "thinking": "hm", "signature": "reasoning"},
        {"type": "text", "text": "Let me see."},
        {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"town": "Ulm"}},
        {"type": "tool_use", "id": "call_2", "name": "weather", "input": {"town": "Bonn"}},
    ]
    assert said.stop_reason == "tool_use"
    assert (said.usage.input_tokens, said.usage.cache_read_input_tokens, said.usage.output_tokens) == (25, 75, 7)
    asked = json.loads(replica.calls[0].body)
    assert (asked["stream"], asked["stream_options"]) == (True, {"include_usage": True})
    assert asked["tools"][0]["function"] == {
        "name": "weather",
        "description": "of a town",
        "parameters": WEATHER["input_schema"],
    }
    assert replica.calls[0].header("accept-encoding") == "identity"


async def test_a_conversation_with_tools_goes_there_and_back(plane: Plane) -> None:
    replica = await chatting(plane, plain(completion("tool_calls", content=None, tool_calls=CALLS)))
    async with client(plane) as claude:
        said = await claude.messages.create(
            model="m", max_tokens=8, messages=HELLO, tools=[WEATHER], tool_choice={"type": "any"}
        )
        assert said.stop_reason == "tool_use"
        results: Any = [
            {"type": "tool_result", "tool_use_id": block.id, "content": "rain"}
            for block in said.content
            if block.type == "tool_use"
        ]
        talk = [*HELLO, {"role": "assistant", "content": said.content}, {"role": "user", "content": results}]
        await claude.messages.create(model="m", max_tokens=8, messages=talk, tools=[WEATHER])
    first, second = (json.loads(call.body) for call in replica.calls)
    assert first["tool_choice"] == "required"
    plain_calls = [{name: value for name, value in call.items() if name != "index"} for call in CALLS]
    assert second["messages"][1:] == [
        {"role": "assistant", "content": None, "tool_calls": plain_calls},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        {"role": "tool", "tool_call_id": "call_2", "content": "rain"},
    ]


async def test_a_server_that_has_the_call_gets_it_as_it_is_byte_for_byte(plane: Plane) -> None:
    body = b'{"model": "m",  "max_tokens":8,"messages":[{"role":"user","content":"hi"}], "x":1}'
    answer = b'{"type":"message",  "content":[]}'

    async def native(call: Call) -> None:
        await call.send(plain(answer))

    replica = await plane.add(native)
    for known in (True, None):
        plane.route(replica, messages=known)
        assert (await plane.post(body, "/v1/messages?beta=true", "anthropic-beta: a\r\n")).body == answer
    for call in replica.calls:
        assert (call.line, call.body) == (b"POST /v1/messages?beta=true HTTP/1.1", body)
        assert call.header("anthropic-beta") == "a"


async def test_a_server_of_which_nothing_is_known_is_asked_once_then_known(plane: Plane) -> None:
    replicas = [await plane.add(only_chats(plain(completion(content="hello")))) for _ in range(2)]
    plane.route(*replicas)
    async with client(plane) as claude:
        for _ in range(6):
            raw = await claude.messages.with_raw_response.create(model="m", max_tokens=8, messages=HELLO)
            assert (await raw.parse()).content[0].to_dict() == {"type": "text", "text": "hello"}
            assert "x-attempts" not in raw.headers
    for replica in replicas:
        lines = [b"/messages" in call.line for call in replica.calls]
        assert lines.count(True) == 1
        assert lines[0] is True
    assert plane.engine.without_messages == {f"r{at}@{one.port}" for at, one in enumerate(replicas)}
    plane.route(replicas[0])
    assert len(plane.engine.without_messages) == 1


async def test_a_404_that_chats_get_as_well_teaches_nothing(plane: Plane) -> None:
    async def no_model(call: Call) -> None:
        await call.send(plain(b'{"error":{"message":"no such model","code":404}}', status=b"404 Not Found"))

    replica = await plane.add(no_model)
    plane.route(replica)
    async with client(plane) as claude:
        for _ in range(2):
            with pytest.raises(anthropic.NotFoundError) as caught:
                await claude.messages.create(model="m", max_tokens=8, messages=HELLO)
            assert caught.value.body == {
                "type": "error",
                "error": {"type": "not_found_error", "message": "no such model", "code": "404"},
            }
    assert plane.engine.without_messages == set()
    assert [b"/messages" in call.line for call in replica.calls] == [True, False] * 2


@pytest.mark.parametrize(("wanted", "known"), [("translate", True), ("native", False)])
async def test_the_models_setting_decides_whatever_is_known(planes: MakePlane, *, wanted: str, known: bool) -> None:
    plane = await planes(rules=ModelRules(rules={"m*": ModelRule(messages=wanted)}))

    async def echo(call: Call) -> None:
        await call.send(plain(completion(content="hello") if b"/chat/" in call.line else b'{"content":[]}'))

    replica = await plane.add(echo)
    plane.route(replica, messages=known)
    async with client(plane) as claude:
        await claude.messages.create(model="m", max_tokens=8, messages=HELLO)
    assert (b"/chat/" in replica.calls[0].line) is (wanted == "translate")


@pytest.mark.parametrize("known", [True, False, None])
async def test_tokens_are_counted_where_that_is_served_and_never_guessed(plane: Plane, *, known: bool | None) -> None:
    async def count(call: Call) -> None:
        await call.send(plain(b'{"input_tokens":12}') if known else NOT_FOUND)

    plane.route(
        await plane.add(count),
        messages=known,
        serves=("/messages", "/messages/count_tokens") if known else None,
    )
    async with client(plane) as claude:
        if known:
            assert (await claude.messages.count_tokens(model="m", messages=HELLO)).input_tokens == 12
            return
        with pytest.raises(anthropic.NotFoundError, match="do not count tokens") as caught:
            await claude.messages.count_tokens(model="m", messages=HELLO)
        assert caught.value.response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("status", "body", "error", "kind", "message"),
    [
        (400, b'{"error":{"message":"too long","type":"x","code":400}}', anthropic.BadRequestError, "invalid_request_error", "too long"),
        (401, b'{"error":"who are you"}', anthropic.AuthenticationError, "authentication_error", "who are you"),
        (403, b'{"detail":"no"}', anthropic.PermissionDeniedError, "permission_error", "no"),
        (422, b'{"detail":[{"msg":"bad"}]}', anthropic.UnprocessableEntityError, "invalid_request_error", '[{"msg":"bad"}]'),
        (429, b"slow down", anthropic.RateLimitError, "rate_limit_error", "slow down"),
        (500, b'{"object":"error","message":"oh"}', anthropic.InternalServerError, "api_error", "oh"),
        (503, b"", anthropic.InternalServerError, "overloaded_error", "the replica answered 503"),
        (529, b'{"error":{"message":"busy"}}', anthropic.InternalServerError, "overloaded_error", "busy"),
    ],
)  # fmt: skip
async def test_errors_of_the_engine_are_told_in_anthropics_words(
    plane: Plane, *, status: int, body: bytes, error: type[anthropic.APIStatusError], kind: str, message: str
) -> None:
    await chatting(plane, plain(body, status=b"%d Oh" % status, extra=b"retry-after: 7\r\n"))
    async with client(plane) as claude:
        for stream in (False, True):
            with pytest.raises(error) as caught:
                await claude.messages.create(model="m", max_tokens=8, messages=HELLO, stream=stream)
            told: Any = caught.value.body
            assert caught.value.status_code == status
            assert (told["type"], told["error"]["type"], told["error"]["message"]) == ("error", kind, message)
            assert caught.value.response.headers["retry-after"] == "7"


@pytest.mark.parametrize(
    "answer",
    [
        b'{"choices":[]}',
        b"<html>",
        b'{"choices":[{"message":{"tool_calls":[{"function":{"name":"f","arguments":"{"}}]}}]}',
    ],
)
async def test_an_answer_that_is_no_completion_is_an_honest_502(planes: MakePlane, answer: bytes) -> None:
    plane = await planes(access_log_sample=1.0)
    await chatting(plane, plain(answer))
    async with client(plane) as claude:
        with pytest.raises(anthropic.InternalServerError) as caught:
            await claude.messages.create(model="m", max_tokens=8, messages=HELLO)
    told: Any = caught.value.body
    assert (caught.value.status_code, told["error"]["code"]) == (502, "upstream_untranslatable")
    [line] = plane.engine.log_lines
    assert (line["status"], line["translated"], line["path"]) == (502, True, "/v1/messages")


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (plain(b"x", extra=b"content-encoding: gzip\r\n"), "upstream_untranslatable"),
        (plain(b"", status=b"204 No Content"), "upstream_untranslatable"),
        (b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n{"choices":[', "upstream_truncated"),
    ],
    ids=["compressed", "empty", "half"],
)  # fmt: skip
async def test_an_answer_that_cannot_be_read_or_is_half_is_a_502(plane: Plane, answer: bytes, code: str) -> None:
    async def script(call: Call) -> None:
        await call.send(answer)
        call.close()

    plane.route(await plane.add(script), messages=False)
    async with client(plane) as claude:
        with pytest.raises(anthropic.InternalServerError) as caught:
            await claude.messages.create(model="m", max_tokens=8, messages=HELLO)
    told: Any = caught.value.body
    assert (caught.value.status_code, told["error"]["code"]) == (502, code)


async def test_a_message_without_a_model_goes_to_whoever_can_answer_it(plane: Plane) -> None:
    embeds, chats = await plane.add(only_chats(b"")), await plane.add(only_chats(plain(completion(content="hello"))))
    first, second = plane.route(embeds, chats)
    endpoints = replace(first, serves=("/embeddings",)), replace(second, serves=("/chat/completions",), messages=False)
    plane.engine.set_table(Table.of(9, endpoints))
    reply = await plane.post(json.dumps({"max_tokens": 8, "messages": HELLO}).encode(), "/v1/messages")
    assert reply.status == 200
    assert b'"text":"hello"' in reply.body


def test_the_setting_stands_under_the_models_name() -> None:
    settings = build(RouterSettings, [Layer("test", {"models": {"m": {"messages": "translate"}}}, {})])
    assert settings.model_rules().find("m").messages == "translate"
    with pytest.raises(SettingsError, match=r"models\.m\.messages"):
        build(RouterSettings, [Layer("test", {"models": {"m": {"messages": "maybe"}}}, {})])


async def test_what_cannot_be_translated_is_a_400_that_names_it(plane: Plane) -> None:
    replica = await chatting(plane, plain(completion(content="never")))
    document: Any = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "aa"}}
    async with client(plane) as claude:
        with pytest.raises(anthropic.BadRequestError, match=r"'document' - at `\$\.messages\[0\]\.content\[0\]\.type`"):
            await claude.messages.create(model="m", max_tokens=8, messages=[{"role": "user", "content": [document]}])
    assert replica.calls == []


@pytest.mark.parametrize("ends", ["dies", "stops", "fails", "babbles"])
async def test_a_stream_that_breaks_ends_with_an_error_event(plane: Plane, ends: str) -> None:
    async def breaks(call: Call) -> None:
        await call.send(SSE_HEAD + chunk(piece(content="one ")))
        if ends == "dies":
            call.reset()
        elif ends == "stops":
            await call.send(b"0\r\n\r\n")
        elif ends == "fails":
            await call.send(chunk(b'data: {"error":{"message":"oh","code":500}}\n\n') + b"0\r\n\r\n")
        else:
            await call.send(chunk(b"data: <html>\n\n"))

    plane.route(await plane.add(breaks), messages=False)
    seen: list[str] = []

    async def read(claude: anthropic.AsyncAnthropic) -> None:
        async for event in await claude.messages.create(model="m", max_tokens=8, messages=HELLO, stream=True):
            seen.append(event.type)  # noqa: PERF401 - what came before the error counts

    async with client(plane) as claude:
        with pytest.raises(anthropic.APIStatusError) as caught:
            await read(claude)
    assert seen == ["message_start", "content_block_start", "content_block_delta"]
    told: Any = caught.value.body
    assert told["error"]["type"] == "api_error"


@pytest.mark.parametrize("marked", [None, False, True])
async def test_a_stream_without_its_mark_is_whole_if_it_says_so_unless_the_mark_is_demanded(
    plane: Plane, *, marked: bool | None
) -> None:
    async def unmarked(call: Call) -> None:
        await call.send(SSE_HEAD + chunk(piece(content="one")) + chunk(piece("length")) + b"0\r\n\r\n")

    plane.route(await plane.add(unmarked), messages=False, end_marked=marked)
    raw = (
        await plane.post(
            json.dumps({"model": "m", "max_tokens": 8, "messages": HELLO, "stream": True}).encode(), "/v1/messages"
        )
    ).body
    assert (b"event: message_stop" in raw) is (marked is not True)
    assert (b"event: error" in raw) is (marked is True)
    assert (b'"stop_reason":"max_tokens"' in raw) is (marked is not True)


async def test_a_replica_that_dies_before_its_answer_is_replaced_by_one_that_has_the_call(plane: Plane) -> None:
    async def dies(call: Call) -> None:
        call.reset()

    async def native(call: Call) -> None:
        await call.send(plain(b'{"type":"message","content":[{"type":"text","text":"native"}]}'))

    dead, alive = await plane.add(dies), await plane.add(native)
    first, second = plane.route(dead, alive)
    chats, messages = replace(first, messages=False), replace(second, messages=True, eligibility=Eligibility.SUSPECT)
    plane.engine.set_table(Table.of(9, (chats, messages)))
    async with client(plane) as claude:
        said = await claude.messages.create(model="m", max_tokens=8, messages=HELLO)
    assert said.content[0].to_dict()["text"] == "native"
    assert [b"/chat/" in call.line for call in (*dead.calls, *alive.calls)] == [True, False]


async def test_a_silent_server_is_waited_for_with_comments_and_its_error_is_an_event(
    planes: MakePlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.proxy.engine.SWEEP_S", 0.02)
    plane = await planes(sse_keepalive_s=0.05)
    answers = [
        only_chats([piece(content="late"), piece("stop"), COUNTED]),
        only_chats(plain(b'{"error":{"message":"no"}}', status=b"400 No")),
    ]

    async def slow(call: Call) -> None:
        await asyncio.sleep(0.3)
        await answers[len(replica.calls) - 1](call)

    replica = await plane.add(slow)
    plane.route(replica, messages=False)
    async with client(plane) as claude:
        async with claude.messages.stream(model="m", max_tokens=8, messages=HELLO) as stream:
            assert await stream.get_final_text() == "late"
        with pytest.raises(anthropic.APIStatusError, match="no"):
            async with claude.messages.stream(model="m", max_tokens=8, messages=HELLO) as stream:
                await stream.get_final_text()


async def test_keys_limits_and_the_line_hold_for_translated_messages(planes: MakePlane) -> None:
    plane = await planes(queue_limit=0)
    gate = asyncio.Event()

    async def waits(call: Call) -> None:
        await gate.wait()
        await call.send(plain(completion(content="hello")))

    replica = await plane.add(waits)
    plane.route(replica, messages=False, limit=1)
    plane.engine.set_keys((Key(name="team", sha256=hashlib.sha256(b"k").hexdigest()),))
    async with client(plane) as claude, client(plane, "wrong") as stranger:
        with pytest.raises(anthropic.AuthenticationError):
            await stranger.messages.create(model="m", max_tokens=8, messages=HELLO)
        first = asyncio.create_task(claude.messages.create(model="m", max_tokens=8, messages=HELLO))
        while not replica.calls:
            await asyncio.sleep(0.01)
        with pytest.raises(anthropic.RateLimitError):
            await claude.messages.create(model="m", max_tokens=8, messages=HELLO)
        gate.set()
        await first
    assert replica.calls[0].header("authorization") is None


async def test_an_answer_too_large_to_be_translated_is_a_502(planes: MakePlane) -> None:
    plane = await planes(held_limit_bytes=1000)
    await chatting(plane, plain(completion(content="x" * 2000)))
    async with client(plane) as claude:
        with pytest.raises(anthropic.InternalServerError, match="larger than can be translated"):
            await claude.messages.create(model="m", max_tokens=8, messages=HELLO)


async def test_http10_and_chunked_bodies_are_translated_too(plane: Plane) -> None:
    await chatting(plane, [piece(content="one"), piece("stop")])
    body = json.dumps({"model": "m", "max_tokens": 8, "messages": HELLO, "stream": True}).encode()
    raw = request(body, "/v1/messages").replace(b"HTTP/1.1", b"HTTP/1.0", 1)
    reply = await plane.send(raw, until_close=True)
    assert reply.body.startswith(b"event: message_start\n")
    assert reply.body.endswith(b'event: message_stop\ndata: {"type":"message_stop"}\n\n')


async def test_turns_of_a_conversation_find_the_same_cache(planes: MakePlane) -> None:
    plane = await planes()
    replicas = [await plane.add(only_chats(plain(completion(content="ok")))) for _ in range(3)]
    plane.route(*replicas, messages=False)
    talk: Any = [{"role": "user", "content": "long " * 2000}]
    async with client(plane) as claude:
        for _ in range(4):
            await claude.messages.create(model="m", max_tokens=8, messages=talk)
            talk = [*talk, {"role": "assistant", "content": "ok"}, {"role": "user", "content": "and? " * 500}]
    assert sorted(len(replica.calls) for replica in replicas) == [0, 0, 4]


NODE_PROGRAM = """
import Anthropic from "@anthropic-ai/sdk";

const claude = new Anthropic({ baseURL: process.argv[2], apiKey: "k", maxRetries: 0 });
const asked = { model: "m", max_tokens: 9, messages: [{ role: "user", content: "hello" }] };
const texts = [], stream = claude.messages.stream(asked);
stream.on("text", (text) => texts.push(text));
const final = await stream.finalMessage();
let refused = null;
const prefill = [...asked.messages, { role: "assistant", content: "Once" }];
try { await claude.messages.create({ ...asked, messages: prefill }); } catch (error) { refused = [error.status, error.type]; }
console.log(JSON.stringify({ texts, content: final.content, reason: final.stop_reason, usage: final.usage, refused }));
"""


@pytest.mark.world
@pytest.mark.timeout(700)
async def test_the_official_client_for_node_reads_a_translated_stream(plane: Plane) -> None:
    assert shutil.which("node"), "apt-get install nodejs npm"
    await chatting(
        plane, [piece(content="one "), piece(content="two"), piece(tool_calls=[CALLS[0]]), piece("tool_calls"), COUNTED]
    )
    program = (await asyncio.to_thread(node_program)).with_name("messages.mjs")
    program.write_text(NODE_PROGRAM)
    node = await asyncio.create_subprocess_exec(
        "node", program, f"http://127.0.0.1:{plane.port}", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await asyncio.wait_for(node.communicate(), 60)
    assert node.returncode == 0, err.decode()
    told = json.loads(out)
    assert (told["texts"], told["reason"]) == (["one ", "two"], "tool_use")
    assert told["content"][1] == {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"town": "Ulm"}}
    assert (told["usage"]["input_tokens"], told["usage"]["cache_read_input_tokens"]) == (25, 75)
    assert told["refused"] == [400, "invalid_request_error"]
