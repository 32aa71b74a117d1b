"""PURE. Which replicas stand still: requests wait there, and no byte of anything has come for longer than its pace explains.

A health check may pass while the engine behind it hangs, and then only the requests themselves tell. The silence of a replica is
the time in which some request waited for its first byte and nothing came, neither that nor a further byte of a stream; any
byte ends it. It is held against the replica once it is longer than its own answers of that kind usually let wait
(`policy/wait.py`), so replicas that are slow, or have a long queue that moves, are left alone. What is usual is kept by kind:
by path, and streams apart from answers in one piece, for the latter come only when all is written.

A worker looks four times a second (`waits`, `heard`, then `judge`). Time in which the worker itself stood still is nobody's
silence.
"""

import math
from dataclasses import dataclass, field
from typing import Final

from router.policy.wait import Wait

LEAST_S: Final = 3.0
"""No silence is shorter: engines pause to compile, to collect garbage, to grow a cache."""
NEWCOMER_S: Final = 60.0
"""Beyond what is usual elsewhere, for a replica that has not answered yet."""
KNOWN_ANSWERS: Final = 5
"""From so many on a replica's own waits of a kind are its pace."""
_LONGEST_TURN_S: Final = 0.5
_KEPT_S: Final = 60.0
"""A longer silence is forgotten no more slowly than this one."""


Kind = tuple[bytes, bool]
"""An operation's path, and whether its answer is a stream."""


@dataclass
class _Waits:
    """Those of one kind."""

    usual: Wait = field(default_factory=Wait)
    silent_s: float = 0.0
    oldest: float = math.inf
    """Since when the oldest of those that wait has done so."""
    work_s: float = 0.0
    """The most that one of them explains."""


@dataclass
class Silent:
    """What is held against one replica."""

    kinds: dict[Kind, _Waits] = field(default_factory=dict)
    waiting: int = 0
    """Requests that wait for their first byte."""
    newest: float = 0.0
    """When the latest of them was sent."""
    heard_at: float = 0.0
    late: bool = False

    def of(self, kind: Kind) -> _Waits:
        """The waits of one kind."""
        waits = self.kinds.get(kind)
        if waits is None:
            waits = self.kinds[kind] = _Waits()
        return waits

    def hear(self, at: float) -> None:
        """A byte came."""
        self.heard_at = at
        for waits in self.kinds.values():
            waits.silent_s = 0.0


class Silence:
    """All replicas of one worker, by endpoint id."""

    def __init__(self) -> None:
        self.replicas: dict[str, Silent] = {}
        self._judged_at = 0.0

    def forget_all_but(self, ids: set[str]) -> None:
        """Drop the memory of endpoints that are gone."""
        self.replicas = {name: silent for name, silent in self.replicas.items() if name in ids}

    def answered(self, name: str, kind: Kind, wait_s: float, now: float) -> bool:
        """The first byte of an answer came after `wait_s`; returns whether a silence had been held against the replica."""
        replica = self._of(name)
        was_late = replica.late
        if not was_late:  # else it is no pace
            replica.of(kind).usual.note(wait_s)
        replica.hear(now)
        return was_late

    # -- a look ------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A look begins: nobody waits yet."""
        for replica in self.replicas.values():
            if replica.waiting:
                replica.waiting = 0
                for waits in replica.kinds.values():
                    waits.oldest, waits.work_s = math.inf, 0.0

    def waits(self, name: str, kind: Kind, since: float, work_s: float) -> None:
        """A request waits for its first byte since a moment; reading its prompt alone may take `work_s`."""
        replica = self._of(name)
        waits = replica.of(kind)
        waits.oldest = min(waits.oldest, since)
        waits.work_s = max(waits.work_s, work_s)
        replica.waiting += 1
        replica.newest = max(replica.newest, since)

    def heard(self, name: str, at: float) -> None:
        """Bytes of an answer came at a moment."""
        replica = self.replicas.get(name)
        if replica is not None and at > replica.heard_at:
            replica.hear(at)

    def judge(self, now: float) -> list[str]:
        """Who stands still by now."""
        turn_s = min(now - self._judged_at, _LONGEST_TURN_S)
        self._judged_at = now
        late = []
        for name, replica in self.replicas.items():
            replica.late = False
            for waits in replica.kinds.values():
                if waits.oldest < math.inf:
                    waits.silent_s += max(0.0, min(turn_s, now - max(waits.oldest, replica.heard_at)))
                    if waits.silent_s >= LEAST_S and waits.silent_s > self._explained_s(waits):
                        replica.late = True
                elif waits.silent_s:
                    # They left, and nobody knows; somebody has to try again some time.
                    waits.silent_s = max(0.0, min(waits.silent_s, _KEPT_S) - turn_s)
            if replica.late:
                late.append(name)
        return late

    def _of(self, name: str) -> Silent:
        replica = self.replicas.get(name)
        if replica is None:
            replica = self.replicas[name] = Silent()
        return replica

    def _explained_s(self, waits: _Waits) -> float:
        """How long a replica may be silent while those wait."""
        usual_s = waits.usual.limit_s
        if waits.usual.count < KNOWN_ANSWERS:
            usual = [one.usual.limit_s for replica in self.replicas.values() for one in replica.kinds.values()]
            usual_s = NEWCOMER_S + max(usual)
        return max(LEAST_S, usual_s) + waits.work_s
