"""The life of a replica, event by event."""

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest

from babysitter import events as ev
from babysitter import transitions
from babysitter.lifecycle import (
    InvalidTransition,
    Lifecycle,
    Move,
    ReplicaState,
    RestartPolicy,
    display_status,
    wire_status,
)
from babysitter.machine import TABLE, Rule, step

POLICY = RestartPolicy(restart_first_s=1.0, crash_loop_exits=5)
CRASH = ev.Exited(code=1)


def is_connected(story: tuple[Move, ...]) -> bool:
    """Each move begins where the one before ended."""
    return all(one.after == two.before for one, two in pairwise(story))


def play(events: Sequence[tuple[float, ev.Event]], policy: RestartPolicy = POLICY) -> tuple[Lifecycle, list[ev.Effect]]:
    """Run `events` (time, event) from a fresh replica; returns it and all effects."""
    replica = Lifecycle()
    done: list[ev.Effect] = []
    for now, event in events:
        replica, effects = step(replica, event, policy, now)
        done += effects
    assert is_connected(replica.story)
    return replica, done


START: list[tuple[float, ev.Event]] = [(0, ev.Begin()), (0.1, ev.Spawned(7))]
UP: list[tuple[float, ev.Event]] = [*START, (1, ev.ProbeGood())]
DOZING: list[tuple[float, ev.Event]] = [*UP, (2, ev.SleepRequested())]
FALLING: list[tuple[float, ev.Event]] = [*DOZING, (3, ev.Drained())]
ASLEEP: list[tuple[float, ev.Event]] = [*FALLING, (4, ev.Slept())]
DOWN = [ev.Spawn(), ev.DrainRequests(), ev.SleepEngine()]


@pytest.mark.parametrize(
    ("events", "state", "last_effects"),
    [
        ([(0, ev.Begin())], ReplicaState.STARTING, [ev.Spawn()]),
        ([(0, ev.Begin(deploy=True))], ReplicaState.CREATING, [ev.Deploy()]),
        ([(0, ev.Begin()), (0, ev.Undeployed())], ReplicaState.CREATING, [ev.Spawn(), ev.Deploy()]),
        ([(0, ev.Begin(deploy=True)), (9, ev.Deployed())], ReplicaState.STARTING, [ev.Deploy(), ev.Spawn()]),
        ([(0, ev.Begin(deploy=True)), (9, ev.DeployFailed("install: 404"))], ReplicaState.FAILED, [ev.Deploy()]),
        (START, ReplicaState.WAITING_FOR_READY, [ev.Spawn()]),
        ([(0, ev.Adopted(7))], ReplicaState.WAITING_FOR_READY, []),
        (UP, ReplicaState.READY, [ev.Spawn()]),
        ([*UP, (2, ev.ProbeBad("x")), (3, ev.ProbeBad("x"))], ReplicaState.READY, [ev.Spawn()]),
        ([*UP, *[(n, ev.ProbeBad("x")) for n in (2, 3, 4)]], ReplicaState.UNHEALTHY, [ev.Spawn()]),
        ([*UP, (9, CRASH)], ReplicaState.BACKING_OFF, [ev.Spawn(), ev.CancelJobs()]),
        ([*UP, (9, ev.StopRequested("x"))], ReplicaState.DRAINING, [ev.Spawn(), ev.DrainRequests()]),
        ([*UP, (9, ev.StopRequested("x", force=True))], ReplicaState.STOPPING, [ev.Spawn(), ev.Terminate(force=True)]),
        ([*START, (9, ev.StopRequested("x"))], ReplicaState.STOPPING, [ev.Spawn(), ev.Terminate()]),
        ([(0, ev.StopRequested("x"))], ReplicaState.STOPPED, [ev.Finish()]),
        (DOZING, ReplicaState.DOZING, DOWN[:2]),
        (FALLING, ReplicaState.DOZING, DOWN),
        ([*FALLING, (3, ev.Drained()), (99, ev.Woke())], ReplicaState.DOZING, DOWN),
        ([*DOZING, (31, ev.Woke())], ReplicaState.DOZING, DOWN[:2]),
        ([*DOZING, (32, ev.Woke())], ReplicaState.WAITING_FOR_READY, DOWN[:2]),
        ([*DOZING, (3, ev.WakeRequested())], ReplicaState.WAITING_FOR_READY, [*DOWN[:2], ev.WakeEngine()]),
        ([*FALLING, (4, ev.WakeRequested())], ReplicaState.WAITING_FOR_READY, [*DOWN, ev.WakeEngine()]),
        ([*FALLING, (4, ev.NotSlept("x"))], ReplicaState.WAITING_FOR_READY, [*DOWN, ev.WakeEngine()]),
        ([*FALLING, (4, CRASH)], ReplicaState.BACKING_OFF, [*DOWN, ev.CancelJobs()]),
        ([*DOZING, (3, ev.StopRequested("x"))], ReplicaState.DRAINING, [*DOWN[:2], ev.DrainRequests()]),
        (ASLEEP, ReplicaState.ASLEEP, DOWN),
        ([*ASLEEP, (5, ev.SleepRequested()), (6, ev.ProbeBad("x")), (7, ev.Woke())], ReplicaState.ASLEEP, DOWN),
        ([*ASLEEP, (5, ev.WakeRequested())], ReplicaState.WAITING_FOR_READY, [*DOWN, ev.WakeEngine()]),
        ([*ASLEEP, (5, ev.WakeRequested()), (6, ev.ProbeGood())], ReplicaState.READY, [*DOWN, ev.WakeEngine()]),
        (
            [*ASLEEP, (5, ev.WakeRequested()), (6, ev.NotWoken("x"))],
            ReplicaState.ENDING,
            [*DOWN, ev.WakeEngine(), ev.Terminate()],
        ),
        ([*ASLEEP, (5, CRASH)], ReplicaState.BACKING_OFF, [*DOWN, ev.CancelJobs()]),
        ([*ASLEEP, (5, ev.StopRequested("x"))], ReplicaState.STOPPING, [*DOWN, ev.Terminate()]),
        ([(0, ev.Adopted(7, asleep=True))], ReplicaState.DOZING, [ev.DrainRequests()]),
        ([(0, ev.Adopted(7, dazed=True))], ReplicaState.WAITING_FOR_READY, [ev.WakeEngine()]),
    ],
)
def test_step_takes_the_move_of_the_table(
    events: list[tuple[float, ev.Event]], state: ReplicaState, last_effects: list[ev.Effect]
) -> None:
    replica, effects = play(events)
    assert replica.state is state
    assert effects == last_effects


def test_stop_of_a_serving_replica_drains_ends_and_finishes() -> None:
    stop: list[tuple[float, ev.Event]] = [(9, ev.StopRequested("x")), (10, ev.Drained()), (11, ev.Exited(code=0))]
    replica, effects = play([*UP, *stop])
    assert replica.state is ReplicaState.STOPPED
    assert effects == [ev.Spawn(), ev.DrainRequests(), ev.Terminate(), ev.CancelJobs(), ev.Finish()]


def test_drain_that_never_ends_is_cut_at_its_deadline() -> None:
    replica, effects = play([*UP, (9, ev.StopRequested("x")), (39, ev.Woke())])
    assert replica.state is ReplicaState.STOPPING
    assert effects[-1] == ev.Terminate()


def test_second_stop_with_force_ends_a_drain_at_once() -> None:
    replica, effects = play([*UP, (9, ev.StopRequested("x")), (10, ev.StopRequested("x", force=True))])
    assert replica.state is ReplicaState.STOPPING
    assert effects[-1] == ev.Terminate(force=True)


def test_spawn_that_completes_after_a_stop_is_ended() -> None:
    replica, effects = play([(0, ev.Begin()), (0.05, ev.StopRequested("x")), (0.1, ev.Spawned(7))])
    assert replica.state is ReplicaState.STOPPING
    assert effects == [ev.Spawn(), ev.Terminate(), ev.Terminate()]


def test_clean_exit_while_wanted_is_a_crash_A8() -> None:
    replica, _ = play([*UP, (9, ev.Exited(code=0))])
    assert replica.state is ReplicaState.BACKING_OFF


def crash_times(replica: Lifecycle, policy: RestartPolicy, now: float, count: int) -> tuple[Lifecycle, list[float]]:
    """Let the server crash `count` times just after each start; returns the waits in between."""
    waits = []
    for _ in range(count):
        replica, _ = step(replica, ev.Exited(code=1, tail="boom"), policy, now)
        if replica.wake_at is None:
            break
        waits.append(replica.wake_at - now)
        now = replica.wake_at
        replica, _ = step(replica, ev.Woke(), policy, now)
    return replica, waits


def test_crash_loop_backs_off_and_then_fails_with_the_logs_tail_A6() -> None:
    replica, _ = play([(0, ev.Begin())])
    replica, waits = crash_times(replica, POLICY, 0.0, 9)
    assert waits == [1, 2, 4, 8]
    assert replica.state is ReplicaState.FAILED
    assert replica.error is not None
    assert replica.error.startswith("crash loop: 5 exits")
    assert replica.error.endswith("boom")
    assert replica.restarts == 4


def test_failed_replica_can_be_retried_and_stopped_A6() -> None:
    replica, _ = play([(0, ev.Begin())])
    replica, _ = crash_times(replica, POLICY, 0.0, 9)
    again, effects = step(replica, ev.Retry(), POLICY, 99)
    assert (again.state, effects) == (ReplicaState.STARTING, (ev.Spawn(),))
    assert again.error is None
    stopped, effects = step(replica, ev.StopRequested("x"), POLICY, 99)
    assert (stopped.state, effects) == (ReplicaState.STOPPED, (ev.Finish(),))


def test_exits_of_a_server_that_was_ready_are_no_crash_loop() -> None:
    replica, _ = play([(0, ev.Begin())])
    for n in range(20):
        replica, _ = step(replica, ev.Spawned(7), POLICY, n * 100)
        replica, _ = step(replica, ev.ProbeGood(), POLICY, n * 100 + 1)
        replica, _ = step(replica, CRASH, POLICY, n * 100 + 2)
        replica, _ = step(replica, ev.Woke(), POLICY, n * 100 + 99)
    assert replica.state is ReplicaState.STARTING
    assert replica.restarts == 20


def test_ten_good_minutes_reset_the_back_off() -> None:
    replica, _ = play([(0, ev.Begin())])
    replica, _ = crash_times(replica, POLICY, 0.0, 3)
    for event, now in ((ev.Spawned(7), 20), (ev.ProbeGood(), 21)):
        replica, _ = step(replica, event, POLICY, now)
    early, _ = step(replica, CRASH, POLICY, 600)
    late, _ = step(replica, CRASH, POLICY, 621)
    assert early.wake_at == 608
    assert late.wake_at == 622


@pytest.mark.parametrize("code", [78, 125])
def test_exit_code_that_means_do_not_restart_fails_at_once_A7(code: int) -> None:
    replica, _ = play([*START, (1, ev.Exited(code=code, tail="no such model"))])
    assert replica.state is ReplicaState.FAILED
    assert replica.error == f"exited with code {code}, which means: do not restart\nno such model"


def test_restarts_end_at_max_restarts() -> None:
    policy = RestartPolicy(restart_first_s=1, max_restarts=2, crash_loop_exits=99)
    replica, _ = play([(0, ev.Begin())])
    replica, waits = crash_times(replica, policy, 0.0, 9)
    assert len(waits) == 2
    assert replica.error is not None
    assert "max_restarts (2) is used up" in replica.error


def test_retry_begins_with_a_clean_count_of_restarts() -> None:
    policy = RestartPolicy(restart_first_s=1, max_restarts=2, crash_loop_exits=99)
    replica, _ = play([(0, ev.Begin())])
    replica, _ = crash_times(replica, policy, 0.0, 9)
    replica, _ = step(replica, ev.Retry(), policy, 100)
    replica, waits = crash_times(replica, policy, 100.0, 9)
    assert len(waits) == 2
    assert (replica.state, replica.restarts) == (ReplicaState.FAILED, 4)


@pytest.mark.parametrize("woke", [True, False])
def test_ten_good_minutes_reset_the_count_of_max_restarts(woke: bool) -> None:  # noqa: FBT001 - a row
    policy = RestartPolicy(restart_first_s=1, max_restarts=2, crash_loop_exits=99)
    replica, _ = play([(0, ev.Begin())])
    replica, _ = crash_times(replica, policy, 0.0, 2)
    events: list[tuple[float, ev.Event]] = [(20, ev.Spawned(7)), (21, ev.ProbeGood()), (622, CRASH), (630, ev.Woke())]
    for now, event in sorted([*events, *([(621, ev.Woke())] if woke else [])], key=lambda pair: pair[0]):
        replica, _ = step(replica, event, policy, now)
    assert (replica.state, replica.restarts) == (ReplicaState.STARTING, 3)
    early, _ = step(replica, CRASH, policy, 631)
    assert early.state is ReplicaState.BACKING_OFF


def test_unhealthy_replica_recovers_after_two_good_looks_A4() -> None:
    bad = [(n, ev.ProbeBad("hangs")) for n in (2, 3, 4)]
    replica, _ = play([*UP, *bad, (5, ev.ProbeGood())])
    assert replica.state is ReplicaState.UNHEALTHY
    replica, effects = step(replica, ev.ProbeGood(), POLICY, 6)
    assert (replica.state, effects) == (ReplicaState.READY, ())
    assert replica.restarts == 0


def test_unhealthy_replica_is_restarted_only_after_the_liveness_limit_A4() -> None:
    bad = [(n, ev.ProbeBad("hangs")) for n in range(2, 62)]
    replica, effects = play([*UP, *bad])
    assert replica.state is ReplicaState.UNHEALTHY
    assert effects == [ev.Spawn()]
    replica, ended = step(replica, ev.ProbeBad("hangs"), POLICY, 62)
    assert (replica.state, ended) == (ReplicaState.ENDING, (ev.Terminate(),))
    replica, _ = step(replica, ev.Exited(signal=9), POLICY, 63)
    assert replica.state is ReplicaState.BACKING_OFF


def test_server_that_was_ended_for_its_silence_tells_that_and_not_how_it_took_it_W45() -> None:
    """vLLM's API server heeds TERM and exits with 0, and leaves the engine that hangs."""
    bad = [(n, ev.ProbeBad("no token within 20 s")) for n in (2, 3, 4, 64)]
    replica, _ = play([*UP, *bad, (65, ev.Exited(code=0, left=1, tail="Shutting down"))])
    assert replica.state is ReplicaState.BACKING_OFF
    cause = "no good answer for 60 s: no token within 20 s"
    assert (replica.story[-1].cause, replica.error) == (cause, f"{cause}\nShutting down")


def test_start_is_never_cut_while_it_moves_A9() -> None:
    replica, _ = play(START)
    for hour in range(1, 13):
        for minute in (0, 29, 58):
            now = hour * 3600.0 + minute * 60
            replica, _ = step(replica, ev.StartProgress(), POLICY, now)
            assert replica.wake_at == now + 1800
            replica, effects = step(replica, ev.ProbeBad("refused"), POLICY, now)
            assert effects == ()
    assert replica.state is ReplicaState.WAITING_FOR_READY
    assert not replica.stalled


def test_silent_start_is_reported_as_stalled_but_not_ended_A9() -> None:
    replica, _ = play(START)
    replica, effects = step(replica, ev.Woke(), POLICY, 1800.2)
    assert replica.stalled
    assert effects == ()
    assert replica.state is ReplicaState.WAITING_FOR_READY
    replica, _ = step(replica, ev.StartProgress(), POLICY, 1900)
    assert not replica.stalled


def test_silent_start_is_ended_when_so_configured_A9() -> None:
    replica, effects = play([*START, (1800.2, ev.Woke())], RestartPolicy(end_stalled=True))
    assert replica.state is ReplicaState.ENDING
    assert effects[-1] == ev.Terminate()


def test_startup_deadline_ends_and_fails_with_the_jobs_cancelled_A10() -> None:
    policy = RestartPolicy(startup_timeout_s=60, end_late=True)
    replica, effects = play([*START, (60.1, ev.Woke()), (61, ev.Exited(signal=15))], policy)
    assert replica.state is ReplicaState.FAILED
    assert effects[-2:] == [ev.Terminate(), ev.CancelJobs()]
    assert replica.error is not None
    assert replica.error.startswith("startup_timeout")


@pytest.mark.parametrize("policy", [RestartPolicy(startup_timeout_s=60), RestartPolicy(port_timeout_s=60)])
def test_a_start_past_its_time_limit_is_late_and_goes_on_W43(policy: RestartPolicy) -> None:
    """A compile that moves outlives DEFAULT_READINESS_TIMEOUT_S and a request's `timeouts`; a stall is still told."""
    before, _ = play([*START, (59, ev.Woke())], policy)
    assert not before.late
    replica, effects = play([*START, (60.1, ev.Woke()), (61, ev.StartProgress()), (62, ev.ProbeBad("refused"))], policy)
    assert (replica.state, replica.late, replica.error) == (ReplicaState.WAITING_FOR_READY, True, "refused")
    assert effects == [ev.Spawn()]
    assert replica.wake_at == 61 + policy.stall_s
    stalled, _ = step(replica, ev.Woke(), policy, 61.1 + policy.stall_s)
    assert (stalled.state, stalled.late, stalled.stalled) == (ReplicaState.WAITING_FOR_READY, True, True)
    ready, _ = step(replica, ev.ProbeGood(), policy, 7200)
    assert (ready.state, ready.late) == (ReplicaState.READY, False)


def test_event_that_cannot_be_raises_with_the_story() -> None:
    replica, _ = play(UP)
    with pytest.raises(InvalidTransition, match=r"Begin in state ready; .*waiting_for_ready→ready \(answers\)"):
        step(replica, ev.Begin(), POLICY, 5)


def test_server_over_its_memory_is_drained_ended_and_started_again_A16() -> None:
    replica, effects = play([*UP, (9, ev.OverLimit("9 GiB")), (10, ev.Drained()), (11, ev.Exited(signal=15))])
    assert replica.state is ReplicaState.BACKING_OFF
    assert effects == [ev.Spawn(), ev.DrainRequests(), ev.Terminate(), ev.CancelJobs()]
    late, _ = play([*UP, (9, ev.OverLimit("9 GiB")), (39, ev.Woke())])
    assert late.state is ReplicaState.ENDING


def test_node_without_room_for_a_start_is_tried_until_it_works_B9() -> None:
    policy = RestartPolicy(restart_first_s=1.0, restart_last_s=8.0, crash_loop_exits=2, max_restarts=1)
    replica, _ = play([*UP, (9, CRASH), (10, ev.Woke())], policy)
    now, waits = 10.0, []
    for _ in range(20):
        replica, _ = step(replica, ev.NotSpawned("no room"), policy, now)
        assert (replica.state, replica.error) == (ReplicaState.BACKING_OFF, "no room")
        waits.append((replica.wake_at or 0) - now)
        now = replica.wake_at or 0
        replica, effects = step(replica, ev.Woke(), policy, now)
        assert effects == (ev.Spawn(),)
    assert waits[:4] == [2, 4, 8, 8]
    replica, _ = step(replica, ev.Spawned(7), policy, now)
    assert (replica.state, replica.restarts) == (ReplicaState.WAITING_FOR_READY, 1)
    stopping, _ = play([(0, ev.Begin()), (1, ev.StopRequested("x")), (2, ev.NotSpawned("no room"))])
    assert stopping.state is ReplicaState.STOPPED


def test_server_that_listens_nowhere_in_the_time_asked_for_is_ended_A10() -> None:
    policy = RestartPolicy(port_timeout_s=60, startup_timeout_s=600, stall_s=30, end_late=True)
    deaf, effects = play([*START, (40, ev.Woke()), (60.1, ev.Woke())], policy)
    assert deaf.verdict == "port_timeout: listens nowhere after 60 s"
    assert effects[-1] == ev.Terminate()
    slow, _ = play([*START, (20, ev.PortFound()), (40, ev.Woke()), (60.1, ev.Woke()), (61, ev.PortFound())], policy)
    assert (slow.state, slow.stalled) == (ReplicaState.WAITING_FOR_READY, True)
    assert (slow.wake_at or 0) > 61
    late, _ = play([*START, (20, ev.PortFound()), (600.1, ev.Woke())], policy)
    assert (late.verdict or "").startswith("startup_timeout")


def test_late_answers_change_nothing() -> None:
    replica, _ = play([*UP, (9, CRASH)])
    for event in (ev.ProbeGood(), ev.ProbeBad("x"), ev.StartProgress(), ev.Drained(), ev.Retry(), ev.OverLimit("x")):
        assert step(replica, event, POLICY, 9.5) == (replica, ())


def test_every_state_can_be_stopped() -> None:
    for state in ReplicaState:
        assert (state, ev.StopRequested) in TABLE


@pytest.mark.parametrize(
    ("state", "event", "rule"),
    [
        (ReplicaState.READY, ev.Woke(), transitions.bad_probe),
        (ReplicaState.UNHEALTHY, ev.ProbeGood(), transitions.still_bad),
        (ReplicaState.STARTING, ev.Spawned(7), transitions.exited),
        (ReplicaState.STARTING, ev.NotSpawned("no room"), transitions.stop),
        (ReplicaState.CREATING, ev.Deployed(), transitions.deploy_failed),
        (ReplicaState.FAILED, ev.Woke(), transitions.begin),
    ],
)
def test_row_of_a_rule_for_other_events_raises(
    state: ReplicaState, event: ev.Event, rule: Rule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TABLE, (state, type(event)), rule)
    with pytest.raises(AttributeError):
        step(Lifecycle(state=state), event, RestartPolicy(unhealthy_after=1), 1.0)


def test_random_lives_stay_legal_and_always_end_when_told() -> None:
    rng = random.Random(1)
    inputs: list[ev.Event] = [
        ev.ProbeGood(),
        ev.ProbeBad("x"),
        ev.StartProgress(),
        ev.PortFound(),
        ev.Woke(),
        CRASH,
        ev.Exited(signal=9),
        ev.Drained(),
        ev.SleepRequested(),
        ev.WakeRequested(),
        ev.Slept(),
        ev.NotSlept("x"),
        ev.NotWoken("x"),
    ]
    for _ in range(300):
        now, replica = 0.0, Lifecycle()
        replica, effects = step(replica, ev.Begin(), POLICY, now)
        for _ in range(60):
            now += rng.random() * 40
            event: ev.Event = ev.Spawned(7) if ev.Spawn() in effects else rng.choice(inputs)
            replica, effects = step(replica, event, POLICY, now)
        done: list[ev.Effect] = []
        closing = (ev.StopRequested("x"), ev.StopRequested("x", force=True), ev.Exited(signal=9))
        for last in closing:
            replica, effects = step(replica, last, POLICY, now)
            done += effects
        assert replica.state is ReplicaState.STOPPED
        assert ev.Finish() in done
        assert is_connected(replica.story)


@pytest.mark.parametrize(
    ("state", "wire", "display"),
    [
        (ReplicaState.PENDING, "pending", "Pending"),
        (ReplicaState.CREATING, "creating", "Pending"),
        (ReplicaState.STARTING, "starting", "Pending"),
        (ReplicaState.BACKING_OFF, "starting", "Pending"),
        (ReplicaState.WAITING_FOR_READY, "waiting_for_ready", "Pending"),
        (ReplicaState.READY, "ready", "Active"),
        (ReplicaState.DOZING, "asleep", "Pending"),
        (ReplicaState.ASLEEP, "asleep", "Pending"),
        (ReplicaState.DRAINING, "stopping", "Active"),
        (ReplicaState.UNHEALTHY, "unhealthy", "Failed"),
        (ReplicaState.ENDING, "unhealthy", "Failed"),
        (ReplicaState.STOPPING, "stopping", "Failed"),
        (ReplicaState.STOPPED, "stopped", "Failed"),
        (ReplicaState.FAILED, "failed", "Failed"),
    ],
)
def test_states_are_told_in_the_contracts_words(state: ReplicaState, wire: str, display: str) -> None:
    assert (wire_status(state), display_status(state)) == (wire, display)


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (ev.Exited(code=3), "exited with code 3"),
        (ev.Exited(signal=9), "killed by signal 9 (SIGKILL)"),
        (ev.Exited(signal=99), "killed by signal 99 (unknown)"),
        (ev.Exited(error="no such file"), "no such file"),
        (ev.Exited(), "gone; its exit code is unknown"),
    ],
)
def test_exits_are_described(event: ev.Exited, words: str) -> None:
    assert event.describe() == words
