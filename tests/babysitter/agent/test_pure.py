"""What the agent decides without touching anything: ports, statuses, pictures, events, what it remembers."""

from dataclasses import replace
from typing import Any

import pytest

from babysitter.agent.changes import changes, fresh, reason_to_end
from babysitter.agent.model import Desired, ReplicaRecord, record_from_json
from babysitter.agent.picture import between_servers, claimed_attempt, info, status_of
from babysitter.agent.port_plan import candidates, ephemeral
from common.discovery.replica import select

RECORD = ReplicaRecord("abc123def456", 20_000, "r1", "d", "2026-01-01T00:00:00.000Z")
CONTRACT = (
    "replica_id server_mode model_name status display_status endpoint base_url host port multibox namespace workdir"
    " venv_path compile_wsjob execute_wsjob created_at updated_at ready_at error_message request_id diagnostics metadata"
)
NOWHERE = range(0)


def picture(told: dict[str, Any] | None = None, **changed: Any) -> dict[str, Any]:
    request = {"server_mode": "replica", "model_name": "m", "placement": {"multibox": "dh1"}, "metadata": {"a": 1}}
    return info(replace(RECORD, **changed), told or {}, request, workdir="/r/x", node="n1")


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
    assert status_of(replace(RECORD, **changed), told) == status


def test_info_has_every_member_of_the_contract_before_a_babysitter_said_anything() -> None:
    found = picture()
    assert set(CONTRACT.split()) <= found.keys()
    assert (found["status"], found["display_status"], found["endpoint"]) == ("pending", "Pending", "NA")
    assert (found["multibox"], found["namespace"]) == ("dh1", "inf-integ")
    assert found["metadata"] == {"a": 1, "node": "n1"}
    assert found["updated_at"] == found["created_at"] == RECORD.created_at


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
    assert claimed_attempt(told) == attempt


def test_info_of_a_replica_between_two_servers_has_no_endpoint() -> None:
    found = picture(
        between_servers({"status": "ready", "display_status": "Active", "endpoint": "http://h:1", "replica_pid": 7})
    )
    assert (found["status"], found["display_status"], found["endpoint"]) == ("starting", "Pending", "NA")
    assert found["replica_pid"] is None


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
    assert len(select([picture({"models": ["served"]})], wanted)) == count


@pytest.mark.parametrize(
    "broken",
    [
        None,
        [],
        {},
        {**RECORD.to_json(), "port": "20000"},
        {**RECORD.to_json(), "port": True},
        {**RECORD.to_json(), "port": 65_535},
        {**RECORD.to_json(), "desired": "gone"},
        {**RECORD.to_json(), "replica_id": "../../../etc"},
        {**RECORD.to_json(), "fault": 1},
    ],
)
def test_a_tenancy_that_cannot_be_believed_is_none(broken: Any) -> None:
    assert record_from_json(broken) is None


def test_a_tenancy_is_read_back_as_it_was() -> None:
    known = replace(RECORD, desired=Desired.STOPPED, over=True, fault="x")
    assert record_from_json({**known.to_json(), "of_a_later_version": 1}) == known


def test_changes_tell_moves_stages_jobs_and_status_in_this_order() -> None:
    stage = {"name": "venv", "state": "running", "began_at": "t", "took_s": 0.0, "attempt": 1, "detail": ""}
    before = picture({"status": "creating", "stages": [stage]})
    after = picture({"status": "ready", "stages": [{**stage, "state": "done"}], "compile_wsjob": ["wsjob-1"]})
    moves = [{"at": "t", "to": "creating"}]
    found = changes(before, after, moves_before=moves, moves_after=[*moves, {"at": "u", "to": "ready"}])
    assert [event.name for event in found] == ["transition", "stage", "jobs", "status"]
    assert found[0].data["to"] == "ready"
    assert found[1].data["state"] == "done"
    assert found[2].data == {"compile_wsjob": ["wsjob-1"], "execute_wsjob": []}
    assert found[3].data["status"] == "ready"
    assert changes(after, after, moves_before=moves, moves_after=moves) == []


def test_fresh_moves_when_the_oldest_were_forgotten() -> None:
    moves = [{"n": number} for number in range(5)]
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
    assert (reason_to_end({"status": status}, until) is not None) is ends
