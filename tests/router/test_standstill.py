"""A replica that stands still while its probes pass: what goes to it, who says so, and how it comes back (W45)."""

import asyncio
import os
import signal
from typing import Any

import aiohttp
import pytest

from router.model import Table
from router.outlier import TOLD, Reason
from router.policy.models import ModelRules
from tests.ports import free_port
from tests.router.conftest import MakePlane
from tests.router.fakes import DONE, SSE_HEAD, Call, event, plain
from tests.router.test_faults import mock, static_file
from tests.router.test_process import Node, node
from tests.router.test_proxy_checks import until

__all__ = ["node"]
CHAT = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
STREAM = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}'


async def test_a_replica_that_stands_still_is_set_aside_and_comes_back_by_a_byte_W45(planes: MakePlane) -> None:
    plane = await planes(rules=ModelRules("round_robin"), first_byte_timeout_s=60.0, total_timeout_s=60.0)
    go, stands = asyncio.Event(), False

    async def answer(call: Call) -> None:
        if b"stream" in call.body:
            await call.send(SSE_HEAD)  # as servers do that know nothing of their engine
        if stands:
            await go.wait()
        await call.send(event("x") + DONE if b"stream" in call.body else plain(b'{"ok":1}'))

    async def well(call: Call) -> None:
        await call.send(SSE_HEAD + event("x") + DONE if b"stream" in call.body else plain(b'{"ok":1}'))

    hung, good = await plane.add(answer), await plane.add(well)
    endpoint, _ = plane.route(hung, good)
    for body in (CHAT, STREAM):
        for _ in range(20):
            await plane.post(body)
    stands, before = True, len(hung.calls)
    engine = plane.engine
    waiting: list[asyncio.Future[Any]] = []
    async with asyncio.timeout(30):
        while not engine.outliers.ejected(engine.now()):
            waiting.append(asyncio.ensure_future(plane.send(STREAM_REQUEST, wait_s=60, until_close=True)))
            await asyncio.sleep(0.4)
    sent = len(hung.calls) - before
    assert 3 <= sent <= 8
    assert engine.counters.ejected_why(endpoint.slot) == Reason.SILENT
    assert {(await plane.post(CHAT)).status for _ in range(10)} == {200}
    assert len(hung.calls) - before == sent
    stands = False
    go.set()
    await until(lambda: not engine.outliers.ejected(engine.now()))
    assert engine.counters.ejected_until_s(endpoint.slot) <= engine.now()
    assert all(reply.body.endswith(b"0\r\n\r\n") for reply in await asyncio.gather(*waiting))
    assert {(await plane.post(CHAT)).status for _ in range(10)} == {200}
    assert len(hung.calls) - before > sent


async def test_replica_that_left_and_came_back_between_two_looks_ends_nothing_W45(planes: MakePlane) -> None:
    plane = await planes(rules=ModelRules("round_robin"))
    one, other = plane.route(1, 2)
    engine, watch, kind = plane.engine, plane.engine.watch, (b"/chat/completions", True)
    began = engine.now()
    for _ in range(20):
        watch.answered(one, kind, 0.1, began)

    def look(now: float) -> None:
        watch.silence.begin()
        watch.waits(one, kind, began, 0)
        watch.judge(now)

    for turn in range(20):
        look(began + turn * 0.25)
    assert engine.chooser.passed_over == {one.id}
    table = engine.table
    engine.set_table(Table.of(table.version + 1, (other,)))
    engine.set_table(Table.of(table.version + 2, table.endpoints))
    watch.silence.begin()
    watch.judge(began + 5.0)
    assert not engine.chooser.passed_over


STREAM_REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: r\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(STREAM), STREAM)
)
POLICIES = ("cost", "least_loaded", "session", "round_robin")
STOPPED_S, EVERY_S = 30.0, 0.2
counted: dict[str, int] = {}


@pytest.mark.world
@pytest.mark.timeout(240)
@pytest.mark.parametrize("policy", POLICIES)
async def test_little_goes_to_a_stopped_server_for_half_a_minute_under_every_policy_W45(
    node: Node, policy: str
) -> None:
    """Two mock servers under load, SIGSTOP for one of them: about 150 requests, half of them streams."""
    ports = free_port(), free_port()
    pace = ("--token-delay-s", "0.01", "--tokens", "20")
    async with mock(node.folder, ports[0], *pace) as hung, mock(node.folder, ports[1], *pace):
        static = static_file(node.folder, *ports)
        for port in ports:  # the router's first probe meets both
            await node.until_listening(port)
        flags = ("--static-services", static, "--health-interval", "600", "--policy", policy)
        async with node.router(*flags):
            await node.until(node.chats)
            for turn in range(10):  # so that each knows the other's pace
                talk = [_talk(node, 10 * turn + number, node.http) for number in range(10)]
                assert set(await asyncio.gather(*talk)) == {200}
            os.kill(hung.pid, signal.SIGSTOP)
            asked = []
            told = ""
            for number in range(int(STOPPED_S / EVERY_S)):
                asked.append(asyncio.ensure_future(_talk(node, number, node.http)))
                await asyncio.sleep(EVERY_S)
                told = told or (await _service(node, ports[0])).get("set_aside", "")
            went = (await _service(node, ports[0]))["in_flight"]
            print(f"{policy}: {went} of {len(asked)}, {told or 'not set aside'}")  # noqa: T201 - the figure of this row
            page = await (await node.http.get(f"{node.url}/metrics")).text()
            os.kill(hung.pid, signal.SIGCONT)
            assert {await one for one in asked} == {200}

            async def is_back() -> bool:
                return "set_aside" not in await _service(node, ports[0])

            await node.until(is_back)
            counted[policy] = went
            assert told == TOLD[Reason.SILENT]
            assert 'svc_router_set_aside{model="m"' in page
            assert 'reason="silent"' in page
            assert went <= 40
            assert counted.get("cost", 0) <= counted.get("least_loaded", went) + 1


async def _talk(node: Node, number: int, http: aiohttp.ClientSession) -> int:
    said = [{"role": "user", "content": f"conversation {number % 8} " * 200 + f"turn {number}"}]
    body = {"model": "m", "stream": number % 2 == 0, "messages": said, "user": f"u{number % 8}"}
    async with http.post(f"{node.url}/v1/chat/completions", json=body) as answer:
        await answer.read()
        return answer.status


async def _service(node: Node, port: int) -> dict[str, Any]:
    return next(one for one in (await node.get("/services"))["services"] if one["port"] == port)
