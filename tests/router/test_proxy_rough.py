"""What rough clients and replicas do between two requests, at a drain, and at the edges of a connection."""

import asyncio
import json
import socket
from dataclasses import replace

import pytest

from router.model import Eligibility, Table
from tests.router.conftest import MakePlane
from tests.router.fakes import SSE_HEAD, Call, Plane, event, plain, read_reply, request

CHAT = b'{"model":"m","messages":[]}'
MIB = 1 << 20


async def answer_ok(call: Call) -> None:
    await call.send(plain(b'{"ok":1}'))


async def test_a_slow_client_gets_the_end_of_an_answer_after_which_we_close(planes: MakePlane) -> None:
    plane = await planes(head_timeout_s=0.2)
    body = json.dumps({"text": "x" * (12 * MIB)}).encode()

    async def late(call: Call) -> None:
        await asyncio.sleep(0.5)  # longer than a head may take: that deadline must not end the answer
        await call.send(plain(body))

    plane.route(await plane.add(late))
    reader, writer = await plane.open()
    writer.write(request(CHAT))
    await asyncio.sleep(1.2)  # the answer is there, and we have not begun to read it
    reply = await read_reply(reader, wait_s=20, until_close=True)
    writer.close()
    assert (reply.status, len(reply.body)) == (200, len(body))


async def test_the_next_request_waits_until_the_client_has_taken_the_last_answer_D3(plane: Plane) -> None:
    body = json.dumps({"text": "x" * (8 * MIB)}).encode()
    plane.route(replica := await plane.add(lambda call: call.send(plain(body))))
    reader, writer = await plane.open()
    asked = request(CHAT, headers="connection: keep-alive\r\n")
    writer.write(asked)
    async with asyncio.timeout(5):
        while not (plane.engine.clients and next(iter(plane.engine.clients)).paused):
            await asyncio.sleep(0.01)
    writer.write(asked)
    await asyncio.sleep(0.3)
    assert len(replica.calls) == 1  # the answer to a second one would pile up behind the first
    async with asyncio.timeout(20):
        for _ in range(2):
            head = await reader.readuntil(b"\r\n\r\n")
            assert (head[:12], await reader.readexactly(len(body))) == (b"HTTP/1.1 200", body)
    assert len(replica.calls) == 2
    writer.close()


async def test_a_drain_waits_for_a_request_that_still_arrives_D16(plane: Plane) -> None:
    plane.route(await plane.add(answer_ok))
    reader, writer = await plane.open()
    whole = request(CHAT)
    writer.write(whole[:-5])
    async with asyncio.timeout(5):
        while not plane.engine.busy():
            await asyncio.sleep(0.01)
    plane.engine.drain()
    assert plane.engine.busy()
    writer.write(whole[-5:])
    assert (await read_reply(reader, until_close=True)).status == 200
    writer.close()
    assert not plane.engine.busy()


async def test_promised_bodies_take_no_room_until_they_come(planes: MakePlane) -> None:
    plane = await planes(max_bodies_bytes=2 * MIB)
    plane.route(await plane.add(answer_ok))
    promises = []
    for _ in range(4):
        _, writer = await plane.open()
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: r\r\ncontent-length: %d\r\n\r\n" % MIB)
        promises.append(writer)
    await asyncio.sleep(0.1)
    assert (await plane.post(CHAT)).status == 200
    for writer in promises:
        writer.write(b"x" * (MIB - 1))
    reply = await asyncio.wait_for(_until_refused(plane), 5)
    assert b"too many request bodies" in reply
    for writer in promises:
        writer.transport.abort()


async def _until_refused(plane: Plane) -> bytes:
    while True:
        reply = await plane.post(b'{"model":"m","pad":"' + b"x" * (MIB // 2) + b'"}')
        if reply.status == 503:
            return reply.body
        await asyncio.sleep(0.01)


async def test_who_waited_is_not_sent_to_a_replica_that_drains_meanwhile_D28(planes: MakePlane) -> None:
    plane = await planes()
    go = asyncio.Event()

    async def waits(call: Call) -> None:
        await go.wait()
        await answer_ok(call)

    old = await plane.add(waits)
    [endpoint] = plane.route(old, limit=1)
    first = asyncio.ensure_future(plane.post(CHAT))
    async with asyncio.timeout(5):
        while not old.calls:
            await asyncio.sleep(0.01)
    second = asyncio.ensure_future(plane.post(CHAT))
    async with asyncio.timeout(5):
        while not len(plane.engine.waiting):
            await asyncio.sleep(0.01)
    young = await plane.add(answer_ok)
    other = replace(endpoint, id="young", name="young", port=young.port, slot=1)
    plane.engine.set_table(Table.of(9, (replace(endpoint, eligibility=Eligibility.DRAINING), other)))
    go.set()
    assert [(await first).status, (await second).status] == [200, 200]
    assert (len(old.calls), len(young.calls)) == (1, 1)


async def test_hints_before_every_answer_of_a_connection_are_not_added_up(plane: Plane) -> None:
    async def hints(call: Call) -> None:
        await call.send(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + plain(b"{}"))

    replica = await plane.add(hints)
    plane.route(replica)
    assert {(await plane.post(CHAT)).status for _ in range(20)} == {200}
    assert replica.connections == 1


async def test_a_connection_that_was_busy_when_its_endpoint_went_is_closed_after_its_answer(plane: Plane) -> None:
    go, gone = asyncio.Event(), asyncio.Event()

    async def waits(call: Call) -> None:
        await go.wait()
        await answer_ok(call)
        await call.until_gone()
        gone.set()

    old = await plane.add(waits)
    plane.route(old)
    post = asyncio.ensure_future(plane.post(CHAT))
    async with asyncio.timeout(5):
        while not old.calls:
            await asyncio.sleep(0.01)
    plane.route(await plane.add(answer_ok))
    go.set()
    assert (await post).status == 200
    await asyncio.wait_for(gone.wait(), 2)


@pytest.mark.parametrize("cut", range(1, 14))
async def test_an_end_mark_may_be_cut_by_a_chunks_border_D10(plane: Plane, cut: int) -> None:
    mark = b"data: [DONE]\n\n"
    parts = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (mark[:cut], mark[cut:]))
    raw = SSE_HEAD + event("one") + parts + b"0\r\n\r\n"
    plane.route(await plane.add(lambda call: call.send(raw)))
    reply = await plane.post(CHAT)
    assert reply.raw.endswith(b"0\r\n\r\n")
    assert b"error" not in reply.body


async def test_a_replica_that_does_not_read_its_request_ends_in_the_timeout_and_in_no_defect_U22(
    planes: MakePlane,
) -> None:
    plane = await planes(first_byte_timeout_s=0.5, max_body_bytes=16 * MIB, max_bodies_bytes=64 * MIB, max_retries=0)
    defects: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: defects.append(context))
    with socket.socket() as deaf:  # the kernel takes the connection, and nobody reads from it
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(4)
        plane.route(deaf.getsockname()[1])
        body = b'{"model":"m","pad":"' + b"x" * (12 * MIB) + b'"}'
        assert (await plane.send(request(body), wait_s=15, until_close=True)).status == 504
    assert defects == []


async def test_a_host_that_cannot_be_one_costs_its_requests_and_nothing_else_D20(plane: Plane) -> None:
    good = await plane.add(answer_ok)
    for host in ("gpu1..lab", "a" * 64):
        [bad] = plane.route(9, host=host)
        assert (await plane.post(CHAT)).status == 503
        assert plane.engine.outliers.ejected(plane.engine.now()) == [bad.id]
    plane.route(good)
    assert (await plane.post(CHAT)).status == 200


async def test_any_path_passes_what_it_does_not_understand(planes: MakePlane) -> None:
    plane = await planes(any_path=True)
    one, two = await plane.add(answer_ok), await plane.add(answer_ok)
    first, _ = plane.route(one, two)
    plane.engine.set_table(Table.of(5, (first, replace(plane.engine.table.endpoints[1], models=("other",)))))
    bare = b"GET /props HTTP/1.1\r\nhost: r\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n"
    assert (await plane.send(bare, until_close=True)).status == 200
    assert (await plane.post(b"no json at all", path="/custom")).status == 200
    two.calls.clear()
    form = "content-type: application/x-www-form-urlencoded\r\n"
    raw = request(b'{"model":"m"}', path="/custom").replace(b"content-type: application/json\r\n", form.encode())
    for _ in range(4):
        assert (await plane.send(raw, until_close=True)).status == 200
    assert two.calls == []  # the body names a model that only the first one has


async def test_rerank_is_asked_for_in_the_form_that_a_replica_serves(plane: Plane) -> None:
    replica = await plane.add(answer_ok)
    for prefix, path in (("/v1", "/rerank"), ("", "/v1/rerank")):
        plane.route(replica, api_prefix=prefix)
        assert (await plane.post(CHAT, path=path)).status == 200
        assert replica.calls[-1].line == f"POST {prefix}/rerank HTTP/1.1".encode()


async def test_of_several_forwarded_lines_the_first_has_the_client(plane: Plane) -> None:
    several = [await plane.add(answer_ok) for _ in range(4)]
    plane.route(*several)
    for number in range(12):
        lines = f"x-forwarded-for: 10.1.1.1\r\nx-forwarded-for: 10.9.9.{number}\r\nuser-agent: a\r\n"
        assert (await plane.post(CHAT, headers=lines)).status == 200
    assert sorted(len(replica.calls) for replica in several) == [0, 0, 0, 12]
