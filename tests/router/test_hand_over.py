"""Streams of a replica that leaves go on at another, before the first one lets go of them (docs/streams.md)."""

import asyncio
import json
from dataclasses import replace

import pytest

from router.counters import HAND_OVERS, RESCUES
from router.model import Eligibility, Endpoint, Table
from router.policy.models import ModelRule, ModelRules
from tests.router.conftest import MakePlane
from tests.router.fakes import SSE_HEAD, Call, Plane, Reply, request
from tests.router.seeded import CHAT, CONTINUES, USAGE, events, seeded, told, whole

BODY = CHAT | USAGE


@pytest.fixture(autouse=True)
def _quick_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.proxy.engine.SWEEP_S", 0.02)


@pytest.fixture
async def plane(planes: MakePlane) -> Plane:
    return await planes(rules=ModelRules(rules={"m": ModelRule(rescue=True)}))


class Slow:
    """A replica that says five events, and the rest when it may."""

    def __init__(self) -> None:
        self.begun, self.may, self.left = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def __call__(self, call: Call) -> None:
        said = events(json.loads(call.body), "slow")
        await call.send(SSE_HEAD + b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in said[:5]))
        self.begun.set()
        gone = asyncio.ensure_future(call.until_gone())
        may = asyncio.ensure_future(self.may.wait())
        await asyncio.wait({gone, may}, return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            self.left.set()
        else:
            gone.cancel()
            await call.send(b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in said[5:]))
            await call.send(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        may.cancel()


def leave(plane: Plane, table: list[Endpoint]) -> None:
    """The first of `table` drains, and its streams are to be handed over."""
    first = replace(table[0], eligibility=Eligibility.DRAINING, hands_over=True)
    plane.engine.set_table(Table.of(9, (first, *table[1:])))


async def begun(plane: Plane, slow: Slow) -> "asyncio.Task[Reply]":
    """A stream at `slow` of which five events were passed on."""
    plane.route(await plane.add(slow), continues=CONTINUES)
    reader, writer = await plane.open()
    writer.write(request(json.dumps(BODY).encode()))
    got = b""
    while got.count(b"\n\n") < 5:
        got += await asyncio.wait_for(reader.read(65536), 10)

    async def rest() -> Reply:
        try:
            return Reply(got + await reader.read(-1), closed=True)
        finally:
            writer.close()

    return asyncio.ensure_future(rest())


async def test_a_stream_leaves_a_replica_that_hands_over_A23(plane: Plane) -> None:
    slow = Slow()
    stream = await begun(plane, slow)
    leave(plane, plane.route(plane.replicas[0], await plane.add(seeded("other", [])), continues=CONTINUES))
    got, comments = told(await asyncio.wait_for(stream, 10))
    assert got == whole(BODY, "slow")
    assert comments == [b": continued on r1\n"]
    await asyncio.wait_for(slow.left.wait(), 10)
    assert plane.engine.counters.total(0, HAND_OVERS) == 1
    assert plane.engine.counters.total(0, RESCUES) == 0
    assert plane.in_flight() == 0


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad\r\ncontent-length: 0\r\n\r\n", b"rubbish\r\n\r\n", b""])
async def test_a_stream_that_cannot_be_handed_over_goes_on_as_it_did_A23(plane: Plane, answer: bytes) -> None:
    asked = asyncio.Event()

    async def refuse(call: Call) -> None:
        await call.send(answer)
        call.close()
        asked.set()

    slow = Slow()
    stream = await begun(plane, slow)
    leave(plane, plane.route(plane.replicas[0], await plane.add(refuse), continues=CONTINUES))
    await asyncio.wait_for(asked.wait(), 10)
    slow.may.set()
    assert told(await asyncio.wait_for(stream, 10)) == (whole(BODY, "slow"), [])


async def test_a_stream_stays_where_nobody_has_room_or_the_same_model_A23(plane: Plane) -> None:
    slow = Slow()
    stream = await begun(plane, slow)
    other = await plane.add(seeded("other", []))
    table = plane.route(plane.replicas[0], other, continues=CONTINUES)
    leave(plane, [table[0], replace(table[1], lineages={"m": "revision=2"})])
    for _ in range(5):
        await asyncio.sleep(0.02)  # sweeps, in which it could have gone
    assert other.calls == []
    slow.may.set()
    assert told(await asyncio.wait_for(stream, 10)) == (whole(BODY, "slow"), [])


async def test_a_request_without_a_first_byte_is_asked_elsewhere_A23(plane: Plane) -> None:
    waits, gone = asyncio.Event(), asyncio.Event()

    async def silent(call: Call) -> None:
        waits.set()
        await call.until_gone()
        gone.set()

    plane.route(await plane.add(silent), continues=CONTINUES)
    stream = asyncio.ensure_future(plane.send(request(json.dumps(BODY).encode()), until_close=True))
    await asyncio.wait_for(waits.wait(), 10)
    leave(plane, plane.route(plane.replicas[0], await plane.add(seeded("other", [])), continues=CONTINUES))
    assert told(await stream) == (whole(BODY, "other"), [])
    await asyncio.wait_for(gone.wait(), 10)


async def test_a_client_that_leaves_during_a_hand_over_cancels_both_A23(plane: Plane) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def silent(call: Call) -> None:
        asked.set()
        await call.until_gone()
        gone.set()

    slow = Slow()
    stream = await begun(plane, slow)
    leave(plane, plane.route(plane.replicas[0], await plane.add(silent), continues=CONTINUES))
    await asyncio.wait_for(asked.wait(), 10)
    for client in list(plane.engine.clients):
        client.abort()
    await asyncio.wait_for(slow.left.wait(), 10)
    await asyncio.wait_for(gone.wait(), 10)
    await stream
