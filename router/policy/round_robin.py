"""PURE. Smooth weighted round robin, as nginx does it.

Every pick adds each candidate's weight to its credit and takes the greatest credit, which then pays the sum of all
weights: weights 5, 1, 1 give a a b a c a a, never five in a row.
"""

from collections.abc import Sequence
from typing import Final

from router.model import Endpoint, Facts
from router.policy.decision import RoutingDecision
from router.policy.rule import Scores

CREDIT_LIMIT: Final = 4096
"""Endpoints remembered; above it the memory of those that are gone is dropped."""


class RoundRobin:
    """The credits of one worker, by endpoint id; the owner calls it from one task only."""

    name = "round_robin"
    reads_prompts = False
    tracks = False

    def __init__(self) -> None:
        self._credit: dict[str, float] = {}

    def pick(self, candidates: Sequence[Endpoint], facts: Facts, now: float) -> RoutingDecision:  # noqa: ARG002 - all policies are asked alike
        """The next of `candidates` (at least one)."""
        return RoutingDecision(self.next(candidates))

    def scores(self, candidates: Sequence[Endpoint], facts: Facts, now: float) -> Scores:  # noqa: ARG002 - see pick
        """What each would have at the next pick, negative because the least score wins."""
        return {
            endpoint.id: {"score": -self._credit.get(endpoint.id, 0.0) - endpoint.weight} for endpoint in candidates
        }

    def peek(self, candidates: Sequence[Endpoint], facts: Facts, now: float) -> Endpoint:  # noqa: ARG002 - see pick
        """The one with the most credit at the next pick."""
        return self.upcoming(candidates)

    def upcoming(self, candidates: Sequence[Endpoint]) -> Endpoint:
        """Whom `next` would take."""
        weighted = [endpoint for endpoint in candidates if endpoint.weight] or candidates
        return max(weighted, key=lambda endpoint: self._credit.get(endpoint.id, 0.0) + endpoint.weight)

    def next(self, candidates: Sequence[Endpoint]) -> Endpoint:
        """The next of `candidates` (at least one). A weight of 0 is picked only when all are 0."""
        if len(candidates) == 1:
            return candidates[0]
        credit = self._credit
        if len(credit) > CREDIT_LIMIT:
            kept = {endpoint.id for endpoint in candidates}
            self._credit = credit = {name: value for name, value in credit.items() if name in kept}
        total = 0.0
        best: Endpoint | None = None
        best_credit = 0.0
        for endpoint in candidates:
            total += endpoint.weight
            mine = credit.get(endpoint.id, 0.0) + endpoint.weight
            credit[endpoint.id] = mine
            if endpoint.weight and (best is None or mine > best_credit):
                best, best_credit = endpoint, mine
        if best is None:
            # All weights are 0: plain rotation, by charging every pick one turn.
            best = max(candidates, key=lambda endpoint: credit[endpoint.id])
            credit[best.id] -= 1.0
            return best
        credit[best.id] = best_credit - total
        return best
