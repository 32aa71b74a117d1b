"""PURE. Whoever lends the budgets of keys: what is left of each limit, who holds how much, and who gets more (docs/adr/0016).

    left = limit - used in its window - held by workers, for the window that has the least

What is granted is held from then on, so nothing is granted twice. The registry lends to the workers of all routers; a
router's master to its own, for keys of its file and while no registry answers.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from common.wire.keys import LIMITS
from common.wire.leases import IN_FLIGHT, REQUESTS, TOKENS, LeaseGrant, LeaseGrants, LeaseRow, LeaseRows

MINUTE_S = 60
ASK_AGAIN_S = 1.0
"""What others hold may have come back by then."""


@dataclass(frozen=True, slots=True)
class Now:
    """A moment: `monotonic` seconds for whatever is no calendar's, `wall` (UTC) for days and months."""

    monotonic: float
    wall: datetime


class Window:
    """A limit of what is held at once: nothing of it is ever used up."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def used(self, now: Now) -> int:
        """How much of it counts now."""
        del now
        return 0

    def add(self, amount: int, now: Now) -> None:
        """So much was used."""

    def frees_in_s(self, amount: int, now: Now) -> float:
        """Until `amount` of what is used counts no more."""
        del amount, now
        return ASK_AGAIN_S

    def full_in_s(self, now: Now) -> float:
        """Until nothing of it counts any more."""
        del now
        return 0.0


class Minute(Window):
    """Any sixty seconds, to the second."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._seconds: deque[tuple[int, int]] = deque()
        self._total = 0

    def used(self, now: Now) -> int:
        """What counts now."""
        while self._seconds and self._seconds[0][0] + MINUTE_S <= now.monotonic:
            self._total -= self._seconds.popleft()[1]
        return self._total

    def add(self, amount: int, now: Now) -> None:
        """So much was used."""
        second = int(now.monotonic) + 1  # the later border: it counts for a minute at least
        if self._seconds and self._seconds[-1][0] >= second:
            second, before = self._seconds.pop()
            amount, added = before + amount, amount
        else:
            added = amount
        self._seconds.append((second, amount))
        self._total += added

    def frees_in_s(self, amount: int, now: Now) -> float:
        """Until `amount` of it counts no more."""
        for second, count in self._seconds:
            amount -= count
            if amount <= 0:
                return max(0.0, second + MINUTE_S - now.monotonic)
        return float(MINUTE_S)

    def full_in_s(self, now: Now) -> float:
        """Until nothing of it counts any more."""
        return max(0.0, self._seconds[-1][0] + MINUTE_S - now.monotonic) if self._seconds else 0.0


class Period(Window):
    """A day or a month of UTC.

    A clock that is set back begins no new period: what was used goes on to count.

    Args:
        limit: In one.
        form: What tells one from the next (strftime).
    """

    def __init__(self, limit: int, form: str) -> None:
        super().__init__(limit)
        self._form = form
        self.name = ""
        self.total = 0

    def used(self, now: Now) -> int:
        """What counts now."""
        name = now.wall.strftime(self._form)
        if name != self.name:
            self.total = 0 if name > self.name else self.total
            self.name = name
        return self.total

    def add(self, amount: int, now: Now) -> None:
        """So much was used."""
        self.total = self.used(now) + amount

    def frees_in_s(self, amount: int, now: Now) -> float:
        """Until `amount` of it counts no more."""
        del amount
        return self.full_in_s(now)

    def full_in_s(self, now: Now) -> float:
        """Until nothing of it counts any more."""
        end = now.wall.replace(hour=0, minute=0, second=0, microsecond=0)
        name = end.strftime(self._form)
        while end.strftime(self._form) == name:
            end += timedelta(days=1)
        return (end - now.wall).total_seconds()


FORMS = {"day": "%Y-%m-%d", "month": "%Y-%m"}
_PLACES = ((REQUESTS, "minute"), (TOKENS, "minute"), (TOKENS, "day"), (TOKENS, "month"), (IN_FLIGHT, "at_once"))
"""Unit and window of each of `LIMITS`."""
Limits = dict[str, dict[str, int]]
"""Of one key, by unit and window."""


def limits_of(key: object, share: int = 1) -> Limits:
    """The `LIMITS` that a key has; with `share` one of so many equal parts of each, and never nothing."""
    limits: Limits = {}
    for member, (unit, window) in zip(LIMITS, _PLACES, strict=True):
        limit: float | None = getattr(key, member)
        if limit is not None:
            limits.setdefault(unit, {})[window] = max(1, int(limit / share))
    return limits


class Meter:
    """One unit of one key."""

    def __init__(self) -> None:
        self.windows: dict[str, Window] = {}
        self.held: dict[str, int] = {}
        """By holder."""
        self._seen: dict[str, int] = {}
        """What each had used when it was heard last."""

    def limit(self, limits: Mapping[str, int]) -> None:
        """Have these limits; what counts in a window that stays goes on to count."""
        for name in self.windows.keys() - limits.keys():
            del self.windows[name]
        for name, limit in limits.items():
            if name in self.windows:
                self.windows[name].limit = limit
            else:
                made = Minute(limit) if name == "minute" else Period(limit, FORMS[name]) if name in FORMS else None
                self.windows[name] = made or Window(limit)

    def left(self, now: Now) -> int:
        """What nobody holds and nobody has used; below 0 where more was used than anybody had."""
        return min(window.limit - window.used(now) for window in self.windows.values()) - sum(self.held.values())

    def take(self, holder: str, row: LeaseRow, now: Now, *, is_new: bool) -> None:
        """Believe what a holder has; of a new one's use the last minute is known already."""
        used = row.used - self._seen.get(holder, row.told)
        if used > 0:
            for window in self.windows.values():
                if not (is_new and isinstance(window, Minute)):
                    window.add(used, now)
        self._seen[holder] = row.used
        self.held[holder] = row.held

    def grant(self, holder: str, row: LeaseRow, now: Now) -> LeaseGrant:
        """What it needs, as far as there is; beyond that no more than its part of half of what is left."""
        left = self.left(now)
        holders = sum(1 for held in self.held.values() if held) or 1
        granted = max(0, min(left, max(row.need, min(row.want, left // (2 * holders)))))
        self.held[holder] += granted
        tight = min(self.windows.values(), key=lambda window: window.limit - window.used(now))
        return LeaseGrant(
            granted=granted,
            left=max(0, left - granted),
            limit=tight.limit,
            full_in_s=round(tight.full_in_s(now), 1),
            again_in_s=round(self._again_in_s(holder, row.need - granted, now), 2),
        )

    def _again_in_s(self, holder: str, lacking: int, now: Now) -> float:
        if lacking <= 0:
            return 0.0
        held = sum(self.held.values())
        lacks = {name: lacking + window.used(now) + held - window.limit for name, window in self.windows.items()}
        again = max(self.windows[name].frees_in_s(lack, now) for name, lack in lacks.items() if lack > 0)
        return min(again, ASK_AGAIN_S) if held - self.held[holder] >= lacking else max(again, 0.01)

    def forget(self, holder: str, now: Now) -> None:
        """A holder is gone without a word: what it held may have been used, and counts so for a minute."""
        held = self.held.pop(holder, 0)
        self._seen.pop(holder, None)
        if held and (minute := self.windows.get("minute")) is not None:
            minute.add(held, now)

    def leave(self, left: int, now: Now) -> None:
        """Have no more than `left` to grant now."""
        surplus = self.left(now) - left
        if surplus > 0:
            for window in self.windows.values():
                window.add(surplus, now)


class Lender:
    """All meters."""

    def __init__(self) -> None:
        self.meters: dict[str, dict[str, Meter]] = {}
        """By key and unit."""

    def limit(self, limits: Mapping[str, Limits]) -> None:
        """Have these limits, by key."""
        for name in self.meters.keys() - limits.keys():
            del self.meters[name]
        for name, units in limits.items():
            meters = self.meters.setdefault(name, {})
            for unit in meters.keys() - units.keys():
                del meters[unit]
            for unit, windows in units.items():
                meters.setdefault(unit, Meter()).limit(windows)

    def report(self, holders: Mapping[str, LeaseRows], now: Now, *, is_new: bool = False) -> dict[str, LeaseGrants]:
        """Take what holders have, of all before anybody is granted more; keys that are not known are passed over."""
        for holder, rows in holders.items():
            for meter, row in self._metered(rows):
                meter.take(holder, row, now, is_new=is_new)
        return {
            holder: {
                key: {
                    unit: self.meters[key][unit].grant(holder, row, now)
                    for unit, row in units.items()
                    if unit in self.meters[key]
                }
                for key, units in rows.items()
                if key in self.meters
            }
            for holder, rows in holders.items()
        }

    def _metered(self, rows: LeaseRows) -> list[tuple[Meter, LeaseRow]]:
        return [
            (self.meters[key][unit], row)
            for key, units in rows.items()
            if key in self.meters
            for unit, row in units.items()
            if unit in self.meters[key]
        ]

    def forget(self, holder: str, now: Now) -> None:
        """A holder is gone without a word."""
        for meters in self.meters.values():
            for meter in meters.values():
                meter.forget(holder, now)

    def recent(self, keys: Iterable[str], now: Now) -> dict[str, dict[str, int]]:
        """What was used of `keys` in the last minute, by unit."""
        used = {
            key: {
                unit: meter.windows["minute"].used(now)
                for unit, meter in self.meters.get(key, {}).items()
                if "minute" in meter.windows
            }
            for key in keys
        }
        return {key: units for key, units in used.items() if any(units.values())}

    def add_recent(self, recent: Mapping[str, Mapping[str, int]], now: Now) -> None:
        """So much was used in the last minute, before this one lent anything."""
        for key, units in recent.items():
            for unit, amount in units.items():
                meter = self.meters.get(key, {}).get(unit)
                minute = meter.windows.get("minute") if meter is not None else None
                if minute is not None and amount:
                    minute.add(amount, now)
