"""PURE: what happened between two infos of a replica, as the events of its stream (docs/agent.md)."""

from collections.abc import Sequence
from dataclasses import dataclass

from common.wire.base import Message
from common.wire.replica import ReplicaInfo, Transition
from common.wire.stream import JobsChange, StatusChange
from common.wire.words import ReplicaStatus


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """One event of the stream."""

    name: str
    data: Message


def changes(
    before: ReplicaInfo,
    after: ReplicaInfo,
    *,
    moves_before: Sequence[Transition],
    moves_after: Sequence[Transition],
) -> list[StreamEvent]:
    """Events that lead from one info to the next: moves, stages, jobs, and last the status that came of them.

    `moves_before` and `moves_after` are the timeline's entries, of which the oldest may be forgotten meanwhile.
    """
    events = [StreamEvent("transition", move) for move in fresh(moves_before, moves_after)]
    old_stages = {stage.name: stage for stage in before.stages}
    events += [StreamEvent("stage", stage) for stage in after.stages if stage != old_stages.get(stage.name)]
    if _jobs(before) != _jobs(after):
        events.append(StreamEvent("jobs", _jobs(after)))
    if _status(before, at=after.updated_at) != _status(after, at=after.updated_at):
        events.append(StreamEvent("status", _status(after, at=after.updated_at)))
    return events


def fresh(before: Sequence[Transition], after: Sequence[Transition]) -> list[Transition]:
    """The entries of `after` that came behind the last one of `before`."""
    if not before:
        return list(after)
    last = before[-1]
    last_at = max((number for number, entry in enumerate(after) if entry == last), default=-1)
    return list(after[last_at + 1 :])


def reason_to_end(status: ReplicaStatus, until: str | None) -> str | None:
    """Why a stream has nothing more to tell; None while it has. `until` is None or `ready`."""
    if status is ReplicaStatus.STOPPED:
        return "the replica is stopped"
    if until == "ready" and status is ReplicaStatus.READY:
        return "the replica is ready"
    if until == "ready" and status is ReplicaStatus.FAILED:
        return "the replica has failed"
    return None


def _status(info: ReplicaInfo, *, at: str | None) -> StatusChange:
    return StatusChange(
        replica_id=info.replica_id,
        status=info.status,
        display_status=info.display_status,
        endpoint=info.endpoint,
        error_message=info.error_message,
        stalled=info.stalled,
        late=info.late,
        at=at,
    )


def _jobs(info: ReplicaInfo) -> JobsChange:
    return JobsChange(compile_wsjob=info.compile_wsjob, execute_wsjob=info.execute_wsjob)
