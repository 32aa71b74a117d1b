"""The control plane answers what its description says."""

from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import AsyncMock

import msgspec
import pytest
from aiohttp.test_utils import TestClient, TestServer

from common.http.tls import Tls
from common.wire.deployment import DeploymentPhase, ModelState
from common.wire.record import ServiceRecord
from common.wire.usage import UsageCounts, UsageReport
from router.control.app import ROUTES, Overview, make_app
from router.control.own_usage import OwnUsage
from router.counters import Shape, SharedCounters
from router.demand import ColdTotals
from router.model import Replica
from router.proxy.paths import is_control
from router.settings import RouterSettings

BIG = ModelState(model="big", deployment="d", phase=DeploymentPhase.ASLEEP)


USED = UsageReport(since="2026-01-01T00:00:00Z", until="2026-01-08T00:00:00Z", rows=[], total=UsageCounts(requests=3))


def overview() -> Overview:
    record = ServiceRecord(name="a", host="::1", port=9000, url="", metadata={"models": ["org/m"]})
    shape = Shape(1, 1)
    master = SimpleNamespace(
        settings=RouterSettings(),
        registry_error=None,
        own_tls=Tls(),
        replicas=lambda: [Replica(record, "g", leased=True, slot=0)],
        connections=int,
        workers_alive=int,
        left_out=int,
        limits_alone=bool,
        unreachable=dict,
        accounts=SimpleNamespace(by_key={("team", "m", ""): (3, 100, 64, 7, 2, 0), ("", "m", ""): (1, 5, 0, 1, 0, 1)}),
        deployments=SimpleNamespace(
            states={"big": BIG}, totals={"big": ColdTotals(2, 3.5, 1)}, waiting=lambda: {"big": 7}
        ),
    )
    engines = SimpleNamespace(page=AsyncMock(return_value=b""))
    client = SimpleNamespace(usage=AsyncMock(return_value=USED))
    counters = SharedCounters(SharedCounters.create(shape), shape)
    return Overview(cast("Any", master), counters, cast("Any", engines), OwnUsage(cast("Any", client)))


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
async def test_every_answer_is_as_it_is_described(route: Any) -> None:
    async with TestClient(TestServer(make_app(overview()))) as client:
        described = (await (await client.get("/openapi.json")).json())["paths"][route.path.replace(":.+", "")]["get"]
        for path, status in (
            (route.path.replace("{model:.+}", "org/m"), 200),
            (route.path.replace("{model:.+}", "x"), 404),
        ):
            if "{" not in route.path and status != 200:
                continue
            assert is_control(path.encode())
            answer = await client.get(path)
            assert answer.status == status
            kind = route.answers[status]
            if kind is None:
                continue
            assert answer.content_type == "application/json"
            msgspec.json.decode(await answer.read(), type=kind)
            [schema] = described["responses"][str(status)]["content"].values()
            assert schema["schema"]


async def test_models_that_a_request_starts_are_listed_and_counted() -> None:
    async with TestClient(TestServer(make_app(overview()))) as client:
        listed = (await (await client.get("/v1/models")).json())["data"]
        assert [(one["id"], one.get("status")) for one in listed] == [("big", "asleep"), ("org/m", None)]
        assert (await (await client.get("/v1/models/big")).json())["owned_by"] == "d"
        page = await (await client.get("/metrics")).text()
    for line in (
        'svc_router_deployment_waiting{deployment="d"} 7.0',
        'svc_router_cold_wait_seconds_count{deployment="d"} 2.0',
        'svc_router_cold_wait_seconds_sum{deployment="d"} 3.5',
        'svc_router_cold_refused_total{deployment="d"} 1.0',
    ):
        assert f"{line}\n" in page


async def test_a_parameter_at_fault_is_named() -> None:
    async with TestClient(TestServer(make_app(overview()))) as client:
        answer = await client.get("/traffic?since=x")
        assert (answer.status, (await answer.json())["field"]) == (400, "since")


async def test_metrics_have_tokens_by_key() -> None:
    async with TestClient(TestServer(make_app(overview()))) as client:
        page = await (await client.get("/metrics")).text()
    for line in (
        'svc_router_key_requests_total{key="team",model="m"} 3.0',
        'svc_router_key_tokens_total{key="team",kind="cached",model="m"} 64.0',
        'svc_router_key_tokens_total{key="anonymous",kind="estimated",model="m"} 1.0',
    ):
        assert f"{line}\n" in page


async def test_a_key_that_is_no_administrators_sees_no_other_keys_use() -> None:
    shown = {"x-svc-key": "team", "x-svc-sees": "own"}
    async with TestClient(TestServer(make_app(overview()))) as client:
        page = await (await client.get("/metrics", headers=shown)).text()
        await client.get("/traffic", headers=shown)
    assert 'svc_router_key_requests_total{key="team",model="m"} 3.0\n' in page
    assert "anonymous" not in page
