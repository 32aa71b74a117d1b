"""Time as an argument: durations on the monotonic clock, wall time (always UTC) for display and files."""

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What the shells read time from; PURE modules get `now` as a number instead."""

    def monotonic(self) -> float:
        """Seconds that never jump; only differences mean anything."""
        ...

    def utcnow(self) -> datetime:
        """Wall time, UTC-aware."""
        ...


class SystemClock:
    """The machine's clocks."""

    def monotonic(self) -> float:
        """Seconds of CLOCK_MONOTONIC."""
        return time.monotonic()

    def utcnow(self) -> datetime:
        """Wall time, UTC-aware."""
        return datetime.now(UTC)


def iso(moment: datetime) -> str:
    """ISO 8601 with milliseconds and a `Z`, the form of every file and answer of ours."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def now_iso() -> str:
    """The moment of an answer, for people."""
    return iso(datetime.now(UTC))
