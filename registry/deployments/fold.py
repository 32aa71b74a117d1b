"""PURE. What a plan and the calls' outcomes do to the documents."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from common.wire.words import ReplicaStatus
from registry.deployments.model import Abandon, Action, Leave, SeenReplica, Start, StoredDeployment
from registry.deployments.stored import assigned, set_back

EVICTIONS = ("evicted", "idle", "rolled", "scaled", "ended", "deleted", "surplus", "moved", "other")
"""Why replicas leave, as metrics count it."""


def with_outcomes(
    stored: StoredDeployment, gone: Collection[str], refused: Mapping[str, str], now: float
) -> StoredDeployment:
    """Without assignments that are over. One that was refused leaves: its node is asked whether there is anything of it."""
    kept = [one for one in stored.assignments if one.request_id not in gone]
    for number, one in enumerate(kept):
        if one.request_id in refused and not one.leaving:
            kept[number] = replace(one, leaving=True, reason="refused")
            stored = set_back(stored, one.node, refused[one.request_id], now)
    if tuple(kept) == stored.assignments:
        return stored
    return replace(stored, assignments=tuple(kept))


def with_seen(stored: StoredDeployment, seen: Mapping[str, SeenReplica]) -> StoredDeployment:
    """A node where one is ready has no failed starts any more."""
    fine = {
        one.node
        for one in stored.assignments
        if (it := seen.get(one.request_id)) is not None and it.status is ReplicaStatus.READY and not it.stale
    }
    kept = tuple(one for one in stored.setbacks if one.node not in fine)
    return stored if len(kept) == len(stored.setbacks) else replace(stored, setbacks=kept)


def with_actions(
    stored: StoredDeployment, actions: Iterable[Action], seen: Mapping[str, SeenReplica], now: float
) -> StoredDeployment:
    """As the plan wants it; the calls come after this is written."""
    starts = []
    for action in actions:
        match action:
            case Start(node=node):
                starts.append(node)
            case Abandon(request_id=request_id):
                kept = tuple(one for one in stored.assignments if one.request_id != request_id)
                stored = replace(stored, assignments=kept)
            case Leave(request_id=request_id, reason=reason):
                replica = seen.get(request_id)
                failed = replica is not None and replica.status is ReplicaStatus.FAILED
                for one in stored.assignments:
                    if failed and replica and one.request_id == request_id and not one.leaving:
                        stored = set_back(stored, one.node, replica.error or "it failed", now)
                kept = tuple(
                    replace(one, leaving=True, reason=reason) if one.request_id == request_id else one
                    for one in stored.assignments
                )
                stored = replace(stored, assignments=kept)
            case _:
                pass
    return assigned(stored, starts, now) if starts else stored


def kind_of(leave: Leave) -> str:
    """One of `EVICTIONS`."""
    words = (
        ("evicted", "evicted"),
        ("no request", "idle"),
        ("takes the place", "rolled"),
        ("makes room for revision", "rolled"),
        ("replaced", "rolled"),
        ("scaled", "scaled"),
        ("its load", "scaled"),
        ("it ended", "ended"),
        ("deleted", "deleted"),
        ("its deployment is no more", "surplus"),
        ("no assignment", "surplus"),
        ("its node", "moved"),
    )
    return next((kind for start, kind in words if leave.reason.startswith(start)), "other")
