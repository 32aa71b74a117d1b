"""PURE. The field's cache-aware rule, for comparison: the longest matching prefix, unless loads are out of balance.

Out of balance is when the busiest replica has more than 64 requests, and more than one and a half times, above the idlest;
then, and when less than 0.3 of the prompt matches anywhere, the fewest requests win. These are the defaults of
sglang-router 0.3. It assumes endless caches, as they do.
"""

from collections.abc import Callable, Sequence

from router.model import Endpoint, Facts
from router.policy.blocks import bytes_of
from router.policy.fleet_view import FleetView
from router.policy.rule import Rng, Scores

LEAST_MATCH = 0.3
IMBALANCE_REQUESTS = 64
IMBALANCE_FACTOR = 1.5


class Prefix:
    """Longest match, else fewest requests.

    Args:
        fleet: What is believed of the replicas.
        in_flight: Requests at a replica now, all workers together.
    """

    name = "prefix"
    reads_prompts = True
    tracks = True

    def __init__(self, fleet: FleetView, in_flight: Callable[[Endpoint], int]) -> None:
        self._fleet = fleet
        self._in_flight = in_flight

    def pick(self, candidates: Sequence[Endpoint], facts: Facts, now: float, rng: Rng) -> Endpoint:  # noqa: ARG002 - all policies are asked alike
        """The replica with the longest match among `candidates` (at least one), or the one with the fewest requests."""
        equals = self._equals(candidates, facts)
        return equals[int(rng.random() * len(equals))] if len(equals) > 1 else equals[0]

    def peek(self, candidates: Sequence[Endpoint], facts: Facts, now: float) -> Endpoint | None:  # noqa: ARG002 - see pick
        """None when several are equal."""
        equals = self._equals(candidates, facts)
        return equals[0] if len(equals) == 1 else None

    def _equals(self, candidates: Sequence[Endpoint], facts: Facts) -> list[Endpoint]:
        loads = [self._in_flight(endpoint) for endpoint in candidates]
        least, most = min(loads), max(loads)
        if most - least <= IMBALANCE_REQUESTS or most <= IMBALANCE_FACTOR * least:
            matches = [self._known(endpoint, facts) for endpoint in candidates]
            longest = max(matches)
            if longest > LEAST_MATCH * facts.prompt_bytes:
                return [one for one, match in zip(candidates, matches, strict=True) if match == longest]
        return [one for one, load in zip(candidates, loads, strict=True) if load == least]

    def scores(self, candidates: Sequence[Endpoint], facts: Facts, now: float) -> Scores:  # noqa: ARG002 - see pick
        """Matched bytes and requests of each."""
        found: Scores = {}
        for endpoint in candidates:
            known, requests = self._known(endpoint, facts), self._in_flight(endpoint)
            found[endpoint.id] = {"score": requests - known, "cached_bytes": known, "requests": requests}
        return found

    def _known(self, endpoint: Endpoint, facts: Facts) -> int:
        return bytes_of(self._fleet.view(endpoint).index.known(facts.blocks))
