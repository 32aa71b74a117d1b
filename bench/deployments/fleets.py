"""Random fleets for the model world, and what must hold when such a fleet has come to rest."""

import random
from collections import Counter
from dataclasses import replace
from typing import Any

from bench.deployments.world import MEMORY_MB, Broken, Machine, Replica, World
from common.wire.deployment import TemplateGlance
from common.wire.words import ReplicaStatus
from registry.deployments.model import Wish

TEMPLATES = {
    "cpu": TemplateGlance(name="cpu", sleeps=True),
    "one": TemplateGlance(name="one", accelerators=1),
    "sleepy": TemplateGlance(name="sleepy", accelerators=1, sleeps=True),
    "two": TemplateGlance(name="two", accelerators=2),
    "shared": TemplateGlance(name="shared", accelerators=1, memory_mb=30_000, shares=True),
    "four": TemplateGlance(name="four", accelerators=4, sleeps=True),
}
AT_REST_S = 320
"""Without an action for longer than the longest back-off."""
RESTS_WITHIN_S = 6000


def random_world(seed: int, *, faults: bool = True) -> World:
    """A fleet of one to four nodes and one to ten deployments."""
    rng = random.Random(seed)  # noqa: S311 - seeded
    machines = {}
    for number in range(rng.randint(1, 4)):
        name = f"n{number}"
        known = TEMPLATES if rng.random() < 0.7 else {one: TEMPLATES[one] for one in rng.sample(sorted(TEMPLATES), 3)}
        count, labels = rng.choice((0, 1, 1, 2, 2, 4, 8)), {"zone": rng.choice("ab")}
        machines[name] = Machine(name, count, known, labels, capacity=rng.choice((None, None, 3, 6)))
    wishes = {}
    for number in range(rng.randint(1, 10)):
        name = f"m{number}"
        least = rng.choice((0, 0, 0, 1, 1, 2))
        wishes[name] = Wish(
            name,
            1,
            rng.choice(sorted(TEMPLATES)),
            least=least,
            most=least + rng.randint(0 if least else 1, 3),
            in_flight_per_replica=rng.choice((1, 4, 8)),
            up_after_s=rng.choice((0.0, 0.0, 5.0)),
            down_after_s=rng.choice((0.0, 10.0, 60.0)),
            idle_s=rng.choice((0.0, 20.0, 60.0)),
            dwell_s=rng.choice((0.0, 5.0, 30.0)),
            labels={"zone": "a"} if rng.random() < 0.1 else {},
            nodes=("n0",) if rng.random() < 0.1 else (),
            spread=rng.random() < 0.3,
            priority=rng.choice((0, 0, 0, 5, -5)),
        )
    start_s = {name: rng.uniform(1, 60) for name in wishes}
    return World(rng, machines, wishes, start_s, fail_share=rng.choice((0.0, 0.1, 0.3)) if faults else 0.0)


def disturb(world: World, *, faults: bool = True) -> None:
    """Something happens, as it does in a second of a busy fleet."""
    rng = world.rng
    for name, wish in list(world.wishes.items()):
        if rng.random() < 0.05:
            world.ask(name, rng.choice((1, 1, 2, 10)))
        if rng.random() < 0.005:
            world.wishes[name] = _change(rng, wish, world.now)
    for machine in world.machines.values():
        if faults and rng.random() < 0.004:
            machine.cut = not machine.cut
            if machine.cut and rng.random() < 0.5:
                machine.replicas.clear()  # it lost its power
        if rng.random() < 0.002:
            machine.draining = not machine.draining


def _change(rng: random.Random, wish: Wish, now: float) -> Wish:
    kind = rng.choice(("revision", "revision", "paused", "scaled", "rule", "woken", "slept", "deleted"))
    if kind == "revision":
        return replace(wish, revision=wish.revision + 1, template=rng.choice((wish.template, *sorted(TEMPLATES))))
    if kind == "scaled":
        return replace(wish, scaled=rng.randint(0, 3))
    changes: dict[str, dict[str, Any]] = {
        "paused": {"paused": not wish.paused},
        "rule": {"scaled": None},
        "woken": {"woken_at": now},
    }
    changes |= {"slept": {"slept_at": now}, "deleted": {"deleted": rng.random() < 0.5}}
    return replace(wish, **changes[kind])


def run(seed: int, busy_s: int = 200, *, faults: bool = True) -> World:
    """A busy fleet that comes to rest.

    Raises:
        Broken: An invariant does not hold.
    """
    world = random_world(seed, faults=faults)
    for _ in range(busy_s):
        disturb(world, faults=faults)
        world.step()
        alone(world)
    for machine in world.machines.values():
        machine.cut = machine.draining = False
    world.wishes = {name: replace(wish, paused=False) for name, wish in world.wishes.items()}
    world.fail_share = 0.0
    quiet_s = 0
    for _ in range(RESTS_WITHIN_S):
        actions = world.step().actions
        alone(world)
        quiet_s = 0 if actions else quiet_s + 1
        if quiet_s >= AT_REST_S:
            at_rest(world)
            return world
    raise Broken(f"it never comes to rest: {actions[0]}")


def alone(world: World) -> None:
    """No accelerator is given twice, nor more of its memory than it has; no request id has two lives."""
    held = Counter((one.node, index) for one in world.replicas() for index in one.slots)
    for (name, index), count in held.items():
        those = [one for one in world.machines[name].replicas.values() if index in one.slots]
        if count > 1 and not (all(one.shared_mb for one in those) and sum(one.shared_mb for one in those) <= MEMORY_MB):
            raise Broken(f"accelerator {index} of {name} is given twice")
    named = Counter(one.request_id for one in world.replicas())
    if twice_named := [name for name, count in named.items() if count > 1]:
        raise Broken(f"{twice_named[0]} runs twice")


def at_rest(world: World) -> None:
    """All that is wanted and fits is ready; what is deleted is gone; nothing is left over."""
    named = {(one.request_id, one.node) for one in world.assignments.values()}
    for one in world.replicas():
        if (one.request_id, one.node) not in named:
            raise Broken(f"{one.request_id} on {one.node} is left over")
    for name, wish in world.wishes.items():
        if not wish.deleted:
            _at_rest(world, wish)
        elif any(one.deployment == name for one in world.replicas()):
            raise Broken(f"{name} is deleted and runs")


def _at_rest(world: World, wish: Wish) -> None:
    name = wish.name
    ready = [one for one in world.replicas() if one.deployment == name and is_ready(one)]
    stands = world.last.standings[name]
    slept = wish.slept_at is not None and wish.scaled is None and stands.wanted == 0
    least = 0 if slept else wish.least if wish.scaled is None else wish.scaled
    asks = bool(world.waiting.get(name)) and wish.scaled is None
    if stands.wanted < max(least, asks):
        raise Broken(f"{name} has {stands.wanted} wanted, and needs {max(least, asks)}: {stands}")
    if len(ready) > max(stands.wanted, wish.least if slept else 0):
        raise Broken(f"{name} has {len(ready)} ready, and wants {stands.wanted}: {stands}")
    if len(ready) < stands.wanted and (fits := fitting(world, wish)):
        raise Broken(f"{name} wants {stands.wanted}, has {len(ready)}, and fits on {fits}: {stands}")
    if not ready and (asks or least) and (idle := evictable(world, wish)):
        raise Broken(f"{name} is needed, and {idle} could make room: {stands}")
    old = [one for one in ready if one.revision != wish.revision]
    if old and (fits := fitting(world, wish)):
        raise Broken(f"{old[0].request_id} is of revision {old[0].revision}, and {wish.revision} fits on {fits}")


def is_ready(one: Replica) -> bool:
    """It serves."""
    return one.status is ReplicaStatus.READY and not one.asleep


def evictable(world: World, wish: Wish) -> list[str]:
    """Nodes where idle replicas of no higher priority, beyond every minimum, hold enough; no planner's code either."""
    spare: Counter[str] = Counter()
    for name, other in world.wishes.items():
        if name != wish.name and other.priority <= wish.priority and not world.waiting.get(name):
            there = sum(1 for one in world.assignments.values() if one.deployment == name)
            spare[name] = max(0, there - (other.least if other.scaled is None else other.scaled))
    found = []
    for name in nodes_of(world, wish):
        left, machine = Counter(spare), world.machines[name]
        kept = {}
        for request_id, one in machine.replicas.items():
            if left[one.deployment] > 0:
                left[one.deployment] -= 1
            else:
                kept[request_id] = one
        if takes(replace(machine, replicas=kept), wish):
            found.append(name)
    return found


def takes(machine: Machine, wish: Wish) -> bool:
    """The machine has room for one more."""
    glance = machine.templates[wish.template or ""]
    roomy = machine.capacity is None or len(machine.replicas) < machine.capacity
    return roomy and len(machine.free_for(glance)) >= glance.accelerators


def nodes_of(world: World, wish: Wish) -> list[str]:
    """Nodes that may have it."""
    return [
        name
        for name, machine in world.machines.items()
        if wish.template in machine.templates
        and (not wish.nodes or name in wish.nodes)
        and all(machine.labels.get(key) == value for key, value in wish.labels.items())
    ]


def fitting(world: World, wish: Wish) -> list[str]:
    """Nodes with room for one more, counted without the planner's code."""
    return [name for name in nodes_of(world, wish) if takes(world.machines[name], wish)]
