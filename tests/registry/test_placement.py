"""Which node gets a replica: tables."""

from typing import Any

import pytest

from common.wire.record import Registration
from registry.core.model import Instance
from registry.core.report import make_report
from registry.fleet.index import FleetIndex
from registry.fleet.placement import NoAgent, NodeAgent, ranked


def record(node: str, *, kind: str = "node-agent", stale: bool = False, **report: Any) -> Instance:
    said = Registration(
        name=f"agent-{node}",
        host="10.0.0.1",
        port=18100,
        hostname="h",
        url=f"http://{node}:18100",
        status="running",
        metadata={"type": kind, "node": node},
    )
    return Instance(said, generation=1, stale=stale, report=make_report(report) if report else None)


def index_of(*instances: Instance) -> FleetIndex:
    index = FleetIndex()
    index.begin(instances)
    return index


def test_agents_are_the_records_of_their_kind() -> None:
    index = index_of(record("b", replicas_live=2, capacity=9), record("a", stale=True), record("x", kind="mock"))
    assert index.agents == [NodeAgent("a", "http://a:18100", away=True), NodeAgent("b", "http://b:18100", 2, 9)]


@pytest.mark.parametrize("name", ["evil", "agent-b", "agent-", "svc-agent-a"])
def test_only_a_record_of_the_nodes_own_name_is_its_agent(name: str) -> None:
    told = {"type": "node-agent", "node": "a"}
    said = Registration(
        name=name,
        host="10.0.0.9",
        port=18100,
        hostname="h",
        url="http://10.0.0.9:18100",
        status="running",
        metadata=told,
    )
    spoken = make_report({"replicas": [{"replica_id": "r1", "status": "ready"}]})
    instance = Instance(said, generation=1, report=spoken)
    index = index_of(instance)
    assert index.agents == []
    assert list(index.infos()) == []


@pytest.mark.parametrize(
    ("agents", "node", "placed", "expected"),
    [
        ([NodeAgent("a", "u")], None, {}, ["a"]),
        ([NodeAgent("a", "u", 3), NodeAgent("b", "u", 1), NodeAgent("c", "u", 2)], None, {}, ["b", "c", "a"]),
        ([NodeAgent("a", "u", 1), NodeAgent("b", "u", 1)], None, {}, ["a", "b"]),
        ([NodeAgent("a", "u", 1), NodeAgent("b", "u", 1)], None, {"a": 1}, ["b", "a"]),
        ([NodeAgent("a", "u", 1, 1), NodeAgent("b", "u", 5, 6)], None, {}, ["b"]),
        ([NodeAgent("a", "u", away=True), NodeAgent("b", "u", 9)], None, {}, ["b"]),
        ([NodeAgent("a", "u", draining=True), NodeAgent("b", "u", 9)], None, {}, ["b"]),
        ([NodeAgent("a", "u", 9, 9, away=True), NodeAgent("b", "u")], "a", {}, ["a"]),
    ],
)
def test_ranked(agents: list[NodeAgent], node: str | None, placed: dict[str, int], expected: list[str]) -> None:
    assert [agent.node for agent in ranked(agents, node=node, placed=placed)] == expected


@pytest.mark.parametrize(
    ("agents", "node", "said"),
    [
        ([], None, "no node agent is registered"),
        ([NodeAgent("a", "u")], "b", "no agent of node 'b' is registered; there are: a"),
        ([NodeAgent("a", "u", away=True)], None, "no node agent is heard of"),
        ([NodeAgent("a", "u", draining=True)], None, "every node drains; draining, and so getting none: a"),
        (
            [NodeAgent("a", "u", draining=True), NodeAgent("b", "u", away=True)],
            None,
            "no node agent is heard of at the moment; draining, and so getting none: a",
        ),
        ([NodeAgent("a", "u", 1, 1)], None, "every node is full"),
        ([NodeAgent("a", "u", 0, 1)], None, "every node is full"),
    ],
)
def test_nobody_to_ask_is_told_with_the_reason(agents: list[NodeAgent], node: str | None, said: str) -> None:
    with pytest.raises(NoAgent, match=said) as caught:
        ranked(agents, node=node, placed={"a": 1})
    assert caught.value.unknown_node is (node is not None)


def test_an_agent_speaks_for_replicas_without_a_babysitter_and_a_babysitter_for_itself() -> None:
    silent = {"replica_id": "r1", "status": "failed", "updated_at": "2026-01-01", "metadata": {"deleted": True}}
    other = {"replica_id": "r2", "status": "pending", "updated_at": "2026-01-01"}
    spoken = Instance(
        Registration(
            name="r2", host="h", port=1, hostname="h", url="http://h:1", status="running", metadata={"node": "a"}
        ),
        generation=1,
        report=make_report({"replica_id": "r2", "status": "ready", "updated_at": "2026-01-02"}),
    )
    index = index_of(record("a", replicas=[silent, other, "odd", {"replica_id": 7}]), spoken)
    infos = {info.replica_id: info for info in index.infos()}
    assert {key: info.status for key, info in infos.items()} == {"r1": "failed", "r2": "ready"}
    assert infos["r1"].metadata["node"] == "a"
    assert infos["r1"].metadata["deleted"] is True
