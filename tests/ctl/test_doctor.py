"""What doctor looks at, what it makes of it, and what it says to do."""

import socket
from pathlib import Path
from typing import Any

import pytest

from babysitter.client_parts import NO_IMAGE
from common import __version__
from common.wire.babysitter import BabysitterHealth
from common.wire.record import ServiceRecord
from common.wire.registry import RegistryHealth
from common.wire.replica import ReplicaInfo
from common.wire.router import RoutedService, RouterHealth
from ctl import answers
from ctl.codes import Code
from ctl.doctor import judge, machine
from ctl.doctor.finding import Verdict, fault, ok, summary, warn
from ctl.ports import holder
from ctl.views.words import moment
from tests.ctl.conftest import Suite, record


def infos(*members: dict[str, Any]) -> list[ReplicaInfo]:
    return [answers.read(ReplicaInfo, it) for it in members]


def records(*members: dict[str, Any]) -> list[ServiceRecord]:
    return [answers.read(ServiceRecord, it) for it in members]


def router_health(**members: Any) -> RouterHealth:
    return answers.read(RouterHealth, members)


WELL = {
    "registry GET /health": {
        "status": "healthy", "registry": "running", "registered_services": 1, "healthy_services": 1, "store": "ok",
    },
    "registry GET /services": {"services": [record("a-server")]},
    "registry GET /api/v1/health": {"status": "healthy", "version": __version__},
    "registry GET /api/v1/replicas": {"replicas": [{"replica_id": "a", "status": "ready"}]},
    "router GET /health": {"status": "healthy", "router": "running", "registry_url": "http://r"},
    "router GET /services": {"services": [{"name": "a-server"}]},
}  # fmt: skip


async def test_doctor_is_content_with_a_node_that_is_well(suite: Suite) -> None:
    suite.answers |= WELL
    done = await suite.ctl("doctor", "--json")
    assert done.code == 0, done.stdout
    assert [one for one in done.json["findings"] if one["verdict"] == "fault"] == []
    assert {one["check"] for one in done.json["findings"]} >= {
        "packages", "disk", "limits", "token", "key", "registry", "router", "clocks", "store", "versions", "replicas",
    }  # fmt: skip
    assert "all well" in (await suite.ctl("doctor")).stdout or "warning" in (await suite.ctl("doctor")).stdout


async def test_doctor_fails_and_names_every_fault_with_its_remedy(suite: Suite) -> None:
    suite.answers |= WELL
    suite.answers["registry GET /api/v1/replicas"] = {
        "replicas": [{"replica_id": "sick", "status": "failed", "error_message": "exit code 78\ntrace"}]
    }
    suite.answers["router GET /services"] = {"services": []}
    done = await suite.ctl("doctor")
    assert done.code == Code.FAILED
    assert "sick has failed: exit code 78" in done.stdout
    assert "svcctl replicas logs sick" in done.stdout
    assert "the router does not know a-server" in done.stdout
    assert "2 faults" in done.stdout


async def test_doctor_names_the_stranger_that_holds_a_port(suite: Suite) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        stranger.settimeout(0.1)
        port = stranger.getsockname()[1]
        assert holder(port) is not None
    suite.answers["registry GET /health"] = {"status": "healthy"}
    done = await suite.ctl("doctor", "--router-url", "http://127.0.0.1:1")
    assert done.code == Code.FAILED
    assert "is no registry of this suite" in done.stdout
    assert "svcctl up" in done.stdout


async def test_doctor_asks_nobody_with_a_token_file_that_is_open_to_all(suite: Suite) -> None:
    token = suite.home / "token"
    token.write_text("t" * 40)
    token.chmod(0o644)
    done = await suite.ctl("doctor", "--token-file", str(token))
    assert done.code == Code.FAILED
    assert "chmod 600" in done.stdout
    assert suite.asked == []


@pytest.mark.parametrize(
    ("told", "verdict", "said"),
    [
        (1000.0, Verdict.OK, "agrees"),
        ("1970-01-01T00:16:40Z", Verdict.OK, "agrees"),
        (990.0, Verdict.WARN, "10s behind"),
        (1100.0, Verdict.FAULT, "1m39s ahead"),
        (None, Verdict.SKIPPED, "no time"),
    ],
)
def test_clocks_are_compared_within_the_time_of_the_call(told: Any, verdict: Verdict, said: str) -> None:
    found = judge.clock("the registry", told, 1000.0, 1001.0)
    assert (found.verdict, said in found.seen) == (verdict, True), found


def test_addresses_that_others_cannot_reach_are_told() -> None:
    told = list(judge.addresses(records(record("near"), record("far", host="10.0.0.7", port=40_000))))
    assert [one.verdict for one in told] == [Verdict.WARN, Verdict.WARN]
    assert "registered at loopback: near; others at 10.0.0.7" in told[0].seen
    assert "port 40000" in told[1].seen  # E8
    assert list(judge.addresses(records(record("near")))) == []


def test_a_registry_in_trouble_is_told() -> None:
    found = list(judge.registry(answers.read(RegistryHealth, {"store": "unavailable", "self_preservation": True})))
    assert [one.verdict for one in found] == [Verdict.FAULT, Verdict.WARN, Verdict.OK]


def test_a_router_without_registry_is_told_once() -> None:
    found = list(
        judge.router(router_health(registry_error="refused", registry_url="http://r"), [], records(record("a")))
    )
    assert [one.verdict for one in found] == [Verdict.FAULT]


def test_replica_whose_settings_are_older_than_its_file_is_a_warning_W31() -> None:
    old: dict[str, Any] = {"replica_id": "a", "status": "ready", "need_restart": ["backend"]}
    found = list(judge.replicas(infos(old, {"replica_id": "b", "status": "ready"}), 0))
    assert [(one.verdict, one.seen) for one in found] == [
        (Verdict.WARN, "a runs with older settings than its file: backend"),
        (Verdict.OK, "2 of 2 replicas are ready"),
    ]


def test_a_stalled_or_silent_replica_is_a_warning() -> None:
    members: list[dict[str, Any]] = [
        {"replica_id": "a", "status": "starting", "stalled": True},
        {"replica_id": "b", "status": "ready", "metadata": {"stale": True}},
        {"replica_id": "c", "status": "unhealthy"},
    ]
    assert [one.verdict for one in judge.replicas(infos(*members), 0)] == [
        Verdict.WARN,
        Verdict.WARN,
        Verdict.FAULT,
        Verdict.OK,
    ]


def test_a_missing_image_registry_is_asked_for_once_W41() -> None:
    info = {"status": "ready", "warnings": [NO_IMAGE]}
    found = list(judge.replicas(infos(*({**info, "replica_id": name} for name in ("a", "b"))), 0))
    assert [one.verdict for one in found] == [Verdict.WARN, Verdict.OK]
    assert found[0].seen == "a, b: the server is told no image (--cbcore)"
    assert found[0].remedy.startswith("set cbclient.image_registry")


def test_a_late_replica_is_a_warning_with_its_last_reason_W43() -> None:
    late = {"replica_id": "a", "status": "waiting_for_ready", "late": True, "error_message": "refused\nmore"}
    found = list(judge.replicas(infos(late, {**late, "replica_id": "b", "status": "ready"}), 0))
    assert [(one.verdict, one.seen) for one in found] == [
        (Verdict.WARN, "a is late, and goes on: refused"),
        (Verdict.OK, "1 of 2 replicas are ready"),
    ]


def test_a_folder_that_does_not_exist_yet_is_judged_by_its_parent(tmp_path: Path) -> None:
    (found,) = machine.disk(tmp_path / "not" / "yet")
    assert str(tmp_path) in found.seen


def test_the_summary_counts() -> None:
    one, two, three = ok("a", ""), warn("b", "", ""), fault("c", "", "")
    assert summary([one]) == "all well: 1 checks"
    assert summary([one, two, two]) == "2 warnings in 3 checks"
    assert summary([two, three]) == "1 fault and 1 warning in 2 checks"


async def test_each_node_is_asked_for_its_clock_and_each_agent_for_its_version(suite: Suite) -> None:
    suite.answers |= WELL
    sitter = {"name": "a", "host": "h1", "url": suite.router, "metadata": {"type": "mock"}}
    suite.answers["registry GET /services"] = {
        "services": [
            record("a-server", host="h1"),
            sitter,
            {**sitter, "name": "b"},
            {**sitter, "name": "far", "host": "h2", "url": "http://127.0.0.1:1"},
            {**sitter, "name": "agent-h1", "metadata": {"type": "node-agent"}},
        ]
    }
    suite.answers["router GET /health"] = {
        "status": "healthy", "router": "running", "timestamp": 1000.0, "version": "0.0.1",
    }  # fmt: skip
    done = await suite.ctl("doctor", "--json")
    seen = [one["seen"] for one in done.json["findings"]]
    assert len([text for text in seen if text.startswith("h1's is ")]) == 1
    assert any("from here, far does not answer" in text for text in seen)
    assert f"svcctl is {__version__}, agent-h1 is 0.0.1" in seen


def test_a_replica_that_requests_do_not_reach_is_told_with_the_reason_W18() -> None:
    services = [
        {"name": "a", "healthy": True, "url": "http://a:1", "problem": "the port speaks TLS (4 requests in a row)"},
        {"name": "b", "healthy": True, "url": "http://b:1"},
    ]
    routed = answers.items(RoutedService, {"services": services}, "services")
    for health in (router_health(), router_health(registry_error="refused", registry_url="http://r")):
        found = next(one for one in judge.router(health, routed, None) if one.check == "reach")
        assert (found.verdict, "a fail: the port speaks TLS (4 requests" in found.seen) == (Verdict.FAULT, True)
        assert sum(one.check == "reach" for one in judge.router(health, routed, None)) == 1


@pytest.mark.parametrize(
    ("more", "now_s", "told"),
    [
        ({}, 59, None),
        ({}, 61, "has been waiting_for_ready for 1m01s: /v1/models: status 401"),
        ({"restart_count": 2}, 5, "has been waiting_for_ready for 5.0s, restarted 2 times: /v1/models: status 401"),
        ({"status": "ready"}, 600, None),
        ({"error_message": None}, 600, None),
    ],
)
def test_state_that_lasts_is_shown_with_its_last_reason_W33(
    more: dict[str, Any], now_s: float, told: str | None
) -> None:
    since = "2026-01-01T00:00:00.000Z"
    reason = "/v1/models: status 401\nfurther lines"
    info = {"replica_id": "a", "status": "waiting_for_ready", "status_since": since, "error_message": reason, **more}
    begun = moment(since)
    assert begun is not None
    found = [one.seen for one in judge.replicas(infos(info), begun + now_s) if one.verdict is not Verdict.OK]
    assert found == ([f"a {told}"] if told else [])


def test_servers_left_out_of_the_routers_table_are_a_fault_W16() -> None:
    (found,) = judge.router(router_health(left_out=976), [], records(record("a")))
    assert (found.verdict, "976 servers" in found.seen, "--max-endpoints" in found.remedy) == (
        Verdict.FAULT,
        True,
        True,
    )


def test_a_refused_registration_is_a_fault_with_its_reason_W16() -> None:
    refused = {"replica_id": "a", "status": "ready", "registration_error": "400: too long"}
    assert [one.verdict for one in judge.replicas(infos(refused), 0)] == [Verdict.FAULT, Verdict.OK]
    (found,) = judge.babysitter("a", answers.read(BabysitterHealth, {"registration_error": "400: too long"}))
    assert (found.verdict, found.seen) == (Verdict.FAULT, "the registry refuses the record of a: 400: too long")
    assert list(judge.babysitter("a", answers.read(BabysitterHealth, {}))) == []
