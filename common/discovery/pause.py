"""How long to wait before a registry that did not answer is asked again.

Twice as long each time, with jitter, so that its return is no stampede (docs/faults.md C3). But the processes of a node start side
by side, and the registry among them: whoever has not reached it since its own start asks again soon, for the first seconds.
"""

import random
import time
from collections.abc import Callable

FIRST_S = 0.5
LAST_S = 10.0
START_S = 10.0
"""From somebody's start, so long: no pause is longer than the first while the registry was not reached."""


class Pause:
    """The pauses of one who asks a registry.

    Args:
        first_s: The first one.
        last_s: No one is longer.
        clock: Monotonic seconds.
        rng: For the jitter.
    """

    def __init__(
        self,
        first_s: float = FIRST_S,
        last_s: float = LAST_S,
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._first_s, self._last_s, self._next_s = first_s, last_s, first_s
        self._clock, self._began, self._was_reached = clock, clock(), False
        self._rng = rng or random.Random()  # noqa: S311 - jitter

    def reached(self) -> None:
        """The registry answered."""
        self._was_reached, self._next_s = True, self._first_s

    def next_s(self, *, last_s: float = 0.0) -> float:
        """It did not: so many seconds from half a pause to a whole one; up to `last_s` where that is longer than our own."""
        pause_s = self._next_s
        if self._was_reached or self._clock() - self._began > START_S:
            self._next_s = min(pause_s * 2, max(self._last_s, last_s))
        return pause_s * self._rng.uniform(0.5, 1.0)
