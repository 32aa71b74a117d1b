"""How far apart heartbeats shall be: as far as the fleet is large, so that they never cost a registry more than some a second. PURE.

Every record that beats here does so once in an interval: `beating / most_per_s` seconds are as often as can be had. Steps
double, and go back only when the shorter one has room to spare, because each changes the lease of every record, which is
written. What is told never shortens a lease by itself: a client registers for the longer one first (`common/discovery/lease.py`).
"""

from dataclasses import dataclass

from msgspec import UNSET, UnsetType

UNTOLD_S = 5
"""What babysitters and agents do by themselves."""
FIRST_S = 10
LONGEST_S = 160
ROOM = 0.7
"""A shorter interval is told when so much of what it allows is used at most."""
UNKNOWN_FOR_S = 1.2 * LONGEST_S
"""Over a shared store, one that starts does not know which of the records beat at it, until each must have done so."""


def next_step(told_s: int, enough_s: float) -> int:
    """Seconds to tell from now on; 0 lets everybody beat as often as it likes.

    Args:
        told_s: What is told now.
        enough_s: Between two heartbeats of each record, for all that beat here.
    """
    while told_s < LONGEST_S and enough_s > (told_s or UNTOLD_S):
        told_s = 2 * told_s or FIRST_S
    while told_s and enough_s < ROOM * told_s / 2:
        told_s = told_s // 2 if told_s > FIRST_S else 0
    return told_s


@dataclass(slots=True)
class Pace:
    """What this registry tells clients of its own.

    Args:
        most_per_s: Heartbeats that it wants in a second, at most.
        known_at: Monotonic seconds; before, it does not know, and everybody stays as it is.
        interval_s: What it tells; 0: no limit; None: it does not know.
    """

    most_per_s: float
    known_at: float
    interval_s: int | None

    @property
    def told_s(self) -> int | UnsetType | None:
        """`heartbeat_interval_s` of an answer: UNSET where there is no limit."""
        return UNSET if self.interval_s == 0 else self.interval_s

    @property
    def said(self) -> bytes:
        """The same, as a member more of an answer that is JSON."""
        if self.interval_s == 0:
            return b""
        return b',"heartbeat_interval_s":%b' % (b"null" if self.interval_s is None else b"%d" % self.interval_s)

    def judge(self, beating: int, now: float) -> None:
        """Take in how many records beat here."""
        if now >= self.known_at:
            self.interval_s = next_step(self.interval_s or 0, beating / self.most_per_s)
