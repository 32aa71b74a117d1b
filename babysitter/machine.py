"""PURE: the life of a replica. `step(replica, event, policy, now)` gives the next replica and what is to be done.

Every move stands in one table, `TABLE`. An event that may arrive late (a probe's answer after the server died) is
listed in `LATE` and changes nothing where the table has no row for it; any other event without a row is a defect and
raises `InvalidTransition`, which tells the story so far.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from babysitter import backoff
from babysitter import events as ev

STORY_LIMIT = 20


class ReplicaState(StrEnum):
    """Where a replica is. The last four words are ours; the others are also the wire's (docs/contract.md 5)."""

    PENDING = "pending"
    CREATING = "creating"
    STARTING = "starting"
    WAITING_FOR_READY = "waiting_for_ready"
    READY = "ready"
    UNHEALTHY = "unhealthy"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    BACKING_OFF = "backing_off"
    DRAINING = "draining"
    ENDING = "ending"
    """The server is being ended by us, to be restarted or to fail with a verdict."""


WIRE = {ReplicaState.BACKING_OFF: "starting", ReplicaState.DRAINING: "stopping", ReplicaState.ENDING: "unhealthy"}
DISPLAY = {
    **dict.fromkeys(
        (ReplicaState.PENDING, ReplicaState.CREATING, ReplicaState.STARTING, ReplicaState.WAITING_FOR_READY), "Pending"
    ),
    **dict.fromkeys((ReplicaState.BACKING_OFF,), "Pending"),
    **dict.fromkeys((ReplicaState.READY, ReplicaState.DRAINING), "Active"),
}
PROBED = frozenset({ReplicaState.WAITING_FOR_READY, ReplicaState.READY, ReplicaState.UNHEALTHY})
"""States in which the server is asked how it is."""
ALIVE = PROBED | {ReplicaState.STARTING, ReplicaState.DRAINING, ReplicaState.STOPPING, ReplicaState.ENDING}
"""States in which a server's process may exist."""


def wire_status(state: ReplicaState) -> str:
    """The contract's word for `state`."""
    return WIRE.get(state, state.value)


def display_status(state: ReplicaState) -> str:
    """`Pending`, `Active` or `Failed`."""
    return DISPLAY.get(state, "Failed")


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When to restart, give up, and distrust. Durations in seconds; a None deadline never comes."""

    restart_first_s: float = 5.0
    restart_last_s: float = 60.0
    steady_s: float = 600.0
    max_restarts: int = 10_000
    crash_loop_exits: int = 5
    crash_loop_window_s: float = 600.0
    no_restart_codes: frozenset[int] = frozenset({78, 125})
    unhealthy_after: int = 3
    healthy_after: int = 2
    liveness_s: float | None = 60.0
    startup_timeout_s: float | None = None
    port_timeout_s: float | None = None
    stall_s: float = 1800.0
    end_stalled: bool = False
    end_late: bool = False
    drain_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Move:
    """One transition: when (monotonic), from where to where, why, and how many seconds the old state lasted."""

    at: float
    before: ReplicaState
    after: ReplicaState
    cause: str
    lasted_s: float


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """Everything the machine knows. Times are monotonic seconds.

    `restarts` counts for ever, `spent` those that `max_restarts` bounds: since a retry or a steady time;
    `failures` counts exits in a row for the back-off; `exits` are the recent ones without ever having been ready;
    `late` tells that a start is past a time limit that was asked for, and goes on;
    `unstarted` tells that the last start came to nothing;
    `verdict` is the reason to fail once the server has ended; `wake_at` is when the machine wants `Woke`.
    """

    state: ReplicaState = ReplicaState.PENDING
    since: float = 0.0
    restarts: int = 0
    spent: int = 0
    failures: int = 0
    exits: tuple[float, ...] = ()
    ready_at: float | None = None
    good: int = 0
    bad: int = 0
    bad_since: float = 0.0
    waiting_since: float = 0.0
    progress_at: float = 0.0
    listens: bool = False
    stalled: bool = False
    late: bool = False
    unstarted: bool = False
    verdict: str | None = None
    error: str | None = None
    wake_at: float | None = None
    story: tuple[Move, ...] = ()


class InvalidTransition(RuntimeError):
    """An event came in a state that has no row for it: a defect of ours."""

    def __init__(self, replica: Lifecycle, event: ev.Event) -> None:
        told = [f"{move.before}→{move.after} ({move.cause})" for move in replica.story]
        super().__init__(f"{type(event).__name__} in state {replica.state}; the story: " + (", ".join(told) or "none"))


Result = tuple[Lifecycle, tuple[ev.Effect, ...]]
Rule = Callable[[Lifecycle, ev.Event, RestartPolicy, float], Result]


def step(replica: Lifecycle, event: ev.Event, policy: RestartPolicy, now: float) -> Result:
    """The replica after `event`, and the effects to carry out, in order.

    Raises:
        InvalidTransition: The event is not possible in this state.
    """
    rule = TABLE.get((replica.state, type(event)))
    if rule is None:
        if type(event) in LATE:
            return replica, ()
        raise InvalidTransition(replica, event)
    return rule(replica, event, policy, now)


def _move(
    replica: Lifecycle, after: ReplicaState, cause: str, now: float, *effects: ev.Effect, **changes: object
) -> Result:
    told = Move(now, replica.state, after, cause, now - replica.since)
    story = (*replica.story, told)[-STORY_LIMIT:]
    changed = replace(replica, state=after, since=now, wake_at=None, story=story)
    return replace(changed, **changes) if changes else changed, effects  # type: ignore[arg-type] # names are checked by replace


def _begin(replica: Lifecycle, event: ev.Event, _policy: RestartPolicy, now: float) -> Result:
    wanted = isinstance(event, ev.Begin | ev.Retry) and event.deploy
    fresh = replace(replica, verdict=None, error=None, exits=(), failures=0, spent=0)
    if wanted:
        return _move(fresh, ReplicaState.CREATING, "deploying", now, ev.Deploy())
    return _spawn(fresh, "wanted", now)


def _redeploy(replica: Lifecycle, _event: ev.Event, _policy: RestartPolicy, now: float) -> Result:
    return _move(replica, ReplicaState.CREATING, "no environment", now, ev.Deploy())


def _spawn(replica: Lifecycle, cause: str, now: float, **changes: object) -> Result:
    fresh = {"ready_at": None, "good": 0, "bad": 0, "stalled": False, "late": False, **changes}
    return _move(replica, ReplicaState.STARTING, cause, now, ev.Spawn(), **fresh)


def _deployed(replica: Lifecycle, _event: ev.Event, _policy: RestartPolicy, now: float) -> Result:
    return _spawn(replica, "deployed", now)


def _deploy_failed(replica: Lifecycle, event: ev.Event, _policy: RestartPolicy, now: float) -> Result:
    reason = event.reason if isinstance(event, ev.DeployFailed) else "unknown"
    return _move(replica, ReplicaState.FAILED, reason, now, error=reason)


def _await_ready(replica: Lifecycle, event: ev.Event, policy: RestartPolicy, now: float) -> Result:
    cause = "adopted" if isinstance(event, ev.Adopted) else "spawned"
    fresh = {"ready_at": None, "good": 0, "bad": 0, "stalled": False, "late": False, "listens": False}
    waiting = {"waiting_since": now, "progress_at": now, **fresh}
    moved, effects = _move(replica, ReplicaState.WAITING_FOR_READY, cause, now, **waiting)
    return replace(moved, wake_at=_next_check(moved, policy)), effects


def _next_check(replica: Lifecycle, policy: RestartPolicy) -> float:
    """When a replica that waits for readiness must be looked at again."""
    return min(replica.progress_at + policy.stall_s, _next_deadline(replica, policy))


def _next_deadline(replica: Lifecycle, policy: RestartPolicy) -> float:
    """When a start is late by the limits that were asked for; one that is late has no further one."""
    if replica.late:
        return math.inf
    ready_s = math.inf if policy.startup_timeout_s is None else policy.startup_timeout_s
    port_s = math.inf if policy.port_timeout_s is None or replica.listens else policy.port_timeout_s
    return replica.waiting_since + min(ready_s, port_s)


def _port_found(replica: Lifecycle, _event: ev.Event, policy: RestartPolicy, _now: float) -> Result:
    if replica.listens:
        return replica, ()
    found = replace(replica, listens=True)
    return replace(found, wake_at=_next_check(found, policy)), ()


def _progress(replica: Lifecycle, _event: ev.Event, policy: RestartPolicy, now: float) -> Result:
    moved = replace(replica, progress_at=now, stalled=False)
    return replace(moved, wake_at=_next_check(moved, policy)), ()


def _check_start(replica: Lifecycle, _event: ev.Event, policy: RestartPolicy, now: float) -> Result:
    """The timer of a replica that is not ready yet: a deadline of the request, or a stall (A9, A10)."""
    if now >= _next_deadline(replica, policy):
        waited_s = now - replica.waiting_since
        if policy.startup_timeout_s is not None and waited_s >= policy.startup_timeout_s:
            verdict = f"startup_timeout: not ready after {policy.startup_timeout_s:g} s"
        else:
            verdict = f"port_timeout: listens nowhere after {policy.port_timeout_s:g} s"
        if policy.end_late:
            return _move(replica, ReplicaState.ENDING, verdict, now, ev.Terminate(), verdict=verdict)
        replica = replace(replica, late=True, error=replica.error or f"{verdict}; it goes on")
    if now - replica.progress_at < policy.stall_s:
        return replace(replica, wake_at=_next_check(replica, policy)), ()
    reason = f"stalled: neither log nor run_meta.json moved for {policy.stall_s:g} s"
    if policy.end_stalled:
        return _move(replica, ReplicaState.ENDING, reason, now, ev.Terminate(), verdict=reason)
    again_at = min(now + policy.stall_s, _next_deadline(replica, policy))
    return replace(replica, stalled=True, error=reason, wake_at=again_at), ()


def _ready(replica: Lifecycle, _event: ev.Event, policy: RestartPolicy, now: float) -> Result:
    ready = {"ready_at": now, "good": 0, "bad": 0, "stalled": False, "late": False, "error": None, "exits": ()}
    return _move(replica, ReplicaState.READY, "answers", now, **ready, wake_at=now + policy.steady_s)


def _still_good(replica: Lifecycle, _event: ev.Event, _policy: RestartPolicy, _now: float) -> Result:
    return (replace(replica, bad=0) if replica.bad else replica), ()


def _steady(replica: Lifecycle, _event: ev.Event, _policy: RestartPolicy, _now: float) -> Result:
    """Ten good minutes: earlier failures no longer count."""
    return replace(replica, failures=0, spent=0, wake_at=None), ()


def _bad_probe(replica: Lifecycle, event: ev.Event, policy: RestartPolicy, now: float) -> Result:
    reason = event.reason if isinstance(event, ev.ProbeBad) else ""
    since = replica.bad_since if replica.bad else now
    counted = replace(replica, bad=replica.bad + 1, bad_since=since)
    if counted.bad < policy.unhealthy_after:
        return counted, ()
    return _move(counted, ReplicaState.UNHEALTHY, reason, now, good=0, error=reason)


def _still_bad(replica: Lifecycle, event: ev.Event, policy: RestartPolicy, now: float) -> Result:
    reason = event.reason if isinstance(event, ev.ProbeBad) else ""
    if policy.liveness_s is not None and now - replica.bad_since >= policy.liveness_s:
        cause = f"no good answer for {policy.liveness_s:g} s: {reason}"
        return _move(replica, ReplicaState.ENDING, cause, now, ev.Terminate(), error=cause)
    return replace(replica, good=0, error=reason), ()


def _over_limit(replica: Lifecycle, event: ev.Event, policy: RestartPolicy, now: float) -> Result:
    """Too much memory: out of rotation, wait for its requests, end it, start it again (A16)."""
    reason = event.reason if isinstance(event, ev.OverLimit) else ""
    return _move(
        replica, ReplicaState.ENDING, reason, now, ev.DrainRequests(), error=reason, wake_at=now + policy.drain_s
    )


def _end_drained(replica: Lifecycle, _event: ev.Event, _policy: RestartPolicy, _now: float) -> Result:
    return replace(replica, wake_at=None), (ev.Terminate(),)


def _recover(replica: Lifecycle, _event: ev.Event, policy: RestartPolicy, now: float) -> Result:
    good = replica.good + 1
    if good < policy.healthy_after:
        return replace(replica, good=good), ()
    return _move(
        replica, ReplicaState.READY, "answers again", now, good=0, bad=0, error=None, wake_at=now + policy.steady_s
    )


def _not_yet(replica: Lifecycle, event: ev.Event, _policy: RestartPolicy, _now: float) -> Result:
    reason = event.reason if isinstance(event, ev.ProbeBad) else None
    return (replica if replica.stalled or replica.error == reason else replace(replica, error=reason)), ()


def _exited(replica: Lifecycle, event: ev.Event, policy: RestartPolicy, now: float) -> Result:
    """The server is gone while it was wanted: fail for good, or back off and start again (A6, A7, A8)."""
    gone = event if isinstance(event, ev.Exited) else ev.Exited()
    ours = replica.error if replica.state is ReplicaState.ENDING else None
    what = ours or gone.describe()  # how it took our TERM explains nothing
    was_ready = replica.ready_at is not None
    exits = () if was_ready else (*backoff.recent(replica.exits, now=now, window_s=policy.crash_loop_window_s), now)
    steady = was_ready and now - (replica.ready_at or now) >= policy.steady_s
    failures, spent = (0, 0) if steady else (replica.failures, replica.spent)
    verdict = replica.verdict
    if verdict is None and gone.code in policy.no_restart_codes:
        verdict = f"{what}, which means: do not restart"
    if verdict is None and len(exits) >= policy.crash_loop_exits:
        verdict = f"crash loop: {len(exits)} exits in {policy.crash_loop_window_s:g} s without ever being ready; {what}"
    if verdict is None and spent >= policy.max_restarts:
        verdict = f"{what}, and max_restarts ({policy.max_restarts}) is used up"
    if verdict is not None:
        told = f"{verdict}\n{gone.tail}".rstrip()
        return _move(replica, ReplicaState.FAILED, verdict, now, ev.CancelJobs(), error=told, exits=exits, verdict=None)
    pause_s = backoff.delay_s(
        failures, first_s=policy.restart_first_s, last_s=policy.restart_last_s, chance=gone.chance
    )
    told = f"{what}\n{gone.tail}".rstrip()
    counted = replace(replica, exits=exits, failures=failures + 1, spent=spent, error=told)
    return _move(counted, ReplicaState.BACKING_OFF, what, now, ev.CancelJobs(), wake_at=now + pause_s)


def _not_spawned(replica: Lifecycle, event: ev.Event, policy: RestartPolicy, now: float) -> Result:
    """The node has no room for a start: no exit is counted, for it is tried until it works (B9)."""
    failed = event if isinstance(event, ev.NotSpawned) else ev.NotSpawned("unknown")
    pause_s = backoff.delay_s(
        replica.failures, first_s=policy.restart_first_s, last_s=policy.restart_last_s, chance=failed.chance
    )
    counted = replace(replica, failures=replica.failures + 1, unstarted=True, error=failed.reason)
    return _move(counted, ReplicaState.BACKING_OFF, failed.reason, now, wake_at=now + pause_s)


def _retry(replica: Lifecycle, _event: ev.Event, _policy: RestartPolicy, now: float) -> Result:
    if replica.wake_at is not None and now < replica.wake_at:
        return replica, ()
    more = 0 if replica.unstarted else 1
    counted = {"restarts": replica.restarts + more, "spent": replica.spent + more}
    return _spawn(replica, "back-off over", now, unstarted=False, **counted)


def _stop(replica: Lifecycle, event: ev.Event, policy: RestartPolicy, now: float) -> Result:
    """A wanted end: drain a server that serves, end one that lives, finish one that does not."""
    asked = event if isinstance(event, ev.StopRequested) else ev.StopRequested("stop")
    if replica.state is ReplicaState.READY and not asked.force:
        return _move(
            replica, ReplicaState.DRAINING, asked.reason, now, ev.DrainRequests(), wake_at=now + policy.drain_s
        )
    if replica.state is ReplicaState.CREATING:
        return _move(replica, ReplicaState.STOPPING, asked.reason, now, ev.AbortDeploy())
    if replica.state in ALIVE:
        return _move(replica, ReplicaState.STOPPING, asked.reason, now, ev.Terminate(force=asked.force))
    return _move(replica, ReplicaState.STOPPED, asked.reason, now, ev.Finish())


def _stop_harder(replica: Lifecycle, event: ev.Event, _policy: RestartPolicy, _now: float) -> Result:
    force = isinstance(event, ev.StopRequested) and event.force
    return replica, (ev.Terminate(force=True),) if force else ()


def _drained(replica: Lifecycle, _event: ev.Event, _policy: RestartPolicy, now: float) -> Result:
    return _move(replica, ReplicaState.STOPPING, "drained", now, ev.Terminate())


def _drain_over(replica: Lifecycle, _event: ev.Event, policy: RestartPolicy, now: float) -> Result:
    return _move(replica, ReplicaState.STOPPING, f"drain deadline of {policy.drain_s:g} s", now, ev.Terminate())


def _stopped(replica: Lifecycle, event: ev.Event, _policy: RestartPolicy, now: float) -> Result:
    what = event.describe() if isinstance(event, ev.Exited) else "nothing left to stop"
    return _move(replica, ReplicaState.STOPPED, what, now, ev.CancelJobs(), ev.Finish(), error=None)


def _spawned_too_late(replica: Lifecycle, _event: ev.Event, _policy: RestartPolicy, _now: float) -> Result:
    return replica, (ev.Terminate(),)


LATE: frozenset[type[ev.Event]] = frozenset(
    {
        ev.ProbeGood,
        ev.ProbeBad,
        ev.PortFound,
        ev.StartProgress,
        ev.Drained,
        ev.Woke,
        ev.Deployed,
        ev.DeployFailed,
        ev.Exited,
        ev.Retry,
        ev.OverLimit,
    }
)
"""Events that may come when nobody waits for them any more."""

TABLE: dict[tuple[ReplicaState, type[ev.Event]], Rule] = {
    (ReplicaState.PENDING, ev.Begin): _begin,
    (ReplicaState.PENDING, ev.Adopted): _await_ready,
    (ReplicaState.PENDING, ev.Exited): _exited,
    (ReplicaState.PENDING, ev.StopRequested): _stop,
    (ReplicaState.CREATING, ev.Deployed): _deployed,
    (ReplicaState.CREATING, ev.DeployFailed): _deploy_failed,
    (ReplicaState.CREATING, ev.StopRequested): _stop,
    (ReplicaState.STARTING, ev.Spawned): _await_ready,
    (ReplicaState.STARTING, ev.NotSpawned): _not_spawned,
    (ReplicaState.STARTING, ev.Undeployed): _redeploy,
    (ReplicaState.STARTING, ev.Exited): _exited,
    (ReplicaState.STARTING, ev.StopRequested): _stop,
    (ReplicaState.WAITING_FOR_READY, ev.ProbeGood): _ready,
    (ReplicaState.WAITING_FOR_READY, ev.ProbeBad): _not_yet,
    (ReplicaState.WAITING_FOR_READY, ev.PortFound): _port_found,
    (ReplicaState.WAITING_FOR_READY, ev.StartProgress): _progress,
    (ReplicaState.WAITING_FOR_READY, ev.Woke): _check_start,
    (ReplicaState.WAITING_FOR_READY, ev.Exited): _exited,
    (ReplicaState.WAITING_FOR_READY, ev.StopRequested): _stop,
    (ReplicaState.READY, ev.ProbeGood): _still_good,
    (ReplicaState.READY, ev.ProbeBad): _bad_probe,
    (ReplicaState.READY, ev.Woke): _steady,
    (ReplicaState.READY, ev.Exited): _exited,
    (ReplicaState.READY, ev.StopRequested): _stop,
    (ReplicaState.UNHEALTHY, ev.ProbeGood): _recover,
    (ReplicaState.UNHEALTHY, ev.ProbeBad): _still_bad,
    (ReplicaState.UNHEALTHY, ev.Exited): _exited,
    (ReplicaState.UNHEALTHY, ev.StopRequested): _stop,
    (ReplicaState.READY, ev.OverLimit): _over_limit,
    (ReplicaState.ENDING, ev.Drained): _end_drained,
    (ReplicaState.ENDING, ev.Woke): _end_drained,
    (ReplicaState.ENDING, ev.Exited): _exited,
    (ReplicaState.ENDING, ev.StopRequested): _stop,
    (ReplicaState.BACKING_OFF, ev.Woke): _retry,
    (ReplicaState.BACKING_OFF, ev.StopRequested): _stop,
    (ReplicaState.DRAINING, ev.Drained): _drained,
    (ReplicaState.DRAINING, ev.Woke): _drain_over,
    (ReplicaState.DRAINING, ev.Exited): _stopped,
    (ReplicaState.DRAINING, ev.StopRequested): _stop,
    (ReplicaState.STOPPING, ev.Exited): _stopped,
    (ReplicaState.STOPPING, ev.Spawned): _spawned_too_late,
    (ReplicaState.STOPPING, ev.NotSpawned): _stopped,
    (ReplicaState.STOPPING, ev.Undeployed): _stopped,
    (ReplicaState.STOPPING, ev.Deployed): _stopped,
    (ReplicaState.STOPPING, ev.DeployFailed): _stopped,
    (ReplicaState.STOPPING, ev.StopRequested): _stop_harder,
    (ReplicaState.STOPPED, ev.StopRequested): lambda replica, _event, _policy, _now: (replica, ()),
    (ReplicaState.FAILED, ev.Retry): _begin,
    (ReplicaState.FAILED, ev.StopRequested): _stop,
}
