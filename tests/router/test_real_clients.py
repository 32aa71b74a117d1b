"""Official clients of the APIs read streams with silences in them, comments of ours in every one, as if there were none."""

import asyncio
import fcntl
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import anthropic
import openai
import pytest

from tests.router.conftest import MakePlane
from tests.router.fakes import DONE, SSE_HEAD, Call, Plane

SILENCE_S = 0.25
"""Of the replica, before, between and after its events; comments are due after a fifth of it."""
COMMENT = b": keep-alive\n"
DATA = Path(__file__).resolve().parents[2] / "data" / "clients"
NODE_PACKAGES = {"openai": "7.59.0", "@anthropic-ai/sdk": "1.14.0"}


@pytest.fixture
async def silent(planes: MakePlane, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Plane]:
    monkeypatch.setattr("router.proxy.engine.SWEEP_S", 0.02)
    plane = await planes(sse_keepalive_s=SILENCE_S / 5)
    replica = await plane.add(answer)
    plane.route(replica)
    yield plane
    assert plane.engine.outliers.quiet
    raw = (await plane.post(b'{"model":"m","stream":true}')).body
    assert raw.count(COMMENT) >= 3  # the clients above met them too


async def answer(call: Call) -> None:
    """A chat or messages stream, by the path; `"user": "dies"` breaks it off, `"user": "fails"` ends it with an error."""
    asked = json.loads(call.body)
    events = MESSAGES if b"/messages" in call.line else CHAT
    await asyncio.sleep(SILENCE_S)
    await call.send(SSE_HEAD)
    for number, event in enumerate(events):
        if number == 2 and asked.get("user") == "dies":
            call.reset()
            return
        if number == 2 and asked.get("user") == "fails":
            await call.send(chunk(FAILURE) + b"0\r\n\r\n")
            return
        await asyncio.sleep(SILENCE_S)
        await call.send(chunk(event))
    await asyncio.sleep(SILENCE_S)
    await call.send(DONE if events is CHAT else b"0\r\n\r\n")


def chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def chat(content: str, reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": reason}
    said = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(said).encode() + b"\n\n"


def named(kind: str, **members: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **members})}\n\n".encode()


FAILURE = b'data: {"error":{"code":400,"message":"too long","type":"exceed_context_size_error"}}\n\n'
CHAT = (chat("one "), chat("two"), chat("", "stop"))
MESSAGES = (
    named(
        "message_start",
        message={
            "id": "1",
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": "m",
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 1, "output_tokens": 1},
        },
    )
    + named("content_block_start", index=0, content_block={"type": "text", "text": ""}),
    named("content_block_delta", index=0, delta={"type": "text_delta", "text": "one "}),
    named("content_block_delta", index=0, delta={"type": "text_delta", "text": "two"})
    + named("content_block_stop", index=0)
    + named("message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage={"output_tokens": 2}),
    named("message_stop"),
)


async def test_openais_client_for_python_reads_a_silent_stream_W6(silent: Plane) -> None:
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{silent.port}/v1", api_key="k", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "hello"}], stream=True
        )
        said = [choice.delta.content async for part in stream for choice in part.choices]
    assert said == ["one ", "two", ""]


async def test_anthropics_client_for_python_reads_a_silent_stream_W6(silent: Plane) -> None:
    url = f"http://127.0.0.1:{silent.port}"
    async with (
        anthropic.AsyncAnthropic(base_url=url, api_key="k", max_retries=0) as client,
        client.messages.stream(model="m", max_tokens=9, messages=[{"role": "user", "content": "hello"}]) as stream,
    ):
        said = [text async for text in stream.text_stream]
        final = await stream.get_final_message()
    assert (said, final.stop_reason) == (["one ", "two"], "end_turn")


@pytest.mark.parametrize(("user", "message"), [("fails", "too long"), ("dies", "closed the connection")])
async def test_openais_client_for_python_tells_one_error_W8(planes: MakePlane, user: str, message: str) -> None:
    plane = await planes()
    plane.route(await plane.add(answer))
    said = []
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{plane.port}/v1", api_key="k", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "hello"}], stream=True, user=user
        )
        with pytest.raises(openai.APIError, match=message):
            said += [part.choices[0].delta.content async for part in stream]
    assert plane.engine.outliers.ejected(plane.engine.now()) == []


NODE_PROGRAM = """
import OpenAI from "openai";
import Anthropic from "@anthropic-ai/sdk";

const url = process.argv[2], messages = [{ role: "user", content: "hello" }];
const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: "k", maxRetries: 0 });
const chat = [];
for await (const part of await openai.chat.completions.create({ model: "m", messages, stream: true }))
  chat.push(part.choices[0].delta.content);
let failure = null;
try {
  for await (const part of await openai.chat.completions.create({ model: "m", messages, stream: true, user: "fails" }));
} catch (error) { failure = error.message; }
const anthropic = new Anthropic({ baseURL: url, apiKey: "k", maxRetries: 0 });
const said = [];
const stream = anthropic.messages.stream({ model: "m", max_tokens: 9, messages });
stream.on("text", (text) => said.push(text));
const final = await stream.finalMessage();
console.log(JSON.stringify({ chat, failure, said, reason: final.stop_reason }));
"""


def node_program() -> Path:
    """The program beside its packages, which npm installs the first time."""
    folder = DATA / "-".join(
        f"{name.strip('@').replace('/', '-')}-{version}" for name, version in NODE_PACKAGES.items()
    )
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "installed").exists():
            (folder / "package.json").write_text('{"private":true,"type":"module"}')
            wanted = [f"{name}@{version}" for name, version in NODE_PACKAGES.items()]
            install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *wanted]
            subprocess.run(install, cwd=folder, check=True, timeout=600)
            (folder / "installed").touch()
    program = folder / "streams.mjs"
    program.write_text(NODE_PROGRAM)
    return program


@pytest.mark.world
@pytest.mark.timeout(700)
async def test_the_official_clients_for_node_read_silent_streams_and_errors_W6_W8(silent: Plane) -> None:
    assert shutil.which("node"), "apt-get install nodejs npm"
    program = await asyncio.to_thread(node_program)
    node = await asyncio.create_subprocess_exec(
        "node", program, f"http://127.0.0.1:{silent.port}", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await asyncio.wait_for(node.communicate(), 60)
    assert node.returncode == 0, err.decode()
    told = json.loads(out)
    assert (told["chat"], told["said"], told["reason"]) == (["one ", "two", ""], ["one ", "two"], "end_turn")
    assert "too long" in told["failure"]
