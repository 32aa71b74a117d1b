"""PURE. The request goes where its first token is expected soonest, with a thought for those that come after it.

    score = (1 - utilisation) · backlog + uncached prefill          [seconds; the least wins]

`backlog` is the reading that a replica has still to do for earlier requests, `uncached prefill` what this prompt would add
to it. Work that a cache saves is saved for everybody who comes later, and the busier the fleet, the more come later and
wait: hence the share of the backlog, which falls with the share of replicas that were found busy (down to a twentieth). Scores
within a tenth of the least (or a millisecond; 50 for the shortest prompts) are ties: the emptiest of those get it, by backlog
and then by requests under way, in weighted rotation. So an idle fleet and short prompts are plain weighted round robin.
"""

from collections.abc import Sequence

from router.model import Endpoint, Facts
from router.policy.blocks import bytes_of
from router.policy.fleet_view import FleetView
from router.policy.replica_view import ReplicaView
from router.policy.round_robin import RoundRobin
from router.policy.rule import Rng, Scores

UTILISATION_LIMIT = 0.95
TIE_SHARE = 0.10
TIE_S = 0.001
SMALL_TIE_S = 0.05
"""For prompts of less than a block, which no cache can help: they are spread evenly unless somebody is behind."""
_WINDOW_REQUESTS = 8
"""Requests per replica over which utilisation is taken."""
_LEAST_WEIGHT = 0.001
"""Of the greatest: what a weight of 0 counts as."""


class Cost:
    """Expected seconds to the first token.

    Args:
        fleet: What is believed of the replicas.
        tie_share: Scores closer than this share of the least are ties.
    """

    name = "cost"
    reads_prompts = True
    tracks = True

    def __init__(self, fleet: FleetView, *, tie_share: float = TIE_SHARE) -> None:
        self._fleet = fleet
        self._tie = 1.0 + tie_share
        self._rotation = RoundRobin()
        self.utilisation = 0.0
        self.last: tuple[Sequence[Endpoint], list[float]] | None = None
        """Candidates and scores of the latest decision, for the log."""

    def pick(self, candidates: Sequence[Endpoint], facts: Facts, now: float, rng: Rng) -> Endpoint:  # noqa: ARG002 - all policies are asked alike
        """The cheapest of `candidates` (at least one)."""
        views = self._fleet.views(candidates, now)
        waits = [view.backlog_s(now) for view in views]
        self._note_busy(len(waits) - waits.count(0.0), len(waits))
        near = self._near(candidates, facts, views, waits)
        return near[0] if len(near) == 1 else self._rotation.next(near)

    def peek(self, candidates: Sequence[Endpoint], facts: Facts, now: float) -> Endpoint | None:
        """The cheapest, or whose turn it is among the nearly equal."""
        views, last = self._fleet.views(candidates, now), self.last
        near = self._near(candidates, facts, views, [view.backlog_s(now) for view in views])
        self.last = last
        return self._rotation.upcoming(near)

    def _near(
        self, candidates: Sequence[Endpoint], facts: Facts, views: list[ReplicaView], waits: list[float]
    ) -> Sequence[Endpoint]:
        """The cheapest; of several nearly as cheap, the emptiest."""
        blocks, prompt_bytes, share = facts.blocks, facts.prompt_bytes, 1.0 - self.utilisation
        weights = [endpoint.weight for endpoint in candidates]
        most = max(weights)
        if most != min(weights):
            waits = _by_weight(waits, weights, most)
        scores = []
        for number, view in enumerate(views):
            held = bytes_of(view.index.held(blocks)) if blocks else 0
            scores.append(share * waits[number] + (prompt_bytes - held) * view.s_per_byte)
        self.last = candidates, scores
        tie_s = TIE_S if blocks else SMALL_TIE_S
        limit = min(scores) * self._tie + tie_s
        near = [number for number, score in enumerate(scores) if score <= limit]
        if len(near) > 1:
            limit = min([waits[number] for number in near]) + tie_s
            near = [number for number in near if waits[number] <= limit]
        if len(near) > 1:
            loads = [views[number].in_flight / (weights[number] or _LEAST_WEIGHT) for number in near]
            least = min(loads)
            near = [number for number, load in zip(near, loads, strict=True) if load == least]
        return candidates if len(near) == len(candidates) else [candidates[number] for number in near]

    def scores(self, candidates: Sequence[Endpoint], facts: Facts, now: float) -> Scores:
        """Backlog, uncached prefill and score of each, in seconds."""
        views = self._fleet.views(candidates, now)
        waits = [view.backlog_s(now) for view in views]
        weights = [endpoint.weight for endpoint in candidates]
        waits = _by_weight(waits, weights, max(weights))
        found: Scores = {}
        for endpoint, view, wait in zip(candidates, views, waits, strict=True):
            held = bytes_of(view.index.held(facts.blocks))
            prefill = (facts.prompt_bytes - held) * view.s_per_byte
            found[endpoint.id] = {
                "score": (1.0 - self.utilisation) * wait + prefill,
                "backlog_s": wait,
                "requests": float(view.in_flight),
                "prefill_s": prefill,
                "cached_bytes": float(held),
                "cache_bytes": view.index.capacity_bytes,
                "s_per_mb": view.s_per_byte * 1e6,
            }
        return found

    def _note_busy(self, busy: int, count: int) -> None:
        """Arrivals see what time sees, on average: the share of busy replicas at arrivals is the utilisation."""
        step = 1.0 / (_WINDOW_REQUESTS * count)
        self.utilisation = min(self.utilisation + step * (busy / count - self.utilisation), UTILISATION_LIMIT)


def _by_weight(waits: list[float], weights: list[float], most: float) -> list[float]:
    """Backlogs as they count: a replica of half the greatest weight is to have half the backlog."""
    if not most:
        return waits
    return [wait * most / max(weight, most * _LEAST_WEIGHT) for wait, weight in zip(waits, weights, strict=True)]
