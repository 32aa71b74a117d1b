"""What clients say of the time that they have: X-Request-Timeout and X-First-Byte-Timeout."""

import asyncio
import json
from typing import Any

import pytest

from common.wire.deployment import DeploymentPhase
from router.admission import Priority, Waiting
from router.counters import OUTCOMES, AttemptOutcome
from router.worker import _waits
from tests.router.conftest import MakePlane
from tests.router.fakes import DONE, SSE_HEAD, Call, Plane, Reply, event, plain, read_reply, request
from tests.router.test_cold import cold_plane, state

CHAT = b'{"model":"m","messages":[]}'
STREAM = b'{"model":"m","stream":true,"messages":[]}'
ACROSS = 0.6
"""Seconds within which the sweep, each quarter of a second, has seen a deadline that has passed; on a quick machine."""


def error_of(reply: Reply) -> dict[str, Any]:
    return dict(json.loads(reply.body)["error"])


async def answer_ok(call: Call) -> None:
    await call.send(plain(b'{"ok":1}'))


async def never(call: Call) -> None:
    await call.until_gone()


async def first_event(call: Call) -> None:
    await call.send(SSE_HEAD + event("a"))
    await call.until_gone()


@pytest.mark.parametrize("name", ["X-Request-Timeout", "x-first-byte-timeout"])
@pytest.mark.parametrize("value", ["", "0", "0.0", "-1", "5s", "inf", "nan", "1e3", "1,5", "1, 2", "9" * 10, "+1"])
async def test_what_is_no_time_is_refused_and_says_what_would_be(plane: Plane, name: str, value: str) -> None:
    plane.route(await plane.add(answer_ok))
    reply = await plane.send(request(CHAT, headers=f"{name}: {value}\r\nconnection: keep-alive\r\n"))
    assert (reply.status, error_of(reply)["code"], reply.closed) == (400, "invalid_timeout", False)
    assert error_of(reply)["message"].lower().startswith(name.lower())
    assert "2.5" in error_of(reply)["message"]


async def test_a_time_that_is_told_twice_is_refused(plane: Plane) -> None:
    plane.route(await plane.add(answer_ok))
    reply = await plane.post(CHAT, headers="x-request-timeout: 5\r\nx-request-timeout: 6\r\n")
    assert (reply.status, error_of(reply)["code"]) == (400, "invalid_timeout")


async def test_a_time_that_suffices_changes_nothing_and_does_not_reach_the_replica(plane: Plane) -> None:
    replica = await plane.add(answer_ok)
    plane.route(replica)
    reply = await plane.post(CHAT, headers="x-request-timeout: 5\r\nx-first-byte-timeout: 2.5\r\n")
    assert reply.status == 200
    assert b"timeout" not in replica.calls[0].head.lower()


@pytest.mark.parametrize(
    ("name", "code"), [("X-Request-Timeout", "request_timeout"), ("X-First-Byte-Timeout", "first_byte_timeout")]
)
async def test_no_answer_within_the_clients_time_is_a_504_and_no_fault_of_the_replica(
    plane: Plane, name: str, code: str
) -> None:
    replica = await plane.add(never)
    [endpoint] = plane.route(replica)
    for _ in range(4):  # more than set a replica aside that lets requests time out
        reply = await plane.post(CHAT, headers=f"{name}: 0.1\r\n")
        assert (reply.status, error_of(reply)["code"]) == (504, code)
        assert name in error_of(reply)["message"]
    assert len(replica.calls) == 4, "nobody else may be asked, and nobody was set aside"
    assert plane.engine.outliers.quiet
    plane.engine.counters.flush()
    assert plane.engine.counters.total(endpoint.slot, OUTCOMES + AttemptOutcome.TIMED_OUT) == 4
    assert plane.in_flight() == 0


async def test_the_time_for_the_first_byte_ends_with_it_and_that_for_all_goes_on(plane: Plane) -> None:
    plane.route(await plane.add(first_event))
    reply = await plane.post(STREAM, headers="x-first-byte-timeout: 0.3\r\nx-request-timeout: 1.2\r\n")
    assert reply.status == 200
    assert reply.body.startswith(event("a"))
    assert b'"code":"request_timeout"' in reply.body
    assert b"1.2 s" in reply.body
    assert not reply.body.endswith(b"0\r\n\r\n"), "an answer that is cut never ends as if it were whole"


async def test_a_stream_with_a_first_byte_in_time_goes_on_for_as_long_as_it_likes(plane: Plane) -> None:
    async def slow(call: Call) -> None:
        await call.send(SSE_HEAD + event("a"))
        await asyncio.sleep(2 * ACROSS)
        await call.send(event("b") + DONE)

    plane.route(await plane.add(slow))
    reply = await plane.post(STREAM, headers="x-first-byte-timeout: 0.3\r\n")
    assert reply.body.endswith(event("b") + DONE)


async def test_a_head_alone_is_no_first_byte(plane: Plane) -> None:
    async def head_only(call: Call) -> None:
        await call.send(SSE_HEAD)
        await call.until_gone()

    plane.route(await plane.add(head_only))
    reply = await plane.post(STREAM, headers="x-first-byte-timeout: 0.2\r\n")
    assert (reply.status, error_of(reply)["code"]) == (504, "first_byte_timeout")


async def test_what_the_settings_allow_is_the_most(planes: MakePlane) -> None:
    plane = await planes(first_byte_timeout_s=0.2)
    plane.route(await plane.add(never))
    reply = await plane.post(CHAT, headers="x-first-byte-timeout: 300\r\nx-request-timeout: 300\r\n")
    assert (reply.status, error_of(reply)["message"]) == (504, "the replica sent no answer in time")


async def test_each_request_of_a_connection_has_its_own_time(plane: Plane) -> None:
    plane.route(await plane.add(never))
    reader, writer = await plane.open()
    for seconds in ("0.1", "0.2", "0.1"):
        writer.write(request(CHAT, headers=f"x-request-timeout: {seconds}\r\nconnection: keep-alive\r\n"))
        reply = await read_reply(reader)
        assert (reply.status, reply.closed) == (504, False)
        assert f" {seconds} s" in error_of(reply)["message"]
    writer.close()


# -- those who wait -----------------------------------------------------------------------------------------------------


async def full(planes: MakePlane, pace_s: float) -> tuple[Plane, asyncio.Event]:
    """A plane whose one replica is busy until the event, with a line that has been moving at a pace."""
    go = asyncio.Event()

    async def gate(call: Call) -> None:
        await go.wait()
        await answer_ok(call)

    plane = await planes()
    plane.route(await plane.add(gate), limit=1)
    plane.busy = [asyncio.ensure_future(plane.post(CHAT)) for _ in range(2)]  # type: ignore[attr-defined]  # kept alive
    async with asyncio.timeout(10):
        while not plane.engine.waiting.size("m"):
            await asyncio.sleep(0.01)
    line = plane.engine.waiting._lines["m"]
    line.interval_s, line.moved_at = pace_s, plane.engine.now()
    return plane, go


async def test_who_has_less_time_than_the_line_takes_is_refused_at_once_with_the_eta(planes: MakePlane) -> None:
    plane, go = await full(planes, pace_s=10.0)
    began = plane.engine.now()
    reply = await plane.post(CHAT, headers="x-first-byte-timeout: 15\r\n")
    assert plane.engine.now() - began < 5, "not after its time"
    assert (reply.status, reply.header("retry-after")) == (503, "20")
    error = error_of(reply)
    assert (error["code"], error["eta_s"]) == ("deadline_too_near", 20.0)
    assert "X-First-Byte-Timeout" in error["message"]
    patient = asyncio.ensure_future(plane.post(CHAT, headers="x-request-timeout: 25\r\n"))
    async with asyncio.timeout(10):
        while plane.engine.waiting.size("m") < 2:
            await asyncio.sleep(0.01)
    go.set()
    assert (await patient).status == 200


async def test_the_more_urgent_have_fewer_before_them(planes: MakePlane) -> None:
    plane, go = await full(planes, pace_s=10.0)
    assert (await plane.post(CHAT, headers="x-request-timeout: 15\r\nx-priority: low\r\n")).status == 503
    for model, priority, wait_s in (("m", Priority.HIGH, 10.0), ("m", Priority.LOW, 20.0), ("x", Priority.LOW, None)):
        assert plane.engine.waiting.wait_s(model, priority) == wait_s
    go.set()


def test_a_line_that_has_not_moved_yet_promises_nothing() -> None:
    line: Waiting[str] = Waiting(10)
    line.join("m", "client", "ticket")
    assert line.wait_s("m", Priority.NORMAL) is None


async def test_who_waits_in_a_line_of_unknown_pace_has_the_time_that_it_asked_for(planes: MakePlane) -> None:
    plane, go = await full(planes, pace_s=10.0)
    plane.engine.waiting._lines["m"].moved_at = None
    reply = await plane.post(CHAT, headers="x-first-byte-timeout: 0.2\r\n")
    assert (reply.status, error_of(reply)["code"]) == (504, "first_byte_timeout")
    assert plane.engine.waiting.size("m") == 1
    go.set()


@pytest.mark.parametrize("body", [CHAT, STREAM])
async def test_who_has_less_time_than_a_cold_start_is_refused_at_once_and_the_model_starts(
    planes: MakePlane, body: bytes
) -> None:
    plane, _ = await cold_plane(planes, state(DeploymentPhase.STARTING, stage="loading", eta_s=11.5))
    told: list[int] = []
    plane.engine.tell_demand = lambda: told.append(_waits(plane.engine)["m"].waiting)
    reply = await plane.post(body, headers="x-first-byte-timeout: 5\r\n")
    assert (reply.status, reply.header("retry-after")) == (503, "12")
    error = error_of(reply)
    assert (error["code"], error["eta_s"], error["stage"]) == ("deadline_too_near", 11.5, "loading")
    assert told == [1], "nobody waits, and it is wanted all the same"
    assert "m" not in _waits(plane.engine), "said once"


async def test_who_has_more_time_than_a_cold_start_waits_for_it(planes: MakePlane) -> None:
    plane, _ = await cold_plane(planes, state(DeploymentPhase.STARTING, eta_s=3.0))
    waits = asyncio.ensure_future(plane.post(CHAT, headers="x-request-timeout: 8\r\n"))
    async with asyncio.timeout(10):
        while not plane.engine.waiting.size("m"):
            await asyncio.sleep(0.01)
    plane.route(await plane.add(answer_ok))
    assert (await waits).status == 200


@pytest.mark.parametrize("lost", [True, False])
async def test_a_start_of_unknown_length_is_waited_for(planes: MakePlane, *, lost: bool) -> None:
    standing = state(DeploymentPhase.STARTING, eta_s=90.0) if lost else state(DeploymentPhase.STARTING)
    plane, _ = await cold_plane(planes, standing)
    plane.engine.set_standings((), (), lost=lost)
    reply = await plane.post(CHAT, headers="x-first-byte-timeout: 0.3\r\n")
    assert (reply.status, error_of(reply)["code"]) == (504, "first_byte_timeout")
    assert not plane.engine.waiting.size("m")
