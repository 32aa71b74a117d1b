"""A worker's limits on memory and patience: what is beyond one ends, and nothing else does."""

import asyncio
from types import SimpleNamespace

from router.proxy.parsing import parse_response
from router.proxy.paths import EndMark
from router.proxy.response_writer import ResponseWriter
from tests.router.conftest import MakePlane
from tests.router.fakes import DONE, SSE_HEAD, Call, event, plain, read_reply, request

CHAT = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
STREAM = b'{"model":"m","stream":true,"messages":[]}'


async def test_a_client_that_stops_reading_is_dropped_and_only_that_one_D3(planes: MakePlane) -> None:
    plane = await planes(write_stall_s=0.5, idle_timeout_s=20.0)
    go, dropped = asyncio.Event(), asyncio.Event()

    async def answer(call: Call) -> None:
        await call.send(SSE_HEAD + event("one"))
        if call.header("x-request-id") != "stalls":
            await go.wait()
            await call.send(DONE)
            return
        try:
            while True:
                await call.send(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        except ConnectionError:
            dropped.set()

    plane.route(await plane.add(answer))
    reader, writer = await plane.open()
    writer.write(request(STREAM))
    await asyncio.wait_for(reader.readuntil(event("one")), 5)
    _, stalled = await plane.open()
    stalled.write(request(STREAM, headers="x-request-id: stalls\r\n"))
    await asyncio.wait_for(dropped.wait(), 10)
    assert len(plane.engine.clients) == 1
    go.set()
    assert (await read_reply(reader)).raw.endswith(DONE)
    writer.close()
    stalled.transport.abort()


async def test_bodies_beyond_what_a_worker_may_hold_are_503(planes: MakePlane) -> None:
    plane = await planes(max_bodies_bytes=1500)

    async def answer(call: Call) -> None:
        await call.send(plain(b"{}"))

    plane.route(await plane.add(answer))
    raw = request(CHAT.ljust(1000))
    reader, writer = await plane.open()
    writer.write(raw[:-100])
    async with asyncio.timeout(5):
        while plane.engine.body_bytes != 900:  # what has come so far
            await asyncio.sleep(0.01)
    refused = await plane.send(raw, until_close=True)
    assert refused.status == 503
    assert b"too many request bodies" in refused.body
    writer.write(raw[-100:])
    assert (await read_reply(reader)).status == 200  # the one that was there first is none the worse
    writer.close()
    assert (await plane.send(raw, until_close=True)).status == 200


async def test_json_beyond_what_may_be_held_is_streamed(planes: MakePlane) -> None:
    plane = await planes(held_limit_bytes=1000)
    whole = plain(b'{"a":"' + b"x" * 3000 + b'"}')
    go = asyncio.Event()

    async def answer(call: Call) -> None:
        await call.send(whole[:2000])
        await go.wait()
        await call.send(whole[2000:])

    plane.route(await plane.add(answer))
    reader, writer = await plane.open()
    writer.write(request(CHAT))
    begun = await asyncio.wait_for(reader.readuntil(b'{"a":"xxx'), 5)  # while the replica still holds the rest back
    go.set()
    rest = await read_reply(reader, until_close=True)
    assert (begun + rest.raw).endswith(whole.partition(b"\r\n\r\n")[2])
    writer.close()


def test_json_without_framing_beyond_what_may_be_held_is_kept_nowhere() -> None:
    sent: list[bytes] = []
    sink = SimpleNamespace(write=sent.append)
    writer = ResponseWriter(sink, http10=False, keep_alive=True, end_mark=EndMark.NONE, held_limit_bytes=1000)
    writer.start(parse_response(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n"), b"", end_marked=None)
    for _ in range(100):
        writer.body(b"x" * 500, framed=False)
    assert sum(map(len, sent)) > 50_000
    assert writer._unproven is None
    assert writer.judged(200) == 200
