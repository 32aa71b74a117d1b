"""The planner in a model world: random fleets with faults, and an hour of many models on few accelerators."""

import random

import pytest

from bench.deployments.fleets import TEMPLATES, random_world, run
from bench.deployments.world import Broken, Machine, World
from bench.deployments.zipf import DWELL_S, simulate, thrash_limit
from registry.deployments.model import Cause, Leave, Needs, Plan, Start, Wish
from registry.deployments.planner import MOST_ACTIONS


@pytest.mark.parametrize("seed", range(10))
def test_a_fleet_with_faults_comes_to_rest_with_all_that_fits(seed: int) -> None:
    run(seed, busy_s=150)


@pytest.mark.parametrize("seed", range(100, 106))
def test_without_faults_no_agent_refuses_a_start(seed: int) -> None:
    assert run(seed, busy_s=150, faults=False).figures.refusals == 0


def test_a_plan_of_any_fleet_is_bounded_and_comes_to_a_fixed_point() -> None:
    """Thousands of fleets at their first moments: what is planned is not planned again, whether or not it is seen."""
    for seed in range(1500):
        world = random_world(seed, faults=False)
        world.ask(world.rng.choice(sorted(world.wishes)), 3)
        first = world.step()
        again = world.plan()
        assert len(first.actions) <= MOST_ACTIONS
        assert again.actions == (), f"seed {seed}: {again.actions[0]}"


def test_twenty_models_share_four_accelerators_for_an_hour() -> None:
    world = simulate(1)
    found = world.figures
    assert len(found.waits_s) == found.requests > 100
    assert found.lost == found.refusals == 0
    evicted = sum(found.evictions.values())
    assert 0 < evicted <= thrash_limit(world)
    assert min(found.lives_s) >= DWELL_S
    assert set(found.leaves) <= {Cause.EVICTED, Cause.IDLE}


class Careless(World):
    """A world whose planner evicts what is in use: the judge must see it."""

    def plan(self) -> Plan:
        found = super().plan()
        busy = [one for one in self.replicas() if one.in_flight]
        worse = tuple(Leave(one.request_id, one.deployment, Cause.EVICTED, "x", node=one.node) for one in busy)
        return Plan((*found.actions, *worse), found.standings, found.memory)


class Generous(World):
    """A world whose planner starts one more each second."""

    def plan(self) -> Plan:
        found = super().plan()
        name, machine = min(self.wishes), min(self.machines)
        return Plan((*found.actions, Start(name, 1, machine, Needs(), "x")), found.standings, found.memory)


def test_the_judge_of_the_model_world_sees_an_eviction_with_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.deployments.zipf.World", Careless)
    with pytest.raises(Broken, match="with requests"):
        simulate(1, seconds=600)


def test_the_judge_of_the_model_world_sees_a_start_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.deployments.fleets.World", Generous)
    with pytest.raises(Broken, match="never comes to rest"):
        run(1, busy_s=10)


def starved(seconds: int) -> World:
    """One that needs all four accelerators of the only node, asked for all the time; eight small ones are asked for, too."""
    rng = random.Random(1)
    machines = {"n0": Machine("n0", 4, {"one": TEMPLATES["one"], "four": TEMPLATES["four"]})}
    small = {f"m{number}": Wish(f"m{number}", 1, "one", least=0, dwell_s=5) for number in range(8)}
    world = World(rng, machines, {**small, "big": Wish("big", 1, "four", least=0)}, dict.fromkeys([*small, "big"], 5.0))
    for second in range(seconds):
        for name in small:
            if rng.random() < 0.2:
                world.ask(name)
        if second == 60:
            world.ask("big")
        world.step()
        if second > 60 and not world.waiting["big"]:
            break
    return world


def test_a_big_one_does_not_wait_for_ever_behind_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not starved(600).waiting["big"]
    monkeypatch.setattr("registry.deployments.planner.PATIENCE_S", 1e9)
    assert starved(1800).waiting["big"], "the rule is what this test is about"
