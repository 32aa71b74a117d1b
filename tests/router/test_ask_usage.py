"""`models.NAME.ask_usage`: engines are asked for a stream's usage, and a client that did not ask sees nothing of it."""

import json
from typing import Any

import openai
import pytest

from router.facts import with_usage
from router.ledger import Ledger
from router.policy.models import ModelRule, ModelRules
from router.proxy.hiding import HidingWriter
from router.proxy.parsing import parse_response
from router.proxy.paths import EndMark
from tests.router.conftest import MakePlane
from tests.router.fakes import SSE_HEAD, Call, Plane, plain
from tests.router.seeded import CHAT, CHATS, COMPLETIONS, TEXTS, seeded, told, whole
from tests.router.test_ledger import taken
from tests.router.test_rescue import ask, rst, total, two, undisturbed

RULES = ModelRules(rules={"m": ModelRule(ask_usage=True)})
ASKED = {"include_usage": True}
STREAM_HEAD = SSE_HEAD.replace(b"transfer-encoding: chunked\r\n", b"")
CHAT_EVENT = b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"x"}}],"usage":null}\n\n'
USAGE_EVENT = b'data: {"id":"1","choices":[],"usage":{"prompt_tokens":11,"completion_tokens":3,"total_tokens":14}}\n\n'
END_EVENT = b'data: {"id":"1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'


@pytest.fixture
async def plane(planes: MakePlane) -> Plane:
    made = await planes(rules=RULES)
    made.engine.ledger = Ledger()
    return made


@pytest.mark.parametrize(("body", "path"), [(CHAT, CHATS), (COMPLETIONS, TEXTS)])
@pytest.mark.parametrize("options", [{}, {"stream_options": None}, {"stream_options": {"include_usage": False}}])
async def test_the_engine_is_asked_and_the_client_gets_the_bytes_of_a_stream_without(
    plane: Plane, body: dict[str, Any], path: str, options: dict[str, Any]
) -> None:
    replica = await plane.add(seeded("one", []))
    plane.route(replica)
    got, _ = told(await ask(plane, {**body, **options}, path))
    assert got == whole(body, "one", chat=path == CHATS)
    assert json.loads(replica.calls[0].body) == {**body, "stream_options": ASKED}
    [(*_, counts)] = taken(plane)
    assert counts[0] == 1
    assert counts[3] == 12
    assert counts[5] == 0


async def test_a_client_that_asks_gets_it_and_its_request_stays_as_it_is(plane: Plane) -> None:
    replica = await plane.add(seeded("one", []))
    plane.route(replica)
    body = CHAT | {"stream_options": {"include_usage": True, "more": 1}}
    got, _ = told(await ask(plane, body))
    assert got == whole(body, "one")
    assert replica.calls[0].body == json.dumps(body).encode()


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"model": "m", "messages": []}, CHATS),
        ({"model": "other", "stream": True, "messages": []}, CHATS),
        ({"model": "m", "stream": True, "input": "x"}, "/v1/responses"),
        ({"model": "m", "stream": True, "stream_options": "odd"}, CHATS),
        ({"model": "m", "input": "x"}, "/v1/embeddings"),
    ],
)
async def test_nothing_else_is_changed(plane: Plane, body: dict[str, Any], path: str) -> None:
    async def answer(call: Call) -> None:
        await call.send(plain(b'{"ok":1}'))

    replica = await plane.add(answer)
    plane.route(replica, models=("m", "other"))
    raw = json.dumps(body, indent=1).encode()
    await plane.post(raw, path)
    assert replica.calls[0].body == raw


@pytest.mark.parametrize("blank", [b"\n\n", b"\r\n\r\n", b"\r\r"])
@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_every_other_event_passes_byte_for_byte_wherever_reads_are_cut(size: int, blank: bytes) -> None:
    kept = [b": a comment\n\n", CHAT_EVENT, b"event: ping\ndata: {}\n\n", END_EVENT, b'data: {"choices":[]}\n\n']
    odd = [b'data: {"choices":[{"index":0}],"usage":{"prompt_tokens":1}}\n\n', b'data: "usage","choices":[]\n\n']
    stream = b"".join([*kept, USAGE_EVENT, *odd, b"data: [DONE]\n\n"]).replace(b"\n\n", blank)
    expected = b"".join([*kept, *odd, b"data: [DONE]\n\n"]).replace(b"\n\n", blank)
    for whole_end in (True, False):
        sink = Sink()
        writer = HidingWriter(sink, http10=True, keep_alive=False, end_mark=EndMark.DONE, held_limit_bytes=1 << 20)
        writer.start(parse_response(STREAM_HEAD), b"", end_marked=None)
        sent = stream if whole_end else stream.removesuffix(blank)
        for at in range(0, len(sent), size):
            writer.body(sent[at : at + size], framed=False)
        assert writer.judged(200) == 200
        assert b'"prompt_tokens":11' in writer.last_bytes()
        writer.end()
        got = sink.data.partition(b"\r\n\r\n")[2]
        assert got == (expected if whole_end else expected.removesuffix(blank))


class Sink:
    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data


async def test_a_stream_with_a_length_or_compressed_passes_untouched(plane: Plane) -> None:
    stream = CHAT_EVENT + END_EVENT + USAGE_EVENT + b"data: [DONE]\n\n"
    extras = [b"content-encoding: gzip\r\n", b""]

    async def answer(call: Call) -> None:
        await call.send(plain(stream, kind=b"text/event-stream", extra=extras.pop()))

    plane.route(await plane.add(answer))
    for _ in range(2):
        assert (await ask(plane, CHAT)).body == stream
    assert [row[3][1] for row in taken(plane)] == [22]


async def test_the_official_client_sees_nothing_of_it(plane: Plane) -> None:
    plane.route(await plane.add(seeded("one", [])))
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{plane.port}/v1", api_key="k", max_retries=0) as client:
        plain_stream = await client.chat.completions.create(
            model="m", max_tokens=12, stream=True, messages=[{"role": "user", "content": "hi"}]
        )
        chunks = [chunk async for chunk in plain_stream]
        asking = await client.chat.completions.create(
            model="m",
            max_tokens=12,
            stream=True,
            messages=[{"role": "user", "content": "hi"}],
            stream_options=ASKED,  # type: ignore[call-overload]  # a dict is one
        )
        asked = [chunk async for chunk in asking]
    assert all(chunk.choices for chunk in chunks)
    assert [chunk.usage for chunk in chunks] == [None] * len(chunks)
    assert [chunk.model_dump() for chunk in asked[:-1]] == [chunk.model_dump() for chunk in chunks]
    assert asked[-1].usage.completion_tokens == 12
    assert [row[3][3] for row in taken(plane)] == [24]


async def test_a_rescued_stream_hides_its_usage_too_and_counts_it_whole(planes: MakePlane) -> None:
    plane = await planes(rules=ModelRules(rules={"m": ModelRule(rescue=True, ask_usage=True)}))
    plane.engine.ledger = Ledger()
    await two(plane, (5, rst))
    got, comments = told(await ask(plane, CHAT))
    assert undisturbed(got, CHAT)
    assert len(comments) == 1
    [(*_, counts)] = taken(plane)
    assert (counts[0], counts[3], counts[5]) == (1, 12, 0)
    assert total(plane, 0) == 0


def test_what_is_no_object_is_left_to_the_engine() -> None:
    assert with_usage(b'{"stream_options":[]}') is None
    assert with_usage(b"[]") is None
    assert (
        with_usage(b'{"a":1.50,"stream_options":{"x":2}}')
        == b'{"a":1.50,"stream_options":{"x":2,"include_usage":true}}'
    )
