"""PURE. What a policy answers: which endpoint gets a request, and by which scores it was chosen."""

from collections.abc import Sequence
from dataclasses import dataclass

from router.model import Endpoint


@dataclass
class RoutingDecision:
    """One choice; `scores` is empty where it was not made by scores."""

    endpoint: Endpoint
    candidates: Sequence[Endpoint] = ()
    """Those that have a score, in the order of `scores`."""
    scores: Sequence[float] = ()
