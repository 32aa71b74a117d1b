"""The planner's rules, one by one."""

from collections import Counter
from dataclasses import replace

import pytest

from common.wire.deployment import DeploymentPhase, TemplateGlance
from common.wire.words import ReplicaStatus
from registry.deployments.model import (
    Abandon,
    Action,
    Assignment,
    Cause,
    Leave,
    Memory,
    Needs,
    Node,
    Plan,
    SeenReplica,
    Setback,
    Sleep,
    Slot,
    Start,
    Traffic,
    Wake,
    Wish,
)
from registry.deployments.planner import MOST_ACTIONS, SILENT_S, plan

NOW = 10_000.0
GPU = TemplateGlance(name="gpu", accelerators=1, sleeps=False)
SLEEPY = TemplateGlance(name="sleepy", accelerators=1, sleeps=True)
BIG = TemplateGlance(name="big", accelerators=4)
CPU = TemplateGlance(name="cpu")
SHARED = TemplateGlance(name="shared", accelerators=1, memory_mb=10_000, shares=True)
TEMPLATES = {one.name: one for one in (GPU, SLEEPY, BIG, CPU, SHARED)}
QUIET = Traffic(last_request_at=NOW - 1000)


def node(name: str, count: int = 4, *held: str, **more: object) -> Node:
    """`held` are replica ids, one for each of the first slots."""
    slots = tuple(
        Slot(index, "cuda", 80_000, (held[index],) if index < len(held) and held[index] else ())
        for index in range(count)
    )
    fields: dict[str, object] = {"slots": slots, "templates": TEMPLATES, **more}
    return Node(name, **fields)  # type: ignore[arg-type] # a test's shorthand


def there(
    name: str, number: int = 1, node_name: str = "a", *, revision: int = 1, **more: object
) -> tuple[Assignment, SeenReplica]:
    """A replica that has been ready for long, and its assignment."""
    request_id = f"dep-{name}-{number}"
    leaving = bool(more.pop("leaving", False))
    needs = Needs(int(str(more.pop("accelerators", 1))))
    fields: dict[str, object] = {"status": ReplicaStatus.READY, "ready_at": NOW - 5000, **more}
    seen = SeenReplica(f"r-{name}-{number}", request_id, name, revision, node_name, **fields)  # type: ignore[arg-type]
    return Assignment(request_id, name, revision, node_name, NOW - 5100 + number, leaving, needs), seen


def planned(
    wishes: list[Wish],
    nodes: list[Node],
    *pairs: tuple[Assignment, SeenReplica],
    traffic: dict[str, Traffic] | None = None,
    setbacks: list[Setback] | None = None,
    memory: Memory | None = None,
    now: float = NOW,
    in_line: int = 0,
) -> Plan:
    return plan(
        wishes,
        [one for one, _ in pairs],
        [one for _, one in pairs],
        nodes,
        traffic={wish.name: QUIET for wish in wishes} if traffic is None else traffic,
        setbacks=setbacks or [],
        memory=memory or Memory(),
        now=now,
        in_line=in_line,
    )


def wish(name: str = "m", **more: object) -> Wish:
    fields: dict[str, object] = {"revision": 1, "template": "gpu", **more}
    return Wish(name, **fields)  # type: ignore[arg-type]


def kinds(actions: tuple[Action, ...]) -> list[str]:
    return [type(one).__name__ for one in actions]


def test_a_minimum_is_started_and_kept() -> None:
    first = planned([wish(least=2, most=2)], [node("a")])
    assert [(one.node, one.revision) for one in first.actions if isinstance(one, Start)] == [("a", 1), ("a", 1)]
    assert first.standings["m"].phase is DeploymentPhase.STARTING
    pairs = there("m", 1), there("m", 2)
    second = planned([wish(least=2, most=2)], [node("a", 4, "r-m-1", "r-m-2")], *pairs, memory=first.memory)
    assert second.actions == ()
    assert second.standings["m"].phase is DeploymentPhase.READY


def test_one_that_waits_wakes_a_cold_one_once() -> None:
    cold = wish(least=0)
    assert planned([cold], [node("a")]).standings["m"].phase is DeploymentPhase.COLD
    asked = planned([cold], [node("a")], traffic={"m": Traffic(waiting=1000, last_request_at=NOW)})
    assert kinds(asked.actions) == ["Start"]
    assert asked.standings["m"].wanted == 1


def test_an_assignment_that_nobody_sees_yet_counts() -> None:
    assignment, _ = there("m")
    again = plan([wish()], [assignment], [], [node("a")], traffic={"m": QUIET}, setbacks=[], memory=Memory(), now=NOW)
    assert again.actions == ()
    assert again.standings["m"].phase is DeploymentPhase.STARTING
    other = plan(
        [wish(), wish("n")], [assignment], [], [node("a", 1)], traffic={}, setbacks=[], memory=Memory(), now=NOW
    )
    assert other.actions == (), "the only accelerator is promised"
    assert other.standings["n"].phase is DeploymentPhase.QUEUED
    assert other.standings["n"].position == 1


def test_it_goes_asleep_when_idle_and_is_stopped_later() -> None:
    idle = wish(least=0, idle_s=600, template="sleepy")
    held = node("a", 4, "r-m-1")
    first = planned([idle], [held], there("m"))
    assert [one for one in first.actions if isinstance(one, Sleep)] == [Sleep("r-m-1", "m", "no request for 1000 s")]
    asleep = there("m", asleep=True)
    assert planned([idle], [held], asleep).actions == ()
    assert planned([idle], [held], asleep).standings["m"].phase is DeploymentPhase.ASLEEP
    late = planned([idle], [held], asleep, now=NOW + 6000)
    assert kinds(late.actions) == ["Leave"]
    plain = planned([wish(least=0, idle_s=600)], [held], there("m"))
    assert kinds(plain.actions) == ["Leave"]


def test_one_that_refuses_to_sleep_is_stopped_when_idle() -> None:
    idle = wish(least=0, idle_s=600, template="sleepy")
    held = node("a", 4, "r-m-1")
    assert counts(planned([idle], [held], there("m", sleepless=True))) == {"Leave": 1}


def test_a_sleeper_is_woken_before_another_is_started() -> None:
    asked = planned(
        [wish(least=0, template="sleepy")],
        [node("a", 4, "r-m-1")],
        there("m", asleep=True),
        traffic={"m": Traffic(waiting=1, last_request_at=NOW)},
    )
    assert [one for one in asked.actions if isinstance(one, Wake)] == [Wake("r-m-1", "m", "wanted again")]
    assert len(asked.actions) == 1


def test_eviction_takes_the_least_valuable_idle_one_and_none_in_use() -> None:
    wishes = [wish(name, least=0, start_s=start_s) for name, start_s in (("x", 300), ("y", 30), ("z", 30), ("n", 30))]
    traffic = {
        "x": Traffic(last_request_at=NOW - 500, recent_per_s=0.1),
        "y": Traffic(last_request_at=NOW - 500, recent_per_s=0.2),
        "z": Traffic(in_flight=1, last_request_at=NOW - 500),
        "n": Traffic(waiting=1, last_request_at=NOW),
    }
    there_now = (there("x"), there("y"), there("z"))
    found = planned(wishes, [node("a", 3, "r-x-1", "r-y-1", "r-z-1")], *there_now, traffic=traffic)
    (leave,) = found.actions
    assert isinstance(leave, Leave)
    assert leave.deployment == "y"
    assert found.standings["n"].phase is DeploymentPhase.QUEUED
    gone = there("y", leaving=True)
    waits = planned(
        wishes,
        [node("a", 3, "r-x-1", "r-y-1", "r-z-1")],
        there("x"),
        gone,
        there("z"),
        traffic=traffic,
        memory=found.memory,
    )
    assert waits.actions == (), "what comes free is enough"


def test_a_change_rolls_with_one_more_where_there_is_room_else_one_leaves_first() -> None:
    two = wish(revision=2, least=1)
    roomy = planned([two], [node("a", 2, "r-m-1")], there("m"))
    assert kinds(roomy.actions) == ["Start"]
    both = (there("m"), there("m", 2, revision=2, status=ReplicaStatus.STARTING, ready_at=None))
    assert planned([two], [node("a", 2, "r-m-1", "r-m-2")], *both).actions == ()
    done = planned([two], [node("a", 2, "r-m-1", "r-m-2")], there("m"), there("m", 2, revision=2))
    assert [one.request_id for one in done.actions if isinstance(one, Leave)] == ["dep-m-1"]
    full = planned([two], [node("a", 1, "r-m-1")], there("m"))
    assert kinds(full.actions) == ["Leave"]
    paused = planned([wish(revision=2, paused=True)], [node("a", 2, "r-m-1")], there("m"))
    assert paused.actions == ()


def test_a_node_that_is_away_is_given_up_and_its_replica_made_elsewhere() -> None:
    pair = there("m", stale=True)
    found = planned([wish()], [node("a", away=True), node("b")], pair)
    assert kinds(found.actions) == ["Abandon", "Start"]
    assert isinstance(found.actions[0], Abandon)
    back = plan(
        [wish()], [there("m", 2, "b")[0]], [pair[1], there("m", 2, "b")[1]], [node("a", away=True), node("b", 4, "r-m-2")],
        traffic={}, setbacks=[], memory=Memory(), now=NOW,
    )  # fmt: skip
    assert back.actions == (), "nobody can be told yet"


def test_what_cannot_fit_says_why() -> None:
    found = planned([wish(template="big")], [node("a", 2)])
    assert found.standings["m"].phase is DeploymentPhase.UNSCHEDULABLE
    assert found.standings["m"].reason == "needs 4 cuda, the largest free node has 2"


def test_a_node_where_starts_failed_is_left_out_until_the_time_is_over() -> None:
    setback = Setback("m", "a", 2, NOW + 10, "out of memory")
    found = planned([wish()], [node("a")], setbacks=[setback])
    assert found.actions == ()
    assert found.standings["m"].phase is DeploymentPhase.FAILING
    assert found.standings["m"].reason == "2 starts failed on node a: out of memory; the next is tried in 10 s"
    assert kinds(planned([wish()], [node("a"), node("b")], setbacks=[setback]).actions) == ["Start"]


# How many are wanted.


def counts(found: Plan) -> Counter[str]:
    return Counter(kinds(found.actions))


def test_load_goes_up_at_once_or_after_a_while_and_never_above_max() -> None:
    busy = {"m": Traffic(in_flight=15, waiting=2, last_request_at=NOW)}
    fleet = node("a", 8, "r-m-1")
    assert counts(planned([wish(most=9)], [fleet], there("m"), traffic=busy)) == {"Start": 2}, "ceil(17 / 8) = 3"
    assert counts(planned([wish(most=2)], [fleet], there("m"), traffic=busy)) == {"Start": 1}
    slow = wish(most=9, up_after_s=10)
    first = planned([slow], [fleet], there("m"), traffic=busy)
    assert first.actions == ()
    assert first.memory.above_since == {"m": NOW}
    soon = planned([slow], [fleet], there("m"), traffic=busy, memory=first.memory, now=NOW + 9)
    assert soon.actions == ()
    later = planned([slow], [fleet], there("m"), traffic=busy, memory=soon.memory, now=NOW + 10)
    assert counts(later) == {"Start": 2}
    calm = planned([slow], [fleet], there("m"), memory=soon.memory, now=NOW + 9)
    assert calm.memory.above_since == {}, "it begins anew"


def test_load_goes_down_after_a_while_to_the_most_of_that_time() -> None:
    rule = wish(least=0, most=4, down_after_s=100, in_flight_per_replica=1)
    fleet = node("a", 4, "r-m-1", "r-m-2", "r-m-3", "r-m-4")
    crew = [there("m", number) for number in (1, 2, 3, 4)]
    memory = Memory()
    for second, in_flight in ((0, 1), (50, 2), (99, 0)):
        traffic = {"m": Traffic(in_flight=in_flight, last_request_at=NOW)}
        found = planned([rule], [fleet], *crew, traffic=traffic, memory=memory, now=NOW + second)
        assert found.actions == (), second
        memory = found.memory
    found = planned([rule], [fleet], *crew, traffic={"m": Traffic(last_request_at=NOW)}, memory=memory, now=NOW + 100)
    assert counts(found) == {"Leave": 2}, "two were in use at once"
    assert found.standings["m"].reason == "its load wants 2"
    last = planned(
        [rule], [node("a", 4, "r-m-1")], there("m"), traffic={"m": Traffic(last_request_at=NOW)}, now=NOW + 900
    )
    assert last.actions == (), "the last one goes for idleness only, and idle_s is 0"


def test_the_least_busy_and_newest_goes_first_and_those_not_ready_before() -> None:
    crew = [
        there("m", 1, in_flight=3),
        there("m", 2),
        there("m", 3),
        there("m", 4, status=ReplicaStatus.STARTING, ready_at=None),
    ]
    fleet = node("a", 4, *(f"r-m-{number}" for number in (1, 2, 3, 4)))
    found = planned([wish(scaled=2, most=4)], [fleet], *crew)
    assert [one.request_id for one in found.actions if isinstance(one, Leave)] == ["dep-m-4", "dep-m-3"]


def test_a_call_scales_whatever_is_asked_for_and_gives_back() -> None:
    busy = {"m": Traffic(waiting=50, last_request_at=NOW)}
    assert planned([wish(least=1, most=4, scaled=0)], [node("a")], traffic=busy).actions == ()
    assert counts(planned([wish(least=1, most=4, scaled=3)], [node("a")])) == {"Start": 3}
    assert counts(planned([wish(least=1, most=4)], [node("a")])) == {"Start": 1}


def test_who_was_not_counted_yet_loses_nothing() -> None:
    idle = wish(least=0, idle_s=10)
    assert planned([idle], [node("a", 1, "r-m-1")], there("m"), traffic={}).actions == ()
    fresh = [wish("n", least=1)]
    found = planned([idle, *fresh], [node("a", 1, "r-m-1")], there("m"), traffic={})
    assert found.actions == (), "nor is it evicted"


def test_idleness_counts_from_the_last_of_request_wake_and_readiness() -> None:
    idle = wish(least=0, idle_s=600)
    fleet = node("a", 1, "r-m-1")
    assert planned([idle], [fleet], there("m", ready_at=NOW - 599)).actions == ()
    assert planned([replace(idle, woken_at=NOW - 599)], [fleet], there("m")).actions == ()
    recent = {"m": Traffic(last_request_at=NOW - 599)}
    assert planned([idle], [fleet], there("m"), traffic=recent).actions == ()
    under_way = {"m": Traffic(in_flight=1, last_request_at=NOW - 9999)}
    assert planned([idle], [fleet], there("m"), traffic=under_way).actions == ()
    assert counts(planned([idle], [fleet], there("m"))) == {"Leave": 1}


def test_a_start_that_nobody_waits_for_any_more_is_let_finish() -> None:
    idle = wish(least=0, idle_s=60)
    starting = there("m", status=ReplicaStatus.STARTING, ready_at=None)
    assert planned([idle], [node("a", 1, "r-m-1")], starting).actions == ()


def test_a_wake_starts_one_and_is_done_with_after_a_sleep_or_an_eviction() -> None:
    cold = wish(least=0)
    assert counts(planned([replace(cold, woken_at=NOW - 5)], [node("a")])) == {"Start": 1}
    assert planned([replace(cold, woken_at=NOW - 400)], [node("a")]).actions == ()
    assert planned([replace(cold, woken_at=NOW - 5, slept_at=NOW - 4)], [node("a")]).actions == ()
    evicted = Memory(evicted_at={"m": NOW - 3})
    assert planned([replace(cold, woken_at=NOW - 5)], [node("a")], memory=evicted).actions == ()


def test_a_sleep_by_call_takes_all_that_can_sleep_and_lasts_until_somebody_asks() -> None:
    asleep = wish(template="sleepy", least=1, most=2, slept_at=NOW - 1)
    fleet = node("a", 2, "r-m-1", "r-m-2")
    assert counts(planned([asleep], [fleet], there("m"), there("m", 2))) == {"Sleep": 2}
    late = {"m": Traffic(last_request_at=NOW)}  # a request of before, that is heard of only now
    assert counts(planned([asleep], [fleet], there("m"), there("m", 2), traffic=late)) == {"Sleep": 2}
    long = replace(asleep, slept_at=NOW - 10)
    assert planned([long], [fleet], there("m"), there("m", 2), traffic=late).actions == ()
    plain = wish(least=1, most=2, slept_at=NOW - 1)
    assert counts(planned([plain], [fleet], there("m"), there("m", 2))) == {"Leave": 1}, "min stays"
    both = there("m", asleep=True), there("m", 2, asleep=True)
    assert planned([asleep], [fleet], *both).actions == ()
    asked = planned([asleep], [fleet], *both, traffic={"m": Traffic(waiting=1, last_request_at=NOW)})
    assert counts(asked) == {"Wake": 1}


# Where it goes.


def test_a_node_must_match_and_the_reason_says_which_does_not() -> None:
    cases = (
        (wish(nodes=("b",)), node("a"), "none of its nodes is registered: b"),
        (wish(labels={"zone": "x"}), node("a"), "no node has the labels zone=x"),
        (wish(template="other"), node("a"), "no node that it may have has the template 'other'"),
        (wish(), node("a", away=True), "every node that it may have is away"),
        (wish(), node("a", draining=True), "every node that it may have is draining"),
        (wish(memory_mb=90_000), node("a"), "needs 90000 MB of each cuda, the largest has 80000"),
        (wish(accelerators=5), node("a"), "needs 5 cuda, the largest free node has 4"),
    )
    for one, there_is, reason in cases:
        found = planned([one], [there_is])
        assert found.actions == ()
        assert found.standings["m"].phase is DeploymentPhase.UNSCHEDULABLE
        assert found.standings["m"].reason == reason
    assert planned([wish()], []).standings["m"].reason == "no node's agent is registered"
    cold = planned([wish(least=0, accelerators=5)], [node("a")])
    assert cold.standings["m"].phase is DeploymentPhase.UNSCHEDULABLE, "said before anybody waits"


def test_the_fullest_node_that_does_is_taken_and_with_spread_the_emptiest() -> None:
    nodes = [node("a", 4), node("b", 4, "x", "y"), node("c", 4, "x", "y", "z", "w")]
    assert [one.node for one in planned([wish()], nodes).actions if isinstance(one, Start)] == ["b"]
    spread = planned([wish(least=3, most=3, spread=True)], [node("a"), node("b"), node("c")])
    assert {one.node for one in spread.actions if isinstance(one, Start)} == {"a", "b", "c"}


def test_a_node_takes_no_more_replicas_than_it_has_room_for() -> None:
    many = wish(template="cpu", least=5, most=5)
    found = planned([many], [node("a", 0, room=2), node("b", 0, room=1)])
    assert counts(found) == {"Start": 3}
    assert found.standings["m"].phase is DeploymentPhase.STARTING
    full = planned([many], [node("a", 0, room=0)])
    assert full.standings["m"].phase is DeploymentPhase.QUEUED


def test_memory_is_shared_until_it_is_full_and_never_with_one_that_has_all() -> None:
    eight = wish(template="shared", least=9, most=9)
    found = planned([eight], [node("a", 1)])
    assert counts(found) == {"Start": 8}, "8 x 10,000 MB of 80,000"
    beside = planned([wish(template="shared")], [node("a", 1, "somebody's own")])
    assert beside.actions == ()
    assert beside.standings["m"].phase is DeploymentPhase.QUEUED
    slot = Slot(0, "cuda", 80_000, ("r-x-1",), shared_mb=75_000)
    assert planned([wish(template="shared")], [node("a", slots=(slot,))]).actions == ()
    roomy = replace(slot, shared_mb=70_000)
    assert counts(planned([wish(template="shared")], [node("a", slots=(roomy,))])) == {"Start": 1}
    assert planned([wish()], [node("a", slots=(roomy,))]).actions == (), "one of its own needs it whole"


def test_what_a_hand_made_file_claims_is_nobody_elses() -> None:
    claimed = node("a", slots=(Slot(0, "cuda", 80_000, claimed=True),))
    found = planned([wish()], [claimed])
    assert found.standings["m"].reason == "needs 1 cuda, the largest free node has 0"


# Who goes for whom.


def evicted(found: Plan) -> list[str]:
    return [one.deployment for one in found.actions if isinstance(one, Leave) and one.cause is Cause.EVICTED]


def test_a_higher_priority_a_minimum_and_a_dwell_are_kept() -> None:
    asked = {"n": Traffic(waiting=1, last_request_at=NOW), "m": QUIET}
    fleet = node("a", 1, "r-m-1")
    for other, pair, expected in (
        (wish(least=0), there("m"), ["m"]),
        (wish(least=0, priority=1), there("m"), []),
        (wish(least=1), there("m"), []),
        (wish(least=0, dwell_s=60), there("m", ready_at=NOW - 59), []),
        (wish(least=0, dwell_s=60), there("m", ready_at=NOW - 60), ["m"]),
        (wish(least=0), there("m", in_flight=1), []),
        (wish(least=0), there("m", status=ReplicaStatus.STARTING, ready_at=None), []),
        (wish(least=0, scaled=1), there("m"), []),
        (wish(least=0, template="sleepy"), there("m", asleep=True, ready_at=None), ["m"]),
    ):
        found = planned([other, wish("n", least=0)], [fleet], pair, traffic=asked)
        assert evicted(found) == expected, other
        assert found.standings["n"].phase is DeploymentPhase.QUEUED
    urgent = planned([wish(least=0, priority=1), wish("n", least=0, priority=1)], [fleet], there("m"), traffic=asked)
    assert evicted(urgent) == ["m"], "an equal priority"


def test_only_as_many_go_as_are_in_the_way_and_on_one_node() -> None:
    wishes = [wish(name, least=0) for name in ("v", "w", "x", "y")] + [wish("n", least=0, accelerators=2)]
    traffic = {one.name: replace(QUIET, recent_per_s=number + 1.0) for number, one in enumerate(wishes)}
    traffic["n"] = Traffic(waiting=1, last_request_at=NOW)
    pairs = there("v"), there("w", node_name="b"), there("x"), there("y", node_name="b")
    fleet = [node("a", 2, "r-v-1", "r-x-1"), node("b", 3, "r-w-1", "r-y-1")]
    assert evicted(planned(wishes, fleet, *pairs, traffic=traffic)) == ["w"], "one suffices on b, where one is free"


def test_one_that_sleeps_goes_before_one_that_serves() -> None:
    wishes = [wish(name, least=0, template="sleepy") for name in ("x", "y")] + [wish("n", least=0)]
    traffic = {"x": replace(QUIET, recent_per_s=1.0), "y": replace(QUIET, recent_per_s=5.0)}
    traffic["n"] = Traffic(waiting=1, last_request_at=NOW)
    pairs = there("x"), there("y", asleep=True)
    assert evicted(planned(wishes, [node("a", 2, "r-x-1", "r-y-1")], *pairs, traffic=traffic)) == ["y"]


def test_the_line_is_by_priority_then_by_how_long_one_waits() -> None:
    wishes = [wish(name, least=0, priority=5 * (name == "z")) for name in ("x", "y", "z")]
    traffic = {name: Traffic(waiting=1, last_request_at=NOW) for name in ("x", "y", "z")}
    memory = Memory(queued_since={"y": NOW - 50, "x": NOW - 10})
    found = planned(wishes, [node("a", 1, "busy")], traffic=traffic, memory=memory)
    assert {name: one.position for name, one in found.standings.items()} == {"z": 1, "y": 2, "x": 3}
    one_free = planned(wishes, [node("a", 1)], traffic=traffic, memory=memory)
    assert [one.deployment for one in one_free.actions if isinstance(one, Start)] == ["z"]


def test_what_comes_free_is_kept_for_the_first_in_the_line() -> None:
    big, small = wish("big", least=0, accelerators=2), wish("small", least=0)
    traffic = {name: Traffic(waiting=1, last_request_at=NOW) for name in ("big", "small")}
    traffic["m"] = QUIET
    memory = Memory(queued_since={"big": NOW - 50})
    fleet = node("a", 2, "r-m-1")
    found = planned([big, small, wish(least=0)], [fleet], there("m", leaving=True), traffic=traffic, memory=memory)
    assert [one for one in found.actions if isinstance(one, Start)] == []


def test_what_nobody_needs_now_evicts_nobody_and_is_let_go() -> None:
    kept = wish("n", least=0, most=3)
    found = planned([wish(least=0), kept], [node("a", 1, "r-m-1")], there("m"), memory=Memory(wanted={"n": 2, "m": 1}))
    assert found.actions == ()
    assert found.standings["n"].phase is DeploymentPhase.COLD


# What comes and goes.


def test_everything_of_a_deleted_deployment_leaves() -> None:
    pairs = there("m"), there("m", 2, asleep=True), there("m", 3, status=ReplicaStatus.STARTING, ready_at=None)
    found = planned([wish(most=3, deleted=True)], [node("a", 3, "r-m-1", "r-m-2", "r-m-3")], *pairs)
    assert counts(found) == {"Leave": 3}
    assert found.standings["m"].phase is DeploymentPhase.STOPPING


def test_a_replica_that_no_assignment_names_leaves_wherever_it_is() -> None:
    named, seen = there("m")
    elsewhere = replace(seen, node="b", replica_id="r-m-9")
    orphan = there("gone")[1]
    found = plan(
        [wish()], [named], [seen, elsewhere, orphan], [node("a", 4, "r-m-1"), node("b")],
        traffic={}, setbacks=[], memory=Memory(), now=NOW,
    )  # fmt: skip
    assert {(one.request_id, one.node) for one in found.actions if isinstance(one, Leave)} == {
        ("dep-m-1", "b"),
        ("dep-gone-1", "a"),
    }
    assert len(found.actions) == 2


def test_a_replica_that_ended_leaves_and_another_is_started() -> None:
    found = planned([wish()], [node("a", 4, "r-m-1")], there("m", status=ReplicaStatus.FAILED, error="out of memory"))
    assert counts(found) == {"Leave": 1, "Start": 1}
    assert [one.reason for one in found.actions if isinstance(one, Leave)] == ["it ended: out of memory"]


def test_a_node_whose_agent_is_away_keeps_a_replica_that_still_tells_of_itself() -> None:
    assert planned([wish()], [node("a", away=True), node("b")], there("m")).actions == ()
    assert planned([wish()], [node("b")], there("m")).actions == (), "a node that is not known yet"


def test_a_node_that_is_drained_is_left_when_another_serves() -> None:
    first = planned([wish()], [node("a", 1, "r-m-1", draining=True), node("b")], there("m"))
    assert [(type(one).__name__, one.node) for one in first.actions if isinstance(one, Start)] == [("Start", "b")]
    assert len(first.actions) == 1
    pairs = there("m"), there("m", 2, "b")
    second = planned([wish()], [node("a", 1, "r-m-1", draining=True), node("b", 4, "r-m-2")], *pairs)
    assert [one.request_id for one in second.actions if isinstance(one, Leave)] == ["dep-m-1"]
    nowhere = planned([wish()], [node("a", 1, "r-m-1", draining=True)], there("m"))
    assert counts(nowhere) == {"Leave": 1}


def test_one_whose_job_ends_soon_serves_until_another_does_and_to_its_end_where_there_is_no_place_for_one() -> None:
    first = planned([wish()], [node("a", 2, "r-m-1")], there("m", ending=True))
    assert counts(first) == {"Start": 1}
    ending = there("m", ending=True)
    starting = there("m", 2, status=ReplicaStatus.STARTING, ready_at=None)
    assert planned([wish()], [node("a", 2, "r-m-1", "r-m-2")], ending, starting).actions == ()
    third = planned([wish()], [node("a", 2, "r-m-1", "r-m-2")], ending, there("m", 2))
    assert [one.request_id for one in third.actions if isinstance(one, Leave)] == ["dep-m-1"]
    assert planned([wish()], [node("a", 1, "r-m-1")], ending).actions == ()


def test_a_change_of_one_that_nobody_uses_only_drops_the_old_ones() -> None:
    two = wish(revision=2, least=0)
    found = planned([two], [node("a", 2, "r-m-1")], there("m"))
    assert counts(found) == {"Leave": 1}
    assert planned([two], [node("a", 2)], memory=found.memory).standings["m"].phase is DeploymentPhase.COLD


@pytest.mark.parametrize(
    ("surge", "accelerators", "at_once"),
    [(1, 4, [1, 1, 1]), (1, 8, [1, 1, 1]), (2, 4, [1, 1, 1]), (2, 5, [2, 1]), (3, 8, [3]), (9, 20, [3])],
)
def test_a_rollout_never_has_fewer_ready_than_wanted_where_there_is_room(
    surge: int, accelerators: int, at_once: list[int]
) -> None:
    """Three of revision 1 become three of revision 2, some accelerators to spare; each start is ready a step later."""
    two = wish(revision=2, least=3, most=3, surge=surge)
    crew = [there("m", number) for number in (1, 2, 3)]
    number, started = 3, []
    for _ in range(20):
        fleet = node("a", accelerators, *(seen.replica_id for _, seen in crew))
        found = planned([two], [fleet], *crew)
        gone = {one.request_id for one in found.actions if isinstance(one, Leave)}
        crew = [pair for pair in crew if pair[0].request_id not in gone]
        assert 3 <= len(crew) <= 3 + surge
        starts = [one for one in found.actions if isinstance(one, Start)]
        for _ in starts:
            number += 1
            crew.append(there("m", number, revision=2))
        started += [len(starts)] * bool(starts)
        if not found.actions:
            break
    assert [pair[0].revision for pair in crew] == [2, 2, 2]
    assert started == at_once


@pytest.mark.parametrize(
    ("starting", "leaving", "more"), [(0, 0, 3), (1, 0, 2), (2, 0, 1), (3, 0, 0), (1, 1, 1), (0, 3, 0)]
)
def test_a_rollout_has_no_more_under_way_than_it_may(starting: int, leaving: int, more: int) -> None:
    two = wish(revision=2, least=9, most=9, surge=3)
    new = [
        there("m", 20 + number, revision=2, status=ReplicaStatus.STARTING, ready_at=None) for number in range(starting)
    ]
    old = [there("m", number) for number in range(1, 10)]
    going = [there("m", 40 + number, leaving=True) for number in range(leaving)]
    crew = [*old, *new, *going]
    found = planned([two], [node("a", 20, *(seen.replica_id for _, seen in crew))], *crew)
    assert sum(isinstance(one, Start) for one in found.actions) == more


def test_a_revision_that_needs_more_than_there_is_leaves_what_runs() -> None:
    two = wish(revision=2, accelerators=8)
    found = planned([two], [node("a", 4, "r-m-1")], there("m"))
    assert found.actions == ()
    assert found.standings["m"].phase is DeploymentPhase.ROLLING
    assert found.standings["m"].reason == "revision 2 waits: needs 8 cuda, the largest free node has 4"


def test_a_revision_whose_start_failed_leaves_what_runs_until_it_may_be_tried_again() -> None:
    two = wish(revision=2)
    setback = [Setback("m", "a", 1, NOW + 30, "bad flag")]
    found = planned([two], [node("a", 1, "r-m-1")], there("m"), setbacks=setback)
    assert found.actions == ()
    assert found.standings["m"].reason == (
        "revision 2 waits: a start failed on node a: bad flag; the next is tried in 30 s"
    )
    assert counts(planned([two], [node("a", 1, "r-m-1")], there("m"), setbacks=setback, now=NOW + 30)) == {"Leave": 1}


def test_a_rollout_goes_on_where_more_are_wanted_than_fit() -> None:
    two = wish(revision=2, least=4, most=4)
    found = planned([two], [node("a", 2, "r-m-1", "r-m-2")], there("m"), there("m", 2))
    assert counts(found) == {"Leave": 1}


def test_one_plan_is_bounded() -> None:
    found = planned([wish(template="cpu", least=1000, most=1000)], [node("a", 0)])
    assert len(found.actions) == MOST_ACTIONS


def test_a_plan_adds_no_more_than_there_is_room_for_in_the_line_but_wakes() -> None:
    many = wish(template="cpu", least=1000, most=1000)
    assert len(planned([many], [node("a", 0)], in_line=MOST_ACTIONS - 3).actions) == 3
    sleeper = there("m", status=ReplicaStatus.ASLEEP, asleep=True, ready_at=None)
    both = [wish(template="sleepy", least=1), wish(name="n", template="cpu", least=2, most=2)]
    found = planned(both, [node("a", 4, "r-m-1")], sleeper, in_line=MOST_ACTIONS)
    assert kinds(found.actions) == ["Wake"]


def test_an_old_one_that_is_unhealthy_for_a_moment_stays_until_another_serves() -> None:
    two = wish(revision=2)
    pairs = (
        there("m", status=ReplicaStatus.UNHEALTHY, ready_at=None),
        there("m", 2, revision=2, status=ReplicaStatus.STARTING, ready_at=None),
    )
    fleet = node("a", 2, "r-m-1", "r-m-2")
    assert planned([two], [fleet], *pairs).actions == ()
    assert counts(planned([two], [fleet], pairs[0], there("m", 2, revision=2))) == {"Leave": 1}
    starting = there("m", status=ReplicaStatus.STARTING, ready_at=None)
    assert counts(planned([two], [node("a", 2, "r-m-1")], starting)) == {"Leave": 1, "Start": 1}


def test_one_that_is_tried_again_says_what_failed() -> None:
    setback = [Setback("m", "a", 2, NOW - 1, "out of memory")]
    found = planned([wish()], [node("a")], setbacks=setback)
    assert found.standings["m"].phase is DeploymentPhase.STARTING
    assert found.standings["m"].reason == "tried again: 2 starts failed on node a: out of memory"


# What earlier revisions and silent replicas hold.


def test_what_a_replica_of_an_earlier_revision_was_promised_is_not_given_again() -> None:
    """The deployment needs one accelerator now; its replica of before needs four, and no heartbeat tells of it yet."""
    before, _ = there("m", accelerators=4)
    found = plan(
        [wish(revision=2), wish("n")], [before], [], [node("a", 4)],
        traffic={"m": QUIET, "n": QUIET}, setbacks=[], memory=Memory(), now=NOW,
    )  # fmt: skip
    assert [one.deployment for one in found.actions if isinstance(one, Start)] == []
    assert found.standings["n"].phase is DeploymentPhase.QUEUED
    assert found.standings["n"].reason == "waits for a replica to leave node a"


def test_a_start_says_what_it_needs_of_its_node() -> None:
    (start,) = planned([wish(accelerators=3)], [node("a")]).actions
    assert isinstance(start, Start)
    assert start.needs == Needs(3)


def test_a_replica_of_which_nothing_is_heard_though_its_node_is_there_is_replaced_in_time() -> None:
    fleet, silent = node("a", 4, "r-m-1"), there("m", stale=True)
    first = planned([wish()], [fleet], silent)
    assert first.actions == ()
    assert first.standings["m"].reason == "nothing is heard of its replica on node a"
    soon = planned([wish()], [fleet], silent, memory=first.memory, now=NOW + SILENT_S - 1)
    assert soon.actions == ()
    heard = planned([wish()], [fleet], there("m"), memory=soon.memory, now=NOW + SILENT_S - 1)
    assert heard.memory.silent_since == {}
    late = planned([wish()], [fleet], silent, memory=soon.memory, now=NOW + SILENT_S)
    assert [(type(one).__name__, getattr(one, "cause", None)) for one in late.actions] == [
        ("Leave", Cause.SILENT),
        ("Start", None),
    ]


def test_an_assignment_that_never_becomes_a_replica_is_replaced_in_time() -> None:
    assignment, _ = there("m")
    memory = Memory(silent_since={assignment.request_id: NOW - SILENT_S})
    found = plan([wish()], [assignment], [], [node("a")], traffic={}, setbacks=[], memory=memory, now=NOW)
    assert counts(found) == {"Leave": 1, "Start": 1}


def test_while_a_rollout_is_paused_what_is_missing_is_started_as_it_was() -> None:
    kept = wish(revision=1, paused=True, least=2, most=2)
    found = planned([kept], [node("a", 4, "r-m-1")], there("m", revision=2))
    assert [one.revision for one in found.actions if isinstance(one, Start)] == [1]
    assert counts(found) == {"Start": 1}


# One that needs much beside many that need little.


def test_who_has_waited_for_long_has_accelerators_kept_one_after_the_other() -> None:
    wishes = [wish("big", least=0, accelerators=2), wish("x", least=0), wish("y", least=0)]
    fleet = node("a", 2, "r-x-1", "r-y-1")
    traffic = {
        "big": Traffic(waiting=1, last_request_at=NOW),
        "x": Traffic(in_flight=1, last_request_at=NOW),
        "y": QUIET,
    }
    new = planned(
        wishes, [fleet], there("x"), there("y"), traffic=traffic, memory=Memory(queued_since={"big": NOW - 119})
    )
    assert new.actions == (), "y alone is not enough"
    long = Memory(queued_since={"big": NOW - 120})
    found = planned(wishes, [fleet], there("x"), there("y"), traffic=traffic, memory=long)
    assert evicted(found) == ["y"], "x is in use"
    assert found.standings["big"].reason == "what comes free of node a is kept for it"
    again = {**traffic, "y": Traffic(waiting=1, last_request_at=NOW)}
    free = node("a", 2, "r-x-1")
    kept = planned(wishes, [free], there("x"), traffic=again, memory=long)
    assert kept.actions == (), "what came free is kept"
    assert kept.standings["y"].position == 2
    turn = Memory(queued_since={"big": NOW - 601})
    assert [one.deployment for one in planned(wishes, [free], there("x"), traffic=again, memory=turn).actions] == ["y"]


def test_whose_clients_come_again_keeps_its_place_in_the_line() -> None:
    memory = Memory(queued_since={"m": NOW - 100})
    for ago, since in ((59, NOW - 100), (60, None)):
        traffic = {"m": Traffic(last_request_at=NOW - ago)}
        found = planned([wish(least=0)], [node("a", 1, "somebody")], traffic=traffic, memory=memory)
        assert found.memory.queued_since.get("m") == since
