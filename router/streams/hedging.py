"""PURE. When a second copy of a request is worth sending: no byte for longer than 95 % of such requests wait for theirs.

Such requests are those of one model, one call, streams or not, and a prompt of about that size. What they usually wait is
learned by replica, and the middle one of these counts, so that a straggler is not what is usual. A first copy that lost counts
with the time after which it had. (Dean and Barroso, The Tail at Scale, 2013, hedge after the 95th percentile too.)

A replica whose first copies lose one after the other is passed over for a while, or each would need its copy: a cancelled copy
makes room, so that the slowest replica would look the emptiest. After that one request tries it.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from router.model import Endpoint

SHARE: Final = 0.05
"""Of the requests, at most, get a second copy."""
_MARGIN: Final = 1.1
"""On that: where all wait about as long, the slowest of these would take the copies that a straggler's requests need."""
BUSY_LIMIT: Final = 0.6
"""Of a pool: beyond it a copy takes from others more than it gives."""
SAVED: Final = 8.0
"""Copies that a quiet time may save up."""
_SAMPLES, _ENOUGH = 64, 20
"""The latest waits of a replica that are kept, and from how many on they tell a 95th percentile."""
_EACH: Final = 16
"""Waits of all replicas after which that is taken anew."""
_KINDS: Final = 128
"""That are remembered; clients choose models and sizes."""
_IN_A_ROW: Final = 3
"""First copies that lost: then their replica is passed over."""
_PASS_OVER_S, _LONGEST_S = 5.0, 60.0
"""For so long, doubled with each trial that lost, at most for so long."""

Kind = tuple[str, bytes, bool, int]
"""Model, call, whether it is a stream, and the prompt's size as a power of 4."""


class _Waits:
    """The first bytes of one kind."""

    def __init__(self) -> None:
        self.by_replica: dict[str, deque[float]] = {}
        self.count = 0
        self.usual_s = 0.0

    def note(self, replica: str, seconds: float) -> None:
        """One came."""
        latest = self.by_replica.get(replica)
        if latest is None:
            latest = self.by_replica[replica] = deque(maxlen=_SAMPLES)
        latest.append(seconds)
        self.count += 1
        if not self.count % _EACH:
            known = [sorted(one) for one in self.by_replica.values() if len(one) >= _ENOUGH]
            tails = sorted(one[int(len(one) * (1 - SHARE))] for one in known)
            self.usual_s = tails[(len(tails) - 1) // 2] if tails else 0.0


@dataclass
class _Beaten:
    """A replica whose latest first copies lost."""

    losses: int = 0
    passed_over_s: float = 0.0
    """For how long each time; 0 while it is not."""
    since: float = 0.0
    until: float = 0.0


class Hedges:
    """What a worker has learned, and how many copies it may send."""

    def __init__(self) -> None:
        self._waits: dict[Kind, _Waits] = {}
        self._credit = 0.0
        self._beaten: dict[str, _Beaten] = {}

    def forget_all_but(self, ids: set[str]) -> None:
        """Drop the memory of replicas that are gone."""
        for waits in self._waits.values():
            waits.by_replica = {name: latest for name, latest in waits.by_replica.items() if name in ids}
        self._beaten = {name: beaten for name, beaten in self._beaten.items() if name in ids}

    def begin(self, model: str, call: bytes, prompt_bytes: int, *, stream: bool) -> tuple[Kind, float]:
        """A request is sent: its kind, and after how many seconds a copy is due; 0 where too little is known."""
        self._credit = min(SAVED, self._credit + SHARE)
        kind = (model, call, stream, prompt_bytes.bit_length() // 2)
        waits = self._waits.get(kind)
        return kind, waits.usual_s * _MARGIN if waits is not None else 0.0

    def note(self, kind: Kind, replica: str, seconds: float) -> None:
        """A first byte came from a replica, or its first copy lost, after so long."""
        waits = self._waits.get(kind)
        if waits is None:
            if len(self._waits) >= _KINDS:
                self._waits.clear()
            waits = self._waits[kind] = _Waits()
        waits.note(replica, seconds)

    def tries(self, replica: str, now: float) -> bool:
        """A first copy goes to a replica; True where it is the one that tries it: until its end the others pass on."""
        beaten = self._beaten.get(replica)
        if beaten is None or not beaten.passed_over_s:
            return False
        beaten.until = now + beaten.passed_over_s
        return True

    def was_first(self, replica: str) -> None:
        """A first copy was the answer, before a second one was due or in a race with it."""
        self._beaten.pop(replica, None)

    def was_beaten(self, replica: str, sent_at: float, now: float) -> bool:
        """A first copy lost; True where its replica is passed over from now on."""
        beaten = self._beaten.setdefault(replica, _Beaten())
        if sent_at < beaten.since:
            return False  # it was sent before that was known
        beaten.losses += 1
        if beaten.losses < _IN_A_ROW:
            return False
        beaten.passed_over_s = min(_LONGEST_S, 2 * beaten.passed_over_s or _PASS_OVER_S)
        beaten.since, beaten.until = now, now + beaten.passed_over_s
        return True

    def passed_over(self, now: float) -> frozenset[str]:
        """Ids of replicas that get nothing now while there are others; nobody tries one while it could have no copy."""
        return frozenset(
            name for name, one in self._beaten.items() if one.until > now or (one.passed_over_s and self._credit < 1)
        )

    def take(self) -> bool:
        """Whether one more copy is within the budget; it is sent then."""
        if self._credit < 1:
            return False
        self._credit -= 1
        return True


def busy_share(pool: Iterable[tuple[Endpoint, int]]) -> float:
    """How much of a pool is taken, by each replica's requests and its limit.

    One without a limit is free or full by whether its engine's own queue is empty; full where it tells nothing of that.
    """
    shares = [_share(endpoint, requests) for endpoint, requests in pool]
    return sum(shares) / len(shares) if shares else 1.0


def _share(endpoint: Endpoint, requests: int) -> float:
    if endpoint.limit:
        return min(1.0, requests / endpoint.limit)
    return 0.0 if endpoint.waiting == 0 else 1.0
