"""PURE. What the planner sees of the fleet: nodes from their agents' heartbeats, replicas from whoever tells of them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime

import msgspec

from common.wire.read import read_lenient
from common.wire.replica import InfoMarks, ReplicaInfo
from common.wire.words import ReplicaStatus
from registry.deployments.model import Node, SeenReplica, Slot, StoredDeployment
from registry.deployments.stored import uid_of
from registry.fleet.placement import NodeAgent


def node_of(agent: NodeAgent) -> Node:
    """A node as it is now."""
    slots = tuple(
        Slot(one.index, one.kind, one.memory_mb, tuple(one.replicas), bool(one.claims), one.shared_mb)
        for one in agent.accelerators
    )
    room = None if agent.capacity is None else max(0, agent.capacity - agent.live)
    return Node(agent.node, slots, agent.templates, agent.labels, room, agent.away, agent.draining)


def nodes(agents: Iterable[NodeAgent], sleepless: Callable[[str], bool]) -> dict[str, Node]:
    """Every node whose agent is registered, by name; the replicas of a `sleepless` one cannot sleep."""
    found = {agent.node: node_of(agent) for agent in agents}
    for name, node in found.items():
        if sleepless(name):
            templates = {key: msgspec.structs.replace(one, sleeps=False) for key, one in node.templates.items()}
            found[name] = replace(node, templates=templates)
    return found


def moment(text: str | None) -> float | None:
    """ISO 8601 as seconds; None for what is none."""
    try:
        return None if text is None else datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def seen(infos: Iterable[ReplicaInfo], stored: Mapping[str, StoredDeployment], born_at: float) -> list[SeenReplica]:
    """The replicas that deployments asked for.

    One whose deployment is unknown is only there when it was made after this store began: before, another store may have
    known it, whose loss must not end what runs.
    """
    names = {one.uid: one for one in stored.values()}
    found = []
    for info in infos:
        uid = uid_of(info.request_id or "")
        if uid is None or info.request_id is None:
            continue
        owner = names.get(uid)
        marks = read_lenient(InfoMarks, info.metadata)
        node = marks.node or None
        made_at = moment(info.created_at)
        if node is None or marks.deleted is True or (owner is None and (made_at is None or made_at < born_at)):
            continue
        found.append(_seen(info, info.request_id, owner, node, marks))
    return found


def _seen(
    info: ReplicaInfo, request_id: str, owner: StoredDeployment | None, node: str, marks: InfoMarks
) -> SeenReplica:
    its = (one for one in owner.assignments if any(key == request_id for key, _ in one.places)) if owner else iter(())
    assignment = next(its, None)
    asleep = info.status is ReplicaStatus.ASLEEP
    numbers = [one for one in (info.running, info.waiting) if one is not msgspec.UNSET]
    return SeenReplica(
        replica_id=info.replica_id,
        request_id=request_id,
        deployment=owner.name if owner else "",
        revision=assignment.revision if assignment else 0,
        node=node,
        status=info.status,
        service=marks.service or None,
        asleep=asleep,
        draining=marks.draining is True and not asleep,  # on its way to sleep its record drains: that is nobody's hand
        ending=marks.ending is True,
        stale=marks.stale is True,
        in_flight=sum(numbers),
        status_since=moment(info.status_since),
        ready_at=moment(info.ready_at) if info.status is ReplicaStatus.READY else None,
        error=info.error_message,
    )
