"""PURE. What a plan and the calls' outcomes do to the documents."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from common.wire.words import ReplicaStatus
from registry.deployments.model import Abandon, Action, Cause, Leave, SeenReplica, Start, StoredDeployment, Wake
from registry.deployments.stored import assigned, set_back


def with_outcomes(
    stored: StoredDeployment, gone: Collection[str], refused: Mapping[str, str], now: float
) -> StoredDeployment:
    """Without assignments that are over. One that was refused leaves: its node is asked whether there is anything of it."""
    kept = [one for one in stored.assignments if one.request_id not in gone]
    for number, one in enumerate(kept):
        if one.request_id in refused and not one.leaving:
            kept[number] = replace(one, leaving=True)
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
                replica = seen.get(request_id)
                why = action.reason if cause is Cause.SILENT else None
                if replica is not None and replica.status is ReplicaStatus.FAILED:
                    why = replica.error or "it failed"
                for one in stored.assignments:
                    if why is not None and one.request_id == request_id and not one.leaving:
                        stored = set_back(stored, one.node, why, now)
                kept = tuple(
                    replace(one, leaving=True) if one.request_id == request_id else one for one in stored.assignments
                )
                stored = replace(stored, assignments=kept)
            case _:
                pass
    return assigned(stored, starts, now) if starts else stored
