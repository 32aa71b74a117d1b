from types import SimpleNamespace
from typing import Any, cast

import msgspec

from babysitter.agent.registration import AgentRegistration
from babysitter.agent.settings import AgentSettings
from common.clock import SystemClock
from common.discovery.limits import BODY_LIMIT_BYTES
from common.wire.replica import NodeCounts, ReplicaInfo, Stage
from common.wire.words import StageState

QUEUED = "job 41: position 3 of 12 in partition gpu, Slurm expects to start it at 2026-11-29T09:40:00Z (Priority)"


def queued(number: int, error: str) -> Any:
    """A replica whose job waits in a queue, as its controller tells of it."""
    stage = Stage(name="queued", state=StageState.RUNNING, began_at="2026-11-29T09:00:00Z", detail=QUEUED, ends_at=None)
    info = ReplicaInfo(replica_id=f"r{number}", stages=[stage], error_message=error, metadata={"node": "cluster"})
    return SimpleNamespace(speaks=False, record=SimpleNamespace(created_at=f"{number:06}"), info=lambda: info)


def told(controllers: list[Any]) -> tuple[list[str], int]:
    manager = SimpleNamespace(
        controllers=lambda: controllers,
        counts=NodeCounts,
        holds=list,
        settings=SimpleNamespace(labels={}),
        accelerators=SimpleNamespace(glance=lambda _holds: [], readings=[]),
        templates=SimpleNamespace(glances=list),
    )
    registration = AgentRegistration(
        AgentSettings(node="cluster"), cast("Any", manager), clock=SystemClock(), port=1, instance_id="i"
    )
    report = registration.report()
    return [info.replica_id for info in report.replicas], len(msgspec.json.encode(report))


def test_hundreds_of_replicas_that_wait_for_a_scheduler_are_told() -> None:
    shown, size = told([queued(number, "") for number in range(300)])
    assert shown == [f"r{number}" for number in reversed(range(300))]
    assert size < BODY_LIMIT_BYTES


def test_what_does_not_fit_is_the_oldest() -> None:
    shown, size = told([queued(number, "x" * 300) for number in range(2000)])
    assert 150 < len(shown) < 2000
    assert shown[0] == "r1999"
    assert BODY_LIMIT_BYTES // 3 < size < BODY_LIMIT_BYTES
