"""PURE: what each event does to a replica's life: one rule for each kind of row in the table of machine.py.

A rule names in its signature which events it is for; mypy holds the table to that.
"""

import math
from dataclasses import replace

from babysitter import backoff
from babysitter import events as ev
from babysitter.lifecycle import ALIVE, Lifecycle, Move, ReplicaState, RestartPolicy

STORY_LIMIT = 20
DOZE_LEAST_S = 8.0
"""Least time for requests to end before a sleep: a connection counts as in use for five seconds after its last byte."""
Result = tuple[Lifecycle, tuple[ev.Effect, ...]]


def _move(
    life: Lifecycle, after: ReplicaState, cause: str, now: float, *effects: ev.Effect, **changes: object
) -> Result:
    story = (*life.story, Move(now, life.state, after, cause, now - life.since))[-STORY_LIMIT:]
    changed = replace(life, state=after, since=now, wake_at=None, story=story)
    return replace(changed, **changes) if changes else changed, effects  # type: ignore[arg-type] # names are checked by replace


def begin(life: Lifecycle, event: ev.Begin | ev.Retry, _policy: RestartPolicy, now: float) -> Result:
    """The replica is wanted."""
    fresh = replace(life, verdict=None, error=None, exits=(), failures=0, spent=0)
    if event.deploy:
        return _move(fresh, ReplicaState.CREATING, "deploying", now, ev.Deploy())
    return _spawn(fresh, "wanted", now)


def redeploy(life: Lifecycle, _event: ev.Undeployed, _policy: RestartPolicy, now: float) -> Result:
    """The environment has to be made again."""
    return _move(life, ReplicaState.CREATING, "no environment", now, ev.Deploy())


def _spawn(life: Lifecycle, cause: str, now: float, **changes: object) -> Result:
    fresh = {"ready_at": None, "good": 0, "bad": 0, "stalled": False, "late": False, **changes}
    return _move(life, ReplicaState.STARTING, cause, now, ev.Spawn(), **fresh)


def deployed(life: Lifecycle, _event: ev.Deployed, _policy: RestartPolicy, now: float) -> Result:
    """The server is started in its new environment."""
    return _spawn(life, "deployed", now)


def deploy_failed(life: Lifecycle, event: ev.DeployFailed, _policy: RestartPolicy, now: float) -> Result:
    """Without an environment there is no server."""
    return _move(life, ReplicaState.FAILED, event.reason, now, error=event.reason)


def spawned(life: Lifecycle, _event: ev.Spawned, policy: RestartPolicy, now: float) -> Result:
    """A server that was started is waited for."""
    return _await_ready(life, "spawned", policy, now)


def adopted(life: Lifecycle, event: ev.Adopted, policy: RestartPolicy, now: float) -> Result:
    """An earlier babysitter's server is waited for, as if it had just been started; one that was to sleep sleeps on."""
    if event.asleep:
        return _doze(life, "adopted", policy, now)
    effects = (ev.WakeEngine(),) if event.dazed else ()
    return _await_ready(life, "adopted", policy, now, *effects)


def _await_ready(life: Lifecycle, cause: str, policy: RestartPolicy, now: float, *effects: ev.Effect) -> Result:
    fresh = {"ready_at": None, "good": 0, "bad": 0, "stalled": False, "late": False, "listens": False}
    waiting = {"waiting_since": now, "progress_at": now, **fresh}
    moved, _ = _move(life, ReplicaState.WAITING_FOR_READY, cause, now, **waiting)
    return replace(moved, wake_at=_next_check(moved, policy)), effects


def _next_check(life: Lifecycle, policy: RestartPolicy) -> float:
    """When a start that goes on must be looked at again."""
    return min(life.progress_at + policy.stall_s, _next_deadline(life, policy))


def _next_deadline(life: Lifecycle, policy: RestartPolicy) -> float:
    """When a start is late by the limits that were asked for; one that is late has no further one."""
    if life.late:
        return math.inf
    ready_s = math.inf if policy.startup_timeout_s is None else policy.startup_timeout_s
    port_s = math.inf if policy.port_timeout_s is None or life.listens else policy.port_timeout_s
    return life.waiting_since + min(ready_s, port_s)


def port_found(life: Lifecycle, _event: ev.PortFound, policy: RestartPolicy, _now: float) -> Result:
    """It listens: the limit for that is met."""
    if life.listens:
        return life, ()
    listening = replace(life, listens=True)
    return replace(listening, wake_at=_next_check(listening, policy)), ()


def progress(life: Lifecycle, _event: ev.StartProgress, policy: RestartPolicy, now: float) -> Result:
    """Its log or run_meta.json moved: it is not stalled."""
    moved = replace(life, progress_at=now, stalled=False)
    return replace(moved, wake_at=_next_check(moved, policy)), ()


def check_start(life: Lifecycle, _event: ev.Woke, policy: RestartPolicy, now: float) -> Result:
    """The timer of a start that goes on: a deadline of the request, or a stall (A9, A10)."""
    if now >= _next_deadline(life, policy):
        waited_s = now - life.waiting_since
        if policy.startup_timeout_s is not None and waited_s >= policy.startup_timeout_s:
            verdict = f"startup_timeout: not ready after {policy.startup_timeout_s:g} s"
        else:
            verdict = f"port_timeout: listens nowhere after {policy.port_timeout_s:g} s"
        if policy.end_late:
            return _move(life, ReplicaState.ENDING, verdict, now, ev.Terminate(), verdict=verdict)
        life = replace(life, late=True, error=life.error or f"{verdict}; it goes on")
    if now - life.progress_at < policy.stall_s:
        return replace(life, wake_at=_next_check(life, policy)), ()
    reason = f"stalled: neither log nor run_meta.json moved for {policy.stall_s:g} s"
    if policy.end_stalled:
        return _move(life, ReplicaState.ENDING, reason, now, ev.Terminate(), verdict=reason)
    again_at = min(now + policy.stall_s, _next_deadline(life, policy))
    return replace(life, stalled=True, error=reason, wake_at=again_at), ()


def ready(life: Lifecycle, _event: ev.ProbeGood, policy: RestartPolicy, now: float) -> Result:
    """It answers as it should, for the first time since its start."""
    fresh = {"ready_at": now, "good": 0, "bad": 0, "stalled": False, "late": False, "error": None, "exits": ()}
    return _move(life, ReplicaState.READY, "answers", now, **fresh, wake_at=now + policy.steady_s)


def still_good(life: Lifecycle, _event: ev.ProbeGood, _policy: RestartPolicy, _now: float) -> Result:
    """Bad looks before this one do not count."""
    return (replace(life, bad=0) if life.bad else life), ()


def steady(life: Lifecycle, _event: ev.Woke, _policy: RestartPolicy, _now: float) -> Result:
    """Ten good minutes: earlier failures no longer count."""
    return replace(life, failures=0, spent=0, wake_at=None), ()


def doze(life: Lifecycle, _event: ev.SleepRequested, policy: RestartPolicy, now: float) -> Result:
    """Nobody needs it: out of rotation, wait for its requests, then sleep."""
    return _doze(life, "told to sleep", policy, now)


def _doze(life: Lifecycle, cause: str, policy: RestartPolicy, now: float) -> Result:
    wake_at = now + _doze_s(policy)
    return _move(life, ReplicaState.DOZING, cause, now, ev.DrainRequests(), wake_at=wake_at)


def _doze_s(policy: RestartPolicy) -> float:
    return max(policy.drain_s, DOZE_LEAST_S)


def fall_asleep(life: Lifecycle, _event: ev.Drained, _policy: RestartPolicy, _now: float) -> Result:
    """No request is left."""
    if life.wake_at is None:
        return life, ()  # it was told already
    return replace(life, wake_at=None), (ev.SleepEngine(),)


def too_busy(life: Lifecycle, _event: ev.Woke, policy: RestartPolicy, now: float) -> Result:
    """Its requests go on for too long: it stays awake for them, and serves again."""
    if life.wake_at is None or now < life.wake_at:
        return life, ()
    return _await_ready(life, f"in use for longer than {_doze_s(policy):g} s", policy, now)


def asleep(life: Lifecycle, _event: ev.Slept, _policy: RestartPolicy, now: float) -> Result:
    """Its engine has given its memory back."""
    return _move(life, ReplicaState.ASLEEP, "sleeps", now)


def not_asleep(life: Lifecycle, event: ev.NotSlept, policy: RestartPolicy, now: float) -> Result:
    """It serves again, once it is certain that it is awake."""
    moved, effects = _await_ready(life, event.reason, policy, now, ev.WakeEngine())
    return replace(moved, error=event.reason), effects


def wake(life: Lifecycle, _event: ev.WakeRequested, policy: RestartPolicy, now: float) -> Result:
    """Somebody needs it; it proves itself before it serves, as after a start."""
    return _await_ready(life, "told to wake", policy, now, ev.WakeEngine())


def not_woken(life: Lifecycle, event: ev.NotWoken, _policy: RestartPolicy, now: float) -> Result:
    """A server that cannot be woken is ended, to be started again."""
    return _move(life, ReplicaState.ENDING, event.reason, now, ev.Terminate(), error=event.reason)


def bad_probe(life: Lifecycle, event: ev.ProbeBad, policy: RestartPolicy, now: float) -> Result:
    """So many bad looks in a row take it out of rotation."""
    since = life.bad_since if life.bad else now
    counted = replace(life, bad=life.bad + 1, bad_since=since)
    if counted.bad < policy.unhealthy_after:
        return counted, ()
    return _move(counted, ReplicaState.UNHEALTHY, event.reason, now, good=0, error=event.reason)


def still_bad(life: Lifecycle, event: ev.ProbeBad, policy: RestartPolicy, now: float) -> Result:
    """A server that stays bad for too long is ended, to be started again."""
    if policy.liveness_s is not None and now - life.bad_since >= policy.liveness_s:
        cause = f"no good answer for {policy.liveness_s:g} s: {event.reason}"
        return _move(life, ReplicaState.ENDING, cause, now, ev.Terminate(), error=cause)
    return replace(life, good=0, error=event.reason), ()


def member_away(life: Lifecycle, event: ev.MemberAway, _policy: RestartPolicy, now: float) -> Result:
    """Out of rotation at once; good looks bring it back when the other is."""
    fresh = {"good": 0, "bad": 1, "bad_since": now, "error": event.reason}
    return _move(life, ReplicaState.UNHEALTHY, event.reason, now, **fresh)


def group_broken(life: Lifecycle, event: ev.GroupBroken, _policy: RestartPolicy, now: float) -> Result:
    """A server is of no use without the others: it is ended for good."""
    return _move(life, ReplicaState.ENDING, event.reason, now, ev.Terminate(), verdict=event.reason)


def over_limit(life: Lifecycle, event: ev.OverLimit, policy: RestartPolicy, now: float) -> Result:
    """Too much memory: out of rotation, wait for its requests, end it, start it again (A16)."""
    return _move(
        life,
        ReplicaState.ENDING,
        event.reason,
        now,
        ev.DrainRequests(),
        error=event.reason,
        wake_at=now + policy.drain_s,
    )


def end_drained(life: Lifecycle, _event: ev.Drained | ev.Woke, _policy: RestartPolicy, _now: float) -> Result:
    """Its requests are over, or have had their time."""
    return replace(life, wake_at=None), (ev.Terminate(),)


def recover(life: Lifecycle, _event: ev.ProbeGood, policy: RestartPolicy, now: float) -> Result:
    """So many good looks in a row put it back into rotation."""
    good = life.good + 1
    if good < policy.healthy_after:
        return replace(life, good=good), ()
    return _move(
        life, ReplicaState.READY, "answers again", now, good=0, bad=0, error=None, wake_at=now + policy.steady_s
    )


def not_yet(life: Lifecycle, event: ev.ProbeBad, _policy: RestartPolicy, _now: float) -> Result:
    """Why it is not ready, for the operator."""
    return (life if life.stalled or life.error == event.reason else replace(life, error=event.reason)), ()


def exited(life: Lifecycle, event: ev.Exited, policy: RestartPolicy, now: float) -> Result:
    """The server is gone while it was wanted: fail for good, or back off and start again (A6, A7, A8)."""
    ours = life.error if life.state is ReplicaState.ENDING else None
    what = ours or event.describe()  # how it took our TERM explains nothing
    was_ready = life.ready_at is not None
    exits = () if was_ready else (*backoff.recent(life.exits, now=now, window_s=policy.crash_loop_window_s), now)
    steady = was_ready and now - (life.ready_at or now) >= policy.steady_s
    failures, spent = (0, 0) if steady else (life.failures, life.spent)
    verdict = life.verdict
    if verdict is None and event.code in policy.no_restart_codes:
        verdict = f"{what}, which means: do not restart"
    if verdict is None and len(exits) >= policy.crash_loop_exits:
        verdict = f"crash loop: {len(exits)} exits in {policy.crash_loop_window_s:g} s without ever being ready; {what}"
    if verdict is None and spent >= policy.max_restarts:
        verdict = f"{what}, and max_restarts ({policy.max_restarts}) is used up"
    if verdict is not None:
        error = f"{verdict}\n{event.tail}".rstrip()
        return _move(life, ReplicaState.FAILED, verdict, now, ev.CancelJobs(), error=error, exits=exits, verdict=None)
    pause_s = backoff.delay_s(
        failures, first_s=policy.restart_first_s, last_s=policy.restart_last_s, chance=event.chance
    )
    error = f"{what}\n{event.tail}".rstrip()
    counted = replace(life, exits=exits, failures=failures + 1, spent=spent, error=error)
    return _move(counted, ReplicaState.BACKING_OFF, what, now, ev.CancelJobs(), wake_at=now + pause_s)


def not_spawned(life: Lifecycle, event: ev.NotSpawned, policy: RestartPolicy, now: float) -> Result:
    """The node has no room for a start: no exit is counted, for it is tried until it works (B9)."""
    pause_s = backoff.delay_s(
        life.failures, first_s=policy.restart_first_s, last_s=policy.restart_last_s, chance=event.chance
    )
    counted = replace(life, failures=life.failures + 1, unstarted=True, error=event.reason)
    return _move(counted, ReplicaState.BACKING_OFF, event.reason, now, wake_at=now + pause_s)


def retry(life: Lifecycle, _event: ev.Woke, _policy: RestartPolicy, now: float) -> Result:
    """The back-off is over."""
    if life.wake_at is not None and now < life.wake_at:
        return life, ()
    more = 0 if life.unstarted else 1
    counted = {"restarts": life.restarts + more, "spent": life.spent + more}
    return _spawn(life, "back-off over", now, unstarted=False, **counted)


def stop(life: Lifecycle, event: ev.StopRequested, policy: RestartPolicy, now: float) -> Result:
    """A wanted end: drain a server that serves, end one that lives, finish one that does not."""
    if life.state in (ReplicaState.READY, ReplicaState.DOZING) and not event.force:
        return _move(life, ReplicaState.DRAINING, event.reason, now, ev.DrainRequests(), wake_at=now + policy.drain_s)
    if life.state is ReplicaState.CREATING:
        return _move(life, ReplicaState.STOPPING, event.reason, now, ev.AbortDeploy())
    if life.state in ALIVE:
        return _move(life, ReplicaState.STOPPING, event.reason, now, ev.Terminate(force=event.force))
    return _move(life, ReplicaState.STOPPED, event.reason, now, ev.Finish())


def stop_harder(life: Lifecycle, event: ev.StopRequested, _policy: RestartPolicy, _now: float) -> Result:
    """Whoever asks again with force waits for no grace."""
    return life, (ev.Terminate(force=True),) if event.force else ()


def drained(life: Lifecycle, _event: ev.Drained, _policy: RestartPolicy, now: float) -> Result:
    """No request is left."""
    return _move(life, ReplicaState.STOPPING, "drained", now, ev.Terminate())


def drain_over(life: Lifecycle, _event: ev.Woke, policy: RestartPolicy, now: float) -> Result:
    """Its requests have had their time."""
    return _move(life, ReplicaState.STOPPING, f"drain deadline of {policy.drain_s:g} s", now, ev.Terminate())


def stopped(life: Lifecycle, event: ev.Exited, _policy: RestartPolicy, now: float) -> Result:
    """The server is gone, as was wanted."""
    return _end(life, event.describe(), now)


def nothing_left(
    life: Lifecycle,
    _event: ev.NotSpawned | ev.Undeployed | ev.Deployed | ev.DeployFailed,
    _policy: RestartPolicy,
    now: float,
) -> Result:
    """There is no server, which was wanted."""
    return _end(life, "nothing left to stop", now)


def _end(life: Lifecycle, cause: str, now: float) -> Result:
    return _move(life, ReplicaState.STOPPED, cause, now, ev.CancelJobs(), ev.Finish(), error=None)


def spawned_too_late(life: Lifecycle, _event: ev.Spawned, _policy: RestartPolicy, _now: float) -> Result:
    """It came up after its stop was asked for."""
    return life, (ev.Terminate(),)


def stay(life: Lifecycle, _event: ev.StopRequested, _policy: RestartPolicy, _now: float) -> Result:
    """It is stopped already."""
    return life, ()
