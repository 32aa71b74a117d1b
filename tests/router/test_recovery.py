"""A replica that was out of reach is back when two probes say so, whatever its requests had met before."""

import asyncio
from dataclasses import dataclass
from typing import Any, cast

import pytest

from common.wire.record import ServiceRecord, Snapshot
from router import complaints, feed
from router.complaints import failing
from router.control.metrics import why_set_aside
from router.counters import SharedCounters
from router.master import Master
from router.outlier import EJECT_LIMIT_S, AttemptVerdict, Reason
from router.policy.models import ModelRules
from router.prober import ProbeResult
from router.settings import RouterSettings
from tests.router.conftest import MakePlane
from tests.router.fakes import Plane

GOOD, BAD = ProbeResult(ok=True), ProbeResult(ok=False)
METADATA = {"type": "openai-api", "models": ["m"]}


@dataclass
class CrewOfOne:
    """A pool whose only worker is a plane within the test."""

    plane: Plane

    @property
    def counters(self) -> SharedCounters:
        return self.plane.engine.counters

    def waiting(self) -> dict[str, int]:
        return {}

    def tell_standings(self, standings: feed.Standings) -> None:
        """No model is cold here."""

    def forgive(self, slot: int, endpoint: str) -> None:
        self.counters.eject(slot, 0.0, 0)
        self.plane.engine.outliers.forgive(endpoint)


def master_of(plane: Plane, *names: str) -> Master:
    master = Master(RouterSettings(), cast("Any", CrewOfOne(plane)))
    services = [
        ServiceRecord(name=name, host="h", port=port, url=f"http://h:{port}", metadata=METADATA, instance_id="i")
        for port, name in enumerate(names, start=1)
    ]
    master.directory.apply(Snapshot(epoch="e", revision=1, services=services), 0.0)
    plane.engine.set_table(master.next_table())
    return master


async def test_ejected_replica_is_back_within_two_good_probes_W24(planes: MakePlane) -> None:
    plane = await planes(rules=ModelRules("round_robin", {}))
    master, engine = master_of(plane, "a", "b"), plane.engine
    lost, other = engine.table.endpoints
    for _ in range(20):  # the partition: every trial fails
        engine.outliers.note(lost, AttemptVerdict.REFUSED, "client", (lost, other), engine.now())
    assert engine.counters.ejected_until_s(lost.slot) > engine.now() + EJECT_LIMIT_S - 5
    assert engine.candidates((lost, other), "m", ()) == [other]
    for finding in (BAD, BAD, BAD, GOOD):
        master.note_probe("a", master.directory.replicas["a"].generation, finding)
    assert master.is_ejected(master.directory.replicas["a"])
    master.note_probe("a", master.directory.replicas["a"].generation, GOOD)
    engine.set_table(master.next_table())
    assert set(engine.candidates(engine.table.endpoints, "m", ())) == set(engine.table.endpoints)
    assert not master.is_ejected(master.directory.replicas["a"])


async def test_ejection_that_is_forgiven_as_a_worker_reads_it_ends_nothing_W24(planes: MakePlane) -> None:
    plane = await planes(rules=ModelRules("round_robin", {}))
    engine = plane.engine
    master_of(plane, "a", "b")
    lost, other = engine.table.endpoints
    engine.counters.eject(
        lost.slot, engine.now() + 5.0, 0
    )  # the moment read before the master forgave, the reason after it
    engine.adopt_ejections(engine.now())
    assert engine.outliers.quiet
    assert why_set_aside(engine.counters, lost.slot) is None
    engine.counters.eject(lost.slot, engine.now() + 5.0, Reason.SILENT)
    engine.adopt_ejections(engine.now())
    assert engine.candidates((lost, other), "m", ()) == [other]


async def test_good_probes_forgive_nothing_that_they_never_saw_W24(planes: MakePlane) -> None:
    plane = await planes(rules=ModelRules("round_robin", {}))
    master, engine = master_of(plane, "a", "b"), plane.engine
    sick, other = engine.table.endpoints
    engine.outliers.note(sick, AttemptVerdict.REFUSED, "client", (sick, other), engine.now())
    for _ in range(3):
        master.note_probe("a", master.directory.replicas["a"].generation, GOOD)
    assert engine.candidates((sick, other), "m", ()) == [other]


async def test_replica_that_is_well_by_its_probes_and_gives_nothing_is_complained_of_W26(planes: MakePlane) -> None:
    plane = await planes(rules=ModelRules("round_robin", {}))
    master, engine = master_of(plane, "a", "b"), plane.engine
    sick, other = engine.table.endpoints
    assert failing(master.replicas(), engine.counters) == {}
    engine.outliers.note(sick, AttemptVerdict.REFUSED, "client", (sick, other), engine.now())
    assert failing(master.replicas(), engine.counters) == {"a": "no connection could be had"}
    for _ in range(3):
        master.note_probe("a", master.directory.replicas["a"].generation, BAD)
    assert failing(master.replicas(), engine.counters) == {}  # its own probes say so, to everybody


async def test_registry_is_told_while_it_lasts_and_once_more_when_it_is_over_W26(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(complaints, "TELL_S", 0.01)
    seen: list[dict[str, str]] = [{}, {"a": "x"}, {"a": "x"}, {}, {}]
    told: asyncio.Queue[dict[str, str]] = asyncio.Queue()

    class Client:
        async def complain(self, router: str, said: dict[str, str]) -> None:
            assert router == "router-1"
            told.put_nowait(said)

    telling = asyncio.ensure_future(
        complaints.tell(cast("Any", Client()), "router-1", lambda: seen.pop(0) if seen else {"end": "x"})
    )
    heard = [await asyncio.wait_for(told.get(), 5) for _ in range(4)]
    telling.cancel()
    await asyncio.gather(telling, return_exceptions=True)
    assert heard == [{"a": "x"}, {"a": "x"}, {}, {"end": "x"}]
