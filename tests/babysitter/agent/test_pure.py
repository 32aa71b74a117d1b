"""What the agent decides without touching anything: ports, statuses, pictures, events, what it remembers."""

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from babysitter.agent.changes import changes, fresh, reason_to_end
from babysitter.agent.model import Desired, ReplicaRecord, read_record
from babysitter.agent.picture import between_servers, claimed_attempt, info, status_of
from babysitter.agent.port_plan import candidates, ephemeral
from babysitter.memory import SavedReplica, read_saved
from common.discovery.replica import select
from common.wire.create import RequestGlance
from common.wire.read import read_lenient
from common.wire.replica import ReplicaInfo, Transition
from common.wire.stream import JobsChange, StatusChange
from common.wire.words import ReplicaStatus

RECORD = ReplicaRecord("abc123def456", 20_000, "r1", "d", "2026-01-01T00:00:00.000Z")
CONTRACT = (
    "replica_id server_mode model_name status display_status endpoint base_url host port multibox namespace workdir"
    " venv_path compile_wsjob execute_wsjob created_at updated_at ready_at error_message request_id diagnostics metadata"
)
NOWHERE = range(0)
AS_JSON = msgspec.to_builtins(RECORD)


def state(members: dict[str, Any]) -> SavedReplica:
    saved = read_saved({"replica_id": RECORD.replica_id, **members})
    assert saved is not None
    return saved


def shown(told: SavedReplica, **changed: Any) -> ReplicaInfo:
    request = {"server_mode": "replica", "model_name": "m", "placement": {"multibox": "dh1"}, "metadata": {"a": 1}}
    glance = read_lenient(RequestGlance, request)
    return info(replace(RECORD, **changed), told, glance, workdir="/r/x", node="n1")


def picture(told: dict[str, Any] | None = None, **changed: Any) -> dict[str, Any]:
    return dict(msgspec.to_builtins(shown(state(told or {}), **changed)))


def test_pairs_are_given_in_turn_and_never_twice_E8() -> None:
    assert list(candidates(10, 15, taken=set(), avoid=NOWHERE, after=None)) == [10, 12, 14]
    assert list(candidates(10, 15, taken={12, 13}, avoid=NOWHERE, after=10)) == [14, 10]
    assert list(candidates(10, 15, taken=set(), avoid=NOWHERE, after=14)) == [10, 12, 14]


@pytest.mark.parametrize("taken", [{12}, {13}])
def test_a_pair_is_taken_when_either_port_is_E8(taken: set[int]) -> None:
    assert 12 not in list(candidates(10, 15, taken=taken, avoid=NOWHERE, after=None))


def test_the_last_port_is_used_only_as_a_second_one() -> None:
    assert list(candidates(10, 13, taken=set(), avoid=NOWHERE, after=None)) == [10, 12]
    assert list(candidates(10, 12, taken=set(), avoid=NOWHERE, after=None)) == [10]


def test_the_kernels_own_ports_are_avoided_E8() -> None:
    assert list(candidates(32_764, 32_772, taken=set(), avoid=ephemeral("32768\t60999\n"), after=None)) == [
        32_764,
        32_766,
    ]
    assert ephemeral("nonsense") == range(0)


@pytest.mark.parametrize(
    ("changed", "told", "status"),
    [
        ({}, {}, "pending"),
        ({}, {"status": 7}, "pending"),
        ({}, {"status": "of a later version"}, "pending"),
        ({}, {"status": "ready"}, "ready"),
        ({"fault": "x"}, {"status": "ready"}, "failed"),
        ({"desired": Desired.STOPPED}, {"status": "ready"}, "stopping"),
        ({"desired": Desired.STOPPED, "fault": "x"}, {}, "stopping"),
        ({"desired": Desired.DELETED}, {"status": "stopped"}, "stopping"),
        ({"desired": Desired.DELETED, "over": True}, {"status": "ready"}, "stopped"),
    ],
)
def test_status_is_what_is_wanted_and_known_to_be_over_before_what_was_written(
    changed: dict[str, Any], told: dict[str, Any], status: str
) -> None:
    assert status_of(replace(RECORD, **changed), state(told)) == status


def test_info_has_every_member_of_the_contract_before_a_babysitter_said_anything() -> None:
    found = picture()
    assert set(CONTRACT.split()) <= found.keys()
    assert (found["status"], found["display_status"], found["endpoint"]) == ("pending", "Pending", "NA")
    assert (found["multibox"], found["namespace"]) == ("dh1", "inf-integ")
    assert found["metadata"] == {"a": 1, "node": "n1"}
    assert found["updated_at"] == found["created_at"] == RECORD.created_at


def test_a_null_namespace_is_the_default_one_and_costs_no_other_member_W41() -> None:
    request = read_lenient(RequestGlance, {"placement": {"multibox": "dh1", "namespace": None}, "metadata": None})
    found = info(RECORD, state({}), request, workdir="/r/x", node="n1")
    assert (found.multibox, found.namespace, found.metadata) == ("dh1", "inf-integ", {"node": "n1"})


def test_info_of_a_stopped_replica_has_no_endpoint() -> None:
    found = picture({"status": "ready", "endpoint": "http://h:1", "base_url": "http://h:1"}, over=True)
    assert (found["status"], found["endpoint"], found["base_url"]) == ("stopped", "NA", None)


@pytest.mark.parametrize(
    ("told", "attempt"),
    [
        ({}, None),
        ({"status": "ready"}, None),
        ({"status": "ready", "memory": []}, None),
        ({"status": "ready", "memory": {"attempt": "u"}}, "u"),
        ({"status": "failed", "memory": {"attempt": "u"}}, None),
    ],
)
def test_a_server_is_claimed_by_what_was_written_of_it(told: dict[str, Any], attempt: str | None) -> None:
    assert claimed_attempt(state(told)) == attempt


def test_info_of_a_replica_between_two_servers_has_no_endpoint() -> None:
    ready = {"status": "ready", "display_status": "Active", "endpoint": "http://h:1", "replica_pid": 7}
    found = shown(between_servers(state(ready)))
    assert (found.status, found.display_status, found.endpoint) == ("starting", "Pending", "NA")
    assert found.replica_pid is None


def test_info_of_a_deleted_replica_says_so() -> None:
    assert picture(desired=Desired.DELETED)["metadata"]["deleted"] is True


def test_info_tells_why_a_babysitter_cannot_start() -> None:
    found = picture({"status": "creating", "error_message": None}, fault="no such file")
    assert (found["status"], found["display_status"], found["error_message"]) == ("failed", "Failed", "no such file")


@pytest.mark.parametrize(
    ("wanted", "count"),
    [({}, 1), ({"model_name": "m"}, 1), ({"model_name": "served"}, 1), ({"status": "ready"}, 0)],
)
def test_select_by_filter(wanted: dict[str, str], count: int) -> None:
    assert len(select([shown(state({"models": ["served"]}))], wanted)) == count


@pytest.mark.parametrize(
    "broken",
    [
        None,
        [],
        {},
        {**AS_JSON, "port": "20000"},
        {**AS_JSON, "port": True},
        {**AS_JSON, "port": 65_535},
        {**AS_JSON, "desired": "gone"},
        {**AS_JSON, "replica_id": "../../../etc"},
        {**AS_JSON, "fault": 1},
    ],
)
def test_a_record_that_cannot_be_believed_is_none(broken: Any) -> None:
    assert read_record(broken) is None


def test_a_record_is_read_back_as_it_was() -> None:
    known = replace(RECORD, desired=Desired.STOPPED, over=True, fault="x")
    assert read_record({**msgspec.to_builtins(known), "of_a_later_version": 1}) == known


def test_changes_tell_moves_stages_jobs_and_status_in_this_order() -> None:
    stage = {"name": "venv", "state": "running", "began_at": "t", "took_s": 0.0, "attempt": 1, "detail": ""}
    done = {**stage, "state": "done"}
    before = shown(state({"status": "creating", "stages": [stage]}))
    after = shown(state({"status": "ready", "stages": [done], "compile_wsjob": ["wsjob-1"]}))
    moves = [move(1), move(2)]
    found = changes(before, after, moves_before=moves[:1], moves_after=moves)
    assert [event.name for event in found] == ["transition", "stage", "jobs", "status"]
    assert [event.data for event in found[:3]] == [
        moves[1],
        after.stages[0],
        JobsChange(compile_wsjob=["wsjob-1"], execute_wsjob=[]),
    ]
    assert isinstance(found[3].data, StatusChange)
    assert found[3].data.status is ReplicaStatus.READY
    assert changes(after, after, moves_before=moves, moves_after=moves) == []


def move(number: int) -> Transition:
    return Transition(at=str(number), before="a", after="b", cause="c")


def test_fresh_moves_when_the_oldest_were_forgotten() -> None:
    moves = [move(number) for number in range(5)]
    assert fresh(moves[:3], moves[2:]) == moves[3:]
    assert fresh(moves[:1], moves[3:]) == moves[3:]
    assert fresh([], moves) == moves


@pytest.mark.parametrize(
    ("status", "until", "ends"),
    [
        ("stopped", None, True),
        ("ready", None, False),
        ("failed", None, False),
        ("ready", "ready", True),
        ("failed", "ready", True),
        ("unhealthy", "ready", False),
    ],
)
def test_a_stream_ends_when_there_is_nothing_more_to_tell(status: str, until: str | None, ends: bool) -> None:  # noqa: FBT001 - a row
    assert (reason_to_end(ReplicaStatus(status), until) is not None) is ends
