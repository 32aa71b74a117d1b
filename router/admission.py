"""PURE. Who waits for a replica with room, in which order, and what the others are told.

One line per model, bounded. Within it clients take turns (round robin over their oldest request), so that one client's
hundred requests do not keep another's single one waiting. `Retry-After` is the line's length over the rate at which it
has been moving.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Ticket = TypeVar("Ticket")
RATE_WEIGHT = 0.2
"""Of the newest interval between two admissions in the moving average."""
RETRY_AFTER_LIMIT_S = 60


@dataclass(slots=True)
class _Line(Generic[Ticket]):
    turns: deque[str] = field(default_factory=deque)
    by_client: dict[str, deque[Ticket]] = field(default_factory=dict)
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

    def __len__(self) -> int:
        return sum(line.size for line in self._lines.values())

    def models(self) -> list[str]:
        """Models that somebody waits for."""
        return [model for model, line in self._lines.items() if line.size]

    def join(self, model: str, client: str, ticket: Ticket) -> bool:
        """Queue up; False when the line is full."""
        line = self._lines.setdefault(model, _Line())
        if line.size >= self._limit:
            return False
        queue = line.by_client.get(client)
        if queue is None:
            queue = line.by_client[client] = deque()
            line.turns.append(client)
        queue.append(ticket)
        line.size += 1
        return True

    def leave(self, model: str, client: str, ticket: Ticket) -> None:
        """Give up waiting (the client went, or its time is over)."""
        line = self._lines.get(model)
        queue = line.by_client.get(client) if line else None
        if line is None or queue is None or ticket not in queue:
            return
        queue.remove(ticket)
        self._shrink(model, line, client, queue)

    def next(self, model: str, now: float) -> Ticket | None:
        """Take the next one whose turn it is."""
        line = self._lines.get(model)
        if line is None or not line.turns:
            return None
        if line.moved_at is not None:
            line.interval_s += RATE_WEIGHT * (now - line.moved_at - line.interval_s)
        line.moved_at = now
        client = line.turns.popleft()
        queue = line.by_client[client]
        ticket = queue.popleft()
        line.turns.append(client)
        self._shrink(model, line, client, queue)
        return ticket

    def retry_after_s(self, model: str) -> int:
        """Whole seconds after which the line should have moved on."""
        line = self._lines.get(model)
        if line is None:
            return 1
        return max(1, min(RETRY_AFTER_LIMIT_S, math.ceil((line.size + 1) * line.interval_s)))

    def _shrink(self, model: str, line: _Line[Ticket], client: str, queue: deque[Ticket]) -> None:
        line.size -= 1
        if not queue:
            del line.by_client[client]
            line.turns.remove(client)
        if not line.size:
            # The pace is worth keeping only while somebody waits; an empty line must not remember every model ever asked.
            del self._lines[model]
