"""PURE. Chance, by weight: needs no state and no agreement between workers."""

from collections.abc import Sequence

from router.model import Endpoint, Facts
from router.policy.rule import Rng, Scores


class RandomChoice:
    """One of the candidates, each as likely as its weight says."""

    name = "random"
    reads_prompts = False
    tracks = False

    def pick(self, candidates: Sequence[Endpoint], facts: Facts, now: float, rng: Rng) -> Endpoint:  # noqa: ARG002 - all policies are asked alike
        """One of `candidates` (at least one)."""
        at = rng.random() * sum([endpoint.weight for endpoint in candidates])
        for endpoint in candidates:
            at -= endpoint.weight
            if at < 0:
                return endpoint
        # All weights are 0, or rounding left nothing for the last one.
        return candidates[int(rng.random() * len(candidates))] if not any(_weights(candidates)) else candidates[-1]

    def scores(self, candidates: Sequence[Endpoint], facts: Facts, now: float) -> Scores:  # noqa: ARG002 - see pick
        """The chance of each, negative because the least score wins."""
        total = sum(_weights(candidates)) or 1.0
        return {endpoint.id: {"score": -endpoint.weight / total} for endpoint in candidates}

    def peek(self, candidates: Sequence[Endpoint], facts: Facts, now: float) -> Endpoint | None:  # noqa: ARG002 - see pick
        """Nobody knows, unless there is one."""
        return candidates[0] if len(candidates) == 1 else None


def _weights(candidates: Sequence[Endpoint]) -> list[float]:
    return [endpoint.weight for endpoint in candidates]
