"""Several routers over the same replicas, in the replay without sockets: who hears what of whom, and when.

What they tell is written, bounded and merged by the router's own code (`router/policy/peers.py`). Only the way there is made up:
a share takes a while, and some are lost.
"""

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from router.policy.fleet_view import FleetView
from router.policy.peers import TELL_S, Heard, Load, Teller, merged


@dataclass(frozen=True, slots=True)
class Routers:
    """How many there are, and how they tell each other.

    `tell_s` and `transit_s` are in a router's seconds; 0 for `tell_s` is nothing told. `loss` is the share of shares lost.
    """

    count: int = 1
    tell_s: float = TELL_S
    transit_s: float = 0.010
    loss: float = 0.0


class Router:
    """One router's side: its view of the fleet, and `Elsewhere` as the view reads it. Tags are of the replicas' ids."""

    def __init__(self, number: int, slots: int, read_ahead_s: float) -> None:
        self.fleet = FleetView(elsewhere=self, read_ahead_s=read_ahead_s)
        self.heard = Heard()
        self.teller = Teller(str(number))
        self.tags = [0] * slots
        """By slot, once something was placed there."""
        self.in_flight = [0] * slots
        self._own = [Load()] * slots
        self._work, self._reading = [0] * slots, [0] * slots
        self._read_at, self._head = [0.0] * slots, [(0.0, 0)] * slots
        self._placed: list[tuple[int, Sequence[int]]] = []
        self.inbox: list[tuple[int, Sequence[int]]] = []
        self.now = 0.0
        """The last moment that something was asked of it, in its own seconds."""

    def tell(self, now: float) -> bytes | None:
        """Its next share."""
        loads = {tag: self._load(slot, now) for slot, tag in enumerate(self.tags) if tag}
        placed, self._placed = self._placed, []
        return self.teller.share(loads, placed, now)

    def _load(self, slot: int, now: float) -> Load:
        read_at, (head_at, head_bytes) = self._read_at[slot], self._head[slot]
        return Load(
            self.in_flight[slot],
            max(0, self._work[slot]),
            max(0, self._reading[slot]),
            int((now - read_at) * 1000) if read_at else None,
            int((now - head_at) * 1000) if head_at else None,
            head_bytes,
        )

    def _others(self, slot: int) -> tuple[int, int, int, float, float, int]:
        return merged(self.heard.of(self.tags[slot], self.now), self.now)

    def add(self, slot: int, work_bytes: int, reading_bytes: int) -> None:
        self._work[slot] += work_bytes
        self._reading[slot] += reading_bytes

    def read_at(self, slot: int, now: float) -> None:
        self._read_at[slot] = now

    def head_is(self, slot: int, at: float, work_bytes: int) -> None:
        self._head[slot] = (at, work_bytes)

    def head(self, slot: int) -> tuple[float, int]:
        *_, at, work_bytes = self._others(slot)
        return (at, work_bytes) if at else (inf, 0)

    def requests(self, slot: int) -> int:
        return self._others(slot)[0]

    def work_bytes(self, slot: int) -> int:
        return self._others(slot)[1]

    def reading_bytes(self, slot: int) -> int:
        return self._others(slot)[2]

    def last_read_s(self, slot: int) -> float:
        return self._others(slot)[3]

    def placed(self, tag: int, blocks: Sequence[int]) -> None:
        self._placed.append((tag, blocks))

    def news(self) -> list[tuple[int, Sequence[int]]]:
        news, self.inbox = self.inbox, []
        return news


class Several:
    """All of them, and what is on its way.

    Args:
        routers: How many, and how they tell.
        tags: Of the replicas' ids, by slot.
        speed: Seconds of the trace in one of a router's.
        seed: For what is lost.
        read_ahead_s: What replicas get ahead, in a router's seconds.
    """

    def __init__(
        self, routers: Routers, tags: Sequence[int], speed: float, seed: int, *, read_ahead_s: float = 0.0
    ) -> None:
        self._routers = routers
        self._speed = speed
        self._rng = random.Random(seed)  # noqa: S311 - seeded
        self.all = [Router(number, len(tags), read_ahead_s) for number in range(routers.count)]
        for router in self.all:
            router.tags = list(tags)
        self._way: deque[tuple[float, int, bytes]] = deque()
        self._turns = 0
        self.told_bytes = 0
        """By all together, each share once."""

    def advance(self, until_s: float) -> None:
        """Everything that is told and heard up to a moment of the trace, one router after the other within each turn."""
        if self._routers.count > 1 and self._routers.tell_s:
            step_s = self._routers.tell_s * self._speed / self._routers.count
            while self._turns * step_s <= until_s:
                self._hear(self._turns * step_s)
                self._tell(self._turns % self._routers.count, self._turns * step_s)
                self._turns += 1
            self._hear(until_s)
        for router in self.all:
            router.now = until_s / self._speed

    def _tell(self, number: int, at_s: float) -> None:
        share = self.all[number].tell(at_s / self._speed)
        if share is not None:
            self.told_bytes += len(share)
            self._way.append((at_s + self._routers.transit_s * self._speed, number, share))

    def _hear(self, until_s: float) -> None:
        while self._way and self._way[0][0] <= until_s:
            at_s, number, share = self._way.popleft()
            for router in self.all[:number] + self.all[number + 1 :]:
                if self._rng.random() >= self._routers.loss:
                    router.inbox += router.heard.take(str(number), share, at_s / self._speed)[1]
