"""Hostile and odd requests, byte for byte (docs/faults.md R01 to R82), each delivered in five ways.

The router proxies every path here, so that whatever it lets through reaches the replica. TLS is not served, so the
sixth way of the list does not exist.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest

from tests.router.conftest import MakePlane
from tests.router.fakes import Call, Plane, plain, read_reply

H = b"Host: a\r\n"
G = b"GET /x HTTP/1.1\r\n"
P = b"POST /x HTTP/1.1\r\nHost: a\r\n"
SM = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
OK = G + H + b"\r\n"
REFUSED = (400, 413, 414, 431, 501)
CHUNKED = P + b"Transfer-Encoding: chunked\r\n\r\n"

REJECTED = {
    "R01": P + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SM,
    "R02": P + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + SM,
    "HOST1": b"POST /v1/chat/completions HTTP/1.1\r\nHost: a@b/c\r\nContent-Length: 0\r\n\r\n",
    "HOST2": b"POST /v1/chat/completions HTTP/1.1\r\nHost: a b\r\nContent-Length: 0\r\n\r\n",
    "R03": P + b"Content-Length: 0\r\nContent-Length: 5\r\n\r\nhello",
    "R04": P + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "R05": P + b"Content-Length: 5, 5\r\n\r\nhello",
    "R06": P + b"Content-Length: +5\r\n\r\nhello",
    "R07": P + b"Content-Length: -1\r\n\r\n",
    "R08": P + b"Content-Length: 0x5\r\n\r\nhello",
    "R09": P + b"Content-Length: 1_0\r\n\r\nhelloworld",
    "R10": P + "Content-Length: \u0665\r\n\r\nhello".encode(),
    "R11": P + b"Content-Length: \r\n\r\n",
    "R12": P + b"Content-Length: 18446744073709551616\r\n\r\n",
    "R15": P + b"Transfer-Encoding: xchunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "R16": P + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + SM,
    "R17": P + b"Transfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello",
    "R18": P + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "R19": P + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "R20": P + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + SM,
    "R21": P + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "R22": P + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "R23": P + b"Transfer-Encoding: \xffchunked\r\n\r\n0\r\n\r\n" + SM,
    "R24": b"POST /x HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "R25": CHUNKED + b"5 \r\nhello\r\n0\r\n\r\n",
    "R26": CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n",
    "R27": CHUNKED + b"+5\r\nhello\r\n0\r\n\r\n",
    "R28": CHUNKED + b"F" * 20 + b"\r\nhello\r\n0\r\n\r\n",
    "R29": CHUNKED + b"5\nhello\r\n0\r\n\r\n" + SM,
    "R30": CHUNKED + b"0\n\r\n" + SM,
    "R31": CHUNKED + b"3\r\nhello\r\n0\r\n\r\n",
    "R32": CHUNKED + b"5;" + b"a" * 1000 + b"\r\nhello\r\n0\r\n\r\n",
    "R33": CHUNKED + b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "R34": CHUNKED + b"5\r\nhello\r\n0\r\nContent-Length: 9\r\n\r\n",
    "R35": CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n",
    "R36": b"GET /x HTTP/1.1\r\n\r\n",
    "R37": G + b"Host: a\r\nHost: b\r\n\r\n",
    "R39": G + H + b"X-A: 1\r\n 2\r\n\r\n",
    "R40": G + H + b"X-A: a\x00b\r\n\r\n",
    "R41": G + H + b"X-A: a\rb\r\n\r\n",
    "R42": b"GET /x HTTP/1.1\nHost: a\n\n",
    "R43": G + b" Host: a\r\n\r\n",
    "R44": G + H + b"X A: 1\r\n\r\n",
    "R45": G + H + b"garbage\r\n\r\n",
    "R46": G + H + b": v\r\n\r\n",
    "R49": G + H + b"X-A: " + b"a" * 9000 + b"\r\n\r\n",
    "R50": b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n" + H + b"\r\n",
    "R51": G + H + b"".join(b"X-%d: 1\r\n" % number for number in range(200)) + b"\r\n",
    "R54": b"GET /x HTTP/1.2\r\n" + H + b"\r\n",
    "R55": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "R56": b"GET /x HTTP/2.0\r\n" + H + b"\r\n",
    "R57": b"GET  /x HTTP/1.1\r\n" + H + b"\r\n",
    "R58": b"GET http://evil:1/x HTTP/1.1\r\n" + H + b"\r\n",
    "R59": b"CONNECT evil:1 HTTP/1.1\r\n" + H + b"\r\n",
    "R64": b"GET /\xff\xfe HTTP/1.1\r\n" + H + b"\r\n",
    "R65": b"GET /x\ty HTTP/1.1\r\n" + H + b"\r\n",
    "R66": b"GET //evil/x HTTP/1.1\r\n" + H + b"\r\n",
    "R67": b"GET /x?a#b HTTP/1.1\r\n" + H + b"\r\n",
    "R79": b" GET /x HTTP/1.1\r\n" + H + b"\r\n",
    "R80": b"get /x HTTP/1.1\r\n" + H + b"\r\n",
    "R81": P + b"Content-Length: 2097152\r\n\r\n" + b"a" * 2097152,
}


async def answer(call: Call) -> None:
    body = json.dumps({"line": call.line.decode("latin-1"), "size": len(call.body)}).encode()
    await call.send(plain(body))


@pytest.fixture
async def open_plane(planes: MakePlane) -> Plane:
    plane = await planes(any_path=True, head_timeout_s=0.5)
    plane.route(await plane.add(answer))
    return plane


Deliver = Callable[[asyncio.StreamWriter, bytes], Awaitable[None]]


async def whole(writer: asyncio.StreamWriter, raw: bytes) -> None:
    writer.write(raw)


async def by_byte(writer: asyncio.StreamWriter, raw: bytes) -> None:
    for index in range(min(len(raw), 1500)):
        writer.write(raw[index : index + 1])
        await asyncio.sleep(0)
    writer.write(raw[1500:])


async def by_line(writer: asyncio.StreamWriter, raw: bytes) -> None:
    for line in raw.splitlines(keepends=True):
        if writer.is_closing():  # it was refused by the lines before
            return
        writer.write(line)
        await asyncio.sleep(0.001)


async def after_a_good_one(writer: asyncio.StreamWriter, raw: bytes) -> None:
    writer.write(OK + raw)


async def before_a_good_one(writer: asyncio.StreamWriter, raw: bytes) -> None:
    writer.write(raw + OK)


WAYS = (whole, by_byte, by_line, after_a_good_one, before_a_good_one)


async def deliver(plane: Plane, way: Deliver, raw: bytes) -> list[int]:
    """Status codes of everything that came back until the router closed."""
    reader, writer = await plane.open()
    try:
        await way(writer, raw)
        reply = await read_reply(reader, wait_s=4, until_close=True)
    finally:
        writer.close()
    assert reply.closed
    return [int(part[:3]) for part in reply.raw.split(b"HTTP/1.1 ")[1:]]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_rejected_requests_close_and_never_reach_a_replica_R(open_plane: Plane, way: Deliver) -> None:
    replica = open_plane.replicas[0]
    for name, raw in REJECTED.items():
        replica.calls.clear()
        statuses = await deliver(open_plane, way, raw)
        good_ones = 1 if way is after_a_good_one else 0
        assert statuses[:good_ones] == [200] * good_ones, name
        assert len(statuses) == good_ones + 1, (name, statuses)
        assert statuses[-1] in (*REFUSED, 405), (name, statuses)
        assert len(replica.calls) == good_ones, name
        assert not any(b"smuggled" in call.head for call in replica.calls), name


async def one(plane: Plane, raw: bytes) -> tuple[int, list[Call]]:
    replica = plane.replicas[0]
    replica.calls.clear()
    reply = await plane.send(raw)
    return reply.status, replica.calls


async def test_white_space_around_a_length_is_legal_and_sent_on_as_digits_R13(open_plane: Plane) -> None:
    status, calls = await one(open_plane, P + b"Content-Length:\t5\t\r\n\r\nhello")
    assert (status, calls[0].header("content-length"), calls[0].body) == (200, "5", b"hello")


async def test_odd_fields_are_dropped_R48_R82(open_plane: Plane) -> None:
    for field in (b"X-A: \xff\xfe\r\n", b"Content_Length: 5\r\n", b"Traceparent_X: 1\r\n"):
        status, calls = await one(open_plane, G + H + field + b"\r\n")
        assert status == 200
        assert field.split(b":")[0].lower() not in calls[0].head.lower()


async def test_http09_and_half_heads_are_closed_unanswered_R52(open_plane: Plane) -> None:
    for raw in (b"GET /x\r\n", G, b"G"):
        reply = await open_plane.send(raw, until_close=True)
        assert (reply.raw, reply.closed) == (b"", True)
    assert not open_plane.replicas[0].calls


async def test_options_star_and_dot_segments_and_nul_lead_nowhere_R60_R61_R63(planes: MakePlane) -> None:
    plane = await planes()
    plane.route(await plane.add(answer))
    for target in (b"*", b"/v1/../admin", b"/v1/%2e%2e/admin", b"/x%00y", b"/v1/chat/completions/../../admin"):
        status, calls = await one(plane, b"OPTIONS " + target + b" HTTP/1.1\r\n" + H + b"\r\n")
        assert (status, calls) == (404, []), target


async def test_upgrades_are_ignored_R69_R70(open_plane: Plane) -> None:
    websocket = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    raw = P + websocket + b"Content-Length: 5\r\n\r\nhello" + SM
    reader, writer = await open_plane.open()
    writer.write(raw)
    first = await read_reply(reader)
    assert first.status == 200
    writer.close()
    calls = open_plane.replicas[0].calls
    assert calls[0].body == b"hello"
    assert b"upgrade" not in calls[0].head.lower()
    h2c = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n"
    status, calls = await one(open_plane, G + H + h2c)
    assert (status, b"http2-settings" in calls[0].head.lower()) == (200, False)


async def test_unknown_expectation_R72(open_plane: Plane) -> None:
    status, calls = await one(open_plane, P + b"Expect: foo\r\nContent-Length: 5\r\n\r\nhello")
    assert (status, calls) == (417, [])


async def test_short_body_then_close_is_never_forwarded_R73(open_plane: Plane) -> None:
    _, writer = await open_plane.open()
    writer.write(P + b"Content-Length: 50\r\n\r\nhello")
    await writer.drain()
    writer.write_eof()
    while open_plane.engine.clients:
        await asyncio.sleep(0.01)
    writer.close()
    assert not open_plane.replicas[0].calls


async def test_head_has_no_body_R75(open_plane: Plane) -> None:
    reply = await open_plane.send(b"HEAD /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", until_close=True)
    assert (reply.status, reply.body) == (200, b"")


async def test_pipelined_requests_are_answered_in_order_R76(open_plane: Plane) -> None:
    reader, writer = await open_plane.open()
    writer.write(b"".join(b"GET /x?%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(50)))
    got = b""
    while got.count(b"HTTP/1.1 200") < 50 or not got.endswith(b"}"):
        got += await asyncio.wait_for(reader.read(65536), 5)
    writer.close()
    assert [f"/x?{number} ".encode() in part for number, part in enumerate(got.split(b"HTTP/1.1 200")[1:])] == [
        True
    ] * 50


async def test_empty_lines_before_a_request_are_taken_R78(open_plane: Plane) -> None:
    status, calls = await one(open_plane, b"\r\n\r\n\r\n" + OK)
    assert (status, len(calls)) == (200, 1)


async def test_compressed_bodies_are_refused_D14(open_plane: Plane) -> None:
    status, calls = await one(open_plane, P + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello")
    assert (status, calls) == (415, [])


async def test_upload_that_stands_still_is_408_and_says_for_how_long_W11(planes: MakePlane) -> None:
    plane = await planes(any_path=True, body_idle_timeout_s=0.3)
    plane.route(await plane.add(answer))
    reply = await plane.send(P + b"Content-Length: 500\r\n\r\nhello", until_close=True)
    assert reply.status == 408
    assert b"no byte of the request's body came for 0.3 s" in reply.body
    assert not plane.replicas[0].calls


@pytest.mark.parametrize("framing", ["sized", "chunked"])
@pytest.mark.parametrize(("total_s", "status"), [(600.0, 200), (100.0, 408)])
async def test_upload_over_a_slow_line_may_take_its_time_up_to_the_total_W11(
    planes: MakePlane, framing: str, total_s: float, status: int
) -> None:
    plane = await planes(any_path=True, body_timeout_s=total_s, total_timeout_s=1e6)
    plane.route(await plane.add(answer))
    now = [plane.engine.now()]
    plane.engine.now = lambda: now[0]
    piece, arrived = b"x" * 1000, 0
    reader, writer = await plane.open()
    writer.write(
        P + (b"Content-Length: 10000\r\n\r\n" if framing == "sized" else b"Transfer-Encoding: chunked\r\n\r\n")
    )
    for _ in range(9):
        writer.write(piece if framing == "sized" else b"3e8\r\n%b\r\n" % piece)
        async with asyncio.timeout(5):
            while plane.engine.body_bytes - arrived < len(piece):
                await asyncio.sleep(0.005)
        arrived = plane.engine.body_bytes
        now[0] += 25
        for client in list(plane.engine.clients):
            client.check(now[0])
        if not plane.engine.body_bytes:
            break  # refused
    writer.write(piece if framing == "sized" else b"3e8\r\n%b\r\n0\r\n\r\n" % piece)
    reply = await read_reply(reader)
    writer.close()
    assert reply.status == status
