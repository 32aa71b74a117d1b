"""Admission, keys, keep-alive comments, explanations and logs, over real sockets."""

import asyncio
import hashlib
import json
from typing import Any

from router.counters import BYTES_IN, FIRST_BYTE, GAP, OUTCOMES, QUEUE_WAIT, AttemptOutcome
from router.keys import Key
from router.model import Eligibility
from router.outlier import Reason
from tests.router.conftest import MakePlane
from tests.router.fakes import DONE, SSE_HEAD, Call, Plane, event, plain, request

CHAT = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
STREAM = b'{"model":"m","stream":true,"messages":[]}'


async def answer_ok(call: Call) -> None:
    await call.send(plain(b'{"ok":1}'))


class Gate:
    """A replica that answers only when told to."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __call__(self, call: Call) -> None:
        await self.go.wait()
        await answer_ok(call)


async def until(holds: Any) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.005)


def error_code(body: bytes) -> str:
    return str(json.loads(body)["error"]["code"])


async def test_a_full_replica_makes_requests_wait_and_serves_them_in_turn(plane: Plane) -> None:
    gate = Gate()
    replica = await plane.add(gate)
    plane.route(replica, limit=2)
    posts = [asyncio.ensure_future(plane.post(CHAT)) for _ in range(6)]
    await until(lambda: len(plane.engine.waiting) == 4)
    assert plane.in_flight() == len(replica.calls) == 2
    gate.go.set()
    assert [(await post).status for post in posts] == [200] * 6
    plane.engine.counters.flush()
    counts, _ = plane.engine.counters.histogram(plane.engine.control.slot, QUEUE_WAIT)
    assert sum(counts) == 4


async def test_a_replica_with_room_is_preferred_to_waiting(plane: Plane) -> None:
    gate = Gate()
    slow, free = await plane.add(gate), await plane.add(answer_ok)
    plane.route(slow, free, limit=1)
    posts = [asyncio.ensure_future(plane.post(CHAT)) for _ in range(5)]
    await until(lambda: len(free.calls) == 4)
    gate.go.set()
    assert [(await post).status for post in posts] == [200] * 5


async def test_a_full_queue_is_429_and_a_slow_one_503_both_with_retry_after(planes: MakePlane) -> None:
    plane = await planes(queue_limit=1, queue_timeout_s=0.3)
    gate = Gate()
    plane.route(await plane.add(gate), limit=1)
    served = asyncio.ensure_future(plane.post(CHAT))
    await until(lambda: plane.in_flight() == 1)
    queued = asyncio.ensure_future(plane.post(CHAT))
    await until(lambda: len(plane.engine.waiting) == 1)
    refused = await plane.post(CHAT)
    assert (refused.status, error_code(refused.body)) == (429, "queue_full")
    assert int(refused.header("retry-after") or 0) >= 1
    late = await queued
    assert (late.status, error_code(late.body)) == (503, "queue_timeout")
    assert int(late.header("retry-after") or 0) >= 1
    gate.go.set()
    assert (await served).status == 200


async def test_a_client_that_leaves_the_queue_frees_its_place_D2(plane: Plane) -> None:
    gate = Gate()
    plane.route(await plane.add(gate), limit=1)
    served = asyncio.ensure_future(plane.post(CHAT))
    await until(lambda: plane.in_flight() == 1)
    _, writer = await plane.open()
    writer.write(request(CHAT))
    await until(lambda: len(plane.engine.waiting) == 1)
    writer.transport.abort()
    await until(lambda: len(plane.engine.waiting) == 0)
    gate.go.set()
    assert (await served).status == 200


async def test_keys_guard_everything_but_health_and_are_not_forwarded(plane: Plane) -> None:
    replica = await plane.add(answer_ok)
    plane.route(replica)
    digest = hashlib.sha256(b"secret").hexdigest()
    plane.engine.set_keys((Key(name="team", sha256=digest, models=("m",), requests_per_minute=2),))
    assert (await plane.post(CHAT)).status == 401
    assert (await plane.post(CHAT, headers="authorization: Bearer wrong\r\n")).status == 401
    shown = "authorization: Bearer secret\r\n"
    assert (await plane.post(CHAT, headers=shown)).status == 200
    assert replica.calls[0].header("authorization") is None
    denied = await plane.post(b'{"model":"n","messages":[]}', headers=shown)
    assert (denied.status, error_code(denied.body)) == (403, "model_not_allowed")
    assert (await plane.post(CHAT, headers=shown)).status == 200
    limited = await plane.post(CHAT, headers=shown)
    assert (limited.status, error_code(limited.body)) == (429, "rate_limited")
    assert (await plane.post(CHAT, "/admin/explain", headers=shown)).status == 403
    assert (await plane.send(b"GET /services HTTP/1.1\r\nhost: r\r\n\r\n")).status == 401
    # No control plane runs here: getting as far as 503 shows that no key was asked for.
    assert (await plane.send(b"GET /health HTTP/1.1\r\nhost: r\r\n\r\n")).status == 503
    assert len(replica.calls) == 2


async def test_a_waiting_stream_gets_comments_and_then_its_answer(planes: MakePlane) -> None:
    plane = await planes(sse_keepalive_s=0.2)

    async def late(call: Call) -> None:
        await asyncio.sleep(1.0)
        await call.send(SSE_HEAD + event("one") + DONE)

    plane.route(await plane.add(late))
    reply = await plane.post(STREAM)
    assert reply.status == 200
    assert reply.header("content-type") == "text/event-stream"
    assert 2 <= reply.body.count(b"\r\n: keep-alive\n\r\n") <= 5
    assert reply.body.endswith(event("one") + DONE)
    assert reply.raw.count(b"HTTP/1.1") == 1


async def test_after_a_comment_a_failure_is_an_event_and_a_retry_still_works(planes: MakePlane) -> None:
    plane = await planes(sse_keepalive_s=0.2)

    async def fails_late(call: Call) -> None:
        await asyncio.sleep(0.6)
        await call.send(plain(b'{"error": {"message": "no"}}', status=b"400 Bad Request"))

    async def dies_late(call: Call) -> None:
        await asyncio.sleep(0.6)
        call.reset()

    async def streams(call: Call) -> None:
        await call.send(SSE_HEAD + event("one") + DONE)

    plane.route(await plane.add(fails_late))
    reply = await plane.post(STREAM)
    assert b'data: {"error": {"message": "no"}}\n\n' in reply.body
    assert not reply.body.endswith(b"0\r\n\r\n")
    dying = await plane.add(dies_late)
    plane.route(dying)
    assert b'"code":"upstream_died"' in (await plane.post(STREAM)).body
    # The suspect is asked only once the fresh one, which comes first, has failed.
    first, second = plane.route(dying, await plane.add(streams))
    plane.engine.set_table(
        type(plane.engine.table).of(
            99, (first, type(second)(**{**_fields(second), "eligibility": Eligibility.SUSPECT}))
        )
    )
    reply = await plane.post(STREAM)
    assert b": keep-alive" in reply.body
    assert reply.body.endswith(event("one") + DONE)


def _fields(one: Any) -> dict[str, Any]:
    return {name: getattr(one, name) for name in type(one).__dataclass_fields__}


async def test_json_waits_without_comments(planes: MakePlane) -> None:
    plane = await planes(sse_keepalive_s=0.2)

    async def late(call: Call) -> None:
        await asyncio.sleep(0.7)
        await answer_ok(call)

    plane.route(await plane.add(late))
    assert (await plane.post(CHAT)).body == b'{"ok":1}'


async def test_explain_names_every_candidate_its_score_and_why_not(plane: Plane) -> None:
    replica = await plane.add(answer_ok)
    plane.route(replica, 1, weight=2.0)
    said = json.loads((await plane.post(CHAT, "/admin/explain")).body)
    assert (said["model"], said["rule"], said["picked"]) == ("m", "cost", plane.engine.table.endpoints[0].id)
    assert [item["inputs"]["backlog_s"] for item in said["candidates"]] == [0.0, 0.0]
    assert 0 < said["candidates"][0]["score"] == said["candidates"][1]["score"]
    keyed = json.loads((await plane.post(b'{"model":"m","prompt_cache_key":"k"}', "/admin/explain")).body)
    assert keyed["rule"] == "affinity"
    plane.route(replica, eligibility=Eligibility.DRAINING)
    said = json.loads((await plane.post(CHAT, "/admin/explain")).body)
    assert (said["picked"], said["candidates"][0]["excluded"]) == (None, "draining")
    assert not replica.calls


async def test_served_by_and_the_log_line(planes: MakePlane) -> None:
    plane = await planes(served_by=True, access_log_sample=1.0)
    plane.route(await plane.add(answer_ok))
    reply = await plane.post(CHAT, headers="x-request-id: id-7\r\n")
    assert reply.header("x-served-by") == "r0"
    [line] = plane.engine.log_lines
    assert (line["request_id"], line["replica"], line["status"], line["model"]) == ("id-7", "r0", 200, "m")
    assert b"hi" not in json.dumps(line).encode()


async def test_outcomes_and_times_are_counted(plane: Plane) -> None:
    async def streams(call: Call) -> None:
        for part in (SSE_HEAD, event("one"), event("two"), DONE):
            await call.send(part)
            await asyncio.sleep(0.02)

    plane.route(await plane.add(streams))
    await plane.post(STREAM)
    counters = plane.engine.counters
    counters.flush()
    assert counters.total(0, OUTCOMES + AttemptOutcome.OK) == 1
    assert sum(counters.histogram(0, FIRST_BYTE)[0]) == 1
    gaps, total_s = counters.histogram(0, GAP)
    assert sum(gaps) == 2
    assert 0.03 < total_s < 1
    assert counters.total(0, BYTES_IN) == len(STREAM)


async def test_an_ejection_is_seen_by_the_other_workers(plane: Plane) -> None:
    endpoint, _ = plane.route(await plane.add(answer_ok), await plane.add(answer_ok))
    engine = plane.engine
    engine.counters.eject(endpoint.slot, engine.now() + 30, Reason.FAULTS)
    await until(lambda: engine.outliers.ejected(engine.now()) == [endpoint.id])
    assert [(await plane.post(CHAT)).status for _ in range(3)] == [200] * 3
    assert not plane.replicas[0].calls


async def test_what_is_under_way_says_where_it_stands(plane: Plane) -> None:
    gate = Gate()
    replica = await plane.add(gate)
    [endpoint] = plane.route(replica)
    post = asyncio.ensure_future(plane.post(CHAT, headers="x-request-id: abc\r\n"))
    await until(lambda: replica.calls)
    [exchange] = plane.engine.exchanges
    attempt = "<UpstreamAttempt r0 waiting status=0 <Upstream r0 head>>"
    assert repr(exchange) == f"<Exchange abc /v1/chat/completions asking {attempt}>"
    gate.go.set()
    await post
    assert repr(plane.engine.connector.pool(endpoint)) == "<Pool r0 idle=1>"
