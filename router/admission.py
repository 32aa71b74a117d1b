"""PURE. Who waits for a replica with room, in which order, and what the others are told.

One line per model, bounded. The more urgent go first, but after eight of them one of those behind has its turn, so that
nobody starves; the least urgent may fill half of the line only. Within a class the client goes first who has had the least of
the model (`shares.py`), and of equals the one who went longest ago: one client's hundred requests do not keep another's single
one waiting, nor do its long ones. `Retry-After` is the line's length over the rate at which it has been moving.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Generic, TypeVar

from router.shares import Shares

Ticket = TypeVar("Ticket")
RATE_WEIGHT = 0.2
"""Of the newest interval between two admissions in the moving average."""
RETRY_AFTER_LIMIT_S = 60
PATIENCE = 8
"""So many go past a class that waits before it has its turn."""
SHARES_MOST = 256
"""Models of which it is remembered who has had how much; of more, the one begun first is forgotten."""


class Priority(IntEnum):
    """How urgent a request is; the least number goes first."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


PRIORITIES = {priority.name.lower(): priority for priority in Priority}


@dataclass(slots=True)
class _Class(Generic[Ticket]):
    """Those of one priority in one line."""

    by_client: dict[str, deque[Ticket]] = field(default_factory=dict)
    """The one who went last is at the end."""
    passed: int = 0
    """How many of the more urgent went past, since one of these last went."""


@dataclass(slots=True)
class _Line(Generic[Ticket]):
    classes: dict[Priority, _Class[Ticket]] = field(default_factory=lambda: {one: _Class() for one in Priority})
    size: int = 0
    interval_s: float = 1.0
    moved_at: float | None = None


class Waiting(Generic[Ticket]):
    """All lines of one worker.

    Args:
        limit: Requests that may wait per model.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lines: dict[str, _Line[Ticket]] = {}
        self._shares: dict[str, Shares] = {}

    def __len__(self) -> int:
        return sum(line.size for line in self._lines.values())

    def models(self) -> list[str]:
        """Models that somebody waits for."""
        return [model for model, line in self._lines.items() if line.size]

    def size(self, model: str) -> int:
        """How many wait for `model`."""
        line = self._lines.get(model)
        return line.size if line is not None else 0

    def join(
        self, model: str, client: str, ticket: Ticket, priority: Priority = Priority.NORMAL, limit: int | None = None
    ) -> bool:
        """Queue up; False when the line is full. `limit` is its length where that is not the usual one."""
        line = self._lines.setdefault(model, _Line())
        limit = self._limit if limit is None else limit
        if line.size >= (limit // 2 if priority is Priority.LOW else limit):
            if not line.size:
                del self._lines[model]
            return False
        group = line.classes[priority]
        queue = group.by_client.get(client)
        if queue is None:
            self.shares(model).lift(client, group.by_client)
            queue = group.by_client[client] = deque()
        queue.append(ticket)
        line.size += 1
        return True

    def leave(self, model: str, client: str, ticket: Ticket) -> None:
        """Give up waiting (the client went, or its time is over)."""
        line = self._lines.get(model)
        if line is None:
            return
        for group in line.classes.values():
            queue = group.by_client.get(client)
            if queue is not None and ticket in queue:
                queue.remove(ticket)
                self._shrink(model, line, group, client)
                return

    def next(self, model: str, now: float) -> Ticket | None:
        """Take the next one whose turn it is."""
        line = self._lines.get(model)
        if line is None:
            return None
        waiting = [group for group in line.classes.values() if group.by_client]
        if not waiting:
            return None
        if line.moved_at is not None:
            line.interval_s += RATE_WEIGHT * (now - line.moved_at - line.interval_s)
        line.moved_at = now
        group = next((group for group in reversed(waiting) if group.passed >= PATIENCE), waiting[0])
        for behind in waiting[waiting.index(group) + 1 :]:
            behind.passed += 1
        group.passed = 0
        client = self.shares(model).least(group.by_client)
        queue = group.by_client[client] = group.by_client.pop(client)
        ticket = queue.popleft()
        self._shrink(model, line, group, client)
        return ticket

    def shares(self, model: str) -> Shares:
        """What the clients of `model` have had of it."""
        shares = self._shares.get(model)
        if shares is None:
            if len(self._shares) >= SHARES_MOST:
                del self._shares[next(iter(self._shares))]
            shares = self._shares[model] = Shares()
        return shares

    def retry_after_s(self, model: str) -> int:
        """Whole seconds after which the line should have moved on."""
        line = self._lines.get(model)
        if line is None:
            return 1
        return max(1, min(RETRY_AFTER_LIMIT_S, math.ceil((line.size + 1) * line.interval_s)))

    def wait_s(self, model: str, priority: Priority) -> float | None:
        """How long one that joined now would wait, by the line's pace; None where nothing is known of that."""
        line = self._lines.get(model)
        if line is None or line.moved_at is None:
            return None
        before = sum(
            len(queue) for one in Priority if one <= priority for queue in line.classes[one].by_client.values()
        )
        return (before + 1) * line.interval_s

    def _shrink(self, model: str, line: _Line[Ticket], group: _Class[Ticket], client: str) -> None:
        line.size -= 1
        if not group.by_client[client]:
            del group.by_client[client]
        if not line.size:
            # The pace is worth keeping only while somebody waits; an empty line must not remember every model ever asked.
            del self._lines[model]
