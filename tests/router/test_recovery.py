"""A replica that was out of reach is back when two probes say so, whatever its requests had met before."""

from dataclasses import dataclass
from typing import Any, cast

from common.discovery.record import ServiceRecord, Snapshot
from router.board import Board
from router.master import Master
from router.outlier import EJECT_LIMIT_S, Verdict
from router.policy.models import ModelRules
from router.prober import Finding
from router.settings import RouterSettings
from tests.router.conftest import MakePlane
from tests.router.fakes import Plane

GOOD, BAD = Finding(ok=True), Finding(ok=False)
METADATA = {"type": "openai-api", "models": ["m"]}


@dataclass
class CrewOfOne:
    """A crew whose only worker is a plane within the test."""

    plane: Plane

    @property
    def board(self) -> Board:
        return self.plane.engine.board

    def forgive(self, slot: int, endpoint: str) -> None:
        self.board.eject(slot, 0.0, 0)
        self.plane.engine.outliers.forgive(endpoint)


def master_of(plane: Plane, *names: str) -> Master:
    master = Master(RouterSettings(), cast("Any", CrewOfOne(plane)))
    services = [
        ServiceRecord(name=name, host="h", port=port, url=f"http://h:{port}", metadata=METADATA)
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
        engine.outliers.note(lost, Verdict.REFUSED, "client", (lost, other), engine.now())
    assert engine.board.ejected_until_s(lost.slot) > engine.now() + EJECT_LIMIT_S - 5
    assert engine.candidates((lost, other), "m", ()) == [other]
    for finding in (BAD, BAD, BAD, GOOD):
        master.note_probe("a", master.directory.replicas["a"].generation, finding)
    assert master.is_ejected(master.directory.replicas["a"])
    master.note_probe("a", master.directory.replicas["a"].generation, GOOD)
    engine.set_table(master.next_table())
    assert set(engine.candidates(engine.table.endpoints, "m", ())) == set(engine.table.endpoints)
    assert not master.is_ejected(master.directory.replicas["a"])


async def test_good_probes_forgive_nothing_that_they_never_saw_W24(planes: MakePlane) -> None:
    plane = await planes(rules=ModelRules("round_robin", {}))
    master, engine = master_of(plane, "a", "b"), plane.engine
    sick, other = engine.table.endpoints
    engine.outliers.note(sick, Verdict.REFUSED, "client", (sick, other), engine.now())
    for _ in range(3):
        master.note_probe("a", master.directory.replicas["a"].generation, GOOD)
    assert engine.candidates((sick, other), "m", ()) == [other]
