"""How leases end, and when the registry doubts itself instead of its clients (docs/faults.md C2, C4). PURE.

A lease of length T goes through three ages: below T it holds; from T on the record is `stale` (shown as not healthy,
free to be claimed by another instance); at 2.5 T it is removed. The old kind's 120 s and 300 s are the same rule with
T = 120 s. When more than 15 % of the records are overdue together, the likelier fault is the registry's own network:
nothing is removed, overdue records are marked `suspect`, until renewals are back above 85 % or ten minutes have passed.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from msgspec.structs import replace

from registry.core.model import Change, Instance, Removed, Upsert

LEGACY_TTL_S = 120.0


@dataclass(frozen=True, slots=True)
class ExpiryRules:
    """The numbers; the defaults are the contract's and docs/faults.md's."""

    removal_factor: float = 2.5
    preserve_share: float = 0.15
    preserve_least: int = 5
    """Below so many overdue records a share means nothing: a node of two replicas may die whole."""
    preserve_longest_s: float = 600.0
    most_at_once: int = 100
    """Changes of one sweep: what ten thousand at once would be in listeners and watches keeps every call waiting for a second."""


@dataclass(frozen=True, slots=True)
class Swept:
    """What one sweep decides. `preserving_since` is None while nothing is held back; `more` asks for another sweep."""

    changes: tuple[Change, ...]
    preserving_since: float | None
    more: bool = False


def ttl_s(instance: Instance) -> float:
    """The length of an instance's lease."""
    return instance.registration.ttl_s or LEGACY_TTL_S


def sweep(
    leases: Iterable[tuple[Instance, float]], now: float, preserving_since: float | None, rules: ExpiryRules
) -> Swept:
    """Judge every lease.

    Args:
        leases: Each instance with the instant of its last renewal (monotonic seconds).
        now: Monotonic seconds.
        preserving_since: What the sweep before returned.
        rules: The numbers.
    """
    total = 0
    overdue: list[tuple[Instance, float]] = []
    for instance, renewed_at in leases:
        total += 1
        age = now - renewed_at
        if age >= (instance.registration.ttl_s or LEGACY_TTL_S):
            overdue.append((instance, age))
    many = len(overdue) >= rules.preserve_least and len(overdue) > rules.preserve_share * total
    since = (now if preserving_since is None else preserving_since) if many else None
    preserving = since is not None and now - since < rules.preserve_longest_s
    judged = (_judge(instance, age, rules, preserving=preserving) for instance, age in overdue)
    changes = tuple(islice((change for change in judged if change is not None), rules.most_at_once + 1))
    return Swept(changes[: rules.most_at_once], since, more=len(changes) > rules.most_at_once)


def _judge(instance: Instance, age: float, rules: ExpiryRules, *, preserving: bool) -> Change | None:
    """What becomes of one overdue record."""
    if age >= rules.removal_factor * ttl_s(instance) and not preserving:
        return Removed(instance, "expired")
    if instance.stale and (instance.suspect or not preserving):
        return None
    return Upsert(replace(instance, stale=True, suspect=preserving), durable=False)
