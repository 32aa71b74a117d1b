"""The mock server keeps what it promises to other tests."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer

from babysitter.mock.__main__ import parse
from babysitter.mock.answers import text_of, words_for
from babysitter.mock.knobs import Knobs
from babysitter.mock.server import MockServer, make_app
from common.settings import SettingsError

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello there"}]}
Client = TestClient[Any, Any]


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    app = make_app(MockServer("mock-1", ["m", "n"], Knobs()))
    async with TestClient(TestServer(app, handler_cancellation=True)) as made:
        yield made


async def turn(client: Client, **knobs: Any) -> None:
    answer = await client.post("/mock/knobs", json=knobs)
    assert answer.status == 200, await answer.text()


async def state(client: Client, **wanted: int) -> dict[str, Any]:
    answer = await client.get("/mock/state", params={"wait_s": 5, **wanted} if wanted else {})
    assert answer.status == 200, await answer.text()
    return dict(await answer.json())


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_calls_are_answered_in_both_forms(client: Client, prefix: str) -> None:
    models = await (await client.get(f"{prefix}/models")).json()
    assert [model["id"] for model in models["data"]] == ["m", "n"]
    chat = await (await client.post(f"{prefix}/chat/completions", json={**CHAT, "max_tokens": 5})).json()
    assert chat["choices"][0]["message"]["content"] == "This is m answering: hello"
    assert chat["usage"] == {"prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7}
    assert chat["system_fingerprint"] == "mock-1"
    text = await (await client.post(f"{prefix}/completions", json={"prompt": "x", "max_tokens": 1})).json()
    assert text["choices"][0]["text"] == "This"
    vectors = await (await client.post(f"{prefix}/embeddings", json={"model": "m", "input": ["a", "b"]})).json()
    assert [len(item["embedding"]) for item in vectors["data"]] == [8, 8]


async def read_stream(client: Client, **extra: Any) -> list[Any]:
    answer = await client.post("/v1/chat/completions", json={**CHAT, "stream": True, "max_tokens": 3, **extra})
    lines = (await answer.read()).decode().split("\n\n")
    return [line if line == "data: [DONE]" else json.loads(line[6:]) for line in lines if line]


async def test_stream_ends_with_usage_and_done(client: Client) -> None:
    *chunks, usage, done = await read_stream(client, stream_options={"include_usage": True})
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == "This is m"
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert usage["usage"]["completion_tokens"] == 3
    assert done == "data: [DONE]"


async def test_unknown_model_is_404(client: Client) -> None:
    answer = await client.post("/v1/chat/completions", json={**CHAT, "model": "x"})
    assert answer.status == 404
    assert (await answer.json())["error"]["type"] == "invalid_request_error"


async def test_first_requests_fail_as_told(client: Client) -> None:
    await turn(client, fail_first=2, retry_after_s=7)
    answers = [await client.post("/v1/chat/completions", json=CHAT) for _ in range(3)]
    assert [answer.status for answer in answers] == [503, 503, 200]
    assert answers[0].headers["Retry-After"] == "7"


async def test_held_request_says_that_it_arrived_and_goes_when_released(client: Client) -> None:
    await turn(client, hold=True)
    task = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT))
    seen = await state(client, held=1)
    assert seen["in_flight"] == 1
    assert not task.done()
    assert (await (await client.post("/mock/release")).json()) == {"released": 1}
    assert (await task).status == 200
    assert (await state(client, in_flight=0, finished=1))["held"] == 0


async def test_disconnect_is_noticed(client: Client) -> None:
    await turn(client, hold=True)
    task = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT))
    await state(client, held=1)
    task.cancel()
    await asyncio.wait([task])
    assert (await state(client, disconnects=1, in_flight=0))["held"] == 0


async def test_state_that_is_not_reached_is_408(client: Client) -> None:
    answer = await client.get("/mock/state", params={"wait_s": 0.01, "requests": 9})
    assert answer.status == 408


async def test_reset_breaks_the_stream(client: Client) -> None:
    await turn(client, reset_after_chunks=2)
    answer = await client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    with pytest.raises(aiohttp.ClientError):
        await answer.read()


async def test_reset_is_a_reset_and_not_a_close(client: Client) -> None:
    await turn(client, reset_after_chunks=0)
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    body = json.dumps(CHAT).encode()
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: m\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(), 5)
    writer.close()


async def test_stream_can_end_without_done(client: Client) -> None:
    await turn(client, close_without_done=True)
    assert "data: [DONE]" not in await read_stream(client)


async def test_wrong_length_breaks_the_answer(client: Client) -> None:
    await turn(client, wrong_length=5)
    answer = await client.post("/v1/chat/completions", json=CHAT)
    with pytest.raises(aiohttp.ClientPayloadError):
        await answer.read()


async def test_hang_says_nothing(client: Client) -> None:
    await turn(client, hang_after_chunks=0)
    with pytest.raises(TimeoutError):
        await client.post("/v1/chat/completions", json=CHAT, timeout=aiohttp.ClientTimeout(total=0.1))
    await state(client, disconnects=1)


async def test_one_form_of_paths_can_be_switched_off(client: Client) -> None:
    await turn(client, paths="bare")
    assert (await client.get("/v1/models")).status == 404
    assert (await client.get("/models")).status == 200


async def test_other_paths_are_echoed(client: Client) -> None:
    told = await (await client.post("/v1/rerank", json={"model": "m"})).json()
    assert (told["path"], told["body"]) == ("/v1/rerank", {"model": "m"})


async def test_unknown_knob_is_422(client: Client) -> None:
    answer = await client.post("/mock/knobs", json={"holdd": True})
    assert answer.status == 422


async def test_last_request_is_shown_with_its_headers(client: Client) -> None:
    await client.post("/v1/chat/completions", json=CHAT, headers={"X-Request-Id": "r-1"})
    last = (await state(client))["last_request"]
    assert last["headers"]["x-request-id"] == "r-1"
    assert json.loads(last["body"]) == CHAT


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"messages": [{"content": "a"}, {"content": [{"type": "text", "text": "b"}, {"type": "image"}]}]}, "a b"),
        ({"prompt": "a"}, "a"),
        ({"prompt": ["a", "b"]}, "a b"),
        ({"input": ["a"]}, "a"),
        ({"messages": [None, {"content": None}]}, ""),
        ({}, ""),
    ],
)
def test_text_of_finds_all_text(body: dict[str, Any], text: str) -> None:
    assert text_of(body) == text


def test_words_are_the_same_on_every_server() -> None:
    assert "".join(words_for("m", "a b", 7)) == "This is m answering: a b This"


def test_flags_are_knobs() -> None:
    arguments, knobs = parse(["--port", "0", "--model", "a", "--model", "b", "--ttft-s", "0.5", "--hold"])
    assert arguments.model == ["a", "b"]
    assert (knobs.ttft_s, knobs.hold) == (0.5, True)


def test_wrong_knob_is_named() -> None:
    with pytest.raises(SettingsError, match="--ttft-s: 'ttft_s'"):
        parse(["--port", "0", "--model", "a", "--ttft-s", "-1"])


async def test_every_answer_and_event_is_compact_W35(client: Client) -> None:
    models = await (await client.get("/v1/models")).read()
    assert b'"id":"m"' in models
    whole = await (await client.post("/v1/chat/completions", json=CHAT)).read()
    stream = await (await client.post("/v1/chat/completions", json={**CHAT, "stream": True})).read()
    for raw in (models, whole, stream, await (await client.get("/health")).read()):
        assert b'": ' not in raw
        assert b', "' not in raw
