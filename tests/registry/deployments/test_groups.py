"""Groups in the planner and in the documents: all members or none, counted, blamed and removed as one replica."""

from dataclasses import replace
from typing import Any

import pytest

from common.wire.deployment import DeploymentPhase, TemplateGlance
from common.wire.group import BROKEN
from common.wire.specification import DeploymentSpec
from common.wire.words import ReplicaStatus
from registry.deployments import board, fit
from registry.deployments.fold import with_actions, with_outcomes
from registry.deployments.model import (
    Abandon,
    Assignment,
    Cause,
    Follower,
    Leave,
    Memory,
    Needs,
    Node,
    Plan,
    SeenReplica,
    Setback,
    Start,
    StoredDeployment,
    Traffic,
    Wish,
)
from registry.deployments.planner import plan
from registry.deployments.stored import changed, create_bodies, decode, encode
from tests.registry.deployments.test_planner import NOW, QUIET, node, planned, there

GROUP = TemplateGlance(name="group", accelerators=2, followers=2)
GPU = TemplateGlance(name="gpu", accelerators=1)
TEMPLATES = {"group": GROUP, "gpu": GPU}
WISH = Wish("big", 1, "group")
AT = "2026-01-01T00:00:00Z"


def nodes(count: int, *held: str, **more: Any) -> list[Node]:
    return [node(f"n{number}", 4, *held, templates=TEMPLATES, **more) for number in range(count)]


def made(**spec: Any) -> StoredDeployment:
    found, _ = changed("big", None, DeploymentSpec(template="group", **spec), uid="u", at=AT)
    return found


def group(
    *statuses: ReplicaStatus | None, errors: dict[int, str] | None = None
) -> tuple[Assignment, list[SeenReplica]]:
    """A group of three, by rank; None: nothing is heard of it."""
    names = [f"dep-u-{rank + 1}" for rank in range(3)]
    followers = tuple(Follower(names[rank], f"n{rank}") for rank in (1, 2))
    one = Assignment(names[0], "big", 1, "n0", NOW - 100, needs=Needs(2, followers=2), followers=followers)
    seen = [
        SeenReplica(
            f"r{rank}",
            names[rank],
            "big",
            1,
            f"n{rank}",
            status,
            ready_at=NOW - 50 if status is ReplicaStatus.READY else None,
            error=(errors or {}).get(rank),
        )
        for rank, status in enumerate(statuses)
        if status is not None
    ]
    return one, seen


def plan_of(one: Assignment, seen: list[SeenReplica], given: list[Node]) -> Plan:
    return plan([WISH], [one], seen, given, traffic={"big": QUIET}, setbacks=[], memory=Memory(), now=NOW)


def test_a_group_starts_where_all_members_fit_each_on_another_node() -> None:
    (start,) = planned([WISH], nodes(4)).actions
    assert isinstance(start, Start)
    assert start.needs == Needs(2, followers=2)
    assert len({start.node, *start.followers}) == 3


def test_with_a_node_too_few_nothing_starts_and_the_reason_is_told() -> None:
    found = planned([WISH], nodes(2))
    assert found.actions == ()
    standing = found.standings["big"]
    assert standing.phase is DeploymentPhase.UNSCHEDULABLE
    assert standing.reason == "needs 3 nodes for a leader and 2 follower(s), 2 would do"


def test_a_number_of_followers_of_its_own_replaces_the_templates() -> None:
    (start,) = planned([replace(WISH, followers=1)], nodes(2)).actions
    assert isinstance(start, Start)
    assert len(start.followers) == 1


def test_idle_replicas_of_all_nodes_make_room_for_a_group_and_none_does_when_it_would_not_be_enough() -> None:
    """Three of four accelerators of each node are held by idle replicas; two must come free."""
    wishes = [replace(WISH, priority=1)]
    pairs = []
    for number in range(3):
        for slot in range(3):
            name = f"s{number}{slot}"
            wishes.append(Wish(name, 1, "gpu", least=0, dwell_s=0))
            pairs.append(there(name, 1, f"n{number}"))
    given = [
        node(f"n{number}", 4, *(f"r-s{number}{slot}-1" for slot in range(3)), templates=TEMPLATES)
        for number in range(3)
    ]
    found = planned(wishes, given, *pairs)
    gone = [one for one in found.actions if isinstance(one, Leave)]
    assert sorted(one.node or "" for one in gone) == ["n0", "n1", "n2"]
    assert {one.cause for one in gone} == {Cause.EVICTED}
    busy = {"s00": Traffic(in_flight=1), "s01": Traffic(in_flight=1), "s02": Traffic(in_flight=1)}
    traffic = {wish.name: busy.get(wish.name, QUIET) for wish in wishes}
    assert planned(wishes, given, *pairs, traffic=traffic).actions == ()


def test_an_idle_group_makes_room_on_each_of_its_nodes() -> None:
    one, seen = group(*[ReplicaStatus.READY] * 3)
    wishes = [replace(WISH, least=0, dwell_s=0), Wish("other", 1, "gpu", accelerators=4, nodes=("n2",))]
    given = [node(f"n{rank}", 4, f"r{rank}", f"r{rank}", templates=TEMPLATES) for rank in range(3)]
    found = plan(
        wishes, [one], seen, given, traffic={"big": QUIET, "other": QUIET}, setbacks=[], memory=Memory(), now=NOW
    )
    assert [(it.request_id, it.cause) for it in found.actions if isinstance(it, Leave)] == [("dep-u-1", Cause.EVICTED)]


def test_a_member_that_ended_ends_all_and_is_the_one_that_is_blamed() -> None:
    errors = {0: f"{BROKEN}: rank 2 on n2 is failed", 2: "killed by signal 9 (SIGKILL)"}
    one, seen = group(ReplicaStatus.FAILED, ReplicaStatus.READY, ReplicaStatus.FAILED, errors=errors)
    leave = plan_of(one, seen, nodes(3)).actions[0]
    assert isinstance(leave, Leave)
    assert (leave.request_id, leave.cause, leave.reason) == (
        "dep-u-1",
        Cause.ENDED,
        "it ended: killed by signal 9 (SIGKILL)",
    )
    stored = replace(made(), assignments=(one,))
    after = with_actions(stored, [leave], {it.request_id: it for it in seen}, NOW)
    assert [(it.node, it.reason) for it in after.setbacks] == [("n2", "killed by signal 9 (SIGKILL)")]
    assert after.assignments[0].leaving


def test_a_group_with_a_member_on_a_lost_node_is_given_up_and_one_on_a_drained_node_moves() -> None:
    one, seen = group(ReplicaStatus.UNHEALTHY, ReplicaStatus.READY, None)
    given = [*nodes(2), node("n2", 4, templates=TEMPLATES, away=True)]
    assert isinstance(plan_of(one, seen, given).actions[0], Abandon)
    one, seen = group(*[ReplicaStatus.READY] * 3)
    given = [*nodes(2), node("n2", 4, templates=TEMPLATES, draining=True), node("n3", 4, templates=TEMPLATES)]
    found = plan_of(one, seen, given)
    assert any(isinstance(it, Start) for it in found.actions)


def test_members_are_no_surplus_and_those_of_a_group_that_is_no_more_are() -> None:
    one, seen = group(*[ReplicaStatus.READY] * 3)
    given = [node(f"n{rank}", 4, f"r{rank}", f"r{rank}", templates=TEMPLATES) for rank in range(3)]
    assert plan_of(one, seen, given).actions == ()
    left = plan_of(replace(one, request_id="dep-u-9", followers=()), seen, given).actions
    assert sorted(it.request_id for it in left if isinstance(it, Leave)) == ["dep-u-1", "dep-u-2", "dep-u-3"]


def test_each_member_has_a_call_of_its_own_and_a_refusal_of_one_ends_all() -> None:
    start = Start("big", 1, "n0", Needs(2, followers=2), "", ("n1", "n2"))
    stored = with_actions(made(parameters={"model": "m"}), [start], {}, NOW)
    (one,) = stored.assignments
    assert one.places == (("dep-u-1", "n0"), ("dep-u-2", "n1"), ("dep-u-3", "n2"))
    assert decode(encode(stored)) == stored
    bodies = create_bodies(stored, one)
    assert [it["group"] for it in bodies] == [{"rank": rank, "size": 3} for rank in range(3)]
    assert [it["placement"]["node"] for it in bodies] == ["n0", "n1", "n2"]
    assert {it["metadata"]["group"] for it in bodies} == {"dep-u-1"}
    (again,) = with_actions(replace(stored, assignments=()), [start], {}, NOW).assignments
    assert again.request_id == "dep-u-4", "another start has other names"
    after = with_outcomes(stored, (), {"dep-u-3": "needs 2 cuda, 1 are free"}, NOW)
    assert after.assignments[0].leaving
    assert after.setbacks == (Setback("big", "n2", 1, NOW + 1, "needs 2 cuda, 1 are free"),)


def test_a_group_is_shown_as_one_replica_with_its_members() -> None:
    one, seen = group(ReplicaStatus.READY, ReplicaStatus.READY, None)
    stored = replace(made(), assignments=(one,))
    standing = planned([WISH], nodes(3), (one, seen[0])).standings["big"]
    told = {it.request_id: it for it in seen}
    start = (None, None, None)
    status = board.status_of(stored, standing, QUIET, told, start=start, hold_within_s=60, now=NOW)
    (shown,) = status.replicas
    assert (shown.replica_id, shown.node, shown.status) == ("r0", "n0", "ready")
    assert [(it.rank, it.node, it.status, it.replica_id) for it in shown.members] == [
        (0, "n0", "ready", "r0"),
        (1, "n1", "ready", "r1"),
        (2, "n2", "assigned", None),
    ]


@pytest.mark.parametrize(("spec", "kind"), [({"followers": 3}, "rolls"), ({"idle_s": 5}, "updated")])
def test_another_number_of_followers_is_a_new_revision(spec: dict[str, Any], kind: str) -> None:
    _, told = changed("big", made(), DeploymentSpec(template="group", **spec), uid="u", at=AT)
    assert told.change == kind


def test_what_fits_is_told_apart_by_the_number_of_followers() -> None:
    assert fit.kind_of(WISH) != fit.kind_of(replace(WISH, followers=1))
