"""What the registry is told of deployments' models, and what its answer does (docs/adr/0013)."""

import asyncio
from typing import Any, cast

import pytest
import structlog

from common.discovery.registry_client import RegistrationRefused, RegistryUnavailable, UnknownService
from common.tasks import TaskScope
from common.wire.deployment import DEPLOYMENT_KEY, Demand, DemandAnswer, DeploymentPhase, ModelState
from common.wire.record import ServiceRecord
from router import demand
from router.counters import IN_FLIGHT, REQUESTS, Shape, SharedCounters
from router.demand import Deployments
from router.feed import ModelWaits, Standings
from router.model import Replica


def state(model: str, deployment: str, **more: Any) -> ModelState:
    return ModelState(model=model, deployment=deployment, phase=DeploymentPhase.COLD, **more)


def replica(name: str, slot: int, deployment: str | None, generation: str = "g", status: str = "running") -> Replica:
    metadata = {DEPLOYMENT_KEY: deployment} if deployment else {}
    record = ServiceRecord(name=name, host="h", port=1, url="", metadata=metadata, status=status)
    return Replica(record, generation, leased=True, slot=slot)


class Master:
    """Deployments whose every side the test holds."""

    def __init__(self) -> None:
        shape = Shape(4, 1)
        self.counters = SharedCounters(SharedCounters.create(shape), shape)
        self.replicas: list[Replica] = []
        self.waiting: dict[str, int] = {}
        self.told: list[Standings] = []
        self.deployments = Deployments(lambda: self.replicas, self.counters, lambda: self.waiting, self.told.append)


@pytest.fixture
def master() -> Master:
    return Master()


def test_demand_adds_up_a_deployments_replicas_and_lines(master: Master) -> None:
    master.deployments.take([state("m", "d"), state("n", "e"), state("quiet", "f")])
    master.replicas = [replica("a", 0, "d"), replica("b", 1, "d"), replica("c", 2, "e"), replica("by-hand", 3, None)]
    for slot, in_flight, requests in ((0, 2, 10), (1, 3, 20), (2, 0, 5), (3, 9, 9)):
        master.counters.add(slot, IN_FLIGHT, in_flight)
        master.counters.add(slot, REQUESTS, requests)
    master.waiting = {"m": 4, "unknown": 7}
    models = master.deployments.demand().models
    assert {model: (one.in_flight, one.waiting, one.requests) for model, one in models.items()} == {
        "m": (5, 4, 30),
        "n": (0, 0, 5),
    }


def test_requests_only_rise_whatever_becomes_of_replicas_and_their_rows(master: Master) -> None:
    master.deployments.take([state("m", "d")])
    master.replicas = [replica("a", 0, "d")]
    master.counters.add(0, REQUESTS, 10)
    seen = [master.deployments.demand().models["m"].requests]
    master.replicas = []
    seen.append(master.deployments.demand().models["m"].requests)
    master.counters.reset(0)
    master.replicas = [replica("a", 0, "d", "another life")]
    master.counters.add(0, REQUESTS, 3)
    seen.append(master.deployments.demand().models["m"].requests)
    master.counters.add(0, REQUESTS, 1)
    seen.append(master.deployments.demand().models["m"].requests)
    assert seen == [10, 10, 13, 14]


def test_workers_are_told_what_changed_and_new_ones_everything(master: Master) -> None:
    deployments, one, two = master.deployments, state("m", "d"), state("n", "e")
    deployments.take([one, two])
    deployments.take([one, two])
    deployments.take(None)
    deployments.take(None)
    changed = state("m", "d", eta_s=3.0)
    deployments.take([changed])
    assert [(told.changed, told.gone, told.lost) for told in master.told] == [
        ((one, two), (), False),
        ((), (), True),
        ((changed,), ("n",), False),
    ]
    assert deployments.all() == Standings((changed,), (), lost=False)


def test_what_workers_saw_is_added_up_for_known_models_only(master: Master) -> None:
    master.deployments.take([state("m", "d")])
    for _ in range(2):
        master.deployments.heard({}, {"m": ModelWaits(0, 2, 3.5, 1), "x": ModelWaits(9, 9, 9.0, 9)})
    totals = master.deployments.totals
    assert list(totals) == ["m"]
    assert (totals["m"].served, totals["m"].waited_s, totals["m"].refused) == (4, 7.0, 2)
    master.deployments.take([])
    assert totals == {}


def test_replica_of_a_deployment_that_does_not_run_is_absent() -> None:
    assert replica("a", 0, "d", status="starting").absent
    assert not replica("a", 0, "d").absent
    assert not replica("a", 0, None, status="starting").absent


class Registry:
    """Answers as the test says; every demand is kept."""

    def __init__(self, *answers: DemandAnswer | Exception) -> None:
        self.answers = list(answers)
        self.demands: list[Demand] = []

    async def tell_demand(self, router: str, demand: Demand) -> DemandAnswer:
        assert router == "router-1"
        self.demands.append(demand)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


async def until(check: Any, wait_s: float = 5) -> None:
    async with asyncio.timeout(wait_s):
        while not check():
            await asyncio.sleep(0.005)


async def test_registry_is_told_at_once_when_a_worker_begins_to_hold(master: Master) -> None:
    registry = Registry(DemandAnswer(models=[state("m", "d")]))
    async with TaskScope("t") as scope:
        scope.spawn("tell", master.deployments.tell(cast("Any", registry), "router-1"), service=True)
        await until(lambda: registry.demands)
        master.waiting = {"m": 1}
        master.deployments.heard({}, {"m": ModelWaits(1)})
        await until(lambda: len(registry.demands) == 2, 0.5)
        assert registry.demands[1].models["m"].waiting == 1
        master.deployments.heard({"m": ModelWaits(1)}, {"m": ModelWaits(2)})  # nothing new: with the next second
        await asyncio.sleep(0.2)
        assert len(registry.demands) == 2


async def test_registry_that_is_away_leaves_its_last_word_in_force(master: Master) -> None:
    known = DemandAnswer(models=[state("m", "d")])
    registry = Registry(known, RegistryUnavailable("away"), known)
    async with TaskScope("t") as scope:
        scope.spawn("tell", master.deployments.tell(cast("Any", registry), "router-1"), service=True)
        await until(lambda: master.deployments.lost)
        assert list(master.deployments.states) == ["m"]
        await until(lambda: not master.deployments.lost)


@pytest.mark.parametrize(("error", "logged"), [(UnknownService("x"), 0), (RegistrationRefused("403"), 1)])
async def test_registry_without_the_call_is_rarely_asked(
    master: Master, monkeypatch: pytest.MonkeyPatch, error: Exception, logged: int
) -> None:
    monkeypatch.setattr(demand, "TELL_S", 0.01)
    registry = Registry(error)
    with structlog.testing.capture_logs() as lines:
        async with TaskScope("t") as scope:
            scope.spawn("tell", master.deployments.tell(cast("Any", registry), "router-1"), service=True)
            await asyncio.sleep(0.3)
            assert len(registry.demands) == 1
            monkeypatch.setattr(demand, "UNSUPPORTED_S", 0.01)
            master.deployments._wanted.set()
            await until(lambda: len(registry.demands) >= 3)
    assert len([line for line in lines if line["event"] == "demand.refused"]) == logged
