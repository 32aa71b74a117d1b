from pathlib import Path
from typing import Any

import pytest

from common.wire.record import ServiceRecord
from router import last_table
from router.control import views
from router.counters import IN_FLIGHT, REQUESTS, Shape, SharedCounters
from router.model import Replica
from router.outlier import Reason
from router.prober import model_ids
from router.proxy import answers
from router.proxy.paths import PROXIED, is_control, upstream_path
from router.settings import RouterSettings


def replica(name: str, models: list[str], **metadata: object) -> Replica:
    record = ServiceRecord(name=name, host="h", port=9000, url="http://h:9000", metadata={"models": models, **metadata})
    return Replica(record, "g", leased=True, slot=0)


def test_model_list_is_a_sorted_union_with_the_replicas_own_objects() -> None:
    pool = [
        replica("a", ["z", "m"], models_list=[{"id": "z", "object": "model", "created": 5, "owned_by": "me"}, "odd"]),
        replica("b", ["m"], parent_service="parent"),
    ]
    listed = views.model_list(pool)
    assert listed.object == "list"
    assert [(item["id"], item["owned_by"], item["created"]) for item in listed.data] == [
        ("m", "a", 0),
        ("z", "me", 5),
    ]
    pool[0].probed_ok = False
    assert [item["owned_by"] for item in views.model_list(pool).data] == ["parent"]


@pytest.mark.parametrize("listed", [7, True, "m", {"id": "m"}, [7]])
def test_model_list_bears_a_models_list_that_is_none(listed: object) -> None:
    said = views.model_list([replica("a", ["m"], models_list=listed)])
    assert [item["id"] for item in said.data] == ["m"]


def test_health_says_healthy_only_with_a_healthy_replica() -> None:
    down = replica("a", ["m"])
    down.probed_ok = False
    said = views.health([down, replica("b", ["m"])], "http://r", None, "now")
    assert (said.status, said.router, said.healthy_services) == ("healthy", "running", "1/2")
    assert views.health([down], "http://r", "gone", "now").status == "running"


def test_service_has_every_field_of_the_contract() -> None:
    shown = views.service(replica("a", ["m"]), views.Counts(4, 1, 0, 0.25))
    contract = (
        "name host port url babysitter_url healthy request_count error_count response_time weight models metadata"
    )
    assert set(contract.split()) <= set(shown.__struct_fields__)
    assert (shown.babysitter_url, shown.response_time) == ("http://h:9001", 0.25)


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_the_babysitter_of_an_ipv6_service_has_a_url(host: str) -> None:
    record = ServiceRecord(name="a", host=host, port=9000, url="")
    assert (
        views.service(Replica(record, "g", leased=True), views.Counts(0, 0, 0, 0.0)).babysitter_url
        == "http://[::1]:9001"
    )


def test_counters_sum_over_workers_and_clears_the_dead() -> None:
    shape = Shape(slots=2, blocks=2)
    descriptor = SharedCounters.create(shape)
    boards = [SharedCounters(descriptor, shape, worker) for worker in (0, 1)]
    for counters in boards:
        counters.add(1, IN_FLIGHT)
        counters.add(1, REQUESTS, 5)
    assert (boards[0].total(1, IN_FLIGHT), boards[1].total(1, REQUESTS), boards[0].total(0, REQUESTS)) == (2, 10, 0)
    boards[0].clear_in_flight(1)
    assert boards[1].total(1, IN_FLIGHT) == 1
    boards[1].eject(1, 12.5, Reason.SILENT)
    assert (boards[0].ejected_until_s(1), boards[0].ejected_why(1)) == (12.5, Reason.SILENT)
    boards[0].reset(1)
    assert (boards[1].total(1, REQUESTS), boards[1].ejected_until_s(1)) == (0, 0.0)
    for counters in boards:
        counters.close()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"object":"list","data":[{"id":"a"},{"id":"b"}]}', ("a", "b")),
        (b'[{"id":"a"},{"x":1},"odd"]', ("a", "odd")),
        (b'{"data":[]}', ()),
        (b'{"models":[]}', ()),
        (b'{"error":[]}', None),
        (b"nothing", None),
    ],
)
def test_model_ids_of_a_list_in_either_form(content: bytes, expected: tuple[str, ...] | None) -> None:
    assert model_ids(content) == expected


def test_paths_are_an_exact_list_in_both_forms() -> None:
    assert b"/chat/completions" in PROXIED
    assert b"/v1/chat/completions" in PROXIED
    for path in (b"/v1/../admin", b"/v1/chat/completions/", b"/V1/chat/completions", b"//v1/chat/completions"):
        assert path not in PROXIED
        assert not is_control(path)
    assert is_control(b"/v1/models")
    assert is_control(b"/v1/models/org/name")


def test_path_is_rewritten_to_the_form_a_replica_serves() -> None:
    chat, tokenize = PROXIED[b"/chat/completions"], PROXIED[b"/tokenize"]
    assert upstream_path(b"/chat/completions", chat, "/v1") == b"/v1/chat/completions"
    assert upstream_path(b"/v1/chat/completions", chat, "") == b"/chat/completions"
    assert upstream_path(b"/v1/chat/completions", chat, None) == b"/v1/chat/completions"
    assert upstream_path(b"/tokenize", tokenize, "/v1") == b"/tokenize"
    assert upstream_path(b"/v1/files", None, "") == b"/v1/files"


def test_an_error_event_ends_a_cut_event_first() -> None:
    event = answers.error_event("c", "m")
    assert event.startswith(b"\n\ndata: {")
    assert event.endswith(b"}\n\n")


def test_last_table_comes_back_and_a_broken_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "table.json"
    records = [replica("a", ["m"]).record]
    assert last_table.load(path) == []
    last_table.save(path, records)
    assert last_table.load(path) == records
    for garbage in (b"", b"[]", b"{", b'{"schema":1,"services":[{"name":1}]}'):
        path.write_bytes(garbage)
        assert last_table.load(path) == []
    last_table.save(Path("/proc/nowhere/table.json"), records)


@pytest.mark.parametrize(
    ("given", "urls"),
    [
        ({}, ("http://localhost:18000",)),
        ({"static_services": "x.json"}, ()),
        ({"registry_url": ""}, ()),
        ({"static_services": "x.json", "registry_url": "http://a"}, ("http://a",)),
    ],
)
def test_registry_that_is_followed_W42(given: dict[str, Any], urls: tuple[str, ...]) -> None:
    assert RouterSettings.model_validate(given).registry_url == urls


def test_health_counts_and_names_what_is_left_out_W16() -> None:
    said = views.health([replica("a", ["m"])], "", None, "now", left_out=976)
    assert (said.healthy_services, said.left_out) == ("1/977", 976)
    assert "976 services are left out: raise max_endpoints" in said.message


def test_model_objects_that_were_too_long_for_the_record_come_from_the_report_W16() -> None:
    reported = {"models_list": [{"id": "m", "object": "model", "max_model_len": 9}]}
    [model] = views.model_list([replica("a", ["m"], replica=reported)]).data
    assert model["max_model_len"] == 9
