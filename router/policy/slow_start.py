"""PURE. A replica that joins a running fleet begins with a tenth of its weight and has all of it after half a minute.

Its caches are cold, and what it compiles or loads at first use makes it slow. A fleet that starts together has nobody who
could take more meanwhile: only who joins replicas of the same model that the worker has known for as long begins slowly.
"""

from collections.abc import Sequence
from dataclasses import replace

from router.model import Endpoint

FIRST_SHARE = 0.1


class SlowStart:
    """Who is starting, as one worker sees it.

    Args:
        duration_s: How long it takes; 0 for not at all.
    """

    def __init__(self, duration_s: float) -> None:
        self._duration_s = duration_s
        self._joined: dict[str, float] = {}
        self._slow: dict[str, float] = {}

    @property
    def active(self) -> bool:
        """False while nobody is starting, so that the usual request pays nothing."""
        return bool(self._slow)

    def note(self, endpoints: Sequence[Endpoint], now: float) -> None:
        """A new table."""
        settled = {
            model
            for endpoint in endpoints
            if now - self._joined.get(endpoint.id, now) >= self._duration_s
            for model in endpoint.models
        }
        before, self._joined = self._joined, {}
        for endpoint in endpoints:
            known = before.get(endpoint.id)
            self._joined[endpoint.id] = now if known is None else known
            if known is None and self._duration_s and settled.intersection(endpoint.models):
                self._slow[endpoint.id] = now
        self._slow = {name: since for name, since in self._slow.items() if name in self._joined}

    def weigh(self, candidates: Sequence[Endpoint], now: float) -> Sequence[Endpoint]:
        """`candidates` with the weights that they have now."""
        for name, since in list(self._slow.items()):
            if now - since >= self._duration_s:
                del self._slow[name]
        if not any(endpoint.id in self._slow for endpoint in candidates):
            return candidates
        return [self._weighed(endpoint, now) for endpoint in candidates]

    def _weighed(self, endpoint: Endpoint, now: float) -> Endpoint:
        since = self._slow.get(endpoint.id)
        if since is None:
            return endpoint
        share = FIRST_SHARE + (1.0 - FIRST_SHARE) * (now - since) / self._duration_s
        return replace(endpoint, weight=endpoint.weight * share)
