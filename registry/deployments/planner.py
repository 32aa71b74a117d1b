"""PURE. What the fleet is told to do, so that it comes to run what is wished for.

| what is seen | what is done | where |
|---|---|---|
| a replica that no assignment names (also of a deployment that is no more) | it leaves | `surplus_of` |
| a node that is away, and no word of the replica | its assignment is abandoned, another is made elsewhere | `_sort` |
| a replica that ended | it leaves, another is started | `_sort` |
| nothing is heard of a replica whose node is there, for `SILENT_S` | it leaves, another is started | `_silence` |
| deleted | everything leaves | `wanted` |
| scaled by a call | that many, whatever is asked for | `wanted` |
| more requests than `in_flight_per_replica` each | more, at once or after `up_after_s`; from none at once | `wanted` |
| fewer, for `down_after_s` | fewer, as many as were wanted at most in that time; the last one stays | `wanted` |
| no request for `idle_s` | down to `min`: asleep where the template can, after ten times as long stopped | `wanted`, `shrink` |
| `wake` or `sleep` by a call | one at least; or all asleep until somebody asks | `wanted` |
| too few serve | a sleeper is woken, else one is started where it fits best | `_grow` |
| too many serve | those not ready first, then the least busy; not before `dwell_s`, unless a call said so | `shrink` |
| another revision, a drained node, a job that ends soon | one more (`surge` of them) is started where there is room, else an old one leaves first; old ones leave when enough others are ready; one of `min` 0 that nobody uses only leaves | `_roll`, `shrink` |
| paused | other revisions stay; what is missing is started as of the revision that was in force | `Crew.outdated`, `wish_of` |
| it does not fit, and somebody needs it | idle deployments of no higher priority leave, the least seconds to start times requests per second first; never under `min`, within `dwell_s` or with a request under way or waiting | `evict` |
| it has waited for `PATIENCE_S` (of each `TURN_S`) | the accelerators that idle ones hold least of are kept for it: each that comes free, or whose replica has nothing to do, is given to nobody behind it | `_reserve` |
| a member of a group ended, is lost or silent, or its node is drained | the same as if it were the whole group | `Member` |
| it does not fit, and nobody needs it now | it is let go | `_grow` |
| it could never fit | `unschedulable`, with why | `fit` |
| starts of it failed on a node | not there before the back-off ends | `fit` |

The order is by priority, then who has fewer than `min`, then who has waited longest. What one waits for is kept free of those
behind it. Nothing is remembered but what `Memory` says; without it, load counts from now.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from registry.deployments import crew as crews
from registry.deployments import fit, standing
from registry.deployments.crew import Crew, Member, members_of, shrink, surplus_of
from registry.deployments.demand import idle_for, no_more_than, wanted
from registry.deployments.evict import Victim, cheapest_group, idle_ones, reserved, victims_for
from registry.deployments.model import (
    Abandon,
    Action,
    Assignment,
    Cause,
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
    first,
)

MOST_ACTIONS = 32
"""That wait for their call, of all plans together; the rest comes when these have had it. Who wakes does not wait."""
SILENT_S = 90.0
"""Longer than so many calls wait for their turn (`hands.SLOWEST_S` each), and one is then repeated before it counts as refused
(`hands.REFUSED_AFTER_S`)."""
PATIENCE_S = 120.0
TURN_S = 600.0
"""Whom nobody makes room for in a turn, since a replica in its way is always in use, lets the others go on for a while."""


@dataclass(slots=True)
class _Work:
    """One plan while it is made."""

    crews: list[Crew]
    spaces: list[fit.Space]
    setbacks: dict[str, list[Setback]]
    memory: Memory
    now: float
    new: Memory = field(default_factory=Memory)
    notes: dict[str, standing.Note] = field(default_factory=dict)
    starts: list[Start | Wake] = field(default_factory=list)
    idle: list[Victim] = field(default_factory=list)
    options: dict[fit.Kind, list[fit.Option]] = field(default_factory=dict)
    """The nodes that may have one of a kind; `never`: why none could take it."""
    never: dict[fit.Kind, str | None] = field(default_factory=dict)
    full: set[tuple[fit.Kind, bool]] = field(default_factory=set)
    """What fits nowhere, now and later; while a plan is made, nothing comes free."""

    def choose(self, wish: Wish) -> fit.Choice:
        """Where it may go."""
        kind = fit.kind_of(wish)
        if kind not in self.options:
            self.options[kind] = fit.allowed(wish, self.spaces)
        return fit.choose(self.options[kind], self.setbacks.get(wish.name, ()), self.now)

    def why_never(self, wish: Wish) -> str | None:
        """The same for all of one kind."""
        kind = fit.kind_of(wish)
        if kind not in self.never:
            nodes = [space.node for space in self.spaces]
            self.never[kind] = fit.why_never(wish, self.choose(wish).allowed, nodes)
        return self.never[kind]

    def places(self, wish: Wish, choice: fit.Choice, *, later: bool = False) -> list[fit.Place]:
        """The best places, for each member one, or none; what fits nowhere is looked for once."""
        key, everywhere = (fit.kind_of(wish), later), choice.tried is choice.allowed
        if everywhere and key in self.full:
            return []
        places = fit.group(wish, choice.tried, later=later)
        if not places and everywhere:
            self.full.add(key)
        return places


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
    in_line: int = 0,
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
        in_line: Calls of earlier plans that wait for their turn.
    """
    crews = {wish.name: Crew(wish, traffic.get(wish.name)) for wish in wishes}
    seen = {(one.request_id, one.node): one for one in replicas}
    surplus = surplus_of(assignments, replicas, crews)
    actions: list[Action] = []
    for name, members in members_of(assignments, seen, {node.name: node for node in nodes}).items():
        actions.extend(_sort(name, members, crews.get(name)))
    ids = {one.replica_id: one.request_id for one in replicas}
    failed: dict[str, list[Setback]] = {}
    for setback in setbacks:
        failed.setdefault(setback.deployment, []).append(setback)
    work = _Work(list(crews.values()), [fit.space_of(node, ids) for node in nodes], failed, memory, now)
    for crew in work.crews:
        _want(work, crew)
    _fill(work, replicas, [*actions, *surplus])
    work.idle = idle_ones(work.crews, now)
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
    return Plan(tuple(first(actions, MOST_ACTIONS - in_line)), standings, work.new)


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
                reason = "its deployment is no more"
                found.append(Leave(one.request_id, name, Cause.SURPLUS, reason, seen_id, one.node))
        elif one.leaving:
            crew.leaving.append(member)
        else:
            crew.alive.append(member)
            if (ended := member.culprit) is not None:
                crew.leave(member, Cause.ENDED, f"it ended: {ended.error or ended.status.value}")
    return found


def _want(work: _Work, crew: Crew) -> None:
    """How many, and who goes without anybody in its place."""
    name, memory, new, now = crew.wish.name, work.memory, work.new, work.now
    if name in memory.evicted_at:
        new.evicted_at[name] = memory.evicted_at[name]
    _silence(work, crew)
    ready_at = [one.replica.ready_at for one in crew.alive if one.replica and one.replica.ready_at is not None]
    awake = [one for one in crew.alive if not one.asleep]
    starting = any(not one.ready for one in awake)
    idle_s = 0.0 if starting else idle_for(crew.wish, crew.traffic, ready_at, now)
    crew.want = wanted(crew.wish, crew.traffic, there=len(awake), idle_s=idle_s, memory=memory, new=new, now=now)
    shrink(crew, idle_s, now)
    if crew.want.count < new.wanted.get(name, 0):
        new.wanted[name] = crew.want.count


def _silence(work: _Work, crew: Crew) -> None:
    """Those of which nothing is heard for long."""
    for member in [one for one in crew.alive if one.silent]:
        since = work.memory.silent_since.get(member.request_id, work.now)
        if work.now - since >= SILENT_S:
            crew.leave(member, Cause.SILENT, f"nothing was heard of it for {SILENT_S:.0f} s")
        else:
            work.new.silent_since[member.request_id] = since


def _fill(work: _Work, replicas: Sequence[SeenReplica], actions: Sequence[Action]) -> None:
    """Every node's space as it is with all that is there, and that is told to go there."""
    spaces = {space.node.name: space for space in work.spaces}
    for crew in work.crews:
        for member in (*crew.alive, *crew.put_to_sleep, *crew.leaving):
            for request_id, node, replica in member.parts:
                space = spaces.get(node)
                if space is None or space.node.away:
                    continue
                is_over = replica is not None and crews.is_over(replica)
                if not is_over or any(request_id in holders for holders in space.holders.values()):
                    space.reckon(request_id, member.assignment.needs, crew.wish.name, seen=replica is not None)
    leaving = {place for crew in work.crews for one in crew.leaving for place in one.assignment.places}
    leaving |= {(one.request_id, one.node or "") for one in actions if isinstance(one, Leave)}
    there = {(one.request_id, one.node) for one in replicas}
    for request_id, node in leaving:
        if node in spaces:
            spaces[node].leave(request_id)
            if (request_id, node) in there:
                spaces[node].seen.add(request_id)


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
    choice = work.choose(wish)
    while crew.present < crew.want.count:
        if not _start(work, crew, choice, "wanted"):
            break
    if crew.present >= crew.want.count:
        return
    if crew.present >= crew.want.needed:
        work.new.wanted[wish.name] = crew.present
        crew.want = no_more_than(crew.want, crew.present)
    else:
        work.notes[wish.name] = _make_room(work, crew, choice)


def _could_it(work: _Work, crew: Crew) -> None:
    """A cold one that no node could take says so before anybody waits for it."""
    if crew.alive or crew.wish.deleted:
        return
    never = work.why_never(crew.wish)
    if never is not None:
        work.notes[crew.wish.name] = standing.Note(standing.UNSCHEDULABLE, never)


def _start(work: _Work, crew: Crew, choice: fit.Choice, reason: str) -> bool:
    """One more where it fits now."""
    wish = crew.wish
    places = work.places(wish, choice)
    if not places:
        return False
    crew.started += 1
    for place in places:
        place.space.take(f"new {wish.name} {crew.started}", place.needs, place.indices, wish.name)
    node, *others = (place.space.node.name for place in places)
    work.starts.append(Start(wish.name, wish.revision, node, places[0].needs, reason, tuple(others)))
    return True


def _make_room(work: _Work, crew: Crew, choice: fit.Choice) -> standing.Note:
    """It waits for what comes free, or for idle ones that are told to go now; else it says why it cannot be."""
    wish = crew.wish
    never = work.why_never(wish)
    if never is not None:
        return standing.Note(standing.UNSCHEDULABLE, never)
    places = work.places(wish, choice, later=True)
    victims: dict[str, list[Victim]] = {}
    if not places:
        victims = victims_for(wish, work.idle)
        places, chosen = cheapest_group(wish, choice.tried, victims)
        if chosen:
            _evict(work, crew, chosen)
    if places:
        for one in places:
            one.space.take(f"kept for {wish.name}", one.needs, one.indices)
        nodes = ", ".join(one.space.node.name for one in places)
        return standing.Note(standing.QUEUED, f"waits for a replica to leave node {nodes}", coming=True)
    if not choice.tried and choice.setback is not None:
        return standing.failing(choice.setback, work.now)
    waited_s = work.now - work.memory.queued_since.get(wish.name, work.now)
    if waited_s % TURN_S >= PATIENCE_S and (place := _reserve(work, crew, choice, victims)) is not None:
        return standing.Note(standing.QUEUED, f"what comes free of node {place.space.node.name} is kept for it")
    return standing.Note(standing.QUEUED, "everything that would do is in use")


def _evict(work: _Work, crew: Crew, victims: Iterable[Victim]) -> None:
    """They go for its sake."""
    spaces = {space.node.name: space for space in work.spaces}
    for victim in victims:
        other, member = victim.crew, victim.member
        name = other.wish.name
        other.leave(member, Cause.EVICTED, f"{crew.wish.name} needs its place and nobody uses it")
        work.new.wanted[name] = min(work.new.wanted.get(name, 0), other.present)
        other.want = no_more_than(other.want, other.present)
        work.new.evicted_at[name] = work.now
        for request_id, node in member.assignment.places:
            if node in spaces:
                spaces[node].leave(request_id)
    work.full = {key for key in work.full if not key[1]}


def _reserve(work: _Work, crew: Crew, choice: fit.Choice, victims: Mapping[str, Sequence[Victim]]) -> fit.Place | None:
    """Accelerators are kept for one that has waited for long, and those of its victims go, though that is not enough yet."""
    wish = crew.wish
    theirs: dict[str, set[str]] = {}
    for other in work.crews:
        if other is not crew and other.wish.priority <= wish.priority:
            for member in other.alive[other.want.floor :]:
                for request_id, node in member.assignment.places:
                    theirs.setdefault(node, set()).add(request_id)
    alone = [option for option in choice.tried if option[1].accelerators and not option[1].followers]
    place = reserved(alone, theirs)
    if place is None:
        return None
    space = place.space
    for victim in victims.get(space.node.name, ()):
        free = {slot.index for slot in space.usable(place.needs, space.leaving)}
        if any(victim.ids & space.holders[index] for index in place.indices if index not in free):
            _evict(work, crew, [victim])
    space.take(f"kept for {wish.name}", place.needs, place.indices)
    return place


def _roll(work: _Work, crew: Crew) -> None:
    """One step towards none that is out of date, when all that are up to date are ready, but for `surge` less one."""
    wish, old = crew.wish, crew.old
    note = work.notes.get(wish.name)
    moving_now = crew.started + len(crew.leaving) + len(crew.woken) + sum(not one.ready for one in crew.current)
    if not old or moving_now >= wish.surge:
        return
    if note is not None and (note.coming or note.kind is not standing.QUEUED):
        return
    spare = crew.want.count + wish.surge - len(crew.current) - len(old)
    if note is None and spare <= 0:
        return
    choice, most = work.choose(wish), 0 if note is not None else min(spare, wish.surge - moving_now, len(old))
    reason = f"takes the place of one of revision {old[0].assignment.revision}"
    if sum(_start(work, crew, choice, reason) for _ in range(most)) or moving_now:
        return
    if all(one.ends_by_itself for one in old):
        return  # it serves until shortly before its end
    if _one_makes_room(crew, choice):
        return
    moving = next((one for one in old if one.must_move), None)
    if moving is not None:
        made = _make_room(work, crew, choice) if crew.want.needed and note is None else None
        if made is None or not made.coming:
            crew.leave(moving, Cause.MOVED, "its node is drained, and there is no place for another")
    elif note is None:
        failed = standing.failing(choice.setback, work.now).reason if choice.setback else "nothing is free for it"
        why = work.why_never(wish) or failed
        work.notes[wish.name] = standing.Note(standing.ROLLING, f"revision {wish.revision} waits: {why}")


def _one_makes_room(crew: Crew, choice: fit.Choice) -> bool:
    """An old one leaves first, where its place and its like's would do for a new one."""
    size = 1 + max((needs.followers for _, needs in choice.tried), default=0)
    for member in crew.old:
        nodes = {node for _, node in member.assignment.places}
        theirs = {it for one in crew.old for it, node in one.assignment.places if node in nodes}
        fits = [
            space.node.name for space, needs in choice.tried if space.fitting(needs, theirs | space.leaving) is not None
        ]
        if len(fits) >= size and not nodes.isdisjoint(fits):
            crew.leave(member, Cause.ROLLED, f"makes room for revision {crew.wish.revision}")
            return True
    return False
