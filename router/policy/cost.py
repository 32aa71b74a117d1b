"""PURE. The request goes where its first token is expected soonest, at the least cost to the requests after it.

    score = (1 - utilisation) · backlog + uncached prefill          [seconds; the least wins]

`backlog` is the reading that a replica has still to do for earlier requests; `uncached prefill` is what this prompt adds to
it. Reading that a cache saves is saved for every later request too, and the busier the fleet is, the more requests wait
behind this one. So the backlog counts less, the more of the replicas are busy: by 1 - utilisation, at least a twentieth.
Scores within a tenth of the least (or a millisecond; 50 for the shortest prompts) are ties. The emptiest replica of a tie
gets the request, by backlog and then by requests under way; equally empty ones take turns by weight. So an idle fleet with
short prompts is served in plain weighted round robin.
"""

from collections.abc import Sequence
from typing import Final

from router.model import Endpoint, Facts
from router.policy.blocks import bytes_of
from router.policy.decision import RoutingDecision
from router.policy.fleet_view import FleetView
from router.policy.replica_view import ReplicaView
from router.policy.round_robin import RoundRobin
from router.policy.rule import Scores

UTILISATION_LIMIT: Final = 0.95
"""Chosen: in a saturated fleet the backlog must still count for something, else queues grow without end. No other share that
was tried in `bench/replay` did better (docs/routing.md)."""
TIE_SHARE: Final = 0.10
"""Chosen: no pace or cache size is known better than that (blocks alone are good to 6 %, see `blocks.py`). No other share
that was tried in `bench/replay` did better (docs/routing.md)."""
TIE_S: Final = 0.001
"""Chosen: below it there is nothing that a client could notice."""
SMALL_TIE_S: Final = 0.05
"""For prompts of less than a block, which no cache can help: they are spread evenly unless somebody is behind. Chosen."""
_WINDOW_REQUESTS: Final = 8
"""Requests per replica over which utilisation is taken. Chosen: short enough to follow a burst of a few seconds."""
_LEAST_WEIGHT: Final = 0.001
"""Of the greatest: what a weight of 0 counts as."""


class _Costs:
    """What a decision is made from, each list in the order of the candidates."""

    def __init__(self, views: list[ReplicaView], waits: list[float], held: list[int], scores: list[float]) -> None:
        self.views = views
        self.waits = waits
        """Backlogs in seconds, by weight."""
        self.held = held
        """Bytes of the prompt that each cache is believed to hold."""
        self.scores = scores


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

    def pick(self, candidates: Sequence[Endpoint], facts: Facts, now: float) -> RoutingDecision:
        """The cheapest of `candidates` (at least one)."""
        views = self._fleet.views(candidates, now)
        waits = [view.backlog_s(now) for view in views]
        self._note_busy(len(waits) - waits.count(0.0), len(waits))
        costs = self._costs(candidates, facts, views, waits)
        near = self._near(candidates, facts, costs)
        return RoutingDecision(near[0] if len(near) == 1 else self._rotation.next(near), candidates, costs.scores)

    def peek(self, candidates: Sequence[Endpoint], facts: Facts, now: float) -> Endpoint:
        """The cheapest, or whose turn it is among the nearly equal."""
        return self._rotation.upcoming(self._near(candidates, facts, self._costs_now(candidates, facts, now)))

    def scores(self, candidates: Sequence[Endpoint], facts: Facts, now: float) -> Scores:
        """Backlog, uncached prefill and score of each, in seconds; requests there, and those of them that wait here."""
        costs = self._costs_now(candidates, facts, now)
        return {
            endpoint.id: {
                "score": costs.scores[number],
                "backlog_s": costs.waits[number],
                "requests": float(view.in_flight),
                "in_line": float(len(view.line)),
                "prefill_s": (facts.prompt_bytes - costs.held[number]) * view.s_per_byte,
                "cached_bytes": float(costs.held[number]),
                "cache_bytes": view.index.capacity_bytes,
                "s_per_mb": view.s_per_byte * 1e6,
            }
            for number, (endpoint, view) in enumerate(zip(candidates, costs.views, strict=True))
        }

    def _costs_now(self, candidates: Sequence[Endpoint], facts: Facts, now: float) -> _Costs:
        views = self._fleet.views(candidates, now)
        return self._costs(candidates, facts, views, [view.backlog_s(now) for view in views])

    def _costs(
        self, candidates: Sequence[Endpoint], facts: Facts, views: list[ReplicaView], waits: list[float]
    ) -> _Costs:
        blocks, prompt_bytes, share = facts.blocks, facts.prompt_bytes, 1.0 - self.utilisation
        weights = [endpoint.weight for endpoint in candidates]
        most = max(weights)
        if most != min(weights):
            waits = _by_weight(waits, weights, most)
        held = [bytes_of(view.index.held(blocks)) for view in views] if blocks else [0] * len(views)
        scores = []
        for number, view in enumerate(views):
            scores.append(share * waits[number] + (prompt_bytes - held[number]) * view.s_per_byte)
        return _Costs(views, waits, held, scores)

    def _near(self, candidates: Sequence[Endpoint], facts: Facts, costs: _Costs) -> Sequence[Endpoint]:
        """The cheapest; of several nearly as cheap, the emptiest."""
        scores, waits = costs.scores, costs.waits
        tie_s = TIE_S if facts.blocks else SMALL_TIE_S
        limit = min(scores) * self._tie + tie_s
        near = [number for number, score in enumerate(scores) if score <= limit]
        if len(near) > 1:
            limit = min([waits[number] for number in near]) + tie_s
            near = [number for number in near if waits[number] <= limit]
        if len(near) > 1:
            loads = [costs.views[number].in_flight / (candidates[number].weight or _LEAST_WEIGHT) for number in near]
            least = min(loads)
            near = [number for number, load in zip(near, loads, strict=True) if load == least]
        return candidates if len(near) == len(candidates) else [candidates[number] for number in near]

    def _note_busy(self, busy: int, count: int) -> None:
        """Arrivals see what time sees, on average: the share of busy replicas at arrivals is the utilisation."""
        step = 1.0 / (_WINDOW_REQUESTS * count)
        self.utilisation = min(self.utilisation + step * (busy / count - self.utilisation), UTILISATION_LIMIT)


def _by_weight(waits: list[float], weights: list[float], most: float) -> list[float]:
    """Backlogs as they count: a replica of half the greatest weight is to have half the backlog."""
    if not most:
        return waits
    return [wait * most / max(weight, most * _LEAST_WEIGHT) for wait, weight in zip(waits, weights, strict=True)]
