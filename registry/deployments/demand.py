"""PURE. How many replicas of a deployment are wanted now, by the rules in planner.py's table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from registry.deployments.model import Cause, Memory, Traffic, Wish

WAKE_LASTS_S = 300.0
"""So long a `wake` may still start a replica; once there, it stays by the other rules."""
HEARD_WITHIN_S = 3.0
"""A request is heard of so long after it was asked, at most: by its router's next word, passed on by another registry."""


@dataclass(frozen=True, slots=True)
class Want:
    """What is wanted of one deployment.

    Args:
        count: Replicas that should serve.
        needed: Those of them that somebody needs: for their sake an idle deployment is evicted.
        floor: Replicas that are not taken away, serving or asleep.
        why: Why it is no more than this; `cause` in one word.
        by_call: Somebody said so: the dwell does not count.
        may_sleep: What is too many sleeps first, where its template can.
    """

    count: int = 0
    needed: int = 0
    floor: int = 0
    why: str = ""
    cause: Cause = Cause.SCALED
    by_call: bool = False
    may_sleep: bool = True


def no_more_than(want: Want, count: int) -> Want:
    """The same with so many at most."""
    if want.count <= count:
        return want
    return replace(want, count=count, needed=min(want.needed, count))


def is_slept(wish: Wish, traffic: Traffic) -> bool:
    """Somebody put it to sleep, and nobody has asked for it since."""
    if wish.slept_at is None or traffic.in_flight or traffic.waiting:
        return False
    last = traffic.last_request_at
    asked_at = None if last is None else last - HEARD_WITHIN_S
    return wish.slept_at > max(_moments(wish.woken_at, asked_at), default=-math.inf)


def is_woken(wish: Wish, memory: Memory, now: float) -> bool:
    """Somebody called `wake` a short time ago."""
    if wish.woken_at is None or now - wish.woken_at >= WAKE_LASTS_S:
        return False
    return wish.woken_at > max(_moments(wish.slept_at, memory.evicted_at.get(wish.name)), default=-math.inf)


def idle_for(wish: Wish, traffic: Traffic | None, ready_at: Sequence[float], now: float) -> float:
    """Seconds since the last request, `wake` or readiness; 0: it is in use, or nobody has counted yet."""
    if traffic is None or traffic.in_flight or traffic.waiting:
        return 0.0
    return max(0.0, now - max([*_moments(wish.woken_at, traffic.last_request_at), *ready_at], default=now))


def _moments(*moments: float | None) -> list[float]:
    return [moment for moment in moments if moment is not None]


def wanted(
    wish: Wish,
    traffic: Traffic | None,
    *,
    there: int,
    idle_s: float,
    memory: Memory,
    new: Memory,
    now: float,
) -> Want:
    """The rule for one deployment; `there` are its replicas that are awake and not leaving, `idle_s` is what `idle_for` says."""
    if wish.deleted:
        return Want(why="deleted", cause=Cause.DELETED, by_call=True, may_sleep=False)
    if wish.scaled is not None:
        count = wish.scaled
        return Want(count, count, count, f"scaled to {count}", by_call=True, may_sleep=False)
    if traffic is not None and is_slept(wish, traffic):
        new.wanted[wish.name] = 0
        return Want(0, 0, wish.least, "put to sleep by a call", Cause.SLEPT, by_call=True)
    seen = traffic or Traffic()
    load = min(wish.most, math.ceil((seen.in_flight + seen.waiting) / wish.in_flight_per_replica))
    before = min(wish.most, max(wish.least, memory.wanted.get(wish.name, there)))
    count = _by_load(wish, load, before, memory=memory, new=new, now=now) if traffic is not None else before
    why, cause = f"its load wants {count}" if count < before else "", Cause.SCALED
    if wish.idle_s > 0 and idle_s >= wish.idle_s and count > wish.least:
        count, why, cause = wish.least, f"no request for {idle_s:.0f} s", Cause.IDLE
    needed = max(wish.least, load)
    if is_woken(wish, memory, now):
        count, needed = max(count, 1), max(needed, 1)
    new.wanted[wish.name] = count
    return Want(count, min(needed, count), wish.least, why, cause)


def _by_load(wish: Wish, load: int, before: int, *, memory: Memory, new: Memory, now: float) -> int:
    """Up after `up_after_s` of more, a cold one at once; down after `down_after_s` of less, to the most of that time."""
    name = wish.name
    if load > before:
        since = memory.above_since.get(name, now)
        if before == 0 or now - since >= wish.up_after_s:
            return load
        new.above_since[name] = since
        return before
    lower = max(load, wish.least, min(before, 1))
    if lower < before:
        since = memory.below_since.get(name, now)
        peak = max(lower, memory.below_peak.get(name, lower))
        if now - since >= wish.down_after_s and peak < before:
            return peak
        new.below_since[name], new.below_peak[name] = since, peak
    return before
