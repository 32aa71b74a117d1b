"""The PURE parts beside the planner: documents and their changes, demand, what is learned of starts."""

from dataclasses import replace
from typing import Any

import pytest

from common.wire.deployment import Demand, DeploymentPhase, ModelDemand, Standing
from common.wire.replica import ReplicaInfo, Stage
from common.wire.specification import DeploymentSpec
from common.wire.words import ReplicaStatus, StageState
from registry.deployments.board import states, status_of
from registry.deployments.checks import faults
from registry.deployments.fold import with_actions, with_outcomes, with_seen
from registry.deployments.intake import SILENT_S, Intake
from registry.deployments.model import (
    Abandon,
    Cause,
    Leave,
    Needs,
    SeenReplica,
    Start,
    StoredDeployment,
    Traffic,
    Wake,
)
from registry.deployments.sight import moment, seen
from registry.deployments.stored import (
    KEPT,
    changed,
    create_bodies,
    decode,
    encode,
    held_revision,
    revision_before,
    revision_of,
    set_back,
    uid_of,
    wish_of,
)
from registry.deployments.timing import Timing

AT = "2026-01-01T00:00:00.000Z"
NOW = 1_767_225_600.0
NEEDS = Needs(1)


def spec(**changes: Any) -> DeploymentSpec:
    return DeploymentSpec.model_validate({"template": "mock", "parameters": {"model": "m"}, **changes})


def made(**changes: Any) -> StoredDeployment:
    return changed("chat", None, spec(**changes), uid="u", at=AT)[0]


def one_seen(request_id: str, **changes: Any) -> SeenReplica:
    known: dict[str, Any] = {"replica_id": "r", "deployment": "chat", "revision": 1, "node": "n1", "status": "ready"}
    known.update(changes)
    known["status"] = ReplicaStatus(known["status"])
    return SeenReplica(request_id=request_id, **known)


@pytest.mark.parametrize(
    ("changes", "change", "revision"),
    [
        ({}, "unchanged", 1),
        ({"idle_s": 5}, "updated", 1),
        ({"model": "chat"}, "updated", 1),  # the name that it has anyway
        ({"model": "other"}, "rolls", 2),
        ({"parameters": {"model": "x"}}, "rolls", 2),
        ({"parameters": {"model": "m", "flag": True}}, "rolls", 2),
        ({"accelerators": 2}, "rolls", 2),
    ],
)
def test_only_a_change_of_what_runs_is_a_new_revision(changes: dict[str, Any], change: str, revision: int) -> None:
    before = made()
    after, told = changed("chat", before, spec(**changes), uid="v", at=AT)
    assert (told.change, told.revision, after.revision, after.uid) == (change, revision, revision, "u")
    assert (after is before) == (change == "unchanged")
    assert decode(encode(after)) == after


def test_one_and_true_are_different_parameters() -> None:
    _, told = changed("chat", made(parameters={"x": 1}), spec(parameters={"x": True}), uid="v", at=AT)
    assert told.diff == {"parameters.x": [1, True]}


def test_the_last_ten_revisions_are_kept() -> None:
    stored = made()
    for number in range(20):
        stored, _ = changed("chat", stored, spec(parameters={"model": str(number)}), uid="v", at=AT)
    assert [it["revision"] for it in stored.history] == list(range(21 - KEPT + 1, 22))
    assert revision_before(stored) == 20
    assert revision_of(stored, 20) == {**stored.spec, "parameters": {"model": "18"}}
    assert revision_of(stored, 3) is None


def test_what_is_made_again_while_it_stops_uses_no_request_id_twice() -> None:
    stored = with_actions(made(), [Start("chat", 1, "n1", NEEDS, "")], {}, NOW)
    deleted = StoredDeployment(
        **{name: getattr(stored, name) for name in StoredDeployment.__slots__ if name != "deleted"}, deleted=True
    )
    again, told = changed("chat", deleted, spec(), uid="v", at=AT)
    assert (told.change, again.deleted, again.assignments) == ("created", False, stored.assignments)
    more = with_actions(again, [Start("chat", 2, "n1", NEEDS, "")], {}, NOW)
    assert [it.request_id for it in more.assignments] == ["dep-u-1", "dep-u-2"]


def test_actions_and_outcomes_in_the_documents() -> None:
    stored = with_actions(made(), [Start("chat", 1, "n1", NEEDS, ""), Start("chat", 1, "n2", NEEDS, "")], {}, NOW)
    assert [(it.request_id, it.node) for it in stored.assignments] == [("dep-u-1", "n1"), ("dep-u-2", "n2")]
    refused = with_outcomes(stored, (), {"dep-u-1": "full"}, NOW)
    assert [it.leaving for it in refused.assignments] == [True, False]
    assert [(it.node, it.failures, it.until) for it in refused.setbacks] == [("n1", 1, NOW + 1)]
    assert with_outcomes(refused, (), {"dep-u-1": "full"}, NOW) is refused
    gone = with_outcomes(refused, {"dep-u-1"}, {}, NOW)
    assert [it.request_id for it in gone.assignments] == ["dep-u-2"]
    assert with_actions(gone, [Abandon("dep-u-2", "chat", "away")], {}, NOW).assignments == ()
    failed = {"dep-u-2": one_seen("dep-u-2", node="n2", status="failed", error="no model")}
    left = with_actions(gone, [Leave("dep-u-2", "chat", Cause.ENDED, "it ended")], failed, NOW)
    assert {it.node: it.reason for it in left.setbacks} == {"n1": "full", "n2": "no model"}
    ready = {"dep-u-2": one_seen("dep-u-2", node="n2")}
    assert [it.node for it in with_seen(left, ready).setbacks] == ["n1"]


def test_failed_starts_wait_twice_as_long_up_to_five_minutes() -> None:
    stored, waits = made(), []
    for _ in range(12):
        stored = set_back(stored, "n1", "no", NOW)
        waits.append(stored.setbacks[0].until - NOW)
    assert waits[:4] == [1, 2, 4, 8]
    assert waits[-1] == 300


def test_the_create_call_has_what_the_agent_needs_and_no_more() -> None:
    stored = with_actions(made(accelerators=2, model="served"), [Start("chat", 1, "n1", NEEDS, "")], {}, NOW)
    assert create_bodies(stored, stored.assignments[0])[0] == {
        "backend": {"template": "mock", "parameters": {"model": "m"}},
        "model_name": "served",
        "accelerators": 2,
        "request_id": "dep-u-1",
        "metadata": {"deployment": "chat", "revision": 1},
        "placement": {"node": "n1"},
    }
    request = {"server_mode": "replica", "model_name": "llama", "placement": {"multibox": "b"}, "metadata": {"a": 1}}
    other = DeploymentSpec.model_validate({"request": request})
    released = with_actions(changed("x", None, other, uid="u", at=AT)[0], [Start("x", 1, "n1", NEEDS, "")], {}, NOW)
    [body] = create_bodies(released, released.assignments[0])
    assert body is not None
    assert body["model_name"] == "llama"
    assert body["placement"] == {"multibox": "b", "node": "n1"}
    assert body["metadata"] == {"a": 1, "deployment": "x", "revision": 1}


@pytest.mark.parametrize(("text", "uid"), [("dep-u-1", "u"), ("dep-a-b-2", "a-b"), ("dep-u-x", None), ("mine", None)])
def test_a_request_id_names_its_deployment(text: str, uid: str | None) -> None:
    assert uid_of(text) == uid


def test_demand_is_added_up_and_a_silent_router_forgotten() -> None:
    intake = Intake()
    told = Demand(models={"m": ModelDemand(in_flight=1, waiting=0, requests=100)})
    assert not intake.heard("a", told, NOW)
    assert intake.heard("b", Demand(models={"m": ModelDemand(waiting=3, requests=3)}), NOW + 1)
    assert not intake.heard("b", Demand(models={"m": ModelDemand(waiting=4, requests=4)}), NOW + 1)
    traffic = intake.traffic("m", NOW + 1)
    assert (traffic.in_flight, traffic.waiting, traffic.last_request_at) == (1, 4, NOW + 1)
    assert 0 < traffic.recent_per_s < 0.01  # the hundred of before were not heard of as they came
    intake.keep({"m"}, NOW + 0.5 + SILENT_S)
    assert intake.traffic("m", NOW + 7).in_flight == 0
    intake.heard("b", Demand(models={"m": ModelDemand(requests=2)}), NOW + 2)  # it began anew: two more
    assert intake.traffic("m", NOW + 2).last_request_at == NOW + 2
    assert intake.traffic("other", NOW).last_request_at is None


SCHEMA = {
    "type": "object",
    "properties": {
        "model": {"type": "string", "maxLength": 4},
        "n": {"type": "integer", "minimum": 1, "maximum": 3},
        "x": {"type": "number"},
        "kind": {"type": "string", "enum": ["a", "b"]},
        "on": {"type": "boolean"},
        "many": {"type": "array"},
    },
    "required": ["model"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("parameters", "wrong"),
    [
        ({"model": "m", "n": 3, "x": 1, "kind": "a", "on": True, "many": ["x"]}, set()),
        ({}, {"model"}),
        ({"model": "m", "n": 4}, {"n"}),
        ({"model": "m", "n": True}, {"n"}),
        ({"model": "m", "n": 1.5}, {"n"}),
        ({"model": "m", "on": 1}, {"on"}),
        ({"model": "m", "kind": "c"}, {"kind"}),
        ({"model": "mmmmm", "other": 1, "many": "x"}, {"model", "other", "many"}),
    ],
)
def test_parameters_are_judged_by_the_templates_schema(parameters: dict[str, Any], wrong: set[str]) -> None:
    assert faults(parameters, SCHEMA).keys() == wrong
    assert faults(parameters, {}) == {}


def test_a_replica_of_an_unknown_deployment_counts_only_if_this_store_is_older_C21() -> None:
    info = ReplicaInfo(replica_id="r", request_id="dep-x-1", created_at=AT, metadata={"node": "n1"})
    made_at = moment(AT)
    assert made_at is not None
    assert seen([info], {}, made_at + 1) == []
    assert [it.deployment for it in seen([info], {}, made_at - 1)] == [""]
    by_hand = ReplicaInfo(replica_id="r", request_id="mine", created_at=AT, metadata={"node": "n1"})
    assert seen([by_hand], {}, 0) == []


def test_a_start_that_was_seen_is_learned_from() -> None:
    stored = with_actions(made(), [Start("chat", 1, "n1", NEEDS, "")], {}, NOW)
    (assignment,) = stored.assignments
    timing = Timing()
    stage = Stage(name="loading", state=StageState.RUNNING, began_at="2026-01-01T00:00:04Z")
    under = ReplicaInfo(replica_id="r", status=ReplicaStatus.STARTING, stages=[stage])
    ready = ReplicaInfo(replica_id="r", status=ReplicaStatus.READY, ready_at="2026-01-01T00:00:10Z", stages=[stage])
    assert timing.observe(stored, assignment, ready) is None  # its start was not seen: another leader learned from it
    assert timing.nearest(stored, [(assignment, under)], NOW + 5) == ("loading", None, None)
    assert timing.observe(stored, assignment, under) is None
    assert timing.observe(stored, assignment, ready) == 10.0
    assert timing.usual(stored) == 10.0
    assert timing.nearest(stored, [(assignment, under)], NOW + 6) == ("loading", 60, 4.0)


def test_time_in_a_schedulers_queue_is_the_schedulers_to_tell_and_no_part_of_a_start() -> None:
    stored = with_actions(made(), [Start("chat", 1, "n1", NEEDS, "")], {}, NOW)
    (assignment,) = stored.assignments
    timing = Timing()

    def queued(ends_at: str | None) -> ReplicaInfo:
        stage = Stage(name="queued", state=StageState.RUNNING, began_at="2026-01-01T00:00:00Z", ends_at=ends_at)
        return ReplicaInfo(replica_id="r", status=ReplicaStatus.PENDING, stages=[stage])

    assert timing.observe(stored, assignment, queued(None)) is None
    assert timing.nearest(stored, [(assignment, queued(None))], NOW + 1) == ("queued", None, None)
    assert timing.nearest(stored, [(assignment, queued("2026-01-01T00:01:00Z"))], NOW + 1) == ("queued", None, 59.0)
    begun = ReplicaInfo(replica_id="r", status=ReplicaStatus.STARTING, updated_at="2026-01-01T00:01:00Z")
    assert timing.observe(stored, assignment, begun) is None
    ready = ReplicaInfo(replica_id="r", status=ReplicaStatus.READY, ready_at="2026-01-01T00:01:05Z")
    assert timing.observe(stored, assignment, ready) == 5.0
    assert timing.nearest(stored, [(assignment, queued("2026-01-01T00:01:00Z"))], NOW + 1) == ("queued", None, 64.0)


def test_one_that_is_woken_shows_no_time_that_starts_took() -> None:
    timing, stored = Timing(), set_back(made(), "other", "x", NOW)
    stored = with_actions(stored, [Start("chat", 1, "n1", NEEDS, "")], {}, NOW)
    (assignment,) = stored.assignments
    waking = Stage(name="waking", state=StageState.RUNNING, began_at="2026-01-01T01:00:00Z")
    starting = ReplicaInfo(replica_id="r", status=ReplicaStatus.STARTING)
    timing.observe(stored, assignment, starting)
    timing.observe(
        stored, assignment, ReplicaInfo(replica_id="r", status=ReplicaStatus.READY, ready_at="2026-01-01T00:01:00Z")
    )
    woken = ReplicaInfo(replica_id="r", status=ReplicaStatus.WAITING_FOR_READY, stages=[waking])
    assert timing.nearest(stored, [(assignment, starting)], NOW)[2] == 60
    assert timing.nearest(stored, [(assignment, woken)], NOW + 3601) == ("waking", None, None)


def test_a_replica_on_its_way_to_sleep_was_drained_by_nobody() -> None:
    stored = with_actions(made(), [Start("chat", 1, "n1", NEEDS, "")], {}, NOW)
    marks = {"node": "n1", "draining": True}
    for status, draining in ((ReplicaStatus.ASLEEP, False), (ReplicaStatus.READY, True)):
        info = ReplicaInfo(
            replica_id="r", request_id=stored.assignments[0].request_id, status=status, created_at=AT, metadata=marks
        )
        (one,) = seen([info], {"chat": stored}, 0.0)
        assert (one.asleep, one.draining) == (not draining, draining)


def test_routers_hear_whether_it_makes_sense_to_wait() -> None:
    stored = set_back(made(), "n1", "no", NOW)
    for phase, hold in (
        (DeploymentPhase.COLD, True),
        (DeploymentPhase.UNSCHEDULABLE, False),
        (DeploymentPhase.FAILING, True),
    ):
        status = status_of(
            stored, Standing(phase=phase), Traffic(), {}, start=(None, None, 7.04), hold_within_s=60, now=NOW
        )
        (state,) = states({"chat": stored}, {"chat": status})
        assert (state.phase, state.hold, state.eta_s) == (phase, hold, 7.0)


def test_while_its_rollout_is_paused_a_deployment_wants_the_revision_that_runs() -> None:
    stored = with_actions(made(accelerators=4), [Start("chat", 1, "n1", NEEDS, "")], {}, NOW)
    paused = replace(stored, held=held_revision(stored))
    later, told = changed(
        "chat", paused, spec(parameters={"model": "x"}, accelerators=1, replicas={"max": 3}), uid="v", at=AT
    )
    assert (told.revision, held_revision(later)) == (2, 1)
    wish = wish_of(later)
    assert (wish.revision, wish.accelerators, wish.most, wish.paused) == (1, 4, 3, True)
    (again,) = with_actions(replace(later, assignments=()), [Start("chat", 1, "n1", NEEDS, "")], {}, NOW).assignments
    [body] = create_bodies(later, again)
    assert body is not None
    assert body["backend"]["parameters"] == {"model": "m"}
    resumed = wish_of(replace(later, held=None))
    assert (resumed.revision, resumed.accelerators, resumed.paused) == (2, 1, False)


def test_an_assignment_keeps_what_it_was_promised_and_a_silent_one_counts_as_failed() -> None:
    stored = with_actions(made(), [Start("chat", 1, "n1", Needs(1, 4000, shares=True), "")], {}, NOW)
    assert decode(encode(stored)).assignments[0].needs == Needs(1, 4000, shares=True)
    silent = with_actions(stored, [Leave("dep-u-1", "chat", Cause.SILENT, "nothing was heard")], {}, NOW)
    assert [(it.node, it.reason) for it in silent.setbacks] == [("n1", "nothing was heard")]


def test_what_was_put_to_sleep_and_is_started_again_sleeps_no_more() -> None:
    slept = replace(made(), slept_at=NOW)
    assert with_actions(slept, [Start("chat", 1, "n1", NEEDS, "")], {}, NOW + 1).slept_at is None
    assert with_actions(slept, [Wake("r", "chat", "wanted again")], {}, NOW + 1).slept_at is None
    assert with_actions(slept, [], {}, NOW + 1).slept_at == NOW
