"""PURE. The replicas of one deployment while a plan is made: who is there, who serves, who is out of date."""

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from common.wire.group import BROKEN
from common.wire.words import ReplicaStatus
from registry.deployments.demand import Want, no_more_than
from registry.deployments.model import Assignment, Cause, Leave, Node, SeenReplica, Sleep, Traffic, Wish

ENDED = frozenset({ReplicaStatus.STOPPED, ReplicaStatus.FAILED})
SERVES = frozenset({ReplicaStatus.READY, ReplicaStatus.UNHEALTHY})
ASLEEP_FACTOR = 10
"""A replica that sleeps is stopped when nobody asked for so many times `idle_s`."""


def is_over(replica: SeenReplica) -> bool:
    """It runs nothing any more, as was heard of it lately."""
    return replica.status in ENDED and not replica.stale


@dataclass(frozen=True, slots=True)
class Member:
    """One replica: what its node was told, and what heartbeats tell of it. A group has `followers`, and is as its worst member is."""

    assignment: Assignment
    replica: SeenReplica | None
    node: Node | None
    followers: tuple["Member", ...] = ()

    @property
    def request_id(self) -> str:
        """Its name, before and after any heartbeat."""
        return self.assignment.request_id

    @property
    def asleep(self) -> bool:
        """It keeps its place and serves nothing."""
        return self.replica is not None and self.replica.asleep

    @property
    def ready(self) -> bool:
        """It takes requests."""
        seen = self.replica
        return (
            seen is not None and seen.status is ReplicaStatus.READY and not (seen.stale or seen.asleep or seen.draining)
        )

    @property
    def serves(self) -> bool:
        """It takes requests, or did and may do so again."""
        seen = self.replica
        return seen is not None and seen.status in SERVES and not (seen.asleep or seen.draining)

    @property
    def ended(self) -> bool:
        """It stopped for good, by its own fault or by somebody's call."""
        return self.culprit is not None

    @property
    def culprit(self) -> SeenReplica | None:
        """The one that ended: of a group who did so first, since the others say that they ended for its sake."""
        all_of = (self.replica, *(one.replica for one in self.followers))
        over = [one for one in all_of if one is not None and is_over(one)]
        return next((one for one in over if not (one.error or "").startswith(BROKEN)), over[0] if over else None)

    @property
    def silent(self) -> bool:
        """Its node is there, and nothing is heard of it."""
        own = self.node is not None and not self.node.away and (self.replica is None or self.replica.stale)
        return own or any(one.silent for one in self.followers)

    @property
    def lost(self) -> bool:
        """Its node is given up, and nothing is heard of it."""
        own = self.node is not None and self.node.away and (self.replica is None or self.replica.stale)
        return own or any(one.lost for one in self.followers)

    @property
    def must_move(self) -> bool:
        """It goes whatever its revision is."""
        by_hand = self.replica is not None and self.replica.draining
        return by_hand or self.ends_by_itself or self.is_on_drained

    @property
    def is_on_drained(self) -> bool:
        """A node that it is on is drained."""
        return (self.node is not None and self.node.draining) or any(one.is_on_drained for one in self.followers)

    @property
    def ends_by_itself(self) -> bool:
        """Its job's time is nearly over, and it knows."""
        return self.replica is not None and self.replica.ending

    @property
    def parts(self) -> Iterator[tuple[str, str, SeenReplica | None]]:
        """Request id, node and what is heard of each of its places."""
        for (request_id, node), one in zip(self.assignment.places, (self, *self.followers), strict=True):
            yield request_id, node, one.replica

    def dwells(self, dwell_s: float, now: float) -> bool:
        """It was started a short time ago, or is being started."""
        if self.replica is None or self.replica.ready_at is None:
            return True
        return now - self.replica.ready_at < dwell_s

    @property
    def busy(self) -> bool:
        """A request is in it."""
        return self.replica is not None and self.replica.in_flight > 0


@dataclass(slots=True)
class Crew:
    """One deployment's replicas. Those that `leave` or `sleep` are told to go move out of `alive`.

    `alive` are all that are neither leaving nor lost nor ended, the oldest first.
    """

    wish: Wish
    traffic: Traffic | None
    alive: list[Member] = field(default_factory=list)
    leaving: list[Member] = field(default_factory=list)
    put_to_sleep: list[Member] = field(default_factory=list)
    woken: list[Member] = field(default_factory=list)
    started: int = 0
    actions: list[Leave | Sleep] = field(default_factory=list)
    want: Want = field(default_factory=Want)

    def outdated(self, member: Member) -> bool:
        """Another is to take its place."""
        return member.must_move or (member.assignment.revision != self.wish.revision and not self.wish.paused)

    @property
    def current(self) -> list[Member]:
        """Awake, and as they should be."""
        return [one for one in self.alive if not one.asleep and not self.outdated(one)]

    @property
    def old(self) -> list[Member]:
        """Awake, and to be replaced."""
        return [one for one in self.alive if not one.asleep and self.outdated(one)]

    @property
    def sleepers(self) -> list[Member]:
        """Asleep, of any revision."""
        return [one for one in self.alive if one.asleep and one not in self.woken]

    @property
    def present(self) -> int:
        """Awake ones and those that are told to be."""
        return len([one for one in self.alive if not one.asleep]) + len(self.woken) + self.started

    @property
    def ready(self) -> int:
        """How many take requests."""
        return sum(1 for one in self.alive if one.ready)

    @property
    def asked(self) -> bool:
        """A request is under way, or waits."""
        return self.traffic is not None and self.traffic.in_flight + self.traffic.waiting > 0

    def leave(self, member: Member, cause: Cause, reason: str) -> None:
        """It is drained, stopped and removed."""
        self.alive.remove(member)
        self.leaving.append(member)
        replica_id = member.replica.replica_id if member.replica else None
        self.actions.append(Leave(member.request_id, self.wish.name, cause, reason, replica_id, member.assignment.node))

    def retire(self, member: Member) -> None:
        """It is no longer wanted: it sleeps where it can and may, else it leaves."""
        why = self.want.why or "no longer wanted"
        if self.want.may_sleep and member.replica is not None and self.can_sleep(member):
            self.alive.remove(member)
            self.put_to_sleep.append(member)
            self.actions.append(Sleep(member.replica.replica_id, self.wish.name, why))
        else:
            self.leave(member, self.want.cause, why)

    def can_sleep(self, member: Member) -> bool:
        """Its template says how, and it is as it should be."""
        node, template = member.node, self.wish.template
        if member.replica is None or member.replica.sleepless:
            return False
        if not member.ready or node is None or node.away or template is None or self.outdated(member):
            return False
        return template in node.templates and node.templates[template].sleeps


def members_of(
    assignments: Iterable[Assignment], replicas: Mapping[tuple[str, str], SeenReplica], nodes: Mapping[str, Node]
) -> dict[str, list[Member]]:
    """By deployment, the oldest first; `replicas` by request id and node."""
    found: dict[str, list[Member]] = {}
    for one in sorted(assignments, key=lambda one: (one.made_at, one.request_id)):
        leader, *others = (Member(one, replicas.get(place), nodes.get(place[1])) for place in one.places)
        member = replace(leader, followers=tuple(others))
        found.setdefault(one.deployment, []).append(member)
    return found


def surplus_of(
    assignments: Iterable[Assignment], replicas: Iterable[SeenReplica], known: Container[str]
) -> list[Leave]:
    """Replicas that nobody wants to be where they are; `known`: the deployments that there are."""
    named = {place for one in assignments for place in one.places}
    found = []
    for one in replicas:
        if (one.request_id, one.node) not in named and not one.stale:
            reason = "no assignment names it" if one.deployment in known else "its deployment is no more"
            found.append(Leave(one.request_id, one.deployment, Cause.SURPLUS, reason, one.replica_id, one.node))
    return found


def shrink(crew: Crew, idle_s: float, now: float) -> None:
    """Everything that goes without anything coming in its place."""
    _drop_useless(crew, now)
    _replace_ready(crew)
    _too_many(crew, now)
    _stop_sleepers(crew, idle_s)


def _drop_useless(crew: Crew, now: float) -> None:
    """Out of date and not yet ready, or asleep, or of a deployment that nobody uses."""
    wish, traffic = crew.wish, crew.traffic
    last = None if traffic is None else traffic.last_request_at
    recent = crew.asked or traffic is None or (last is not None and now - last < wish.dwell_s)
    unused = wish.least == 0 and not recent and not crew.want.needed
    for member in [*crew.old, *(one for one in crew.sleepers if crew.outdated(one))]:
        if member.serves and not unused:
            continue
        _leave_old(crew, member)
    if unused:
        crew.want = no_more_than(crew.want, len(crew.current))


def _leave_old(crew: Crew, member: Member) -> None:
    if not member.must_move:
        crew.leave(member, Cause.ROLLED, f"replaced by revision {crew.wish.revision}")
    elif member.is_on_drained:
        crew.leave(member, Cause.MOVED, "its node is drained")
    elif member.ends_by_itself:
        crew.leave(member, Cause.MOVED, "its job ends soon")
    else:
        crew.leave(member, Cause.MOVED, "it was drained by hand")


def _replace_ready(crew: Crew) -> None:
    """Old ones go as soon as enough others serve."""
    for member in sorted(crew.old, key=lambda one: one.ready):
        if crew.ready - member.ready < crew.want.count:
            return
        _leave_old(crew, member)


def _too_many(crew: Crew, now: float) -> None:
    """More than are wanted: those that are not ready first, then the least busy, then the newest."""
    want, wish = crew.want, crew.wish
    order = sorted(
        crew.current, key=lambda one: (one.ready, one.replica.in_flight if one.replica else 0, -one.assignment.made_at)
    )
    over = len(order) - want.count
    for member in order:
        if over <= 0:
            return
        young = member.dwells(wish.dwell_s, now) if member.ready else now - member.assignment.made_at < wish.dwell_s
        if young and not want.by_call:
            continue
        asleep = want.may_sleep and crew.can_sleep(member)
        if not asleep and len(crew.alive) + len(crew.put_to_sleep) <= want.floor:
            return
        crew.retire(member)
        over -= 1


def _stop_sleepers(crew: Crew, idle_s: float) -> None:
    """Those that slept for long, or that there would never be room for beside those that serve."""
    want, wish = crew.want, crew.wish
    if not want.may_sleep:
        for member in crew.sleepers[: max(0, len(crew.alive) - want.floor)]:
            if len(crew.current) >= want.count:
                crew.leave(member, want.cause, want.why)
        return
    long = wish.idle_s > 0 and idle_s >= ASLEEP_FACTOR * wish.idle_s
    for member in crew.sleepers:
        kept = len(crew.alive) + len(crew.put_to_sleep)
        if long and kept > want.floor:
            crew.leave(member, Cause.IDLE, f"no request for {idle_s:.0f} s, asleep for most of it")
        elif kept > wish.most:
            crew.leave(member, Cause.SCALED, "more than max")
