"""PURE. The default order of the rules: cache type narrows, a key decides, round robin does the rest."""

from collections.abc import Sequence

from router.model import Endpoint, Facts
from router.policy import affinity, cache_type
from router.policy.round_robin import RoundRobin


class Chooser:
    """Picks for one worker.

    Args:
        cache_type_threshold_bytes: See `cache_type`.
    """

    def __init__(self, *, cache_type_threshold_bytes: int = cache_type.DEFAULT_THRESHOLD_BYTES) -> None:
        self._threshold_bytes = cache_type_threshold_bytes
        self._round_robin = RoundRobin()

    def pick(self, candidates: Sequence[Endpoint], facts: Facts) -> Endpoint:
        """One of `candidates` (at least one)."""
        narrowed = cache_type.prefer(candidates, facts.text_bytes, self._threshold_bytes)
        if facts.affinity is not None:
            return affinity.pick(facts.affinity, narrowed)
        return self._round_robin.next(narrowed)

    def explain(self, candidates: Sequence[Endpoint], facts: Facts) -> tuple[str, dict[str, float]]:
        """The rule that decides and every remaining candidate's score by id; the greatest wins. Changes nothing."""
        narrowed = cache_type.prefer(candidates, facts.text_bytes, self._threshold_bytes)
        if facts.affinity is not None:
            return "affinity", {endpoint.id: affinity.score(facts.affinity, endpoint) for endpoint in narrowed}
        scores = self._round_robin.scores(narrowed, facts, 0.0)
        return "round_robin", {name: -values["score"] for name, values in scores.items()}
