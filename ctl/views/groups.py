"""PURE. A group is one replica of several members: who stands together, and how all of it is (docs/adr/0015)."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from common.wire.words import ReplicaStatus

T = TypeVar("T")

STEPS = tuple(ReplicaStatus)[: tuple(ReplicaStatus).index(ReplicaStatus.READY) + 1]
"""From the create call on, in order."""
ORDER = ("failed", "unhealthy", "down", "stale", "draining", "stopping", *STEPS[:-1])
"""States that an operator wants to see first."""


def together(ones: Iterable[T], place: Callable[[T], tuple[str, int]]) -> list[list[T]]:
    """Replicas, each as its members by rank, in the order in which the first of each comes.

    Args:
        ones: Members in any order.
        place: The group and the rank of one; an empty group: it is a replica by itself.
    """
    found: dict[object, list[T]] = {}
    for one in ones:
        group, _ = place(one)
        found.setdefault(group or id(one), []).append(one)
    return [sorted(members, key=lambda one: place(one)[1]) for members in found.values()]


def whole(states: Sequence[str]) -> str:
    """The state of a replica: that of its worst member; ready when all are."""
    return min(states, key=lambda state: (state == ReplicaStatus.READY, urgency(state)))


def urgency(state: str) -> int:
    """Where it stands in `ORDER`; behind it what that does not name."""
    return ORDER.index(state) if state in ORDER else len(ORDER)
