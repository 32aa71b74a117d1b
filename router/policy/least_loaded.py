"""PURE. The replica with the least to read: prompt bytes placed there and not read yet, then requests under way.

Both are divided by the weight.
"""

from collections.abc import Callable, Sequence
from typing import Final

from router.model import Endpoint, Facts
from router.policy.decision import RoutingDecision
from router.policy.fleet_view import FleetView
from router.policy.round_robin import RoundRobin
from router.policy.rule import Scores

_WEIGHTLESS: Final = 1e-6
"""Stands for a weight of 0: only when all are."""


class LeastLoaded:
    """The least outstanding prompt bytes per weight.

    Args:
        fleet: What is believed of the replicas.
        in_flight: Requests at a replica now, all workers together.
    """

    name = "least_loaded"
    reads_prompts = False
    tracks = True

    def __init__(self, fleet: FleetView, in_flight: Callable[[Endpoint], int]) -> None:
        self._fleet = fleet
        self._in_flight = in_flight
        self._rotation = RoundRobin()

    def pick(self, candidates: Sequence[Endpoint], facts: Facts, now: float) -> RoutingDecision:  # noqa: ARG002 - all policies are asked alike
        """The least loaded of `candidates` (at least one); equals take turns by weight."""
        return RoutingDecision(self._rotation.next(self._least(candidates)))

    def peek(self, candidates: Sequence[Endpoint], facts: Facts, now: float) -> Endpoint:  # noqa: ARG002 - see pick
        """The least loaded, or the one of the equals whose turn it is."""
        return self._rotation.upcoming(self._least(candidates))

    def scores(self, candidates: Sequence[Endpoint], facts: Facts, now: float) -> Scores:  # noqa: ARG002 - see pick
        """Outstanding bytes and requests of each, per weight."""
        return {
            endpoint.id: {"score": load[0], "requests": load[1]}
            for endpoint in candidates
            for load in (self._load(endpoint),)
        }

    def _least(self, candidates: Sequence[Endpoint]) -> list[Endpoint]:
        loads = [self._load(endpoint) for endpoint in candidates]
        least = min(loads)
        return [one for one, load in zip(candidates, loads, strict=True) if load == least]

    def _load(self, endpoint: Endpoint) -> tuple[float, float]:
        weight = endpoint.weight or _WEIGHTLESS
        return self._fleet.view(endpoint).outstanding / weight, self._in_flight(endpoint) / weight
