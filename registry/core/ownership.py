"""Who may have a name (docs/faults.md C5, C6): the one place where two claims are compared. PURE."""

from dataclasses import dataclass
from enum import Enum, auto

from msgspec import UNSET

from common.wire.record import Registration
from registry.core.model import Conflict, Instance, Renew, Unknown

TOMBSTONE_S = 60.0
"""How long a heartbeat of a deregistered incarnation is answered with a refusal instead of `register again`."""


class Claim(Enum):
    """What a registration means for the record under its name."""

    NEW = auto()
    REPEAT = auto()
    """The same life of the same instance says it again; its generation stays."""
    TAKEOVER = auto()
    """Another life, or another instance, takes the name; the generation rises."""


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A life that was deregistered, and until when (monotonic) its late heartbeats are refused."""

    instance_id: str
    incarnation: int
    until: float


def judge_registration(current: Instance | None, claim: Registration) -> Claim:
    """Decide a claim.

    Args:
        current: The record under the claimed name, `stale` when its lease has ended.
        claim: The registration.

    Raises:
        Conflict: Another instance holds the lease, or a later incarnation of this one does.
    """
    if current is None:
        return Claim.NEW
    owner = current.registration
    if owner.instance_id is UNSET:
        return Claim.TAKEOVER
    if owner.instance_id == claim.instance_id:
        if claim.incarnation == owner.incarnation:
            return Claim.REPEAT
        if claim.incarnation > owner.incarnation:
            return Claim.TAKEOVER
        raise Conflict(f"{_belongs(owner)}, incarnation {owner.incarnation}; {claim.incarnation} is stale")
    if current.stale:
        return Claim.TAKEOVER
    raise Conflict(f"{_belongs(owner)}, until its lease ends")


def check_heartbeat(current: Instance | None, beat: Renew, tombstone: Tombstone | None, now: float) -> Instance:
    """Return the record that `beat` may renew.

    Raises:
        Unknown: There is none, or the caller must register to have it.
        Conflict: The caller's life is over: deregistered, or overtaken.
    """
    if current is None:
        if tombstone is not None and now < tombstone.until and _is_buried(beat, tombstone):
            raise Conflict(f"{beat.name!r} was deregistered; incarnation {beat.incarnation} is gone")
        raise Unknown(f"service {beat.name!r} not found; register again")
    owner = current.registration
    if beat.instance_id is None:
        return current
    if owner.instance_id is UNSET:
        raise Unknown(f"service {beat.name!r} is registered without an instance_id; register again")
    if owner.instance_id != beat.instance_id:
        if current.stale:
            raise Unknown(f"service {beat.name!r} has lost its owner; register again")
        raise Conflict(_belongs(owner))
    if beat.incarnation is not None and beat.incarnation < owner.incarnation:
        raise Conflict(f"{_belongs(owner)}, incarnation {owner.incarnation}; {beat.incarnation} is stale")
    if beat.incarnation is not None and beat.incarnation > owner.incarnation:
        raise Unknown(f"incarnation {beat.incarnation} of {beat.name!r} is not registered; register again")
    return current


def _belongs(owner: Registration) -> str:
    """Who has the name, and where to find it."""
    return f"{owner.name!r} belongs to instance {owner.instance_id} at {owner.host}:{owner.port}"


def _is_buried(beat: Renew, tombstone: Tombstone) -> bool:
    return beat.instance_id == tombstone.instance_id and (beat.incarnation or 0) <= tombstone.incarnation
