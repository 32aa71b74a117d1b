"""PURE. Whose accelerators another deployment gets when there are not enough."""

from collections.abc import Sequence
from dataclasses import dataclass

from registry.deployments.crew import Crew, Member
from registry.deployments.fit import Place, Space, needs_on
from registry.deployments.model import Wish

UNKNOWN_START_S = 60.0
"""Taken for the time to start where nobody has seen one."""
ASLEEP_SHARE = 0.1
"""What one that sleeps is worth of one that serves."""


@dataclass(frozen=True, slots=True)
class Victim:
    """A replica that may go, and what it is worth: seconds to start times requests per second."""

    crew: Crew
    member: Member
    worth: float


@dataclass(frozen=True, slots=True)
class Eviction:
    """Who goes, for what place."""

    place: Place
    victims: tuple[Victim, ...]


def victims_for(wish: Wish, crews: Sequence[Crew], now: float) -> list[Victim]:
    """Replicas of idle deployments of the same or a lower priority, the least valuable first."""
    found = []
    for crew in crews:
        other = crew.wish
        if other.name == wish.name or other.priority > wish.priority or crew.traffic is None or crew.asked:
            continue
        spare = len(crew.alive) + len(crew.put_to_sleep) - max(crew.want.floor, crew.want.needed)
        members = [one for one in crew.alive if _may_go(crew, one, now)]
        members.sort(key=lambda one: (not one.asleep, one.assignment.made_at))
        for member in members[: max(0, spare)]:
            worth = (
                (other.start_s or UNKNOWN_START_S) * crew.traffic.recent_per_s * (ASLEEP_SHARE if member.asleep else 1)
            )
            found.append(Victim(crew, member, worth))
    last = {id(one): one.crew.traffic.last_request_at or 0.0 for one in found if one.crew.traffic}
    return sorted(found, key=lambda one: (one.worth, not one.member.asleep, last[id(one)], one.member.request_id))


def _may_go(crew: Crew, member: Member, now: float) -> bool:
    """Nothing is in it, and its dwell is over."""
    if member.busy or member in crew.woken or (member.node is not None and member.node.away):
        return False
    return member.asleep or (member.ready and not member.dwells(crew.wish.dwell_s, now))


def cheapest(wish: Wish, spaces: Sequence[Space], victims: Sequence[Victim], leaving: set[str]) -> Eviction | None:
    """The node where making room costs least; None: no set of victims makes room anywhere."""
    found = []
    for space in spaces:
        needs = needs_on(wish, space.node)
        here = [one for one in victims if one.member.assignment.node == space.node.name]
        if needs is None or not here:
            continue
        gone = set(leaving)
        chosen: list[Victim] = []
        for victim in here:
            if space.fitting(needs, gone) is not None:
                break
            gone.add(victim.member.request_id)
            chosen.append(victim)
        for victim in list(chosen):  # some, taken first, may turn out not to be in the way
            if space.fitting(needs, gone - {victim.member.request_id}) is not None:
                gone.discard(victim.member.request_id)
                chosen.remove(victim)
        indices = space.fitting(needs, gone)
        if indices is not None and chosen:
            found.append(Eviction(Place(space, needs, indices), tuple(chosen)))
    return min(
        found,
        key=lambda one: (sum(victim.worth for victim in one.victims), len(one.victims), one.place.space.node.name),
        default=None,
    )
