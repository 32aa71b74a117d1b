"""Messages of older, newer and mistaken processes."""

import msgspec
import pytest

from common.wire.hints import hints_of
from common.wire.read import read_json_lenient, read_lenient
from common.wire.replica import PASSING, ReplicaHeartbeat, ReplicaReport, Transition
from common.wire.words import DisplayStatus, ReplicaStatus


def test_a_report_with_one_bad_member_keeps_the_others() -> None:
    raw = b'{"replica_id":"a","status":"ready","restart_count":"many","port":"8100","compile_wsjob":null,"later":1}'
    report = read_json_lenient(ReplicaReport, raw)
    assert (report.replica_id, report.status, report.port) == ("a", ReplicaStatus.READY, 8100)
    assert (report.restart_count, report.compile_wsjob) == (0, [])


def test_a_report_without_the_member_that_names_it_is_refused_by_name() -> None:
    with pytest.raises(msgspec.ValidationError, match="replica_id"):
        read_json_lenient(ReplicaReport, b'{"replica_id":7.5,"status":"ready"}')


def test_what_is_no_object_is_refused() -> None:
    with pytest.raises(msgspec.MsgspecError):
        read_json_lenient(ReplicaReport, b"[1]")


def test_a_status_of_a_newer_process_reads_as_unknown() -> None:
    report = read_json_lenient(ReplicaReport, b'{"replica_id":"a","status":"hibernating","display_status":"Asleep"}')
    assert report.status is ReplicaStatus.UNKNOWN
    assert report.display_status is DisplayStatus.PENDING


def test_members_as_raw_json_are_read_as_their_types() -> None:
    members = msgspec.json.decode(
        b'{"replica_id":"a","stages":[{"name":"venv","state":"done","began_at":"t"}]}', type=dict[str, msgspec.Raw]
    )
    assert read_lenient(ReplicaReport, members).stages[0].name == "venv"


def test_a_heartbeat_carries_the_records_status_and_the_replicas_own() -> None:
    sent = msgspec.json.encode(
        ReplicaHeartbeat(replica_id="a", status="draining", replica_status=ReplicaStatus.STOPPING, running=2)
    )
    members = msgspec.json.decode(sent)
    assert (members["status"], members["replica_status"], members["running"]) == ("draining", "stopping", 2)
    assert "waiting" not in members
    assert members.keys() & PASSING == {"running", "updated_at"}


def test_a_transition_is_from_and_to_on_the_wire() -> None:
    sent = msgspec.json.encode(Transition(at="t", before="pending", after="starting", cause="it was asked for"))
    assert msgspec.json.decode(sent) == {
        "at": "t", "from": "pending", "to": "starting", "cause": "it was asked for", "lasted_s": 0.0
    }  # fmt: skip


@pytest.mark.parametrize(
    ("member", "value"),
    [("max_concurrency", 0), ("max_concurrency", True), ("weight", -1), ("serves", 3), ("cache_type", ["paged"])],
)
def test_a_hint_of_another_type_than_it_should_have_says_nothing(member: str, value: object) -> None:
    hints = hints_of({"type": "openai-api", member: value})
    assert hints.type == "openai-api"
    assert getattr(hints, member) is None
