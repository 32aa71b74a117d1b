"""A connection that goes from one worker to the next, as a client sees it: not at all."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from common.tasks import TaskScope
from router import handover
from router.handover import Handover
from router.proxy.downstream import Downstream
from tests.router.conftest import MakePlane
from tests.router.fakes import DONE, SSE_HEAD, Call, Plane, event, plain, read_reply, request

KEEP = "connection: keep-alive\r\n"
CHAT = b'{"model":"m","messages":[]}'


async def answer_ok(call: Call) -> None:
    await call.send(plain(b'{"ok":1}'))


class Pair:
    """Two workers of one slot, of which the second takes what the first gives."""

    def __init__(self, old: Plane, new: Plane, ends: tuple[socket.socket, socket.socket], scope: TaskScope) -> None:
        self.old, self.new = old, new
        self.ends = ends
        self.gives, self.takes = Handover(*ends, scope), Handover(*ends, scope)

    def begin(self) -> None:
        """The new one serves, the old one leaves."""
        self.takes.take(lambda: Downstream(self.new.engine, kept=True))
        self.leave()

    def leave(self) -> None:
        self.old.engine.drain(self.gives.give)


@pytest.fixture
async def pair(planes: MakePlane) -> AsyncIterator[Pair]:
    ends = handover.make_pair()
    with contextlib.closing(ends[0]), contextlib.closing(ends[1]):
        async with TaskScope("handover") as scope:
            made = Pair(await planes(keepalive_s=30.0, head_timeout_s=0.4), await planes(keepalive_s=30.0), ends, scope)
            for plane in (made.old, made.new):
                plane.route(await plane.add(answer_ok))
            yield made
            made.takes.leave()


async def chat(stream: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
    reader, writer = stream
    writer.write(request(CHAT, headers=KEEP))
    reply = await read_reply(reader)
    assert (reply.status, reply.header("connection"), reply.closed) == (200, None, False)


async def until_empty(plane: Plane) -> None:
    async with asyncio.timeout(10):
        while plane.engine.clients:
            await asyncio.sleep(0.01)
            plane.engine.leave()


async def test_an_idle_connection_goes_on_at_the_successor(pair: Pair) -> None:
    client = await pair.old.open()
    await chat(client)
    pair.begin()
    await until_empty(pair.old)
    await chat(client)
    await chat(client)
    assert (len(pair.old.replicas[0].calls), len(pair.new.replicas[0].calls)) == (1, 2)
    client[1].close()


async def test_what_a_client_writes_while_nobody_has_its_connection_is_answered(pair: Pair) -> None:
    client = await pair.old.open()
    await chat(client)
    pair.leave()  # and the new one takes nothing yet
    await until_empty(pair.old)
    client[1].write(request(CHAT, headers=KEEP))
    await asyncio.sleep(0.05)
    pair.begin()
    assert (await read_reply(client[0])).status == 200
    client[1].close()


async def test_one_that_is_being_answered_goes_after_its_answer(pair: Pair) -> None:
    go = asyncio.Event()

    async def stream(call: Call) -> None:
        await call.send(SSE_HEAD + event("a"))
        await go.wait()
        await call.send(event("b") + DONE)

    pair.old.replicas[0].script = stream
    reader, writer = await pair.old.open()
    writer.write(request(CHAT, headers=KEEP))
    await reader.readuntil(b'"a"}\n\n\r\n')
    pair.begin()
    await asyncio.sleep(0.1)
    assert pair.old.engine.busy()
    go.set()
    await reader.readuntil(b"\r\n0\r\n\r\n")
    await until_empty(pair.old)
    await chat((reader, writer))
    assert len(pair.new.replicas[0].calls) == 1
    writer.close()


async def test_one_whose_client_has_not_read_its_answer_waits_for_that(pair: Pair) -> None:
    size = 8 << 20

    async def much(call: Call) -> None:
        await call.send(plain(b"x" * size, kind=b"text/plain"))

    pair.old.replicas[0].script = much
    reader, writer = await pair.old.open()
    writer.write(request(CHAT, headers=KEEP))
    head = await reader.readuntil(b"\r\n\r\n")
    pair.begin()
    await asyncio.sleep(0.2)
    assert pair.old.engine.clients, head
    assert await reader.readexactly(size) == b"x" * size
    await until_empty(pair.old)
    await chat((reader, writer))
    writer.close()


async def test_pipelined_requests_are_answered_before_it_goes(pair: Pair) -> None:
    reader, writer = await pair.old.open()
    pair.begin()
    writer.write(request(CHAT, headers=KEEP) * 3)
    for _ in range(3):
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert await reader.readexactly(8) == b'{"ok":1}'
    await until_empty(pair.old)
    await chat((reader, writer))
    writer.close()


async def test_one_that_has_not_asked_yet_goes_too_and_has_the_time_of_a_kept_one(pair: Pair) -> None:
    client = await pair.old.open()
    async with asyncio.timeout(10):
        while not pair.old.engine.clients:
            await asyncio.sleep(0.01)
    pair.begin()
    await until_empty(pair.old)
    await asyncio.sleep(0.8)  # longer than a new one may take
    await chat(client)
    client[1].close()


async def test_more_than_the_pair_holds_go_one_after_the_other(pair: Pair) -> None:
    given: list[bool] = []

    def count(descriptor: int) -> bool:
        given.append(pair.gives.give(descriptor))
        return given[-1]

    pair.ends[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the least there is
    clients = [await pair.old.open() for _ in range(20)]
    async with asyncio.timeout(10):
        while len(pair.old.engine.clients) < len(clients):
            await asyncio.sleep(0.01)
    pair.new.engine.limits = replace(pair.new.engine.limits, max_connections=5)  # those that are kept are no new ones
    pair.old.engine.drain(count)
    assert not all(given)
    pair.begin()
    await until_empty(pair.old)
    for client in clients:
        await chat(client)
        client[1].close()


async def test_a_worker_told_to_stop_after_it_was_replaced_gives_nothing_away(pair: Pair) -> None:
    go = asyncio.Event()

    async def wait_then_answer(call: Call) -> None:
        await go.wait()
        await answer_ok(call)

    pair.old.replicas[0].script = wait_then_answer
    reader, writer = await pair.old.open()
    writer.write(request(CHAT, headers=KEEP))
    async with asyncio.timeout(10):
        while not pair.old.replicas[0].calls:
            await asyncio.sleep(0.01)
    pair.begin()
    pair.old.engine.drain()
    go.set()
    reply = await read_reply(reader, until_close=True)
    assert (reply.status, reply.header("connection"), reply.closed) == (200, "close", True)
    writer.close()
