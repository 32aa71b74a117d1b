"""PURE. The replica with the least to read: prompt bytes placed there and not read yet, then requests under way.

Both are divided by the weight. All candidates are compared; with `two_choices` only two drawn by chance are, for fleets so
large that looking at everybody costs more than it gains (Mitzenmacher, 2001: two choices are nearly as good as all).
"""

from collections.abc import Callable, Sequence

from router.model import Endpoint, Facts
from router.policy.fleet_view import FleetView
from router.policy.round_robin import RoundRobin
from router.policy.rule import Rng, Scores

_WEIGHTLESS = 1e-6
"""Stands for a weight of 0: only when all are."""


class LeastLoaded:
    """The least outstanding prompt bytes per weight.

    Args:
        fleet: What is believed of the replicas.
        in_flight: Requests at a replica now, all workers together.
        two_choices: See above.
    """

    name = "least_loaded"
    reads_prompts = False
    tracks = True

    def __init__(self, fleet: FleetView, in_flight: Callable[[Endpoint], int], *, two_choices: bool = False) -> None:
        self._fleet = fleet
        self._in_flight = in_flight
        self._two_choices = two_choices
        self._rotation = RoundRobin()

    def pick(self, candidates: Sequence[Endpoint], facts: Facts, now: float, rng: Rng) -> Endpoint:  # noqa: ARG002 - all policies are asked alike
        """The least loaded of `candidates` (at least one); equals take turns by weight."""
        if self._two_choices and len(candidates) > 2:  # noqa: PLR2004 - two of two is all
            count = len(candidates)
            first = int(rng.random() * count)
            second = (first + 1 + int(rng.random() * (count - 1))) % count
            candidates = (candidates[first], candidates[second])
        return self._rotation.next(self._least(candidates))

    def peek(self, candidates: Sequence[Endpoint], facts: Facts, now: float) -> Endpoint | None:  # noqa: ARG002 - see pick
        """The least loaded, or None when two are drawn."""
        if self._two_choices and len(candidates) > 2:  # noqa: PLR2004 - see pick
            return None
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
