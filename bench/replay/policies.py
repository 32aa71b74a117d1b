"""Policies to compare the router's own with. None of them is the router's."""

import random
from collections.abc import Callable, Sequence

from router.model import Endpoint, Facts
from router.policy.blocks import bytes_of
from router.policy.decision import RoutingDecision
from router.policy.fleet_view import FleetView
from router.policy.least_loaded import LeastLoaded
from router.policy.rule import Scores

LEAST_MATCH = 0.3
IMBALANCE_REQUESTS = 64
IMBALANCE_FACTOR = 1.5
"""The three are sglang-router 0.3's defaults."""
InFlight = Callable[[Endpoint], int]


class _ByChance:
    """What they have in common: equals are drawn from by chance, so that nobody can tell beforehand who is next."""

    reads_prompts = False
    tracks = False

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def scores(self, candidates: Sequence[Endpoint], facts: Facts, now: float) -> Scores:
        """None is asked for in a replay."""
        raise NotImplementedError

    def peek(self, candidates: Sequence[Endpoint], facts: Facts, now: float) -> Endpoint:
        """Likewise."""
        raise NotImplementedError


class RandomChoice(_ByChance):
    """One of the candidates, each as likely as its weight says."""

    name = "random"

    def pick(self, candidates: Sequence[Endpoint], facts: Facts, now: float) -> RoutingDecision:  # noqa: ARG002 - all policies are asked alike
        """One of `candidates` (at least one)."""
        weights = [endpoint.weight for endpoint in candidates]
        return RoutingDecision(self.rng.choices(candidates, weights if any(weights) else None)[0])


class LeastRequests(_ByChance):
    """The fewest requests under way."""

    name = "least_requests"

    def __init__(self, rng: random.Random, in_flight: InFlight) -> None:
        super().__init__(rng)
        self._in_flight = in_flight

    def pick(self, candidates: Sequence[Endpoint], facts: Facts, now: float) -> RoutingDecision:  # noqa: ARG002 - all policies are asked alike
        """Equals by chance."""
        return RoutingDecision(min(candidates, key=lambda endpoint: (self._in_flight(endpoint), self.rng.random())))


class TwoChoices(_ByChance):
    """The less loaded of two drawn by chance (Mitzenmacher, 2001: nearly as good as the least loaded of all)."""

    name = "two_choices"
    tracks = True

    def __init__(self, rng: random.Random, fleet: FleetView, in_flight: InFlight) -> None:
        super().__init__(rng)
        self._least_loaded = LeastLoaded(fleet, in_flight)

    def pick(self, candidates: Sequence[Endpoint], facts: Facts, now: float) -> RoutingDecision:
        """Of one or two candidates the least loaded."""
        return self._least_loaded.pick(self.rng.sample(candidates, min(2, len(candidates))), facts, now)


class Prefix(_ByChance):
    """The field's cache-aware rule: the longest matching prefix, unless loads are out of balance.

    Out of balance is when the busiest replica has more than 64 requests, and more than one and a half times, above the
    idlest; then, and when less than 0.3 of the prompt matches anywhere, the fewest requests win. It assumes endless
    caches, as sglang-router 0.3 does.
    """

    name = "prefix"
    reads_prompts = True
    tracks = True

    def __init__(self, rng: random.Random, fleet: FleetView, in_flight: InFlight) -> None:
        super().__init__(rng)
        self._fleet = fleet
        self._in_flight = in_flight

    def pick(self, candidates: Sequence[Endpoint], facts: Facts, now: float) -> RoutingDecision:  # noqa: ARG002 - all policies are asked alike
        """The replica with the longest match among `candidates` (at least one), or the one with the fewest requests."""
        return RoutingDecision(self.rng.choice(self._equals(candidates, facts)))

    def _equals(self, candidates: Sequence[Endpoint], facts: Facts) -> list[Endpoint]:
        loads = [self._in_flight(endpoint) for endpoint in candidates]
        least, most = min(loads), max(loads)
        if most - least <= IMBALANCE_REQUESTS or most <= IMBALANCE_FACTOR * least:
            matches = [bytes_of(self._fleet.view(endpoint).index.known(facts.blocks)) for endpoint in candidates]
            longest = max(matches)
            if longest > LEAST_MATCH * facts.prompt_bytes:
                return [one for one, match in zip(candidates, matches, strict=True) if match == longest]
        return [one for one, load in zip(candidates, loads, strict=True) if load == least]
