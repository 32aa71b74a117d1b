"""PURE. The same session goes to the same replica, as long as that one is not overloaded.

Rendezvous hashing orders the replicas for every key, and the first whose load is within the bound gets it (both in
`affinity.py`). A request without a key goes by `other`.
"""

from collections.abc import Callable, Sequence

from router.model import Endpoint, Facts
from router.policy import affinity
from router.policy.decision import RoutingDecision
from router.policy.rule import RoutingPolicy, Scores


class StickySession:
    """Bounded stickiness.

    Args:
        in_flight: Requests at a replica now, all workers together.
        other: For requests that belong to no session.
    """

    name = "session"
    reads_prompts = False

    def __init__(self, in_flight: Callable[[Endpoint], int], other: RoutingPolicy) -> None:
        self._in_flight = in_flight
        self._other = other
        self.tracks = other.tracks

    def pick(self, candidates: Sequence[Endpoint], facts: Facts, now: float) -> RoutingDecision:
        """The session's replica among `candidates` (at least one), or the next one in its order that has room."""
        key = facts.session
        return (
            self._other.pick(candidates, facts, now) if key is None else RoutingDecision(self._owner(key, candidates))
        )

    def peek(self, candidates: Sequence[Endpoint], facts: Facts, now: float) -> Endpoint:
        """See `pick`."""
        key = facts.session
        return self._other.peek(candidates, facts, now) if key is None else self._owner(key, candidates)

    def _owner(self, key: str, candidates: Sequence[Endpoint]) -> Endpoint:
        owner = affinity.pick(key, candidates)
        mean = affinity.mean_per_weight(candidates, self._in_flight)
        if affinity.has_room(self._in_flight(owner), mean * owner.weight):
            return owner
        ordered = sorted(candidates, key=lambda endpoint: affinity.score(key, endpoint), reverse=True)
        for endpoint in ordered:
            if affinity.has_room(self._in_flight(endpoint), mean * endpoint.weight):
                return endpoint
        return owner

    def scores(self, candidates: Sequence[Endpoint], facts: Facts, now: float) -> Scores:
        """How much the session wants each (negative: the least wins), and what each has; 1 for out of bounds."""
        if facts.session is None:
            return self._other.scores(candidates, facts, now)
        mean = affinity.mean_per_weight(candidates, self._in_flight)
        scores: Scores = {}
        for endpoint in candidates:
            requests = self._in_flight(endpoint)
            full = not affinity.has_room(requests, mean * endpoint.weight)
            wish = affinity.score(facts.session, endpoint)
            scores[endpoint.id] = {"score": 1.0 if full else -wish, "wish": wish, "requests": requests}
        return scores
