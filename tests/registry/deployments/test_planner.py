"""The planner's rules, one by one."""

from common.wire.deployment import DeploymentPhase, TemplateGlance
from common.wire.words import ReplicaStatus
from registry.deployments.model import (
    Abandon,
    Action,
    Assignment,
    Leave,
    Memory,
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
from registry.deployments.planner import plan

NOW = 10_000.0
GPU = TemplateGlance(name="gpu", accelerators=1, sleeps=False)
SLEEPY = TemplateGlance(name="sleepy", accelerators=1, sleeps=True)
BIG = TemplateGlance(name="big", accelerators=4)
SHARED = TemplateGlance(name="shared", accelerators=1, memory_mb=10_000, shares=True)
TEMPLATES = {one.name: one for one in (GPU, SLEEPY, BIG, SHARED)}
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
    fields: dict[str, object] = {"status": ReplicaStatus.READY, "ready_at": NOW - 5000, **more}
    seen = SeenReplica(f"r-{name}-{number}", request_id, name, revision, node_name, **fields)  # type: ignore[arg-type]
    return Assignment(request_id, name, revision, node_name, NOW - 5100 + number, leaving), seen


def planned(
    wishes: list[Wish],
    nodes: list[Node],
    *pairs: tuple[Assignment, SeenReplica],
    traffic: dict[str, Traffic] | None = None,
    setbacks: list[Setback] | None = None,
    memory: Memory | None = None,
    now: float = NOW,
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
    )


def wish(name: str = "m", **more: object) -> Wish:
    fields: dict[str, object] = {"model": name, "revision": 1, "template": "gpu", **more}
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
