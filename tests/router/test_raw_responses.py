"""Hostile replicas, byte for byte (docs/faults.md U01 to U24): an error or an abort, never another client's bytes."""

import asyncio
import json

import pytest

from tests.router.conftest import MakePlane
from tests.router.fakes import DONE, SSE_HEAD, Call, Plane, event, plain, read_reply, request
from tests.simple_http import BODY, simple_server

CHAT = b'{"model":"m","messages":[]}'
JSON_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
CHUNKED_HEAD = JSON_HEAD + b"transfer-encoding: chunked\r\n\r\n"

BAD_GATEWAY = {
    "U01": JSON_HEAD + b"content-length: 5\r\n\r\n",
    "U02": CHUNKED_HEAD + b'ff\r\n{"a":',
    "U04": JSON_HEAD + b'content-length: 50\r\n\r\n{"a":',
    "U05": JSON_HEAD + b'\r\n{"a":',
    "U07": b"HTTP/1.1 20",
    "U08": JSON_HEAD + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}",
    "U09": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "U10": CHUNKED_HEAD + b"ZZ\r\n{}\r\n0\r\n\r\n",
    "U11": JSON_HEAD + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}",
    "U15": JSON_HEAD + b"x-a: " + b"a" * 9000 + b"\r\ncontent-length: 2\r\n\r\n{}",
    "U16": JSON_HEAD + b"".join(b"x-%d: 1\r\n" % number for number in range(300)) + b"content-length: 2\r\n\r\n{}",
    "U18": JSON_HEAD + b"x-a: a\x00b\r\ncontent-length: 2\r\n\r\n{}",
    "gzip coding": JSON_HEAD + b"transfer-encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "switching": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
    "too many 1xx": b"HTTP/1.1 100 Continue\r\n\r\n" * 20,
    "endless head": b"HTTP/1.1 200 OK\r\nx: " + b"a" * 40000,
}


BY_RESET = {"U02": "U03", "U05": "U06"}
"""What the plans call these answers when they end with a RST."""
ENDINGS = [
    *(pytest.param(name, False, id=f"{name}-fin") for name in BAD_GATEWAY),
    *(pytest.param(name, True, id=f"{BY_RESET.get(name, name)}-rst") for name in BAD_GATEWAY),
]


@pytest.mark.parametrize(("name", "reset"), ENDINGS)
async def test_broken_answers_are_502_and_their_connection_is_not_reused_D11(
    plane: Plane, name: str, *, reset: bool
) -> None:
    async def answer(call: Call) -> None:
        await call.send(BAD_GATEWAY[name])
        await asyncio.sleep(0.02)
        if reset:
            call.reset()
        else:
            call.close()

    replica = await plane.add(answer)
    plane.route(replica)
    reply = await plane.post(CHAT)
    assert reply.status == 502, reply.raw
    assert json.loads(reply.body)["error"]["code"] in {"upstream_died", "upstream_malformed", "upstream_truncated"}
    await plane.post(CHAT)
    assert replica.connections == 2


async def test_informational_answers_are_swallowed_U13_U14_D12(plane: Plane) -> None:
    async def answer(call: Call) -> None:
        await call.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await call.send(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + plain(b"{}"))

    plane.route(await plane.add(answer))
    reply = await plane.post(CHAT)
    assert (reply.status, reply.body, reply.header("link")) == (200, b"{}", None)


async def test_bytes_after_an_answer_never_reach_the_next_client_U12_U17(plane: Plane) -> None:
    poison = plain(b'{"poison":1}')
    scripts = (
        plain(b"{}") + poison,
        b"HTTP/1.1 204 No Content\r\n\r\n" + poison,
        CHUNKED_HEAD + b"2\r\n{}\r\n0\r\n\r\n" + poison,
    )
    for raw in scripts:

        async def answer(call: Call, raw: bytes = raw) -> None:
            await call.send(raw)

        replica = await plane.add(answer)
        plane.route(replica)
        for _ in range(3):
            reply = await plane.post(CHAT)
            assert b"poison" not in reply.raw
            assert reply.status in (200, 204)
        assert replica.connections == 3


async def test_unasked_bytes_on_an_idle_connection_close_it(plane: Plane) -> None:
    async def answer(call: Call) -> None:
        await call.send(plain(b"{}"))
        await asyncio.sleep(0.05)
        await call.send(plain(b'{"poison":1}'))

    plane.route(await plane.add(answer))
    await plane.post(CHAT)
    await asyncio.sleep(0.2)
    assert b"poison" not in (await plane.post(CHAT)).raw


async def test_compressed_answers_pass_as_they_are_U19_D13(plane: Plane) -> None:
    garbage = b"\x1f\x8b not really gzip"

    async def answer(call: Call) -> None:
        await call.send(plain(garbage, extra=b"content-encoding: gzip\r\n"))

    plane.route(await plane.add(answer))
    reply = await plane.post(CHAT, headers="accept-encoding: gzip\r\n")
    assert (reply.body, reply.header("content-encoding")) == (garbage, "gzip")
    assert plane.replicas[0].calls[0].header("accept-encoding") == "gzip"


async def test_a_very_long_event_passes_U20_D15(plane: Plane) -> None:
    long = b"data: " + b"x" * 2_000_000 + b"\n\n"

    async def answer(call: Call) -> None:
        await call.send(SSE_HEAD + b"%x\r\n%b\r\n" % (len(long), long) + DONE)

    plane.route(await plane.add(answer))
    reader, writer = await plane.open()
    writer.write(request(CHAT))
    reply = await read_reply(reader, until_close=True)
    writer.close()
    assert unchunk(reply.body) == long + b"data: [DONE]\n\n"


async def test_tiny_chunks_in_any_split_give_the_same_stream_U21(plane: Plane) -> None:
    text = b"".join(b"1\r\n%c\r\n" % byte for byte in b"data: hello\n\n") + event("x") + DONE

    async def answer(call: Call) -> None:
        await call.send(SSE_HEAD)
        step = int(call.header("x-request-id") or 1)
        for start in range(0, len(text), step):
            await call.send(text[start : start + step])
            await asyncio.sleep(0.0005)

    plane.route(await plane.add(answer))
    for step in (1, 2, 3, 7, 50):
        reply = await plane.post(CHAT, headers=f"x-request-id: {step}\r\n")
        assert unchunk(reply.body) == b'data: hello\n\ndata: {"t":"x"}\n\ndata: [DONE]\n\n', step


async def test_an_answer_before_the_whole_request_was_read_U22_U23(plane: Plane) -> None:
    body = b'{"model":"m","messages":[{"content":"' + b"x" * 900_000 + b'"}]}'
    server = await asyncio.start_server(_answer_early, "127.0.0.1", 0)
    plane.route(server.sockets[0].getsockname()[1])
    reply = await plane.post(body)
    assert (reply.status, reply.body) == (200, b'{"early":1}')
    server.close()
    await server.wait_closed()


async def _answer_early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(plain(b'{"early":1}'))
    await writer.drain()
    await reader.read()
    writer.close()


async def test_http10_answers_without_length_end_with_their_connection_U24(plane: Plane) -> None:
    async def answer(call: Call) -> None:
        await call.send(b"HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\nconnection: keep-alive\r\n\r\nhello")
        call.close()

    plane.route(await plane.add(answer))
    reply = await plane.post(CHAT)
    assert unchunk(reply.body) == b"hello"


async def test_redirects_pass_through_and_are_not_followed_D26(plane: Plane) -> None:
    async def answer(call: Call) -> None:
        await call.send(plain(b"{}", status=b"302 Found", extra=b"location: http://169.254.169.254/\r\n"))

    plane.route(await plane.add(answer))
    reply = await plane.post(CHAT)
    assert (reply.status, reply.header("location")) == (302, "http://169.254.169.254/")
    assert len(plane.replicas[0].calls) == 1


async def test_cookies_of_one_client_never_reach_another_D25(plane: Plane) -> None:
    async def answer(call: Call) -> None:
        await call.send(plain(b"{}", extra=b"set-cookie: session=secret\r\n"))

    plane.route(await plane.add(answer))
    replies = [await plane.post(CHAT) for _ in range(2)]
    assert not any(b"secret" in reply.raw for reply in replies)
    assert not any(b"secret" in call.head for call in plane.replicas[0].calls)


async def test_connection_named_fields_do_not_come_back(planes: MakePlane) -> None:
    plane = await planes()

    async def answer(call: Call) -> None:
        await call.send(plain(b"{}", extra=b"connection: x-hop\r\nx-hop: 1\r\nx-kept: 2\r\n"))

    plane.route(await plane.add(answer))
    reply = await plane.post(CHAT)
    assert (reply.header("x-hop"), reply.header("x-kept")) == (None, "2")


def unchunk(body: bytes) -> bytes:
    """The payload of a whole chunked body; fails on anything else."""
    payload = b""
    while True:
        size, separator, body = body.partition(b"\r\n")
        assert separator
        length = int(size, 16)
        if not length:
            assert body == b"\r\n"
            return payload
        payload += body[:length]
        assert body[length : length + 2] == b"\r\n"
        body = body[length + 2 :]


async def test_connection_of_a_call_that_a_server_refused_unread_is_not_used_again_W65(plane: Plane) -> None:
    with simple_server() as port:
        plane.route(port)
        for _ in range(3):
            assert (await plane.post(CHAT)).status == 404
            reply = await plane.post(b'{"model":"m","input":"1"}', "/v1/embeddings")
            assert (reply.status, reply.body) == (200, BODY)
        plane.route()  # ends its connections, for which the server's threads wait
