"""PURE. What metrics tell of deployments, counted by the registry that leads."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from registry.deployments.board import Status
from registry.deployments.model import Cause


@dataclass(slots=True)
class Tally:
    """Counts since this registry began.

    Args:
        cold_starts: Starts of a deployment that had nothing, for a request that waited.
        starts: Starts that ended well, and `start_s` how long they took together.
        waited_s: Seconds that requests waited for models without a replica, all together.
        evictions: Replicas that were told to leave, by reason.
        statuses: How deployments stand; empty while another registry leads.
    """

    cold_starts: int = 0
    starts: int = 0
    start_s: float = 0.0
    waited_s: float = 0.0
    evictions: Counter[Cause] = field(default_factory=lambda: Counter(dict.fromkeys(Cause, 0)))
    statuses: Mapping[str, Status] = field(default_factory=dict)
    _waiting: dict[str, tuple[int, float]] = field(default_factory=dict)

    def started(self, took_s: float) -> None:
        """A start ended well."""
        self.starts += 1
        self.start_s += took_s

    def waits(self, name: str, waiting: int, now: float) -> None:
        """So many wait for it now."""
        before, at = self._waiting.pop(name, (0, now))
        self.waited_s += before * max(0.0, now - at)
        if waiting:
            self._waiting[name] = (waiting, now)

    def show(self, statuses: Mapping[str, Status]) -> None:
        """How deployments stand now."""
        self.statuses = statuses
        self._waiting = {name: it for name, it in self._waiting.items() if name in statuses}
