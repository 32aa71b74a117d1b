"""What routers say of servers that call themselves healthy: nothing good comes from them. Soft state, for their babysitters.

A router says so again every few seconds while it lasts; what it does not say any more is forgotten. It is told to the
server's babysitter with the answer to its heartbeat, which then has the server prove itself (W26).
"""

from collections.abc import Mapping

from common.clock import Clock
from common.wire.record import Doubt

KEPT_S = 20.0
MOST_ROUTERS = 256


class Doubts:
    """By router: the servers of which it gets nothing, with the reason in words.

    Args:
        clock: Monotonic time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._complaints: dict[str, tuple[float, Mapping[str, str]]] = {}

    def note(self, router: str, failing: Mapping[str, str]) -> None:
        """Take all that a router has to say now, in place of what it said before."""
        self._complaints.pop(router, None)
        if failing and len(self._complaints) < MOST_ROUTERS:
            self._complaints[router] = (self._clock.monotonic(), failing)

    def doubt(self, name: str) -> Doubt | None:
        """What is said of a server: a router, and its reason; None while nobody complains, which is nearly always."""
        if not self._complaints:
            return None
        since = self._clock.monotonic() - KEPT_S
        self._complaints = {router: it for router, it in self._complaints.items() if it[0] > since}
        for router, (_, failing) in self._complaints.items():
            if name in failing:
                return Doubt(router=router, reason=failing[name])
        return None
