"""Which URL tells whether an instance is well, when to ask, and what to make of the answers. PURE."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

from common.discovery.plan import plan_of
from common.wire.words import HealthStatus
from registry.core.model import Instance

RISE = 2
"""Good probes in a row that end `unhealthy`."""
FALL = 3
"""Bad probes in a row that end `healthy`."""
FIRST_WITHIN_S = 1.0
"""A new record is probed this soon, at most."""


def probe_url(instance: Instance) -> str:
    """Where to ask (docs/contract.md 1): a routable record at its babysitter, one port up; anything else at its own URL."""
    registration = instance.registration
    if instance.kind == "openai-api":
        return f"{plan_of('', registration.host, registration.port + 1).url}/health"
    return f"{plan_of(registration.url, registration.host, registration.port).url}/health"


def verdict(current: HealthStatus, streak: int) -> HealthStatus:
    """The health after a probe.

    Args:
        current: What was believed before.
        streak: Good probes in a row, or minus the bad ones in a row, this one included.
    """
    if current is HealthStatus.UNKNOWN:
        return HealthStatus.HEALTHY if streak > 0 else HealthStatus.UNHEALTHY
    if current is HealthStatus.HEALTHY:
        return HealthStatus.UNHEALTHY if streak <= -FALL else HealthStatus.HEALTHY
    return HealthStatus.HEALTHY if streak >= RISE else HealthStatus.UNHEALTHY


def next_streak(streak: int, *, good: bool) -> int:
    """Count a probe: a change of sign starts again at one."""
    return max(streak, 0) + 1 if good else min(streak, 0) - 1


@dataclass(slots=True)
class Schedule:
    """When each name is to be probed next, spread so that ten thousand of them are no burst.

    Args:
        interval_s: Between two probes of one name, ± 10 %.
        jitter: Returns a number in [0, 1).
    """

    interval_s: float
    jitter: Callable[[], float]
    _heap: list[tuple[float, str]] = field(default_factory=list)
    _due: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._due)

    def add(self, name: str, now: float, *, within_s: float) -> None:
        """Plan the first probe of `name`, at a random time not later than `within_s` from now."""
        self._plan(name, now + within_s * self.jitter())

    def drop(self, name: str) -> None:
        """Plan no more probes of `name`."""
        self._due.pop(name, None)

    def take(self, now: float, most: int) -> list[str]:
        """Up to `most` names whose time has come; each is planned again one interval later."""
        taken: list[str] = []
        while self._heap and self._heap[0][0] <= now and len(taken) < most:
            due, name = heapq.heappop(self._heap)
            if self._due.get(name) != due:
                continue
            taken.append(name)
            self._plan(name, now + self.interval_s * (0.9 + 0.2 * self.jitter()))
        return taken

    def _plan(self, name: str, due: float) -> None:
        self._due[name] = due
        heapq.heappush(self._heap, (due, name))
