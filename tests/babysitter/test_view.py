"""Records, reports and answers, in the contract's words."""

from dataclasses import replace

import msgspec
import pytest

from babysitter import view as pictures
from babysitter.lifecycle import ReplicaState
from babysitter.view import View
from common.wire.record import record_from_wire

READY = View(
    name="r1",
    label="vLLM",
    host="node1",
    port=8001,
    own_port=8002,
    state=ReplicaState.READY,
    instance_id="11111111-1111-4111-8111-111111111111",
    incarnation=5,
    heartbeat_s=5.0,
    created_at="2026-01-01T00:00:00.000Z",
    updated_at="2026-01-01T00:00:01.000Z",
    status_since="2026-01-01T00:00:01.000Z",
    models=({"id": "m", "object": "model", "max_model_len": 9},),
    metadata={"cache_type": "paged", "type": "ignored"},
    weight=2.0,
)


def test_own_record_is_the_babysitter_at_the_next_port() -> None:
    record = record_from_wire(pictures.own_registration(READY))
    assert (record.name, record.port, record.url, record.type) == ("r1", 8002, "http://node1:8002", "vLLM")
    assert (record.instance_id, record.incarnation, record.status) == (READY.instance_id, 5, "running")


def test_servers_record_is_routable_and_names_its_models() -> None:
    wire = pictures.server_registration(READY)
    assert wire is not None
    record = record_from_wire(wire)
    assert (record.name, record.port, record.url) == ("r1-server", 8001, "http://node1:8001")
    assert (record.status, record.weight) == ("running", 2.0)
    assert record.metadata == {
        "cache_type": "paged",
        "type": "openai-api",
        "models": ["m"],
        "models_list": [{"id": "m", "object": "model", "max_model_len": 9}],
        "parent_service": "r1",
        "babysitter_url": "http://node1:8002",
    }
    assert wire["ttl_s"] == 15.0


def test_server_that_never_answered_has_no_record() -> None:
    assert pictures.server_registration(replace(READY, models=(), state=ReplicaState.STARTING)) is None


@pytest.mark.parametrize("state", [ReplicaState.STOPPED, ReplicaState.FAILED])
def test_server_that_is_over_has_no_record(state: ReplicaState) -> None:
    assert pictures.server_registration(replace(READY, state=state)) is None


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (ReplicaState.READY, "running"),
        (ReplicaState.UNHEALTHY, "unhealthy"),
        (ReplicaState.BACKING_OFF, "starting"),
        (ReplicaState.DRAINING, "draining"),
        (ReplicaState.STOPPING, "stopping"),
    ],
)
def test_servers_record_is_running_only_while_requests_are_welcome(state: ReplicaState, status: str) -> None:
    view = replace(READY, state=state)
    record = pictures.server_registration(view)
    assert record is not None
    assert record["status"] == status
    assert pictures.server_heartbeat(view)["status"] == status


@pytest.mark.parametrize("state", list(ReplicaState))
def test_heartbeat_of_the_babysitters_own_record_says_running_W42(state: ReplicaState) -> None:
    beat = pictures.own_heartbeat(replace(READY, state=state))
    assert beat["status"] == "running"
    assert beat["replica_status"] == pictures.report(replace(READY, state=state))["status"] != "draining"


def test_report_has_every_member_of_the_contract() -> None:
    wanted = """replica_id status display_status endpoint base_url port workdir venv_path replica_pid restart_count
        compile_wsjob execute_wsjob models created_at ready_at updated_at error_message instance_id incarnation"""
    assert set(wanted.split()) <= set(pictures.report(READY))


@pytest.mark.parametrize(
    ("state", "endpoint"), [(ReplicaState.READY, "http://node1:8001"), (ReplicaState.STARTING, "NA")]
)
def test_endpoint_is_na_until_ready(state: ReplicaState, endpoint: str) -> None:
    assert pictures.report(replace(READY, state=state))["endpoint"] == endpoint


def test_endpoint_has_the_full_name_and_the_records_what_they_are_told() -> None:
    view = replace(READY, host="10.0.0.1", local_host="127.0.0.1", endpoint_host="node1.example.org")
    assert view.base_url == "http://127.0.0.1:8001"
    assert view.endpoint == "http://node1.example.org:8001"
    assert pictures.own_registration(view)["url"] == "http://10.0.0.1:8002"


def test_ipv6_hosts_stand_in_brackets() -> None:
    assert replace(READY, host="::1").base_url == "http://[::1]:8001"


def test_health_keeps_the_ancestors_names() -> None:
    told = pictures.health(replace(READY, serves=True), "2026-01-01T00:00:07.000Z")
    assert told["status"] == "healthy"
    assert told["infinilm_server_running"] is True
    assert told["infinilm_server_port"] == 8001
    assert {"service", "babysitter", "timestamp"} <= set(told)


@pytest.mark.parametrize(("weight", "said"), [(2.0, "2"), (0.5, "0.5")])
def test_weight_that_is_whole_has_no_point_on_the_wire_W21(weight: float, said: str) -> None:
    record = pictures.server_registration(replace(READY, weight=weight))
    assert record is not None
    assert f'"weight":{said},' in msgspec.json.encode(record).decode()


def test_record_without_a_weight_has_no_such_member_W21() -> None:
    record = pictures.server_registration(replace(READY, weight=None))
    assert record is not None
    assert "weight" not in record


def test_info_keeps_the_ancestors_names() -> None:
    told = pictures.info(READY, uptime_s=1.0, router_url=None)
    wanted = "service babysitter name host port url metadata service_type infinilm_server_port uptime restart_count"
    assert set(wanted.split()) <= set(told)
    assert told["port"] == 8002
