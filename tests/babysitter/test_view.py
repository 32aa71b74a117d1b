"""Records, reports and answers, in the contract's words."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from babysitter import records, view
from babysitter.engine_metrics import Work
from babysitter.lifecycle import ReplicaState
from babysitter.view import View
from common.wire.record import record_from_wire
from common.wire.replica import PASSING
from tests.babysitter.views import SPEC, view_of

READY = view_of()
WIRE = msgspec.json.decode(msgspec.json.encode(records.server_registration(READY)))


def test_own_record_is_the_babysitter_at_the_next_port() -> None:
    record = record_from_wire(msgspec.to_builtins(records.own_registration(READY)))
    assert (record.name, record.port, record.url, record.type) == ("r1", 8002, "http://node1:8002", "vLLM")
    assert (record.instance_id, record.incarnation, record.status) == (READY.report.instance_id, 5, "running")


def test_servers_record_is_routable_and_names_its_models() -> None:
    record = record_from_wire(WIRE)
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
    assert WIRE["ttl_s"] == 15.0


def test_server_that_never_answered_has_no_record() -> None:
    assert records.server_registration(view_of(ReplicaState.STARTING, models=())) is None


@pytest.mark.parametrize("state", [ReplicaState.STOPPED, ReplicaState.FAILED])
def test_server_that_is_over_has_no_record(state: ReplicaState) -> None:
    assert records.server_registration(view_of(state)) is None


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
    record = records.server_registration(view_of(state))
    assert record is not None
    assert record.status == status
    assert records.server_heartbeat(view_of(state)).status == status


@pytest.mark.parametrize("state", list(ReplicaState))
def test_heartbeat_of_the_babysitters_own_record_says_running_W42(state: ReplicaState) -> None:
    beat = msgspec.to_builtins(records.own_heartbeat(view_of(state)))
    assert beat["status"] == "running"
    assert beat["replica_status"] == view_of(state).report.status.value != "draining"


def test_report_has_every_member_of_the_contract() -> None:
    wanted = """replica_id status display_status endpoint base_url port workdir venv_path replica_pid restart_count
        compile_wsjob execute_wsjob models created_at ready_at updated_at error_message instance_id incarnation"""
    assert set(wanted.split()) <= set(msgspec.to_builtins(READY.report))


@pytest.mark.parametrize(
    ("state", "endpoint"), [(ReplicaState.READY, "http://node1:8001"), (ReplicaState.STARTING, "NA")]
)
def test_endpoint_is_na_until_ready(state: ReplicaState, endpoint: str) -> None:
    assert view_of(state).report.endpoint == endpoint


def at(record: str, local: str = "127.0.0.1", endpoint: str = "node1.example.org") -> View:
    return view_of(spec=replace(SPEC, addresses=replace(SPEC.addresses, record=record, local=local, endpoint=endpoint)))


def test_endpoint_has_the_full_name_and_the_records_what_they_are_told() -> None:
    ready = at("10.0.0.1")
    assert ready.report.base_url == "http://127.0.0.1:8001"
    assert ready.report.endpoint == "http://node1.example.org:8001"
    assert records.own_registration(ready).url == "http://10.0.0.1:8002"


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_ipv6_hosts_stand_in_brackets_in_urls_and_bare_in_records(host: str) -> None:
    ready = at(host, host, host)
    assert (ready.report.base_url, ready.report.endpoint) == ("http://[::1]:8001", "http://[::1]:8001")
    record = records.server_registration(ready)
    assert record is not None
    assert (record.host, record.hostname, record.url) == ("::1", "::1", "http://[::1]:8001")
    assert record.metadata["babysitter_url"] == "http://[::1]:8002"


def test_health_keeps_the_ancestors_names() -> None:
    told = msgspec.to_builtins(view.health(view_of(serves=True), "2026-01-01T00:00:07.000Z"))
    assert told["status"] == "healthy"
    assert told["infinilm_server_running"] is True
    assert told["infinilm_server_port"] == 8001
    assert {"service", "babysitter", "timestamp"} <= set(told)


@pytest.mark.parametrize(("weight", "said"), [(2.0, "2"), (0.5, "0.5")])
def test_weight_that_is_whole_has_no_point_on_the_wire_W21(weight: float, said: str) -> None:
    record = records.server_registration(view_of(spec=replace(SPEC, weight=weight)))
    assert f'"weight":{said},' in msgspec.json.encode(record).decode()


def test_record_without_a_weight_has_no_such_member_W21() -> None:
    record = records.server_registration(view_of(spec=replace(SPEC, weight=None)))
    assert record is not None
    assert "weight" not in msgspec.to_builtins(record)


def test_info_keeps_the_ancestors_names() -> None:
    told = msgspec.to_builtins(view.info(READY, uptime_s=1.0, router_url=None))
    wanted = "service babysitter name host port url metadata service_type infinilm_server_port uptime restart_count"
    assert set(wanted.split()) <= set(told)
    assert told["port"] == 8002


def test_what_the_engine_tells_is_in_every_heartbeat_and_what_it_does_not_is_absent() -> None:
    told: dict[str, Any] = {
        "running": 3,
        "waiting": 4,
        "kv_cache_usage": 0.5,
        "prefix_query_tokens": 9,
        "prefix_hit_tokens": 8,
    }
    for work, wanted in ((Work(**told), told), (Work(running=3), {"running": 3}), (None, {})):
        beat = msgspec.to_builtins(records.server_heartbeat(view_of(work=work)))
        assert {name: beat[name] for name in told if name in beat} == wanted
    assert set(told) <= PASSING
