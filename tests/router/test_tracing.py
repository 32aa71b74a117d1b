"""A request's spans: what the client, the router and the replica hear of each other."""

import asyncio
import random

import pytest

from common.span import Span, parse_traceparent
from router.proxy.tracing import Traces
from tests.router.conftest import MakePlane
from tests.router.fakes import DONE, SSE_HEAD, Call, Plane, event, plain

CHAT = b'{"model":"m","messages":[{"role":"user","content":"secret words"}]}'
CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def answer_ok(call: Call) -> None:
    await call.send(plain(b'{"ok":1}'))


async def close_at_once(call: Call) -> None:
    call.close()


def traced(plane: Plane, *, sample: float = 1.0) -> list[Span]:
    spans: list[Span] = []
    plane.engine.traces = Traces(spans.append, sample, random.Random(1))
    return spans


def told_to_replica(call: Call) -> tuple[int, int]:
    parent = parse_traceparent((call.header("traceparent") or "").encode())
    assert parent is not None
    assert call.head.lower().count(b"traceparent:") == 1
    return parent.trace_id, parent.span_id


async def test_a_callers_trace_goes_through_router_and_replica(plane: Plane) -> None:
    spans = traced(plane)
    replica = await plane.add(answer_ok)
    plane.route(replica)
    await plane.post(CHAT, headers=f"traceparent: {CALLER}\r\ntracestate: a=b\r\nx-request-id: abc\r\n")
    attempt, whole = spans
    parent = parse_traceparent(CALLER.encode())
    assert parent is not None
    assert {attempt.trace_id, whole.trace_id} == {parent.trace_id}
    assert whole.parent_id == parent.span_id
    assert attempt.parent_id == whole.span_id
    assert told_to_replica(replica.calls[0]) == (parent.trace_id, attempt.span_id)
    assert replica.calls[0].header("tracestate") == "a=b"
    assert (whole.kind, attempt.kind) == ("server", "client")
    assert whole.attributes["inference.request_id"] == "abc"
    assert whole.attributes["gen_ai.request.model"] == "m"
    assert whole.attributes["http.response.status_code"] == attempt.attributes["http.response.status_code"] == 200
    assert (whole.error, attempt.error) == (None, None)
    assert whole.began_at <= attempt.began_at <= attempt.ended_at <= whole.ended_at
    assert "secret words" not in repr(spans)


async def test_a_request_without_trace_begins_one_and_the_replica_hears_of_it(plane: Plane) -> None:
    spans = traced(plane)
    replica = await plane.add(answer_ok)
    plane.route(replica)
    await plane.post(CHAT)
    attempt, whole = spans
    assert whole.parent_id is None
    assert told_to_replica(replica.calls[0]) == (whole.trace_id, attempt.span_id)


async def test_each_attempt_has_a_span_of_its_own_that_its_replica_was_told(plane: Plane) -> None:
    spans = traced(plane)
    bad, good = await plane.add(close_at_once), await plane.add(answer_ok)
    plane.route(bad, good)
    seen = 0
    while not bad.calls and seen < 4:
        seen += 1
        spans.clear()
        good.calls.clear()
        await plane.post(CHAT)
    first, second, whole = spans
    assert [span.attributes["inference.outcome"] for span in (first, second)] == ["died", "ok"]
    assert (first.error, second.error, whole.error) == ("died", None, None)
    assert first.parent_id == second.parent_id == whole.span_id
    assert told_to_replica(bad.calls[-1]) == (whole.trace_id, first.span_id)
    assert told_to_replica(good.calls[-1]) == (whole.trace_id, second.span_id)
    assert whole.attributes["inference.attempts"] == 2
    assert first.ended_at <= second.ended_at


async def test_a_request_nobody_can_serve_has_a_span_with_its_fault(plane: Plane) -> None:
    spans = traced(plane)
    plane.route()
    await plane.post(CHAT)
    [whole] = spans
    assert (whole.error, whole.attributes["inference.attempts"]) == ("answered 503", 0)


async def test_a_wait_in_the_queue_is_a_span(plane: Plane) -> None:
    spans = traced(plane)
    release = asyncio.Event()

    async def hold_the_first(call: Call) -> None:
        if len(replica.calls) == 1:
            await release.wait()
        await answer_ok(call)

    replica = await plane.add(hold_the_first)
    plane.route(replica, limit=1)
    first = asyncio.create_task(plane.post(CHAT))
    while not replica.calls:
        await asyncio.sleep(0.01)
    second = asyncio.create_task(plane.post(CHAT))
    while not len(plane.engine.waiting):
        await asyncio.sleep(0.01)
    release.set()
    await asyncio.gather(first, second)
    names = [span.name for span in spans]
    assert names.count("queue") == 1
    queue = spans[names.index("queue")]
    [attempt] = [span for span in spans if span.parent_id == queue.parent_id and span.kind == "client"]
    assert queue.ended_at == pytest.approx(attempt.began_at, abs=0.001)


async def test_a_stream_is_one_attempt_with_the_time_of_its_first_byte(plane: Plane) -> None:
    async def stream(call: Call) -> None:
        await call.send(SSE_HEAD + event("one"))
        await call.send(event("two") + DONE)

    spans = traced(plane)
    plane.route(await plane.add(stream))
    await plane.post(b'{"model":"m","stream":true,"messages":[]}')
    attempt, whole = spans
    assert isinstance(attempt.attributes["inference.first_byte_ms"], float)
    assert whole.attributes["http.response.status_code"] == 200


@pytest.mark.parametrize("header", [f"traceparent: {CALLER[:-2]}00\r\n", ""])
async def test_what_is_not_kept_is_passed_on_untouched(plane: Plane, header: str) -> None:
    spans = traced(plane, sample=0.0)
    replica = await plane.add(answer_ok)
    plane.route(replica)
    await plane.post(CHAT, headers=header)
    assert spans == []
    assert replica.calls[0].header("traceparent") == (f"{CALLER[:-2]}00" if header else None)


async def test_two_traceparents_count_as_none(plane: Plane) -> None:
    spans = traced(plane)
    replica = await plane.add(answer_ok)
    plane.route(replica)
    await plane.post(CHAT, headers=f"traceparent: {CALLER}\r\ntraceparent: {CALLER}\r\n")
    assert spans[-1].parent_id is None
    assert told_to_replica(replica.calls[0])[0] == spans[-1].trace_id


async def test_off_the_header_passes_through_as_it_came(planes: MakePlane) -> None:
    plane = await planes()
    replica = await plane.add(answer_ok)
    plane.route(replica)
    await plane.post(CHAT, headers=f"traceparent: {CALLER}\r\n")
    assert replica.calls[0].header("traceparent") == CALLER
