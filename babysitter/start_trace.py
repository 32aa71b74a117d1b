"""PURE: a start of the server as a trace, made from the timeline once the start is over.

One span for the whole start, one below it for each state, and below `creating` one for each stage of the deployment.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from babysitter.lifecycle import ReplicaState
from common.span import Span

STARTING = frozenset({ReplicaState.CREATING, ReplicaState.STARTING, ReplicaState.WAITING_FOR_READY})


def start_spans(
    timeline: Sequence[Mapping[str, Any]],
    stages: Sequence[Mapping[str, Any]],
    *,
    replica: str,
    attributes: Mapping[str, str],
    new_id: Callable[[int], int],
) -> list[Span]:
    """The spans of the start that the timeline's last entry ended; none, if it ended no start.

    Args:
        timeline: Entries `{at, from, to, cause, lasted_s}`, the latest last; `at` is ISO 8601.
        stages: Entries `{name, state, began_at, took_s, detail}` of the last deployment.
        replica: Its name.
        attributes: What the first span says besides.
        new_id: A random number of so many bits.
    """
    states = list(_states_of_the_start(timeline))
    if not states:
        return []
    trace_id, root = new_id(128), new_id(64)
    last = timeline[-1]
    began_at, ended_at = _began_at(states[0]), _seconds(last["at"])
    ready = last["to"] == ReplicaState.READY
    told = {**attributes, "inference.replica": replica, "inference.state": str(last["to"])}
    error = None if ready else str(last["cause"])
    spans = [Span(f"start {replica}", trace_id, root, None, began_at, ended_at, "internal", told, error)]
    for entry in states:
        own = new_id(64)
        spans.append(Span(str(entry["from"]), trace_id, own, root, _began_at(entry), _seconds(entry["at"])))
        if entry["from"] == ReplicaState.CREATING:
            spans += [_stage(stage, trace_id, new_id(64), own) for stage in stages if _belongs(stage, entry)]
    return spans


def _states_of_the_start(timeline: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The entries that left a state of the start, the earliest first; nothing while the start goes on."""
    if not timeline or timeline[-1]["to"] in STARTING:
        return
    first = len(timeline)
    while first and timeline[first - 1]["from"] in STARTING:
        first -= 1
    yield from timeline[first:]


def _stage(stage: Mapping[str, Any], trace_id: int, own: int, parent: int) -> Span:
    began_at = _seconds(stage["began_at"])
    failed = str(stage["detail"]) if stage["state"] == "failed" else None
    told: dict[str, str | int | float | bool] = {
        "inference.stage_state": str(stage["state"]),
        "inference.tries": int(stage["attempt"]),
    }
    ended_at = began_at + float(stage["took_s"])
    return Span(f"stage {stage['name']}", trace_id, own, parent, began_at, ended_at, "internal", told, failed)


def _belongs(stage: Mapping[str, Any], creating: Mapping[str, Any]) -> bool:
    """True for a stage that ran in that stay in `creating`; the list may still hold those of an earlier one."""
    return _began_at(creating) - 1.0 <= _seconds(stage["began_at"]) <= _seconds(creating["at"])


def _began_at(entry: Mapping[str, Any]) -> float:
    return _seconds(entry["at"]) - float(entry["lasted_s"])


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
