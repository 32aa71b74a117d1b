"""PURE. How many retries a worker may make: a share of the last ten seconds' requests, and a small rate (docs/faults.md D8).

Counted over time, not at an instant: where every replica refuses at once, requests are over before they are many, and a
budget of those in flight is empty and full again with each (so do Finagle and Linkerd; their window is ten seconds too).
"""

from typing import Final

RETRY_SHARE: Final = 0.2
RETRY_RATE: Final = 0.5
"""Per second, whatever the requests: what a quiet router needs to move a request at all."""
WINDOW_S: Final = 10


class RetryBudget:
    """The requests and retries of the last ten seconds, counted in slots of one second each."""

    def __init__(self) -> None:
        self._requests = [0] * WINDOW_S
        self._retries = [0] * WINDOW_S
        self._second = 0
        self._asked = self._retried = 0
        """The sums of those."""

    def note_request(self, now: float) -> None:
        """A request goes to its first replica."""
        if now >= self._second + 1:
            self._turn(int(now))
        self._requests[self._second % WINDOW_S] += 1
        self._asked += 1

    def allows(self, now: float) -> bool:
        """True when one more retry may start."""
        if now >= self._second + 1:
            self._turn(int(now))
        return self._retried + 1 <= RETRY_RATE * WINDOW_S + RETRY_SHARE * self._asked

    def note_retry(self) -> None:
        """A retry starts; `allows` has just said that it may."""
        self._retries[self._second % WINDOW_S] += 1
        self._retried += 1

    def _turn(self, second: int) -> None:
        """Forget the seconds that are out of the window by now."""
        for passed in range(max(self._second + 1, second - WINDOW_S + 1), second + 1):
            self._requests[passed % WINDOW_S] = self._retries[passed % WINDOW_S] = 0
        self._second = second
        self._asked, self._retried = sum(self._requests), sum(self._retries)
