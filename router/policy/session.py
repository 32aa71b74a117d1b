"""PURE. The same session goes to the same replica, as long as that one is not overloaded.

Rendezvous hashing orders the replicas for every key (`affinity.py`); the first whose load is within bounds gets it: at most
a quarter above the mean per weight, or two requests (Mirrokni, Thorup and Zadimoghaddam, 2018). A request without a key
goes by `other`.
"""

from collections.abc import Callable, Sequence

from router.model import Endpoint, Facts
from router.policy import affinity
from router.policy.rule import Policy, Rng, Scores

LOAD_FACTOR = 1.25
SPARE_REQUESTS = 2.0


class Session:
    """Bounded stickiness.

    Args:
        in_flight: Requests at a replica now, all workers together.
        other: For requests that belong to no session.
    """

    name = "session"
    reads_prompts = False

    def __init__(self, in_flight: Callable[[Endpoint], int], other: Policy) -> None:
        self._in_flight = in_flight
        self._other = other
        self.tracks = other.tracks

    def pick(self, candidates: Sequence[Endpoint], facts: Facts, now: float, rng: Rng) -> Endpoint:
        """The session's replica among `candidates` (at least one), or the next one in its order that has room."""
        key = facts.session
        return self._other.pick(candidates, facts, now, rng) if key is None else self._owner(key, candidates)

    def peek(self, candidates: Sequence[Endpoint], facts: Facts, now: float) -> Endpoint | None:
        """See `pick`."""
        key = facts.session
        return self._other.peek(candidates, facts, now) if key is None else self._owner(key, candidates)

    def _owner(self, key: str, candidates: Sequence[Endpoint]) -> Endpoint:
        owner = affinity.pick(key, candidates)
        bound = self._bound(candidates)
        if self._in_flight(owner) < bound * owner.weight + SPARE_REQUESTS:
            return owner
        ordered = sorted(candidates, key=lambda endpoint: affinity.score(key, endpoint), reverse=True)
        for endpoint in ordered:
            if self._in_flight(endpoint) < bound * endpoint.weight + SPARE_REQUESTS:
                return endpoint
        return owner

    def scores(self, candidates: Sequence[Endpoint], facts: Facts, now: float) -> Scores:
        """How much the session wants each (negative: the least wins), and what each has; 1 for out of bounds."""
        if facts.session is None:
            return self._other.scores(candidates, facts, now)
        bound = self._bound(candidates)
        found: Scores = {}
        for endpoint in candidates:
            requests = self._in_flight(endpoint)
            full = requests >= bound * endpoint.weight + SPARE_REQUESTS
            wish = affinity.score(facts.session, endpoint)
            found[endpoint.id] = {"score": 1.0 if full else -wish, "wish": wish, "requests": requests}
        return found

    def _bound(self, candidates: Sequence[Endpoint]) -> float:
        """Requests per weight above which a replica has too many."""
        weights = sum([endpoint.weight for endpoint in candidates])
        return LOAD_FACTOR * sum(map(self._in_flight, candidates)) / weights if weights else 0.0
