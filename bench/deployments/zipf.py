"""Many models on few accelerators: an hour of Zipf traffic in the model world."""

import random

from bench.deployments.fleets import alone
from bench.deployments.world import Broken, Machine, World
from common.wire.deployment import TemplateGlance
from registry.deployments.model import Wish

TEMPLATES = {"gpu": TemplateGlance(name="gpu", accelerators=1)}
DWELL_S = 60.0


def zipf_world(seed: int, *, models: int = 20, accelerators: int = 4) -> World:
    """Two nodes; each model needs one accelerator and 10 to 60 s to start."""
    rng = random.Random(seed)  # noqa: S311 - seeded
    half = accelerators // 2
    machines = {
        name: Machine(name, count, TEMPLATES) for name, count in (("a", half), ("b", accelerators - half)) if count
    }
    start_s = {f"m{number:02}": rng.uniform(10, 60) for number in range(1, models + 1)}
    wishes = {
        name: Wish(name, 1, "gpu", least=0, most=2, idle_s=600, dwell_s=DWELL_S, start_s=took)
        for name, took in start_s.items()
    }
    return World(rng, machines, wishes, start_s)


def simulate(seed: int, *, seconds: int = 3600, per_s: float = 0.05, models: int = 20, accelerators: int = 4) -> World:
    """Requests at that rate, the model of rank N with a share of 1/N; then it is quiet until all are answered.

    Raises:
        Broken: An invariant does not hold.
    """
    world = zipf_world(seed, models=models, accelerators=accelerators)
    names = sorted(world.wishes)
    shares = [1 / rank for rank in range(1, models + 1)]
    for _ in range(seconds):
        while world.rng.random() < per_s / (1 + per_s):
            world.ask(world.rng.choices(names, shares)[0])
        world.step()
        alone(world)
    for _ in range(7200):
        if not any(world.waiting.values()) and not any(one.in_flight for one in world.replicas()):
            break
        world.step()
        alone(world)
    else:
        raise Broken(f"{sum(map(len, world.waiting.values()))} requests wait for ever")
    return world


def thrash_limit(world: World, accelerators: int = 4) -> int:
    """More evictions than this there cannot be, since each had its start and its dwell."""
    return int(accelerators * (world.now - world.began) / DWELL_S)
