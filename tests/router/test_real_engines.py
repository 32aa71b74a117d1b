"""Real servers behind the data plane: llama.cpp, and nginx with gzip on in front of an event stream."""

import asyncio
import gzip
import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from bench.router.peers import Debian
from router.counters import OUTCOMES, AttemptOutcome
from tests.engines import llama_cpp
from tests.engines.llama_cpp import LlamaCpp
from tests.ports import free_port, is_free
from tests.router.fakes import DONE, SSE_HEAD, Call, Plane, event
from tests.router.test_raw_responses import unchunk

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


def blameless(plane: Plane) -> bool:
    faults = AttemptOutcome.DIED, AttemptOutcome.TRUNCATED, AttemptOutcome.MALFORMED, AttemptOutcome.SERVER_ERROR
    return plane.engine.outliers.quiet and not any(plane.engine.counters.total(0, OUTCOMES + kind) for kind in faults)


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
    assert blameless(plane)
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{plane.port}/v1", api_key="k", max_retries=0) as client:
        with pytest.raises(openai.APIError, match="exceeds the available context size"):
            async for _ in await client.completions.create(**TOO_LONG):  # type: ignore[call-overload]  # a plain dict
                pass
        stream = await client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hello"}], max_tokens=4, stream=True
        )
        reasons = [choice.finish_reason async for part in stream for choice in part.choices]
    assert reasons[-1] == "length"
    assert blameless(plane)


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
    assert blameless(plane)
    cut = await plane.post(json.dumps(body).encode(), path, headers="accept-language: cut\r\n")
    assert not cut.body.endswith(b"0\r\n\r\n")
    assert b"upstream_truncated" in cut.body


CONFIG = """\
daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{ }}
http {{
  access_log off; client_body_temp_path {folder}; proxy_temp_path {folder};
  fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
  gzip on; gzip_types text/event-stream application/json; gzip_min_length 1; gzip_proxied any;
  server {{
    listen 127.0.0.1:{port};
    add_trailer X-Checksum abc;
    location / {{ proxy_pass http://127.0.0.1:{backend}; proxy_http_version 1.1; proxy_buffering off; }}
  }}
}}
"""
TEXT = b'data: {"t":"one"}\n\ndata: {"t":"two"}\n\ndata: [DONE]\n\n'


@pytest.fixture
async def behind_nginx(plane: Plane, tmp_path: Path) -> AsyncIterator[Plane]:
    """A replica that streams, reached through an nginx that compresses what may be compressed, and adds a trailer."""

    async def stream(call: Call) -> None:
        for part in (SSE_HEAD, event("one"), event("two"), DONE):
            await call.send(part)
            await asyncio.sleep(0.005)

    replica = await plane.add(stream)
    port, config = free_port(), tmp_path / "nginx.conf"
    config.write_text(CONFIG.format(folder=tmp_path, port=port, backend=replica.port))
    program = await asyncio.to_thread(Debian("nginx", "nginx.conf", ["nginx"], []).prepare, tmp_path, install=True)
    nginx = await asyncio.create_subprocess_exec(program, "-c", str(config), stderr=subprocess.DEVNULL)
    try:
        async with asyncio.timeout(30):
            while is_free(port):
                await asyncio.sleep(0.05)
        plane.route(port)
        yield plane
    finally:
        nginx.terminate()
        await nginx.wait()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/images/generations"])
async def test_streams_behind_an_nginx_that_compresses_arrive_whole_and_blame_nobody_W4_W7(
    behind_nginx: Plane, path: str
) -> None:
    asked = b'{"model":"m","stream":true,"messages":[]}'
    for _ in range(15):
        reply = await behind_nginx.post(asked, path, headers="accept-encoding: gzip\r\n")
        body = unchunk(reply.body)  # a whole chunked body, nothing behind its end
        coding = reply.header("content-encoding")
        assert coding == (None if path == "/v1/chat/completions" else "gzip")
        assert (gzip.decompress(body) if coding else body) == TEXT
        assert b"X-Checksum" not in reply.raw
    assert blameless(behind_nginx)


async def test_this_nginx_compresses_streams_and_sends_trailers_W4_W7(behind_nginx: Plane) -> None:
    port = behind_nginx.engine.table.endpoints[0].port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"GET / HTTP/1.1\r\nhost: x\r\naccept-encoding: gzip\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    )
    raw = await reader.read()
    writer.close()
    assert b"\r\nContent-Encoding: gzip\r\n" in raw
    assert raw.endswith(b"\r\n0\r\nX-Checksum: abc\r\n\r\n")
