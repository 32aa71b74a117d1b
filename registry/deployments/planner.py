"""PURE. What the fleet is told to do, so that it comes to run what is wished for.

| what is seen | what is done | where |
|---|---|---|
| a replica that no assignment names (also of a deployment that is no more) | it leaves | `_surplus` |
| a node that is away, and no word of the replica | its assignment is abandoned, another is made elsewhere | `_sort` |
| a replica that ended | it leaves, another is started | `_sort` |
| deleted | everything leaves | `wanted` |
| scaled by a call | that many, whatever is asked for | `wanted` |
| more requests than `in_flight_per_replica` each | more, at once or after `up_after_s`; from none at once | `wanted` |
| fewer, for `down_after_s` | fewer, as many as were wanted at most in that time; the last one stays | `wanted` |
| no request for `idle_s` | down to `min`: asleep where the template can, after ten times as long stopped | `wanted`, `shrink` |
| `wake` or `sleep` by a call | one at least; or all asleep until somebody asks | `wanted` |
| too few serve | a sleeper is woken, else one is started where it fits best | `_grow` |
| too many serve | those not ready first, then the least busy; not before `dwell_s`, unless a call said so | `shrink` |
| another revision, a drained node | one more is started where there is room, else an old one leaves first; old ones leave when enough others are ready; one of `min` 0 that nobody uses only leaves | `_roll`, `shrink` |
| paused | other revisions stay | `Crew.outdated` |
| it does not fit, and somebody needs it | idle deployments of no higher priority leave, the least seconds to start times requests per second first; never under `min`, within `dwell_s` or with a request under way or waiting | `evict` |
| it does not fit, and nobody needs it now | it is let go | `_grow` |
| it could never fit | `unschedulable`, with why | `fit` |
| starts of it failed on a node | not there before the back-off ends | `fit` |

The order is by priority, then who has fewer than `min`, then who has waited longest. What one waits for is kept free of those
behind it. Nothing is remembered but what `Memory` says; without it, load counts from now.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from registry.deployments import fit, standing
from registry.deployments.crew import Crew, Member, members_of, shrink
from registry.deployments.demand import NewMemory, idle_for, no_more_than, wanted
from registry.deployments.evict import cheapest, victims_for
from registry.deployments.model import (
    Abandon,
    Action,
    Assignment,
    Leave,
    Memory,
    Node,
    Plan,
    SeenReplica,
    Setback,
    Start,
    Traffic,
    Wake,
    Wish,
)

MOST_ACTIONS = 64
"""Of one plan; the rest comes with the next."""


@dataclass(slots=True)
class _Work:
    """One plan while it is made."""

    crews: list[Crew]
    spaces: list[fit.Space]
    setbacks: Sequence[Setback]
    now: float
    new: NewMemory
    leaving: set[str] = field(default_factory=set)
    """Request ids of those whose accelerators come free."""
    notes: dict[str, standing.Note] = field(default_factory=dict)
    starts: list[Start | Wake] = field(default_factory=list)
    never: dict[fit.Kind, str | None] = field(default_factory=dict)
    """Why no node could take one of this kind; None: one could."""
    full: set[fit.Kind] = field(default_factory=set)
    """What fits nowhere now. While a plan is made, nothing comes free."""
    idle: list[Crew] = field(default_factory=list)

    def why_never(self, wish: Wish, choice: fit.Choice | None = None) -> str | None:
        """The same for all of one kind."""
        kind = fit.kind_of(wish)
        if kind not in self.never:
            self.never[kind] = fit.why_never(wish, choice or fit.choose(wish, self.spaces, (), self.now))
        return self.never[kind]


def plan(
    wishes: Sequence[Wish],
    assignments: Sequence[Assignment],
    replicas: Sequence[SeenReplica],
    nodes: Sequence[Node],
    *,
    traffic: Mapping[str, Traffic],
    setbacks: Sequence[Setback],
    memory: Memory,
    now: float,
) -> Plan:
    """The actions that are due, and how every deployment stands.

    Args:
        wishes: Every deployment that there is, those being deleted too: a replica of any other leaves.
        assignments: All of them. A `Leave` marks its assignment as leaving; it is planned again only for replicas without one.
        replicas: What heartbeats tell of deployments' replicas.
        nodes: A node that is not given is not known yet: what it has counts as there. One that was lost is given as away.
        traffic: By deployment. One that is not given has not been counted yet: nothing is taken from it for idleness.
        setbacks: Starts that failed.
        memory: The last plan's.
        now: Seconds of wall time.
    """
    by_name = {wish.name: wish for wish in wishes}
    crews = {name: Crew(wish, traffic.get(name)) for name, wish in by_name.items()}
    seen = {(one.request_id, one.node): one for one in replicas}
    node_of = {node.name: node for node in nodes}
    surplus = _surplus(assignments, replicas, by_name)
    actions: list[Action] = []
    for name, members in members_of(assignments, seen, node_of).items():
        actions.extend(_sort(name, members, crews.get(name)))
    ids = {one.replica_id: one.request_id for one in replicas}
    work = _Work(list(crews.values()), [fit.space_of(node, ids) for node in nodes], setbacks, now, NewMemory())
    _carry_over(work, memory)
    for crew in work.crews:
        ready_at = [one.replica.ready_at for one in crew.alive if one.replica and one.replica.ready_at is not None]
        awake = [one for one in crew.alive if not one.asleep]
        starting = any(not one.ready for one in awake)
        idle_s = 0.0 if starting else idle_for(crew.wish, crew.traffic, ready_at, now)
        crew.want = wanted(
            crew.wish, crew.traffic, there=len(awake), idle_s=idle_s, memory=memory, new=work.new, now=now
        )
        shrink(crew, idle_s, now)
        if crew.want.count < work.new.wanted.get(crew.wish.name, 0):
            work.new.wanted[crew.wish.name] = crew.want.count
    _fill(work, replicas, [*actions, *surplus])
    work.idle = [crew for crew in work.crews if crew.traffic is not None and not crew.asked and crew.alive]
    order = sorted(work.crews, key=lambda crew: _turn(crew, memory, now))
    for crew in order:
        _grow(work, crew)
    for crew in order:
        _roll(work, crew)
    for crew in work.crews:
        actions.extend(crew.actions)
    actions.extend(work.starts)
    actions.extend(surplus)  # the last: they come again until they are carried out
    standings = standing.standings(order, work.notes, setbacks=setbacks, memory=memory, new=work.new, now=now)
    return Plan(tuple(actions[:MOST_ACTIONS]), standings, work.new.kept())


def _surplus(
    assignments: Sequence[Assignment], replicas: Sequence[SeenReplica], wishes: Mapping[str, Wish]
) -> list[Leave]:
    """Replicas that nobody wants to be where they are."""
    named = {(one.request_id, one.node) for one in assignments}
    found = []
    for one in replicas:
        if (one.request_id, one.node) not in named and not one.stale:
            reason = "no assignment names it" if one.deployment in wishes else "its deployment is no more"
            found.append(Leave(one.request_id, one.deployment, reason, one.replica_id, one.node))
    return found


def _sort(name: str, members: Sequence[Member], crew: Crew | None) -> list[Action]:
    """Each into its place in the crew; those that are lost or ended are told so."""
    found: list[Action] = []
    for member in members:
        one = member.assignment
        if member.lost:
            found.append(Abandon(one.request_id, name, f"node {one.node} is away"))
        elif crew is None:
            if not one.leaving:
                seen_id = member.replica.replica_id if member.replica else None
                found.append(Leave(one.request_id, name, "its deployment is no more", seen_id, one.node))
        elif one.leaving:
            crew.leaving.append(member)
        elif member.ended and member.replica is not None:
            crew.alive.append(member)
            crew.leave(member, f"it ended: {member.replica.error or member.replica.status.value}")
        else:
            crew.alive.append(member)
    return found


def _carry_over(work: _Work, memory: Memory) -> None:
    """What stays remembered, of deployments that there still are."""
    for crew in work.crews:
        name = crew.wish.name
        if name in memory.evicted_at:
            work.new.evicted_at[name] = memory.evicted_at[name]


def _fill(work: _Work, replicas: Sequence[SeenReplica], actions: Sequence[Action]) -> None:
    """Every node's space as it is with all that is there, and that is told to go there."""
    spaces = {space.node.name: space for space in work.spaces}
    for crew in work.crews:
        for member in (*crew.alive, *crew.put_to_sleep, *crew.leaving):
            space = spaces.get(member.assignment.node)
            needs = fit.needs_on(crew.wish, space.node) if space is not None else None
            if space is None or needs is None or space.node.away:
                continue
            if not member.ended or any(member.request_id in holders for holders in space.holders.values()):
                seen = member.replica
                settled = seen is not None and (seen.asleep or seen.ready_at is not None)
                fit.reckon(space, member.request_id, needs, crew.wish.name, seen=seen is not None, settled=settled)
        work.leaving.update(member.request_id for member in crew.leaving)
    work.leaving.update(one.request_id for one in actions if isinstance(one, Leave))
    for one in replicas:
        space = spaces.get(one.node)
        if space is not None and one.request_id in work.leaving:
            space.seen.add(one.request_id)


def _turn(crew: Crew, memory: Memory, now: float) -> tuple[int, bool, float, str]:
    """Who comes first."""
    wish = crew.wish
    return (-wish.priority, crew.present >= wish.least, memory.queued_since.get(wish.name, now), wish.name)


def _grow(work: _Work, crew: Crew) -> None:
    """As many as are wanted: sleepers first, then new ones."""
    wish = crew.wish
    missing = crew.want.count - crew.present
    if missing <= 0:
        _could_it(work, crew)
        return
    for member in [one for one in crew.sleepers if not crew.outdated(one)][:missing]:
        if member.replica is not None and not member.replica.stale:
            crew.woken.append(member)
            work.starts.append(Wake(member.replica.replica_id, wish.name, "wanted again"))
            missing -= 1
    if missing <= 0:
        return
    choice = fit.choose(wish, work.spaces, work.setbacks, work.now)
    while missing > 0:
        if not _start(work, crew, choice, "wanted"):
            break
        missing -= 1
    if missing <= 0:
        return
    if crew.present >= crew.want.needed:
        work.new.wanted[wish.name] = crew.present
        crew.want = no_more_than(crew.want, crew.present)
        return
    note = _make_room(work, crew, choice)
    work.notes[wish.name] = note


def _could_it(work: _Work, crew: Crew) -> None:
    """A cold one that no node could take says so before anybody waits for it."""
    if crew.alive or crew.wish.deleted:
        return
    never = work.why_never(crew.wish)
    if never is not None:
        work.notes[crew.wish.name] = standing.Note(standing.UNSCHEDULABLE, never)


def _start(work: _Work, crew: Crew, choice: fit.Choice, reason: str) -> bool:
    """One more where it fits now."""
    kind, everywhere = fit.kind_of(crew.wish), len(choice.tried) == len(choice.allowed)
    place = None if everywhere and kind in work.full else fit.best(crew.wish, choice.tried)
    if place is None:
        if everywhere:
            work.full.add(kind)
        return False
    crew.started += 1
    space = place.space
    space.take(f"new {crew.wish.name} {crew.started}", place.needs, place.indices, crew.wish.name)
    work.starts.append(Start(crew.wish.name, crew.wish.revision, space.node.name, reason))
    return True


def _make_room(work: _Work, crew: Crew, choice: fit.Choice) -> standing.Note:
    """It waits for what comes free, or for idle ones that are told to go now; else it says why it cannot be."""
    wish = crew.wish
    never = work.why_never(wish, choice)
    if never is not None:
        return standing.Note(standing.UNSCHEDULABLE, never)
    place = fit.best(wish, choice.tried, work.leaving)
    if place is None:
        victims = [one for one in victims_for(wish, work.idle, work.now) if one.member.request_id not in work.leaving]
        eviction = cheapest(wish, choice.tried, victims, work.leaving)
        if eviction is not None:
            for victim in eviction.victims:
                name = victim.crew.wish.name
                victim.crew.leave(victim.member, f"evicted: {wish.name} needs its place and nobody uses it")
                work.new.wanted[name] = min(work.new.wanted.get(name, 0), victim.crew.present)
                victim.crew.want = no_more_than(victim.crew.want, victim.crew.present)
                work.new.evicted_at[name] = work.now
                work.leaving.add(victim.member.request_id)
            place = eviction.place
    if place is not None:
        place.space.take(f"kept for {wish.name}", place.needs, place.indices)
        return standing.Note(standing.QUEUED, f"waits for a replica to leave node {place.space.node.name}", coming=True)
    if not choice.tried and choice.setback is not None:
        return standing.failing(choice.setback, work.now)
    return standing.Note(standing.QUEUED, "everything that would do is in use")


def _roll(work: _Work, crew: Crew) -> None:
    """One step towards none that is out of date, when all that are up to date are ready."""
    wish, old = crew.wish, crew.old
    note = work.notes.get(wish.name)
    if not old or crew.started or crew.leaving or crew.woken or any(not one.ready for one in crew.current):
        return
    if note is not None and (note.coming or note.kind is not standing.QUEUED):
        return
    if note is None and len(crew.current) + len(old) > crew.want.count:
        return
    choice = fit.choose(wish, work.spaces, work.setbacks, work.now)
    if note is None and _start(work, crew, choice, f"takes the place of one of revision {old[0].assignment.revision}"):
        return
    if _one_makes_room(work, crew, choice):
        return
    moving = next((one for one in old if one.must_move), None)
    if moving is not None:
        made = _make_room(work, crew, choice) if crew.want.needed and note is None else None
        if made is None or not made.coming:
            crew.leave(moving, "its node is drained, and there is no place for another")
    elif note is None:
        failed = standing.failing(choice.setback, work.now).reason if choice.setback else "nothing is free for it"
        why = work.why_never(wish, choice) or failed
        work.notes[wish.name] = standing.Note(standing.ROLLING, f"revision {wish.revision} waits: {why}")


def _one_makes_room(work: _Work, crew: Crew, choice: fit.Choice) -> bool:
    """An old one leaves first, where its place and its like's would do for a new one."""
    for member in crew.old:
        node = member.assignment.node
        theirs = {one.request_id for one in crew.old if one.assignment.node == node}
        here = [space for space in choice.tried if space.node.name == node]
        if fit.best(crew.wish, here, theirs | work.leaving) is not None:
            crew.leave(member, f"makes room for revision {crew.wish.revision}")
            return True
    return False
