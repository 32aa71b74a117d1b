"""PURE: how long to wait before a babysitter that ended is started again, and when to give up."""

from dataclasses import dataclass

from babysitter import backoff

RETRY_FIRST_S = 1.0
RETRY_LAST_S = 60.0
STEADY_S = 60.0
"""A babysitter that lived so long is started again at once."""


@dataclass(slots=True)
class Patience:
    """With the babysitters of one replica. `most` may end early in a row; None: any number."""

    most: int | None
    failures: int = 0

    def is_over(self, ran_s: float | None) -> bool:
        """Count one that ended after `ran_s` (None: it was not even begun); True when that was one too many."""
        self.failures = 0 if ran_s is not None and ran_s >= STEADY_S else self.failures + 1
        if self.most is None or ran_s is None or self.failures < self.most:
            return False
        self.failures = 0
        return True

    def wait_s(self, chance: float) -> float:
        """Seconds until the next one; `chance` from 0 to 1 spreads them."""
        return backoff.delay_s(self.failures, first_s=RETRY_FIRST_S, last_s=RETRY_LAST_S, chance=chance)
