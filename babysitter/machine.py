"""PURE: the life of a replica. `step(life, event, policy, now)` gives the next life and what is to be done.

Every move stands in one table, `TABLE`; what a row does is a rule of transitions.py. An event that may arrive late (a probe's
answer after the server died) is listed in `LATE` and changes nothing where the table has no row for it; any other event
without a row is a defect and raises `InvalidTransition`, which tells the story so far.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from babysitter import events as ev
from babysitter import transitions
from babysitter.lifecycle import InvalidTransition, Lifecycle, ReplicaState, RestartPolicy
from babysitter.transitions import Result

E = TypeVar("E", bound=ev.Event)
Key = tuple[ReplicaState, type[Any]]
Rule = Callable[[Lifecycle, Any, RestartPolicy, float], Result]


def step(life: Lifecycle, event: ev.Event, policy: RestartPolicy, now: float) -> Result:
    """The life after `event`, and the effects to carry out, in order.

    Raises:
        InvalidTransition: The event is not possible in this state.
    """
    rule = TABLE.get((life.state, type(event)))
    if rule is None:
        if type(event) in LATE:
            return life, ()
        raise InvalidTransition(life, event)
    return rule(life, event, policy, now)


def row(
    state: ReplicaState, kind: type[E], rule: Callable[[Lifecycle, E, RestartPolicy, float], Result]
) -> tuple[Key, Rule]:
    """One row: in `state` an event of this kind is what `rule` is for."""
    return (state, kind), rule


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
        ev.SleepRequested,
        ev.WakeRequested,
        ev.Slept,
        ev.NotSlept,
        ev.NotWoken,
        ev.MemberAway,
        ev.GroupBroken,
    }
)
"""Events that may come when nobody waits for them any more."""

TABLE: dict[Key, Rule] = dict(
    (
        row(ReplicaState.PENDING, ev.Begin, transitions.begin),
        row(ReplicaState.PENDING, ev.Adopted, transitions.adopted),
        row(ReplicaState.PENDING, ev.Exited, transitions.exited),
        row(ReplicaState.PENDING, ev.StopRequested, transitions.stop),
        row(ReplicaState.CREATING, ev.Deployed, transitions.deployed),
        row(ReplicaState.CREATING, ev.DeployFailed, transitions.deploy_failed),
        row(ReplicaState.CREATING, ev.StopRequested, transitions.stop),
        row(ReplicaState.STARTING, ev.Spawned, transitions.spawned),
        row(ReplicaState.STARTING, ev.NotSpawned, transitions.not_spawned),
        row(ReplicaState.STARTING, ev.Undeployed, transitions.redeploy),
        row(ReplicaState.STARTING, ev.Exited, transitions.exited),
        row(ReplicaState.STARTING, ev.StopRequested, transitions.stop),
        row(ReplicaState.WAITING_FOR_READY, ev.ProbeGood, transitions.ready),
        row(ReplicaState.WAITING_FOR_READY, ev.ProbeBad, transitions.not_yet),
        row(ReplicaState.WAITING_FOR_READY, ev.PortFound, transitions.port_found),
        row(ReplicaState.WAITING_FOR_READY, ev.StartProgress, transitions.progress),
        row(ReplicaState.WAITING_FOR_READY, ev.Woke, transitions.check_start),
        row(ReplicaState.WAITING_FOR_READY, ev.NotWoken, transitions.not_woken),
        row(ReplicaState.WAITING_FOR_READY, ev.GroupBroken, transitions.group_broken),
        row(ReplicaState.WAITING_FOR_READY, ev.Exited, transitions.exited),
        row(ReplicaState.WAITING_FOR_READY, ev.StopRequested, transitions.stop),
        row(ReplicaState.READY, ev.ProbeGood, transitions.still_good),
        row(ReplicaState.READY, ev.ProbeBad, transitions.bad_probe),
        row(ReplicaState.READY, ev.Woke, transitions.steady),
        row(ReplicaState.READY, ev.Exited, transitions.exited),
        row(ReplicaState.READY, ev.StopRequested, transitions.stop),
        row(ReplicaState.READY, ev.OverLimit, transitions.over_limit),
        row(ReplicaState.READY, ev.MemberAway, transitions.member_away),
        row(ReplicaState.READY, ev.GroupBroken, transitions.group_broken),
        row(ReplicaState.READY, ev.SleepRequested, transitions.doze),
        row(ReplicaState.DOZING, ev.Drained, transitions.fall_asleep),
        row(ReplicaState.DOZING, ev.Woke, transitions.too_busy),
        row(ReplicaState.DOZING, ev.Slept, transitions.asleep),
        row(ReplicaState.DOZING, ev.NotSlept, transitions.not_asleep),
        row(ReplicaState.DOZING, ev.WakeRequested, transitions.wake),
        row(ReplicaState.DOZING, ev.Exited, transitions.exited),
        row(ReplicaState.DOZING, ev.StopRequested, transitions.stop),
        row(ReplicaState.ASLEEP, ev.WakeRequested, transitions.wake),
        row(ReplicaState.ASLEEP, ev.Exited, transitions.exited),
        row(ReplicaState.ASLEEP, ev.StopRequested, transitions.stop),
        row(ReplicaState.UNHEALTHY, ev.ProbeGood, transitions.recover),
        row(ReplicaState.UNHEALTHY, ev.ProbeBad, transitions.still_bad),
        row(ReplicaState.UNHEALTHY, ev.GroupBroken, transitions.group_broken),
        row(ReplicaState.UNHEALTHY, ev.Exited, transitions.exited),
        row(ReplicaState.UNHEALTHY, ev.StopRequested, transitions.stop),
        row(ReplicaState.ENDING, ev.Drained, transitions.end_drained),
        row(ReplicaState.ENDING, ev.Woke, transitions.end_drained),
        row(ReplicaState.ENDING, ev.Exited, transitions.exited),
        row(ReplicaState.ENDING, ev.StopRequested, transitions.stop),
        row(ReplicaState.BACKING_OFF, ev.Woke, transitions.retry),
        row(ReplicaState.BACKING_OFF, ev.StopRequested, transitions.stop),
        row(ReplicaState.DRAINING, ev.Drained, transitions.drained),
        row(ReplicaState.DRAINING, ev.Woke, transitions.drain_over),
        row(ReplicaState.DRAINING, ev.Exited, transitions.stopped),
        row(ReplicaState.DRAINING, ev.StopRequested, transitions.stop),
        row(ReplicaState.STOPPING, ev.Exited, transitions.stopped),
        row(ReplicaState.STOPPING, ev.Spawned, transitions.spawned_too_late),
        row(ReplicaState.STOPPING, ev.NotSpawned, transitions.nothing_left),
        row(ReplicaState.STOPPING, ev.Undeployed, transitions.nothing_left),
        row(ReplicaState.STOPPING, ev.Deployed, transitions.nothing_left),
        row(ReplicaState.STOPPING, ev.DeployFailed, transitions.nothing_left),
        row(ReplicaState.STOPPING, ev.StopRequested, transitions.stop_harder),
        row(ReplicaState.STOPPED, ev.StopRequested, transitions.stay),
        row(ReplicaState.FAILED, ev.Retry, transitions.begin),
        row(ReplicaState.FAILED, ev.StopRequested, transitions.stop),
    )
)
