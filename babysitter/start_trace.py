"""PURE: a start of the server as a trace, made from the timeline once the start is over.

One span for the whole start, one below it for each state, and below `creating` one for each stage of the deployment.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime

from babysitter.lifecycle import BEGINNING, ReplicaState
from common.span import Span
from common.wire.replica import Stage, Transition
from common.wire.words import StageState


def start_spans(
    timeline: Sequence[Transition],
    stages: Sequence[Stage],
    *,
    replica: str,
    attributes: Mapping[str, str],
    new_id: Callable[[int], int],
) -> list[Span]:
    """The spans of the start that the timeline's last entry ended; none, if it ended no start.

    Args:
        timeline: The latest last.
        stages: Of the last deployment.
        replica: Its name.
        attributes: What the first span says besides.
        new_id: A random number of so many bits.
    """
    states = list(_states_of_the_start(timeline))
    if not states:
        return []
    trace_id, root = new_id(128), new_id(64)
    last = timeline[-1]
    began_at, ended_at = _began_at(states[0]), _seconds(last.at)
    details = {**attributes, "inference.replica": replica, "inference.state": last.after}
    error = None if last.after == ReplicaState.READY else last.cause
    spans = [Span(f"start {replica}", trace_id, root, None, began_at, ended_at, "internal", details, error)]
    for entry in states:
        own = new_id(64)
        spans.append(Span(entry.before, trace_id, own, root, _began_at(entry), _seconds(entry.at)))
        if entry.before == ReplicaState.CREATING:
            spans += [_stage(stage, trace_id, new_id(64), own) for stage in stages if _belongs(stage, entry)]
    return spans


def _states_of_the_start(timeline: Sequence[Transition]) -> Iterator[Transition]:
    """The entries that left a state of the start, the earliest first; nothing while the start goes on."""
    if not timeline or timeline[-1].after in BEGINNING:
        return
    first = len(timeline)
    while first and timeline[first - 1].before in BEGINNING:
        first -= 1
    yield from timeline[first:]


def _stage(stage: Stage, trace_id: int, own: int, parent: int) -> Span:
    began_at = _seconds(stage.began_at)
    failed = stage.detail if stage.state is StageState.FAILED else None
    details: dict[str, str | int | float | bool] = {
        "inference.stage_state": stage.state.value,
        "inference.tries": stage.attempt,
    }
    ended_at = began_at + stage.took_s
    return Span(f"stage {stage.name}", trace_id, own, parent, began_at, ended_at, "internal", details, failed)


def _belongs(stage: Stage, creating: Transition) -> bool:
    """True for a stage that ran in that stay in `creating`; the list may still hold those of an earlier one."""
    return _began_at(creating) - 1.0 <= _seconds(stage.began_at) <= _seconds(creating.at)


def _began_at(entry: Transition) -> float:
    return _seconds(entry.at) - entry.lasted_s


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
