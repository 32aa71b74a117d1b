"""What the official clients make of the router's own answers: every error in the dialect of its path, and no vain retries."""

import asyncio
import hashlib
import time
from typing import Any

import aiohttp
import anthropic
import openai
import pytest

from router.keys import Key
from router.policy.models import ModelRule, ModelRules
from router.proxy import answers
from router.proxy.paths import Dialect, dialect_of
from tests.router.conftest import MakePlane
from tests.router.fakes import SSE_HEAD, Call, Plane, plain, request

HELLO: Any = [{"role": "user", "content": "hi"}]
EVENT = b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","type":"message","role":"assistant","content":[],"model":"m","stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":1,"output_tokens":1}}}\n\n'


def claude(plane: Plane, key: str = "k") -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=f"http://127.0.0.1:{plane.port}", api_key=key, max_retries=0)


def gpt(plane: Plane, **more: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{plane.port}/v1", api_key="k", **more)


async def ask_claude(client: anthropic.AsyncAnthropic, model: str = "m") -> anthropic.APIStatusError:
    with pytest.raises(anthropic.APIStatusError) as caught:
        await client.messages.create(model=model, max_tokens=8, messages=HELLO)
    return caught.value


async def read_claude(client: anthropic.AsyncAnthropic, seen: list[str]) -> None:
    stream = await client.messages.create(model="m", max_tokens=8, messages=HELLO, stream=True)
    async for event in stream:
        seen.append(event.type)  # noqa: PERF401 - what came before the error counts


async def read_gpt(client: openai.AsyncOpenAI) -> None:
    async for _ in await client.responses.create(model="m", input="hi", stream=True):
        pass


def told(error: anthropic.APIStatusError) -> tuple[int, str, str]:
    body: Any = error.body
    assert body["type"] == "error"
    return error.status_code, body["error"]["type"], body["error"]["message"]


async def test_errors_on_messages_are_anthropics_W9(planes: MakePlane) -> None:
    plane = await planes(max_body_bytes=2048)
    async with claude(plane) as client:
        nobody = told(await ask_claude(client))
        assert nobody == (503, "overloaded_error", "No healthy services available for model 'm'")
        assert told(await ask_claude(client, ""))[:2] == (400, "invalid_request_error")
        assert told(await ask_claude(client, "m" * 4096))[:2] == (413, "request_too_large")
        with pytest.raises(anthropic.NotFoundError) as caught:
            await client.messages.batches.list()
        assert told(caught.value)[:2] == (404, "not_found_error")
        plane.engine.set_keys((Key(name="team", sha256=hashlib.sha256(b"k").hexdigest(), models=("n",)),))
        assert told(await ask_claude(client)) == (403, "permission_error", "this API key may not use this model")
    async with claude(plane, "wrong") as client:
        assert told(await ask_claude(client))[:2] == (401, "authentication_error")
    raw = request(b"{}", "/v1/messages", "content-encoding: gzip\r\n")
    assert (await plane.send(raw)).body.startswith(b'{"type":"error","error":{"type":"invalid_request_error"')


async def test_a_messages_stream_that_breaks_ends_with_anthropics_error_event_W9(plane: Plane) -> None:
    async def dies(call: Call) -> None:
        await call.send(SSE_HEAD + b"%x\r\n%b\r\n" % (len(EVENT), EVENT))
        call.reset()

    plane.route(await plane.add(dies))
    async with claude(plane) as client:
        seen: list[str] = []
        with pytest.raises(anthropic.APIStatusError) as caught:
            await read_claude(client, seen)
        assert seen == ["message_start"]
        assert told(caught.value)[1] == "api_error"


async def test_a_messages_stream_that_was_begun_for_nothing_ends_with_anthropics_error_event_W9(
    planes: MakePlane,
) -> None:
    plane = await planes(sse_keepalive_s=0.1)

    async def slow(call: Call) -> None:
        await asyncio.sleep(1)
        await call.send(plain(answers.error_body(400, "c", "no", Dialect.ANTHROPIC), status=b"400 Bad Request"))

    plane.route(await plane.add(slow))
    async with claude(plane) as client:
        with pytest.raises(anthropic.APIStatusError) as caught:
            await read_claude(client, [])
        assert told(caught.value)[1:] == ("invalid_request_error", "no")


async def test_a_responses_stream_that_breaks_raises_in_openais_client_W9(plane: Plane) -> None:
    created = b'event: response.created\ndata: {"type":"response.created","response":{"id":"r"}}\n\n'

    async def dies(call: Call) -> None:
        await call.send(SSE_HEAD + b"%x\r\n%b\r\n" % (len(created), created))
        call.reset()

    plane.route(await plane.add(dies))
    async with gpt(plane, max_retries=0) as client:
        with pytest.raises(openai.APIError, match="replica"):
            await read_gpt(client)
    event = answers.error_event("c", "m", Dialect.RESPONSES)
    assert event.startswith(b'\n\nevent: error\ndata: {"type":"error","code":"c","message":"m"')


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        (b"/v1/messages", Dialect.ANTHROPIC),
        (b"/messages/count_tokens", Dialect.ANTHROPIC),
        (b"/v1/messages/batches", Dialect.ANTHROPIC),
        (b"/v1/responses", Dialect.RESPONSES),
        (b"/v1/chat/completions", Dialect.OPENAI),
        (b"/", Dialect.OPENAI),
    ],
)
def test_dialect_is_that_of_the_path_W9(path: bytes, dialect: Dialect) -> None:
    assert dialect_of(path) is dialect


async def test_a_mistyped_model_costs_an_sdk_user_no_retries_W47(plane: Plane) -> None:
    plane.route(1, models=("m",))
    async with gpt(plane) as client:
        began = time.monotonic()
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model="typo", messages=HELLO)
        assert time.monotonic() - began < 4  # with its two retries, each after five seconds: ten
    answer = caught.value.response
    assert (answer.status_code, caught.value.code) == (503, "model_not_found")
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers


@pytest.mark.parametrize("model", ["gone", "fast", "part", "spare"])
async def test_a_model_that_may_come_is_worth_a_retry_W47(planes: MakePlane, model: str) -> None:
    plane = await planes(rules=ModelRules(rules={"fast": ModelRule(split={"part": 1.0}, fallbacks=("spare",))}))
    plane.route(1, models=("m", "gone"))
    plane.route(1, models=("m",))
    async with gpt(plane, max_retries=0) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model=model, messages=HELLO)
    assert caught.value.response.headers["retry-after"] == "5"
    assert "x-should-retry" not in caught.value.response.headers


async def test_a_router_that_has_heard_of_no_model_yet_calls_none_mistyped_W47(plane: Plane) -> None:
    async with gpt(plane, max_retries=0) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model="m", messages=HELLO)
    assert caught.value.response.headers["retry-after"] == "5"


@pytest.mark.parametrize("name", ["a.wav", "ü; b.wav", 'say "hi".wav'])
async def test_uploads_of_real_clients_are_read_whatever_the_file_is_called_W1(plane: Plane, name: str) -> None:
    async def echo(call: Call) -> None:
        await call.send(plain(b'{"text":"heard"}'))

    replica = await plane.add(echo)
    plane.route(replica)
    sound = b"RIFF\r\n--\r\n\x00\xff" * 1000
    url = f"http://127.0.0.1:{plane.port}/v1/audio/transcriptions"
    async with gpt(plane, max_retries=0) as client:
        heard = await client.audio.transcriptions.create(model="m", file=(name, sound), prompt="ü", temperature=0.2)
        assert heard.text == "heard"
    async with aiohttp.ClientSession() as session:
        form = aiohttp.FormData()
        form.add_field("file", sound, filename=name, content_type="audio/wav")
        form.add_field("model", "m")
        async with session.post(url, data=form) as answer:
            assert answer.status == 200
    assert all(sound in call.body for call in replica.calls)
    assert len(replica.calls) == 2
