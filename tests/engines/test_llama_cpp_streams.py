"""llama.cpp behind the data plane: its errors blame nobody, and its streams are complete without their mark."""

import json
from collections.abc import Iterator
from typing import Any

import aiohttp
import openai
import pytest

from tests.engines import llama_cpp
from tests.engines.llama_cpp import LlamaCpp
from tests.router.fakes import SSE_HEAD, Call, Plane
from tests.router.test_raw_responses import unchunk
from tests.router.test_streams import blamed

pytestmark = [pytest.mark.world, pytest.mark.timeout(700)]
TOO_LONG = {"model": "tiny", "prompt": ["hello", "w" * 6000], "stream": True, "max_tokens": 4}
"""The second prompt exceeds the context: one slot answers the first under a 200, then ends the stream with an error."""


@pytest.fixture(scope="module")
def engine() -> Iterator[LlamaCpp]:
    with llama_cpp.serving() as running:
        yield running


@pytest.fixture(scope="module")
def one_slot() -> Iterator[LlamaCpp]:
    with llama_cpp.serving(n_ctx=2048, n_parallel=1) as running:
        yield running


async def test_twelve_bad_prompts_at_llama_cpp_get_its_error_once_and_blame_nobody_W8(
    plane: Plane, one_slot: LlamaCpp
) -> None:
    plane.route(one_slot.port, models=("tiny",))
    for _ in range(12):
        reply = await plane.post(json.dumps(TOO_LONG).encode(), "/v1/completions")
        *events, last = unchunk(reply.body).removesuffix(b"\n\n").split(b"\n\n")
        assert (reply.status, len(events) > 0) == (200, True)
        assert not any(b'"error"' in event for event in events)
        assert json.loads(last.removeprefix(b"data: "))["error"]["type"] == "exceed_context_size_error"
    assert not blamed(plane)
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{plane.port}/v1", api_key="k", max_retries=0) as client:
        with pytest.raises(openai.APIError, match="exceeds the available context size"):
            async for _ in await client.completions.create(**TOO_LONG):  # type: ignore[call-overload]  # a plain dict
                pass
        stream = await client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hello"}], max_tokens=4, stream=True
        )
        reasons = [choice.finish_reason async for part in stream for choice in part.choices]
    assert reasons[-1] == "length"
    assert not blamed(plane)


CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "stream": True, "max_tokens": 6}
STREAMS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", CHAT),
    "chat with usage": ("/v1/chat/completions", {**CHAT, "stream_options": {"include_usage": True}}),
    "two choices": ("/v1/chat/completions", {**CHAT, "n": 2}),
    "completion": ("/v1/completions", {"model": "tiny", "prompt": "hello", "stream": True, "max_tokens": 6}),
    "two prompts": ("/v1/completions", {"model": "tiny", "prompt": ["a", "b"], "stream": True, "max_tokens": 6}),
}


@pytest.mark.parametrize("name", STREAMS)
async def test_llama_cpps_streams_are_complete_without_their_mark_and_not_when_they_are_cut_W44(
    plane: Plane, engine: LlamaCpp, name: str
) -> None:
    path, body = STREAMS[name]

    async def unmarked(call: Call) -> None:
        """The engine's own stream, its mark left out; cut, it ends after its second event."""
        async with aiohttp.ClientSession() as session, session.post(f"{engine.url}{path}", data=call.body) as answer:
            whole = await answer.read()
        assert whole.endswith(b"data: [DONE]\n\n")
        events = [part + b"\n\n" for part in whole.removesuffix(b"data: [DONE]\n\n").split(b"\n\n")[:-1]]
        if call.header("accept-language") == "cut":
            events = events[:2]
        await call.send(SSE_HEAD + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in events) + b"0\r\n\r\n")

    plane.route(await plane.add(unmarked), models=("tiny",))
    reply = await plane.post(json.dumps(body).encode(), path)
    assert b'"finish_reason":"length"' in unchunk(reply.body)
    assert not blamed(plane)
    cut = await plane.post(json.dumps(body).encode(), path, headers="accept-language: cut\r\n")
    assert not cut.body.endswith(b"0\r\n\r\n")
    assert b"upstream_truncated" in cut.body
