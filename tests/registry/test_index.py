"""The index of replicas follows every change, and spares the reading of reports."""

from typing import Any

import pytest
from msgspec.structs import replace

from common.wire.record import Registration
from common.wire.replica import ReplicaReport
from registry.core.catalogue import Catalogue
from registry.core.model import Deregister, Instance, Report, Upsert
from registry.core.report import make_report
from registry.fleet import index as index_module
from registry.fleet.index import FleetIndex
from registry.fleet.replicas import read_report
from registry.store.memory import MemoryStore
from tests.registry.conftest import StartClient, body, ours

RECORDS = 10_000


def instance(name: str, *, node: str = "n1", stale: bool = False, **report: Any) -> Instance:
    registration = Registration(
        name=name,
        host="10.0.0.1",
        port=8000,
        hostname="h",
        url="http://10.0.0.1:8000",
        status="running",
        metadata={"node": node},
    )
    return Instance(registration, generation=1, stale=stale, report=make_report(report) if report else None)


def told(*instances: Instance) -> FleetIndex:
    index = FleetIndex()
    index.begin(instances)
    return index


def test_a_replica_is_ready_by_the_record_that_counts_and_gone_with_the_last_one() -> None:
    catalogue, index = Catalogue(epoch="e"), FleetIndex()

    def put(record: Instance) -> None:
        catalogue.load([record], now=0.0)
        index.begin([record])

    def drop(name: str) -> None:
        _, revised = catalogue.apply(Deregister(name), 0.0)
        index.notice(revised)

    own = instance("r", replica_id="x", status="unhealthy", updated_at="2026-01-02")
    server = instance("r-server", replica_id="x", status="ready", updated_at="2026-01-01")
    put(own)
    put(server)
    assert (len(index), index.ready) == (1, 0)
    put(replace(own, stale=True))
    assert (len(index), index.ready) == (1, 1)
    drop("r-server")
    assert (len(index), index.ready, "x" in index) == (1, 0, True)
    drop("r")
    assert (len(index), index.ready, "x" in index, index.get("x")) == (0, 0, False, None)


def test_a_record_that_tells_of_another_replica_tells_no_more_of_the_first() -> None:
    index = told(instance("r", replica_id="x", status="ready"), instance("r", replica_id="y", status="ready"))
    assert ([info.replica_id for info in index.infos()], index.ready) == (["y"], 1)
    index.begin([instance("r")])
    assert (len(index), index.ready) == (0, 0)


def test_the_replicas_of_a_request_are_found_by_it_as_long_as_anybody_tells_of_them() -> None:
    one = instance("r", replica_id="x", request_id="deployment-1")
    index = told(one, instance("s", replica_id="y", request_id="deployment-1"), instance("t", replica_id="z"))
    assert [info.replica_id for info in index.of_request("deployment-1")] == ["x", "y"]
    index.begin([instance("s"), instance("r", replica_id="x", request_id="deployment-2")])
    assert [info.replica_id for info in index.of_request("deployment-1")] == []
    assert [info.replica_id for info in index.of_request("deployment-2")] == ["x"]
    assert [info.replica_id for info in index.infos()] == ["x", "z"]


def test_an_agent_is_one_for_as_long_as_its_record_says_so() -> None:
    def agent(kind: str, **changes: Any) -> Instance:
        metadata = {"type": kind, "node": "n1"}
        registration = Registration(
            name="agent-n1",
            host="10.0.0.1",
            port=8000,
            hostname="h",
            url="http://n1",
            status="running",
            metadata=metadata,
        )
        return replace(Instance(registration, 1, report=make_report({"replicas": [{"replica_id": "x"}]})), **changes)

    index = told(agent("node-agent"))
    assert ([(it.node, it.away) for it in index.agents], len(index)) == ([("n1", False)], 1)
    index.begin([agent("node-agent", stale=True)])
    assert [(it.node, it.away) for it in index.agents] == [("n1", True)]
    index.begin([agent("mock")])
    assert (index.agents, len(index)) == ([], 0)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the reports that were read."""
    ids: list[str] = []

    def counted(report: Report) -> ReplicaReport:
        ids.append(report.replica_id or "")
        return read_report(report)

    monkeypatch.setattr(index_module, "read_report", counted)
    return ids


async def test_no_call_about_one_or_none_reads_every_report(start_registry: StartClient, reads: list[str]) -> None:
    store = MemoryStore()
    records = [
        instance(f"svc-{n}", replica_id=f"replica{n:05}", status="ready" if n % 2 else "pending", request_id=f"q{n}")
        for n in range(RECORDS)
    ]
    await store.write([Upsert(record, durable=True) for record in records])
    client = await start_registry(store, health_interval=3600)
    for path in ("/health", "/api/v1/health"):
        async with client.get(path) as answer:
            counts = await answer.json()
            assert (counts["replicas_total"], counts["replicas_ready"]) == (RECORDS, RECORDS // 2)
    assert reads == []
    async with client.get("/api/v1/replicas/replica00007") as answer:
        assert (await answer.json())["info"]["request_id"] == "q7"
    assert reads == ["replica00007"]
    async with client.post("/api/v1/replicas", json={"server_mode": "replica", "model_name": "m"}) as answer:
        assert answer.status == 503  # there is no agent
    assert reads == ["replica00007"]
    async with client.post("/api/v1/replicas", json={"request_id": "q9"}) as answer:
        assert answer.status == 422  # where it went then, no agent is any more
    async with client.post("/api/v1/replicas/replica00003/stop") as answer:
        assert answer.status == 503
    assert reads == ["replica00007", "replica00009", "replica00003"]
    async with client.get("/api/v1/replicas?status=ready") as answer:
        assert (await answer.json())["total"] == RECORDS // 2


async def test_healthy_records_are_counted_as_they_change(start_registry: StartClient) -> None:
    client = await start_registry()

    async def healthy() -> tuple[int, int]:
        async with client.get("/health") as answer:
            content = await answer.json()
            return content["registered_services"], content["healthy_services"]

    await client.post("/services", json=ours("a"))
    await client.post("/services", json=body("b", status="starting"))
    assert await healthy() == (2, 1)
    await client.post("/services/b/heartbeat", json={"status": "running"})
    assert await healthy() == (2, 2)
    await client.post("/services/a/drain")
    assert await healthy() == (2, 1)
    await client.delete("/services/b")
    assert await healthy() == (1, 0)
    await client.post("/services", json=ours("a", instance_id="i-1", incarnation=2))
    await client.post("/services/a/undrain")
    assert await healthy() == (1, 1)
