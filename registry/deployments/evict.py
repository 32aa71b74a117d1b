"""PURE. Whose accelerators another deployment gets when there are not enough."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from registry.deployments.crew import Crew, Member
from registry.deployments.fit import Option, Place, Space, best
from registry.deployments.model import Needs, Wish

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

    @property
    def ids(self) -> set[str]:
        """What holds its accelerators, on all its nodes."""
        return {request_id for request_id, _ in self.member.assignment.places}


def idle_ones(crews: Iterable[Crew], now: float) -> list[Victim]:
    """Replicas of idle deployments that have nothing to do and whose dwell is over, the least valuable first."""
    found = []
    for crew in crews:
        if crew.traffic is None or crew.asked:
            continue
        last = crew.traffic.last_request_at or 0.0
        value = (crew.wish.start_s or UNKNOWN_START_S) * crew.traffic.recent_per_s
        for one in crew.alive:
            if _may_go(crew, one, now):
                worth = value * (ASLEEP_SHARE if one.asleep else 1)
                order = (worth, not one.asleep, last, one.assignment.made_at, one.request_id)
                found.append((order, Victim(crew, one, worth)))
    return [victim for _, victim in sorted(found, key=lambda pair: pair[0])]


def _may_go(crew: Crew, member: Member, now: float) -> bool:
    if member.busy or any(one.node is not None and one.node.away for one in (member, *member.followers)):
        return False
    return member.asleep or (member.ready and not member.dwells(crew.wish.dwell_s, now))


def victims_for(wish: Wish, idle: Iterable[Victim]) -> dict[str, list[Victim]]:
    """Those of them that go for it, by node: of no higher priority, and only as many as are above their minimum."""
    spare: dict[str, int] = {}
    found: dict[str, list[Victim]] = {}
    for one in idle:
        crew, name = one.crew, one.crew.wish.name
        if name == wish.name or crew.wish.priority > wish.priority or one.member not in crew.alive:
            continue
        if name not in spare:
            there = len(crew.alive) + len(crew.put_to_sleep)
            spare[name] = there - max(crew.want.floor, crew.want.needed)
        spare[name] -= 1
        if spare[name] >= 0 and one.member not in crew.woken:
            for _, node in one.member.assignment.places:
                found.setdefault(node, []).append(one)
    return found


def cheapest(options: Sequence[Option], victims: dict[str, list[Victim]]) -> tuple[Place | None, list[Victim]]:
    """The place where making room costs least, and who goes for it; None: no set of victims makes room anywhere."""
    found = []
    for space, needs in options:
        chosen = _chosen(space, needs, victims.get(space.node.name, ()))
        there = space.leaving.union(*(one.ids for one in chosen))
        indices = space.fitting(needs, there) if chosen else None
        if indices is not None:
            cost = (sum(victim.worth for victim in chosen), len(chosen), space.node.name)
            found.append((cost, Place(space, needs, indices), chosen))
    _, place, gone = min(found, key=lambda one: one[0], default=(None, None, []))
    return place, gone


def cheapest_group(
    wish: Wish, options: Sequence[Option], victims: dict[str, list[Victim]]
) -> tuple[list[Place], list[Victim]]:
    """The same for all members of a replica, each on another node; those first that need nobody to go."""
    places: list[Place] = []
    gone: list[Victim] = []
    left = list(options)
    while left:
        place, chosen = best(wish, left, later=True), list[Victim]()
        if place is None:
            place, chosen = cheapest(left, victims)
        if place is None:
            break
        places.append(place)
        gone += [one for one in chosen if one not in gone]
        if len(places) > places[0].needs.followers:
            return places, gone
        left = [option for option in left if option[0] is not place.space]
    return [], []


def _chosen(space: Space, needs: Needs, victims: Sequence[Victim]) -> list[Victim]:
    gone = set(space.leaving)
    if space.fitting(needs, gone.union(*(victim.ids for victim in victims))) is None:
        return []
    chosen: list[Victim] = []
    for victim in victims:
        if space.fitting(needs, gone) is not None:
            break
        gone |= victim.ids
        chosen.append(victim)
    for victim in list(chosen):  # some, taken first, may turn out not to be in the way
        if space.fitting(needs, gone - victim.ids) is not None:
            gone -= victim.ids
            chosen.remove(victim)
    return chosen


def reserved(options: Sequence[Option], theirs: dict[str, set[str]]) -> Place | None:
    """The accelerators that come free for it in time, those first that fewest hold now; None: none ever do.

    `theirs` are the request ids, by node, of all that would make room once they are idle.
    """
    places = []
    for space, needs in options:
        slots = space.usable(needs, space.leaving | theirs.get(space.node.name, set()))
        if len(slots) >= needs.accelerators:
            busy = {slot.index: len(space.holders.get(slot.index, set()) - space.leaving) for slot in slots}
            indices = sorted(busy, key=lambda index: (busy[index], index))[: needs.accelerators]
            held = sum(busy[index] > 0 for index in indices)
            places.append((held, space.node.name, Place(space, needs, tuple(sorted(indices)))))
    return min(places, key=lambda one: one[:2], default=(0, "", None))[2]
