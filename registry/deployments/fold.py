"""PURE. One round of the leader: what is seen, what a plan and the calls' outcomes do to the documents, how all stands then."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from common.wire.replica import ReplicaInfo
from common.wire.words import WAKING, ReplicaStatus
from registry.core.documents import Fence
from registry.deployments import board, sight
from registry.deployments.crew import Member
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
    Start,
    StoredDeployment,
    Traffic,
    Wake,
)
from registry.deployments.planner import plan
from registry.deployments.stored import assigned, set_back, wish_of
from registry.deployments.timing import QUEUED, Timing
from registry.fleet.placement import NodeAgent

AWAY_AFTER_S = 60.0
"""A node with replicas whose agent is not registered is given up after so long."""
HOLD_WITHIN_S = 60.0
"""A request waits for a deployment that fails if the next start is tried within this time."""


@dataclass(slots=True)
class Reign:
    """What a leader knows; another one begins anew."""

    fence: Fence
    began_at: float
    born_at: float
    memory: Memory = field(default_factory=Memory)
    timing: Timing = field(default_factory=Timing)
    agent_seen_at: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Round:
    """One look at everything. What is below `in_line` is made of it.

    Args:
        stored: The documents; `whole`: all of them could be read.
        sleepless: True for a node whose replicas cannot sleep, and for a replica that cannot.
        gone: Request ids of those that left; `refused`: of those that a node refused, with why.
        in_line: Calls that wait for their turn.
    """

    now: float
    stored: Mapping[str, StoredDeployment]
    whole: bool
    infos: list[ReplicaInfo]
    agents: list[NodeAgent]
    sleepless: Callable[[str], bool]
    traffic: dict[str, Traffic]
    gone: set[str]
    refused: dict[str, str]
    in_line: int
    replicas: list[SeenReplica] = field(default_factory=list)
    seen: dict[str, SeenReplica] = field(default_factory=dict)
    told: dict[str, ReplicaInfo] = field(default_factory=dict)
    """Those that are where they were assigned, by request id; `seen` likewise."""
    started: list[tuple[Assignment, float]] = field(default_factory=list)
    """Starts that ended well, with their seconds."""

    def is_unmade(self, assignment: Assignment) -> bool:
        """Nothing is heard of it, or of a member of its group, or one has not begun yet."""
        heard = [self.seen.get(request_id) for request_id, _ in assignment.places]
        waits = assignment.followers and any(one and one.status is ReplicaStatus.PENDING for one in heard)
        return bool(waits) or any(one is None for one in heard)


def decide(reign: Reign, it: Round) -> tuple[Plan, dict[str, StoredDeployment]]:
    """What is to be done, and the documents as they are to be."""
    it.replicas = [
        replace(one, sleepless=True) if it.sleepless(one.replica_id) else one
        for one in sight.seen(it.infos, it.stored, reign.born_at if it.whole else math.inf)
    ]
    nodes = {key: node for one in it.stored.values() for assigned in one.assignments for key, node in assigned.places}
    it.seen = {one.request_id: one for one in it.replicas if nodes.get(one.request_id) == one.node}
    ids = {one.replica_id for one in it.seen.values()}
    it.told = {info.request_id or "": info for info in it.infos if info.replica_id in ids}
    after = {
        name: with_seen(with_outcomes(one, it.gone, it.refused, it.now), it.seen) for name, one in it.stored.items()
    }
    planned = _plan(reign, it, after)
    by_name: dict[str, list[Action]] = {}
    for action in planned.actions:
        by_name.setdefault(action.deployment, []).append(action)
    return planned, {name: with_actions(one, by_name.get(name, ()), it.seen, it.now) for name, one in after.items()}


def _plan(reign: Reign, it: Round, stored: Mapping[str, StoredDeployment]) -> Plan:
    for one in stored.values():
        for assignment in one.assignments:
            info = it.told.get(assignment.request_id)
            took_s = reign.timing.observe(one, assignment, info) if info is not None else None
            if took_s is not None:
                it.started.append((assignment, took_s))
    traffic = dict(it.traffic)
    for name, heard in it.traffic.items():
        if heard.last_request_at is None and stored[name].slept_at is None:  # what was put to sleep stays so
            traffic[name] = replace(heard, last_request_at=reign.began_at)
    assignments = [assignment for one in stored.values() for assignment in one.assignments]
    return plan(
        [wish_of(one, reign.timing.usual(one)) for one in stored.values()],
        assignments,
        it.replicas,
        _nodes(reign, it, assignments),
        traffic=traffic,
        setbacks=[setback for one in stored.values() for setback in one.setbacks],
        memory=reign.memory,
        now=it.now,
        in_line=it.in_line,
    )


def _nodes(reign: Reign, it: Round, assignments: Iterable[Assignment]) -> list[Node]:
    there = sight.nodes(it.agents, it.sleepless)
    reign.agent_seen_at.update(dict.fromkeys(there, it.now))
    for node in sorted({node for one in assignments for _, node in one.places} - there.keys()):
        reign.agent_seen_at.setdefault(node, it.now)
    lost = [node for node, at in reign.agent_seen_at.items() if node not in there and it.now - at >= AWAY_AFTER_S]
    return [*there.values(), *(Node(node, away=True) for node in lost)]


def statuses(reign: Reign, it: Round, planned: Plan, kept: Mapping[str, StoredDeployment]) -> dict[str, board.Status]:
    """How each of `kept` stands after the plan."""
    found = {}
    for name, one in kept.items():
        standing = planned.standings.get(name)
        if standing is None:
            continue
        starting = []
        for assignment in one.assignments:
            replica = it.seen.get(assignment.request_id)
            ready = replica is not None and (replica.status is ReplicaStatus.READY or replica.asleep)
            if not ready and not assignment.leaving:
                starting.append((assignment, it.told.get(assignment.request_id)))
        start = reign.timing.nearest(one, starting, it.now) if not standing.ready else (None, None, None)
        if start[2] is None and not (standing.ready or standing.asleep or start[0] in (QUEUED, WAKING)):
            start = (start[0], start[1], reign.timing.usual(one))
        found[name] = board.status_of(
            one, standing, it.traffic[name], it.seen, start=start, hold_within_s=HOLD_WITHIN_S, now=it.now
        )
    return found


# The documents.


def with_outcomes(
    stored: StoredDeployment, gone: Collection[str], refused: Mapping[str, str], now: float
) -> StoredDeployment:
    """Without assignments that are over. One that was refused leaves: its node is asked whether there is anything of it."""
    kept = [one for one in stored.assignments if one.request_id not in gone]
    for number, one in enumerate(kept):
        bad = next((place for place in one.places if place[0] in refused), None)
        if bad is not None and not one.leaving:
            kept[number] = replace(one, leaving=True)
            stored = set_back(stored, bad[1], refused[bad[0]], now)
    if tuple(kept) == stored.assignments:
        return stored
    return replace(stored, assignments=tuple(kept))


def with_seen(stored: StoredDeployment, seen: Mapping[str, SeenReplica]) -> StoredDeployment:
    """A node where one is ready has no failed starts any more."""
    fine = {
        node
        for one in stored.assignments
        if (it := seen.get(one.request_id)) is not None and it.status is ReplicaStatus.READY and not it.stale
        for _, node in one.places
    }
    kept = tuple(one for one in stored.setbacks if one.node not in fine)
    return stored if len(kept) == len(stored.setbacks) else replace(stored, setbacks=kept)


def with_actions(
    stored: StoredDeployment, actions: Iterable[Action], seen: Mapping[str, SeenReplica], now: float
) -> StoredDeployment:
    """As the plan wants it; the calls come after this is written.

    What is started or woken sleeps no more: the next leader, which has not heard who asked, would end it again.
    """
    starts: list[Start] = []
    for action in actions:
        match action:
            case Start():
                starts.append(action)
                stored = replace(stored, slept_at=None)
            case Wake():
                stored = replace(stored, slept_at=None)
            case Abandon(request_id=request_id):
                kept = tuple(one for one in stored.assignments if one.request_id != request_id)
                stored = replace(stored, assignments=kept)
            case Leave(request_id=request_id, cause=cause):
                for one in stored.assignments:
                    if one.request_id == request_id and not one.leaving:
                        node, why = _fault(one, seen)
                        why = why or (action.reason if cause is Cause.SILENT else None)
                        stored = stored if why is None else set_back(stored, node, why, now)
                kept = tuple(
                    replace(one, leaving=True) if one.request_id == request_id else one for one in stored.assignments
                )
                stored = replace(stored, assignments=kept)
            case _:
                pass
    return assigned(stored, starts, now) if starts else stored


def _fault(assignment: Assignment, seen: Mapping[str, SeenReplica]) -> tuple[str, str | None]:
    """The node where it failed, and why; None: it did not."""
    leader, *others = (Member(assignment, seen.get(request_id), None) for request_id, _ in assignment.places)
    culprit = replace(leader, followers=tuple(others)).culprit
    if culprit is None or culprit.status is not ReplicaStatus.FAILED:
        return assignment.node, None
    return culprit.node, culprit.error or "it failed"
