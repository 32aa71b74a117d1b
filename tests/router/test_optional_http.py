"""Parts of HTTP that may be there and mostly are not: on either leg they are discarded, bounded, and no error (W7)."""

import asyncio
import json

import pytest

from tests.router.fakes import Call, Plane, event, plain, read_reply
from tests.router.test_raw_responses import unchunk

CHAT = b'{"model":"m","messages":[]}'
HALF = len(CHAT) // 2
EXTENSION = b";chunk-signature=" + b"0123abcd" * 8
TRAILERS = b"x-checksum: abc\r\nServer-Timing: total;dur=12.5\r\n"
CHUNKS = b"%x%b\r\n%b\r\n%x ; a=b\r\n%b\r\n" % (HALF, EXTENSION, CHAT[:HALF], len(CHAT) - HALF, CHAT[HALF:])
CHUNKED_CHAT = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: r\r\ncontent-type: application/json\r\n"
    b"te: trailers\r\ntrailer: x-checksum\r\nconnection: te\r\ntransfer-encoding: Chunked\r\n\r\n"
) + CHUNKS


async def told(call: Call) -> None:
    await call.send(plain(json.dumps({"body": call.body.decode(), "head": call.head.decode()}).encode()))


@pytest.mark.parametrize("step", [1, 10, 100_000])
async def test_a_requests_trailers_and_extensions_go_no_further_W7(plane: Plane, step: int) -> None:
    plane.route(await plane.add(told))
    raw = CHUNKED_CHAT + b"0\r\n" + TRAILERS + b"\r\n"
    reader, writer = await plane.open()
    for _ in range(2):  # the connection goes on: nothing of the trailers is taken for a request
        for start in range(0, len(raw), step):
            writer.write(raw[start : start + step])
            await asyncio.sleep(0)
        reply = await read_reply(reader)
        assert reply.status == 200
        said = json.loads(reply.body)
        assert said["body"] == CHAT.decode()
        assert not any(word in said["head"].lower() for word in ("trailer", "x-checksum", "te:", "signature"))
    writer.close()


@pytest.mark.parametrize("trailers", [b"x: " + b"a" * 9000 + b"\r\n", b"x: a\r\n folded\r\n", b"Content-Length: 3\r\n"])
async def test_a_requests_trailers_are_bounded_and_judged_W7(plane: Plane, trailers: bytes) -> None:
    replica = await plane.add(told)
    plane.route(replica)
    reply = await plane.send(CHUNKED_CHAT + b"0\r\n" + trailers + b"\r\n")
    assert reply.status == 400
    assert not replica.calls


async def test_a_client_that_waits_for_100_gets_it_once_W7(plane: Plane) -> None:
    plane.route(await plane.add(told))
    reader, writer = await plane.open()
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: r\r\nexpect: 100-Continue\r\ncontent-length: %d\r\n\r\n"
        % len(CHAT)
    )
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(CHAT)
    reply = await read_reply(reader)
    assert (reply.status, b"expect" in reply.body) == (200, False)
    writer.close()


HEAD = b"HTTP/1.1 200 OK\r\nupgrade: h2c\r\nconnection: upgrade, keep-alive\r\ntrailer: x-checksum\r\n"
EARLY = b"HTTP/1.1 102 Processing\r\nx-wait: 1\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
STREAM_HEAD = HEAD + b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
JSON_HEAD = HEAD + b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
DONE = b"e;x=1\r\ndata: [DONE]\n\n\r\n"
ANSWERS = {
    "stream": (STREAM_HEAD + event("one") + DONE, b'data: {"t":"one"}\n\ndata: [DONE]\n\n'),
    "json": (JSON_HEAD + b"3;a\r\n{  \r\n2\r\n }\r\n", b"{   }"),
}


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("step", [1, 20, 100_000])
async def test_an_answers_trailers_extensions_and_early_heads_go_no_further_W7(
    plane: Plane, name: str, step: int
) -> None:
    begin, payload = ANSWERS[name]
    raw = EARLY + begin + b"0\r\n" + TRAILERS + b"\r\n"

    async def answer(call: Call) -> None:
        for start in range(0, len(raw), step):
            await call.send(raw[start : start + step])
            await asyncio.sleep(0)

    replica = await plane.add(answer)
    plane.route(replica)
    for _ in range(3):
        reply = await plane.post(CHAT)
        assert (reply.status, unchunk(reply.body)) == (200, payload)
        assert reply.header("trailer") is reply.header("upgrade") is reply.header("link") is None
        assert b"checksum" not in reply.raw
    assert replica.connections == 1
    assert plane.engine.outliers.quiet


async def test_an_answers_trailers_are_bounded_W7(plane: Plane) -> None:
    async def endless(call: Call) -> None:
        await call.send(JSON_HEAD + b"2\r\n{}\r\n0\r\n" + b"x-a: b\r\n" * 2000 + b"\r\n")

    plane.route(await plane.add(endless))
    assert (await plane.post(CHAT)).status == 502
