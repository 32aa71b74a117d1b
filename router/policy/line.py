"""PURE. The prompts that wait here for one replica, and which goes next: the shortest, as long as nobody comes too late for it.

A replica reads prompts in the order in which it gets them. One that has much to read gets only the next second of it, so that
the rest can still be put in order. Each has a due time, by when its reading is to begin: `PATIENCE` times the wait that it had
before it when it came, which is its wait first come, first served, as the work ahead is the same in any order. Taken in order of
due times, a prompt may go ahead of those before it by as much as every one of them has to spare. Of all that may go, the most
urgent ones come first, and of these the shortest.
"""

from bisect import insort
from collections.abc import Callable
from typing import Final

PATIENCE: Final = 1.2
"""Nobody is to wait longer than so many times its wait first come, first served, as far as that was known."""


class InLine:
    """One prompt that waits.

    `due` is when its reading is to begin at the latest, in monotonic seconds; `urgency` is the less, the more urgent;
    `work_bytes` are what is to be read of it, and `go` is called when its turn has come.
    """

    def __init__(self, due: float, urgency: int, work_bytes: int, go: Callable[[], None]) -> None:
        self.due = due
        self.urgency = urgency
        self.work_bytes = work_bytes
        self.go = go


def _due(one: InLine) -> float:
    return one.due


class Line:
    """All that wait for one replica."""

    def __init__(self) -> None:
        self._waiting: list[InLine] = []
        """By due time."""
        self.work_bytes = 0
        """Of all of them."""

    def __len__(self) -> int:
        return len(self._waiting)

    def join(self, one: InLine) -> None:
        """It begins to wait."""
        insort(self._waiting, one, key=_due)
        self.work_bytes += one.work_bytes

    def leave(self, one: InLine) -> None:
        """It waits no more."""
        self._waiting.remove(one)
        self.work_bytes -= one.work_bytes

    def next(self, at: float, s_per_byte: float) -> InLine:
        """Whose turn it is (there is at least one), if its reading begins at `at`; it goes on waiting until it leaves."""
        best = self._waiting[0]
        begins, spare_s = at, float("inf")
        for one in self._waiting:
            work_s = one.work_bytes * s_per_byte
            if work_s <= spare_s and (one.urgency, one.work_bytes) < (best.urgency, best.work_bytes):
                best = one
            spare_s = min(spare_s, one.due - begins)
            begins += work_s
        return best
