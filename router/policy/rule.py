"""PURE. What every policy is: a decision from candidates, facts and a moment."""

from collections.abc import Sequence
from typing import Protocol

from router.model import Endpoint, Facts
from router.policy.decision import RoutingDecision

Scores = dict[str, dict[str, float]]
"""By endpoint id: what the decision was made from, `score` among it; the least score wins."""


class Rng(Protocol):
    """A source of chance; `random.Random` is one."""

    def random(self) -> float:
        """A number in [0, 1)."""
        ...


class RoutingPolicy(Protocol):
    """One rule."""

    name: str
    reads_prompts: bool
    """True when it needs `Facts.blocks`."""
    tracks: bool
    """True when it goes by what the fleet is believed to do, and so must be told of every placement."""

    def pick(self, candidates: Sequence[Endpoint], facts: Facts, now: float) -> RoutingDecision:
        """One of `candidates` (at least one)."""
        ...

    def scores(self, candidates: Sequence[Endpoint], facts: Facts, now: float) -> Scores:
        """The inputs of the decision that `pick` would make; changes nothing."""
        ...

    def peek(self, candidates: Sequence[Endpoint], facts: Facts, now: float) -> Endpoint:
        """The endpoint that `pick` would take; changes nothing."""
        ...
