"""The replay without sockets: the router's own policies, the model engines, and a clock that jumps from event to event."""

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from bench.replay import policies
from bench.replay.model_engine import Kind, ModelEngine
from bench.replay.several import Router, Routers, Several
from bench.replay.traces import Request, prompt
from router.model import Endpoint, Facts
from router.policy.blocks import chain, seed_of
from router.policy.cost import Cost
from router.policy.fleet_view import FleetView
from router.policy.least_loaded import LeastLoaded
from router.policy.replica_view import PlacedRequest
from router.policy.round_robin import RoundRobin
from router.policy.rule import RoutingPolicy


@dataclass(frozen=True, slots=True)
class Setup:
    """A fleet, and what the router is told of it."""

    kinds: tuple[Kind, ...] = (Kind(),) * 8
    joins_at_s: tuple[float, ...] = ()
    """When each replica joins; empty: all are there."""
    reports: bool = False
    """Whether replicas tell `cached_tokens`."""
    speed: float = 20.0
    """Seconds of the trace in one of the router's."""


@dataclass(slots=True)
class Outcome:
    """One replay, in seconds of the trace."""

    ttft_s: list[float] = field(default_factory=list)
    floor_s: list[float] = field(default_factory=list)
    hit_blocks: int = 0
    blocks: int = 0
    read_tokens: list[int] = field(default_factory=list)
    told_bytes_s: float = 0.0
    """Of several routers: what each told of each replica, in a second of its own."""

    @property
    def mean_s(self) -> float:
        return sum(self.ttft_s) / len(self.ttft_s)

    @property
    def hit_share(self) -> float:
        return self.hit_blocks / self.blocks

    @property
    def imbalance(self) -> float:
        """The busiest replica's reading over the mean."""
        return max(self.read_tokens) * len(self.read_tokens) / max(1, sum(self.read_tokens))


Make = Callable[[random.Random, FleetView, Callable[[Endpoint], int]], RoutingPolicy]


def facts_of(request: Request, bytes_per_token: float) -> Facts:
    """What the router would know of the request."""
    text = msgspec.json.encode([{"role": "user", "content": prompt(request, bytes_per_token)}])
    return Facts(model="m", stream=True, prompt_bytes=len(text), blocks=chain(text, 0))


def replay(
    trace: Sequence[Request],
    facts: Sequence[Facts],
    setup: Setup,
    make: Make,
    seed: int = 1,
    *,
    routers: Routers | None = None,
) -> Outcome:
    """Send a trace through one policy; with `routers`, through so many of them by chance."""
    if routers is not None:
        return _replay_several(trace, facts, setup, make, seed=seed, routers=routers)
    engines = [ModelEngine(kind) for kind in setup.kinds]
    endpoints = [Endpoint(f"r{n}@1", f"r{n}", "h", 1, n, models=("m",)) for n in range(len(engines))]
    in_flight = [0] * len(engines)
    fleet = FleetView()
    policy = make(random.Random(seed), fleet, lambda endpoint: in_flight[endpoint.slot])  # noqa: S311 - seeded
    joins = setup.joins_at_s or (0.0,) * len(engines)
    events: list[tuple[float, int, str, PlacedRequest, int, float]] = []
    outcome = Outcome()
    speed = setup.speed

    def settle(until_s: float) -> None:
        while events and events[0][0] <= until_s:
            at_s, _, what, placement, slot, cached = heapq.heappop(events)
            if what == "first":
                if not placement.non_streamed:
                    placement.first_byte(at_s / speed)
            else:
                in_flight[slot] -= 1
                placement.cached_share = cached if setup.reports else None
                placement.over(at_s / speed)

    for count, (request, known) in enumerate(zip(trace, facts, strict=True)):
        now = request.at_s
        settle(now)
        candidates = [endpoint for endpoint in endpoints if joins[endpoint.slot] <= now]
        picked = policy.pick(candidates, known, now / speed).endpoint
        placement = fleet.view(picked).place(known, now / speed)
        in_flight[picked.slot] += 1
        served = engines[picked.slot].serve(request, now)
        placement.written_tokens = request.output_tokens
        cached = 1 - served.uncached_tokens / request.input_tokens
        heapq.heappush(events, (served.first_s, 2 * count, "first", placement, picked.slot, cached))
        heapq.heappush(events, (served.end_s, 2 * count + 1, "end", placement, picked.slot, cached))
        outcome.ttft_s.append(served.first_s - now)
        outcome.hit_blocks += served.hit_blocks
        outcome.blocks += len(request.blocks)
    outcome.read_tokens = [engine.read_tokens for engine in engines]
    return outcome


def _replay_several(
    trace: Sequence[Request], facts: Sequence[Facts], setup: Setup, make: Make, *, seed: int, routers: Routers
) -> Outcome:
    """Each with a policy and a view of its own; a router's clock is the trace's divided by the setup's speed."""
    engines = [ModelEngine(kind) for kind in setup.kinds]
    endpoints = [Endpoint(f"r{n}@1", f"r{n}", "h", 1, n, models=("m",)) for n in range(len(engines))]
    joins = setup.joins_at_s or (0.0,) * len(engines)
    speed = setup.speed
    several = Several(routers, [seed_of(endpoint.id.encode()) for endpoint in endpoints], speed, seed)
    rng = random.Random(seed)  # noqa: S311 - seeded
    policies_of = [
        make(random.Random(seed), one.fleet, lambda endpoint, one=one: one.in_flight[endpoint.slot])  # type: ignore[misc] # noqa: S311
        for one in several.all
    ]
    events: list[tuple[float, int, PlacedRequest, int | None, Router]] = []
    outcome = Outcome()
    for count, (request, known) in enumerate(zip(trace, facts, strict=True)):
        now = request.at_s
        while events and events[0][0] <= now:
            at_s, _, placement, ended, router = heapq.heappop(events)
            several.advance(at_s)
            if ended is None:
                placement.first_byte(at_s / speed)
            else:
                router.in_flight[ended] -= 1
                placement.over(at_s / speed)
        several.advance(now)
        number = rng.randrange(routers.count)
        router = several.all[number]
        candidates = [endpoint for endpoint in endpoints if joins[endpoint.slot] <= now]
        picked = policies_of[number].pick(candidates, known, now / speed).endpoint
        placement = router.fleet.view(picked).place(known, now / speed)
        router.in_flight[picked.slot] += 1
        served = engines[picked.slot].serve(request, now)
        heapq.heappush(events, (served.first_s, 2 * count, placement, None, router))
        heapq.heappush(events, (served.end_s, 2 * count + 1, placement, picked.slot, router))
        outcome.ttft_s.append(served.first_s - now)
        outcome.hit_blocks += served.hit_blocks
        outcome.blocks += len(request.blocks)
    outcome.read_tokens = [engine.read_tokens for engine in engines]
    outcome.told_bytes_s = several.told_bytes / routers.count / len(engines) / (trace[-1].at_s / speed)
    return outcome


def floor(trace: Sequence[Request], tokens_per_s: float) -> float:
    """Mean seconds to the first token with one endless cache and no queue at all."""
    engine = ModelEngine(Kind(cache_blocks=1 << 40, tokens_per_s=tokens_per_s))
    return sum(engine.serve(request, 0.0).uncached_tokens for request in trace) / tokens_per_s / len(trace)


POLICIES: dict[str, Make] = {
    "round_robin": lambda _rng, _fleet, _in_flight: RoundRobin(),
    "random": lambda rng, _fleet, _in_flight: policies.RandomChoice(rng),
    "least_requests": lambda rng, _fleet, in_flight: policies.LeastRequests(rng, in_flight),
    "least_loaded": lambda _rng, fleet, in_flight: LeastLoaded(fleet, in_flight),
    "two_choices": policies.TwoChoices,
    "prefix": policies.Prefix,
    "cost": lambda _rng, fleet, _in_flight: Cost(fleet),
}
