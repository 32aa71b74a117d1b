"""Models of deployments at the router: held while they start, told how that goes, let go together (docs/adr/0013)."""

import asyncio
import json
from typing import Any

import pytest

from common.wire.deployment import DeploymentPhase, ModelState
from router.cold import ColdModels
from router.model import Eligibility
from router.policy.models import ModelRule, ModelRules
from tests.router.conftest import MakePlane
from tests.router.fakes import DONE, SSE_HEAD, Call, Plane, Reply, event, plain, request

STREAM = json.dumps({"model": "m", "messages": [], "stream": True}).encode()
WHOLE = json.dumps({"model": "m", "messages": []}).encode()


def state(phase: DeploymentPhase = DeploymentPhase.COLD, model: str = "m", **more: Any) -> ModelState:
    return ModelState(model=model, deployment="d", phase=phase, **more)


async def answer(call: Call) -> None:
    if json.loads(call.body).get("stream"):
        await call.send(SSE_HEAD + event("hi") + DONE)
    else:
        await call.send(plain(b'{"id":"x"}'))


async def cold_plane(planes: MakePlane, *states: ModelState, **limits: Any) -> tuple[Plane, list[int]]:
    """A plane that knows deployments; its master is a list of how many waited each time it was told at once."""
    plane = await planes(**limits)
    told: list[int] = []
    plane.engine.tell_demand = lambda: told.append(len(plane.engine.waiting))
    plane.engine.set_standings(states or (state(),), (), lost=False)
    return plane, told


async def until(check: Any) -> None:
    async with asyncio.timeout(10):
        while not check():
            await asyncio.sleep(0.01)


def error_of(reply: Reply) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(reply.body)["error"]
    return error


async def test_requests_for_a_cold_model_wait_and_go_when_it_is_there(planes: MakePlane) -> None:
    plane, told = await cold_plane(planes)
    replica = await plane.add(answer)
    both = [asyncio.ensure_future(plane.post(WHOLE)) for _ in range(2)]
    await until(lambda: len(plane.engine.waiting) == 2)
    assert told == [1]
    await asyncio.sleep(0.1)
    plane.route(replica)
    for one in both:
        reply = await one
        assert reply.status == 200
        assert 100 <= int(reply.header("x-queue-ms") or "") < 5000
    assert plane.engine.cold.held == set()
    assert plane.engine.cold.counts["m"].served == 2
    assert (await plane.post(WHOLE)).header("x-queue-ms") is None


async def test_replica_that_starts_or_sleeps_is_no_last_resort(planes: MakePlane) -> None:
    plane, _ = await cold_plane(planes, state(DeploymentPhase.STARTING))
    replica = await plane.add(answer)
    plane.route(replica, eligibility=Eligibility.DOWN, absent=True)
    waits = asyncio.ensure_future(plane.post(WHOLE))
    await until(lambda: len(plane.engine.waiting) == 1)
    await asyncio.sleep(0.6)  # two sweeps
    assert replica.calls == []
    plane.route(replica)
    assert (await waits).status == 200


async def test_stream_is_told_the_truth_while_it_waits(planes: MakePlane) -> None:
    plane, _ = await cold_plane(planes, state(DeploymentPhase.QUEUED, position=3, eta_s=7.2), first_byte_timeout_s=20.0)
    replica = await plane.add(answer)
    waits = asyncio.ensure_future(plane.send(request(STREAM), until_close=True, wait_s=15))
    await asyncio.sleep(1.0)
    starting = state(DeploymentPhase.STARTING, stage="loading\r\n\r\ndata: x", percent=41, eta_s=11.5)
    plane.engine.set_standings((starting,), (), lost=False)
    await asyncio.sleep(1.5)
    plane.engine.set_standings((state(DeploymentPhase.ASLEEP, eta_s=2),), (), lost=False)
    await asyncio.sleep(1.5)
    plane.engine.set_standings((), (), lost=True)
    await asyncio.sleep(1.5)
    plane.route(replica)
    reply = await waits
    comments = [line for line in reply.body.split(b"\r\n") if line.startswith(b":")]
    assert comments == [
        b": queued pos=3 eta=8s\n",
        b": starting phase=loading-data-x 41% eta=12s\n",
        b": waking eta=2s\n",
        b": waking registry=lost\n",
    ]
    assert reply.status == 200
    assert reply.body.endswith(event("hi") + DONE)


async def test_unchanged_wait_is_told_at_the_keepalive_interval(planes: MakePlane) -> None:
    plane, _ = await cold_plane(planes, sse_keepalive_s=1.0)
    replica = await plane.add(answer)
    waits = asyncio.ensure_future(plane.send(request(STREAM), until_close=True, wait_s=15))
    await asyncio.sleep(3.2)
    plane.route(replica)
    assert 2 <= (await waits).body.count(b": starting\n") <= 3


async def test_without_keepalive_a_held_stream_gets_no_comments(planes: MakePlane) -> None:
    plane, _ = await cold_plane(planes, sse_keepalive_s=0)
    replica = await plane.add(answer)
    waits = asyncio.ensure_future(plane.send(request(STREAM), until_close=True))
    await asyncio.sleep(1.0)
    plane.route(replica)
    reply = await waits
    assert b": starting" not in reply.body
    assert reply.header("x-queue-ms") is not None


async def test_end_of_the_hold_is_a_503_with_the_time_that_is_left(planes: MakePlane) -> None:
    starting = state(DeploymentPhase.STARTING, stage="loading", percent=41, eta_s=11.5)
    plane, _ = await cold_plane(planes, starting, hold_s=0.3)
    reply = await plane.post(WHOLE)
    assert (reply.status, reply.header("retry-after")) == (503, "12")
    error = error_of(reply)
    assert error.pop("message") == "model 'm' is not ready yet: starting phase=loading 41% eta=12s"
    standing = {"deployment": "d", "phase": "starting", "stage": "loading", "percent": 41, "eta_s": 11.5}
    assert error == {"type": "server_error", "code": "model_starting", "param": None, **standing}
    assert plane.engine.cold.counts["m"].refused == 1
    reply = await plane.post(WHOLE, "/v1/messages")
    assert (json.loads(reply.body)["type"], error_of(reply)["phase"]) == ("error", "starting")


async def test_failed_start_that_is_tried_again_soon_is_waited_for(planes: MakePlane) -> None:
    plane, _ = await cold_plane(planes, state(DeploymentPhase.FAILING, reason="exit 1", eta_s=3.0), hold_s=0.3)
    reply = await plane.post(WHOLE)
    message = "model 'm' is not ready yet: failed, to be tried again eta=3s (exit 1)"
    assert (error_of(reply)["code"], error_of(reply)["message"]) == ("model_starting", message)


async def test_stream_is_held_until_the_first_byte_limit_then_ends_with_an_error_event(planes: MakePlane) -> None:
    plane, _ = await cold_plane(planes, hold_s=0.2, first_byte_timeout_s=1.5)
    reply = await plane.send(request(STREAM), until_close=True)
    assert reply.status == 200
    assert b'"code":"model_starting"' in reply.body
    assert not reply.body.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize(
    ("standing", "header"),
    [
        (state(DeploymentPhase.UNSCHEDULABLE, reason="needs 4 cuda, the largest free node has 2"), "x-should-retry"),
        (state(DeploymentPhase.FAILING, reason="exit 1", eta_s=9.0, hold=False), "retry-after"),
        (state(DeploymentPhase.STOPPING, hold=False), "retry-after"),
    ],
)
async def test_what_cannot_start_is_said_at_once(planes: MakePlane, standing: ModelState, header: str) -> None:
    plane, told = await cold_plane(planes, standing)
    reply = await plane.post(STREAM)
    assert (reply.status, error_of(reply)["code"], told) == (503, "model_unavailable", [])
    assert str(standing.reason or "it is stopping") in error_of(reply)["message"]
    assert reply.header(header) is not None


async def test_those_who_wait_are_told_when_it_fails_or_is_deleted(planes: MakePlane) -> None:
    plane, _ = await cold_plane(planes, state(), state(model="n"))
    other = WHOLE.replace(b'"m"', b'"n"')
    waits = [asyncio.ensure_future(plane.post(body)) for body in (WHOLE, other)]
    await until(lambda: len(plane.engine.waiting) == 2)
    plane.engine.set_standings((state(DeploymentPhase.FAILING, reason="exit 1", hold=False),), ("n",), lost=False)
    failed, gone = [await one for one in waits]
    assert (failed.status, error_of(failed)["code"]) == (503, "model_unavailable")
    assert (gone.status, error_of(gone)["code"]) == (503, "model_not_found")
    assert len(plane.engine.waiting) == 0


async def test_client_that_leaves_is_taken_from_the_line(planes: MakePlane) -> None:
    plane, told = await cold_plane(planes)
    for times in (1, 2):
        _, writer = await plane.open()
        writer.write(request(STREAM))
        await until(lambda: len(plane.engine.waiting) == 1)
        assert told == [1] * times
        writer.close()
        await until(lambda: len(plane.engine.waiting) == 0)
        plane.engine.serve_waiting()
        assert plane.engine.cold.held == set()


async def test_line_of_a_cold_model_is_bounded_by_its_own_limit(planes: MakePlane) -> None:
    plane, _ = await cold_plane(planes, state(eta_s=7), queue_limit=0, hold_limit=1)
    replica = await plane.add(answer)
    first = asyncio.ensure_future(plane.post(WHOLE))
    await until(lambda: len(plane.engine.waiting) == 1)
    reply = await plane.post(WHOLE)
    assert (reply.status, error_of(reply)["code"], reply.header("retry-after")) == (429, "queue_full", "7")
    plane.route(replica)
    assert (await first).status == 200


async def test_model_that_is_there_without_room_is_waited_for_anew(planes: MakePlane) -> None:
    plane, _ = await cold_plane(planes, queue_timeout_s=2.0)
    gate = asyncio.Event()

    async def slow(call: Call) -> None:
        await gate.wait()
        await answer(call)

    replica = await plane.add(slow)
    both = [asyncio.ensure_future(plane.post(WHOLE)) for _ in range(2)]
    await until(lambda: len(plane.engine.waiting) == 2)
    await asyncio.sleep(1.5)
    plane.route(replica, limit=1)
    await asyncio.sleep(1.0)  # in all longer than a wait for room may be
    assert [one.done() for one in both] == [False, False]
    gate.set()
    assert [(await one).status for one in both] == [200, 200]


async def test_who_waited_for_room_is_held_when_the_last_replica_goes(planes: MakePlane) -> None:
    plane, told = await cold_plane(planes, state(DeploymentPhase.READY), queue_timeout_s=0.6)
    gate = asyncio.Event()

    async def slow(call: Call) -> None:
        await gate.wait()
        await answer(call)

    replica = await plane.add(slow)
    plane.route(replica, limit=1)
    first = asyncio.ensure_future(plane.post(WHOLE))
    await until(lambda: replica.calls)
    second = asyncio.ensure_future(plane.post(WHOLE))
    await until(lambda: len(plane.engine.waiting) == 1)
    plane.route()
    assert told == [1]
    await asyncio.sleep(1.0)
    plane.route(replica)
    gate.set()
    assert [(await one).status for one in (first, second)] == [200, 200]


async def test_fallback_is_not_taken_for_what_can_start_and_is_for_what_cannot(planes: MakePlane) -> None:
    plane = await planes(rules=ModelRules("cost", {"m": ModelRule(fallbacks=("n",))}))
    plane.engine.set_standings((state(),), (), lost=False)
    replica = await plane.add(answer)
    plane.route(replica, models=("n",))
    request_ = asyncio.ensure_future(plane.post(WHOLE))
    await until(lambda: len(plane.engine.waiting) == 1)
    assert replica.calls == []
    plane.engine.set_standings((state(DeploymentPhase.FAILING, hold=False),), (), lost=False)
    assert (await request_).status == 503
    assert (await plane.post(WHOLE)).status == 200


async def test_replica_that_was_tried_is_not_waited_for(planes: MakePlane) -> None:
    plane, _ = await cold_plane(planes, state(DeploymentPhase.READY))
    plane.route(1)  # nobody listens there
    assert (await plane.post(WHOLE)).status == 503


def test_words_say_only_what_is_known() -> None:
    models = ColdModels()
    assert models.words("m") == "starting"
    models.take([state()], (), lost=False)
    assert models.words("m") == "starting"
    assert models.retry_after_s("m") == 5
    models.take([state(eta_s=1000.0)], (), lost=False)
    assert models.retry_after_s("m") == 60
    assert models.told("m")["eta_s"] == 1000.0
    models.take([], (), lost=True)
    assert models.retry_after_s("m") == 5
    assert models.told("m") == {"deployment": "d", "phase": "cold"}
