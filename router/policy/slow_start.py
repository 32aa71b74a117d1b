"""PURE. A replica that joins a running fleet begins with a tenth of its weight and has all of it after half a minute.

Its caches are cold, and what it compiles or loads at first use makes it slow. How long that takes its record may say
(`metadata.slow_start_s`), else the router's setting does. A fleet that starts together has nobody who could take more
meanwhile: only who joins replicas of the same model that the worker has known for as long begins slowly.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from router.model import Endpoint

FIRST_SHARE: Final = 0.1


class SlowStart:
    """Who is starting, as one worker sees it.

    Args:
        default_s: How long it takes a replica that does not say; 0 for not at all.
    """

    def __init__(self, default_s: float) -> None:
        self._default_s = default_s
        self._joined: dict[str, float] = {}
        self._slow: dict[str, tuple[float, float]] = {}
        """By id: since when, and for how long."""

    @property
    def active(self) -> bool:
        """False while nobody is starting, so that the usual request pays nothing."""
        return bool(self._slow)

    def note(self, endpoints: Sequence[Endpoint], now: float) -> None:
        """A new table: nearly always of those that were in the one before."""
        joined = self._joined
        new = [endpoint for endpoint in endpoints if endpoint.id not in joined]
        known_s = self._known_s(endpoints, new, now) if new else {}
        for endpoint in new:
            joined[endpoint.id] = now
            duration_s = self._default_s if endpoint.slow_start_s is None else endpoint.slow_start_s
            if duration_s and max([known_s[model] for model in endpoint.models], default=0.0) >= duration_s:
                self._slow[endpoint.id] = now, duration_s
        if len(joined) > len(endpoints):
            present = {endpoint.id for endpoint in endpoints}
            self._joined = {name: since for name, since in joined.items() if name in present}
            self._slow = {name: start for name, start in self._slow.items() if name in present}

    def _known_s(self, endpoints: Sequence[Endpoint], new: Sequence[Endpoint], now: float) -> dict[str, float]:
        """By model of `new`: for how long the first of its replicas has been known."""
        known_s = {model: 0.0 for endpoint in new for model in endpoint.models}
        for endpoint in endpoints:
            age = now - self._joined.get(endpoint.id, now)
            for model in endpoint.models:
                if model in known_s:
                    known_s[model] = max(age, known_s[model])
        return known_s

    def weigh(self, candidates: Sequence[Endpoint], now: float) -> Sequence[Endpoint]:
        """`candidates` with the weights that they have now."""
        for name, (since, duration_s) in list(self._slow.items()):
            if now - since >= duration_s:
                del self._slow[name]
        if not any(endpoint.id in self._slow for endpoint in candidates):
            return candidates
        return [self._weighed(endpoint, now) for endpoint in candidates]

    def _weighed(self, endpoint: Endpoint, now: float) -> Endpoint:
        start = self._slow.get(endpoint.id)
        if start is None:
            return endpoint
        since, duration_s = start
        share = FIRST_SHARE + (1.0 - FIRST_SHARE) * (now - since) / duration_s
        return replace(endpoint, weight=endpoint.weight * share)
