"""The replay without sockets: the router's own policies, the model engines, and a clock that jumps from event to event."""

import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import inf

import msgspec

from bench.replay import policies
from bench.replay.model_engine import Kind, ModelEngine
from bench.replay.several import Routers, Several
from bench.replay.traces import Request, prompt
from router.model import Endpoint, Facts
from router.policy.blocks import chain, seed_of
from router.policy.cost import Cost
from router.policy.fleet_view import FleetView
from router.policy.least_loaded import LeastLoaded
from router.policy.line import PATIENCE
from router.policy.placed import PlacedRequest
from router.policy.round_robin import RoundRobin
from router.policy.rule import RoutingPolicy

MOMENT_S = 0.05
"""Seconds of the trace that nobody would notice."""


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
    read_ahead_s: float = 1.0
    """Seconds of the trace that a replica gets ahead; 0: it gets all at once."""


@dataclass(slots=True)
class Outcome:
    """One replay, in seconds of the trace."""

    ttft_s: list[float] = field(default_factory=list)
    floor_s: list[float] = field(default_factory=list)
    hit_blocks: int = 0
    blocks: int = 0
    read_tokens: list[int] = field(default_factory=list)
    waited_s: list[float] = field(default_factory=list)
    """From the arrival until its prompt was begun."""
    in_order_s: list[float] = field(default_factory=list)
    """The same, had its replica read what it was given in the order of arrivals: all that was there and not read yet."""
    told_bytes_s: float = 0.0
    """Of several routers: what each told of each replica, in a second of its own."""

    @property
    def mean_s(self) -> float:
        return sum(self.ttft_s) / len(self.ttft_s)

    @property
    def too_late_share(self) -> float:
        """The share of the requests that waited for more than 1.2 times what they would have in order, and a moment."""
        pairs = zip(self.waited_s, self.in_order_s, strict=True)
        return sum(waited > PATIENCE * in_order_s + MOMENT_S for waited, in_order_s in pairs) / len(self.waited_s)

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
    return _Replay(setup, make, seed, routers).run(trace, facts)


class _Side:
    """A router: what it believes, and who picks for it."""

    def __init__(self, fleet: FleetView, in_flight: list[int], make: Make, seed: int) -> None:
        self.fleet, self.in_flight = fleet, in_flight
        self.policy = make(random.Random(seed), fleet, lambda endpoint: in_flight[endpoint.slot])  # noqa: S311 - seeded


class _Sent:
    """One request of a replay; `before`: what its engine had not read yet when it came."""

    def __init__(
        self, request: Request, placement: PlacedRequest, slot: int, side: _Side, before: "list[_Sent]"
    ) -> None:
        self.request, self.placement, self.slot, self.side, self.before = request, placement, slot, side, before
        self.begun_s = self.first_s = self.cached_share = 0.0


class _Replay:
    """Routers over model engines; `setup.speed` seconds of the trace are one of theirs."""

    def __init__(self, setup: Setup, make: Make, seed: int, routers: Routers | None) -> None:
        self.setup = setup
        self.engines = [ModelEngine(kind) for kind in setup.kinds]
        self.endpoints = [Endpoint(f"r{n}@1", f"r{n}", "h", 1, n, models=("m",)) for n in range(len(self.engines))]
        self.unread: list[dict[_Sent, None]] = [{} for _ in self.engines]
        self.several: Several | None = None
        ahead_s = setup.read_ahead_s / setup.speed
        if routers is None:
            self.sides = [_Side(FleetView(read_ahead_s=ahead_s), [0] * len(self.engines), make, seed)]
        else:
            tags = [seed_of(endpoint.id.encode()) for endpoint in self.endpoints]
            self.several = Several(routers, tags, setup.speed, seed, read_ahead_s=ahead_s)
            self.sides = [_Side(one.fleet, one.in_flight, make, seed) for one in self.several.all]
        self.rng = random.Random(seed)  # noqa: S311 - seeded
        self.events: list[tuple[float, int, _Sent, bool]] = []
        self.numbers = itertools.count()
        self.now = 0.0
        self.outcome = Outcome()

    def run(self, trace: Sequence[Request], facts: Sequence[Facts]) -> Outcome:
        """All of it."""
        joins, outcome = self.setup.joins_at_s or (0.0,) * len(self.engines), self.outcome
        all_sent: list[_Sent] = []
        for request, known in zip(trace, facts, strict=True):
            self.settle(request.at_s)
            self.advance(request.at_s)
            candidates = [endpoint for endpoint in self.endpoints if joins[endpoint.slot] <= request.at_s]
            all_sent.append(self.place(request, known, candidates))
        if self.several is not None:
            told, seconds = self.several.told_bytes / len(self.sides), trace[-1].at_s / self.setup.speed
            outcome.told_bytes_s = told / len(self.engines) / seconds
        self.settle(inf)
        outcome.read_tokens = [engine.read_tokens for engine in self.engines]
        for sent in all_sent:
            at_s = sent.request.at_s
            outcome.ttft_s.append(sent.first_s - at_s)
            outcome.waited_s.append(sent.begun_s - at_s)
            outcome.in_order_s.append(sum(one.first_s - max(one.begun_s, at_s) for one in sent.before))
        return outcome

    def place(self, request: Request, known: Facts, candidates: Sequence[Endpoint]) -> _Sent:
        """A request comes; by which router is chance."""
        at = self.now / self.setup.speed
        side = self.sides[0] if len(self.sides) == 1 else self.rng.choice(self.sides)
        picked = side.policy.pick(candidates, known, at).endpoint
        placement = side.fleet.view(picked).place(known, at)
        placement.is_patient = side.policy.reads_prompts
        sent = _Sent(request, placement, picked.slot, side, list(self.unread[picked.slot]))
        side.in_flight[picked.slot] += 1
        self.unread[picked.slot][sent] = None
        if placement.must_wait(at):
            placement.wait(0, partial(self.send, sent), at)
        else:
            self.send(sent)
        return sent

    def send(self, sent: _Sent) -> None:
        """It goes to its engine."""
        request, engine, number = sent.request, self.engines[sent.slot], next(self.numbers)
        served = engine.serve(request, self.now)
        sent.first_s = served.first_s
        sent.begun_s = served.first_s - served.uncached_tokens / engine.kind.tokens_per_s
        sent.cached_share = 1 - served.uncached_tokens / request.input_tokens
        sent.placement.written_tokens = request.output_tokens
        heapq.heappush(self.events, (served.first_s, 2 * number, sent, False))
        heapq.heappush(self.events, (served.end_s, 2 * number + 1, sent, True))
        self.outcome.hit_blocks += served.hit_blocks
        self.outcome.blocks += len(request.blocks)

    def advance(self, until_s: float) -> None:
        """The clock, and what routers tell each other."""
        self.now = until_s
        if self.several is not None:
            self.several.advance(until_s)

    def settle(self, until_s: float) -> None:
        """What engines do until then."""
        while self.events and self.events[0][0] <= until_s:
            at_s, _, sent, is_end = heapq.heappop(self.events)
            self.advance(at_s)
            at, placement = at_s / self.setup.speed, sent.placement
            if is_end:
                sent.side.in_flight[sent.slot] -= 1
                placement.cached_share = sent.cached_share if self.setup.reports else None
                placement.over(at)
            else:
                del self.unread[sent.slot][sent]
                if not placement.non_streamed:
                    placement.first_byte(at)


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
