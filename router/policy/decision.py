"""PURE. What a policy answers: which endpoint gets a request, and by which scores it was chosen."""

from collections.abc import Sequence

from router.model import Endpoint


class RoutingDecision:
    """One choice of `endpoint`.

    `candidates` are those that have a score, in the order of `scores`; both are empty where it was not made by scores.
    """

    # No dataclass: one is made for every request, and of a dataclass mypyc leaves `__init__` to the interpreter.

    def __init__(self, endpoint: Endpoint, candidates: Sequence[Endpoint] = (), scores: Sequence[float] = ()) -> None:
        self.endpoint = endpoint
        self.candidates = candidates
        self.scores = scores
