"""PURE: what happened between two pictures of a replica, as the events of its stream (docs/agent.md)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SHOWN = ("status", "display_status", "endpoint", "error_message", "stalled", "late")
JOBS = ("compile_wsjob", "execute_wsjob")


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """One event of the stream."""

    name: str
    data: Mapping[str, Any]


def changes(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    *,
    moves_before: Sequence[Mapping[str, Any]],
    moves_after: Sequence[Mapping[str, Any]],
) -> list[StreamEvent]:
    """Events that lead from one info to the next: moves, stages, jobs, and last the status that came of them.

    `moves_before` and `moves_after` are the timeline's entries, of which the oldest may be forgotten meanwhile.
    """
    events = [StreamEvent("transition", move) for move in fresh(moves_before, moves_after)]
    old_stages = {stage.get("name"): stage for stage in before["stages"]}
    events += [StreamEvent("stage", stage) for stage in after["stages"] if stage != old_stages.get(stage.get("name"))]
    if any(before[name] != after[name] for name in JOBS):
        events.append(StreamEvent("jobs", {name: after[name] for name in JOBS}))
    if any(before[name] != after[name] for name in SHOWN):
        events.append(StreamEvent("status", status(after)))
    return events


def status(info: Mapping[str, Any]) -> dict[str, Any]:
    """The data of a `status` event."""
    members = {name: info[name] for name in SHOWN}
    return {"replica_id": info["replica_id"], **members, "at": info["updated_at"]}


def fresh(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The entries of `after` that came behind the last one of `before`."""
    if not before:
        return list(after)
    last = before[-1]
    last_at = max((number for number, entry in enumerate(after) if entry == last), default=-1)
    return list(after[last_at + 1 :])


def reason_to_end(info: Mapping[str, Any], until: str | None) -> str | None:
    """Why a stream has nothing more to tell; None while it has. `until` is None or `ready`."""
    status = info["status"]
    if status == "stopped":
        return "the replica is stopped"
    if until == "ready" and status == "ready":
        return "the replica is ready"
    if until == "ready" and status == "failed":
        return "the replica has failed"
    return None
