"""Which address tells whether an instance is well, when to ask, and what to make of the answers. PURE."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

from common.discovery.plan import Plan, plan_of
from common.wire.words import HealthStatus
from registry.core.model import Instance

RISE = 2
"""Good probes in a row that end `unhealthy`."""
FALL = 3
"""Bad probes in a row that end `healthy`."""
FIRST_WITHIN_S = 1.0
"""A new record is probed this soon, at most."""
AGAIN_S = 5.0
"""After a probe that says something else than what is believed; one alone proves nothing."""
MOST_PER_S = 100.0
"""Records beyond what this allows in an interval are probed less often: 20,000 about as often as their leases end."""


def probed_at(instance: Instance) -> Plan:
    """Whom to ask for `/health` (docs/contract.md 1): of a routable record its babysitter, one port up; else the record's own URL."""
    registration = instance.registration
    if instance.kind == "openai-api":
        return plan_of("", registration.host, registration.port + 1)
    return plan_of(registration.url, registration.host, registration.port)


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


def is_in_doubt(health: HealthStatus, streak: int) -> bool:
    """Whether the next probe may change what is believed after the latest."""
    return -FALL < streak < 0 if health is HealthStatus.HEALTHY else 0 < streak < RISE


def next_streak(streak: int, *, good: bool) -> int:
    """Count a probe: a change of sign starts again at one."""
    return max(streak, 0) + 1 if good else min(streak, 0) - 1


@dataclass(slots=True)
class Schedule:
    """When each name is to be probed next, spread so that ten thousand of them are no burst.

    Args:
        interval_s: Between two probes of one name, ± 10 %; more where there are very many.
        jitter: Returns a number in [0, 1).
    """

    interval_s: float
    jitter: Callable[[], float]
    _heap: list[tuple[float, str]] = field(default_factory=list)
    _due: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._due)

    @property
    def pause_s(self) -> float:
        """Between two probes of one name, about."""
        return max(self.interval_s, len(self._due) / MOST_PER_S)

    def add(self, name: str, now: float, *, within_s: float) -> None:
        """Plan the first probe of `name`, at a random time not later than `within_s` from now."""
        self._plan(name, now + within_s * self.jitter())

    def hasten(self, name: str, now: float) -> None:
        """Plan the next probe of `name`, if it is not gone, for soon."""
        if name in self._due:
            self._plan(name, now + min(self.interval_s, AGAIN_S))

    def drop(self, name: str) -> None:
        """Plan no more probes of `name`."""
        self._due.pop(name, None)

    def take(self, now: float, most: int) -> list[str]:
        """Up to `most` names whose time has come; each is planned again one pause later."""
        taken: list[str] = []
        pause_s = self.pause_s
        while self._heap and self._heap[0][0] <= now and len(taken) < most:
            due, name = heapq.heappop(self._heap)
            if self._due.get(name) != due:
                continue
            taken.append(name)
            self._plan(name, now + pause_s * (0.9 + 0.2 * self.jitter()))
        return taken

    def _plan(self, name: str, due: float) -> None:
        self._due[name] = due
        heapq.heappush(self._heap, (due, name))
