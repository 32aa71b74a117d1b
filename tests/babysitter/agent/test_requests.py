"""Hostile and mistaken create requests: each gets a 4xx that names the field (docs/faults.md E4, E5, M34)."""

import io
from pathlib import Path
from typing import Any

import pytest

from babysitter.agent.requests import digest, parse_body, read_request, warnings
from babysitter.cbclient.request import CheckedRequest
from common.http.errors import ApiError
from tests.babysitter.agent.conftest import Client, wanted

DEEP: Any = {}
for _ in range(100):
    DEEP = {"x": DEEP}
BAD: list[tuple[str, Any, int]] = [
    ("server_mode", "train", 422),
    ("server_mode", None, 422),
    ("model_name", "", 422),
    ("model_name", "a\x00b", 422),
    ("model_name", "a\nb", 422),
    ("model_name", 7, 422),
    ("model_name", "x" * 257, 422),
    ("full_config", [], 422),
    ("full_config", "x", 422),
    ("full_config", DEEP, 422),
    ("full_config", {"a": 2**63}, 422),
    ("full_config.runconfig", "x", 422),
    ("full_config.runconfig.model_dir", "../../etc", 422),
    ("full_config.runconfig.model_dir", "/etc", 422),
    ("full_config.runconfig.model_dir", "a/../../b", 422),
    ("full_config.runconfig.model_dir", "a\x00b", 422),
    ("full_config.runconfig.model_dir", 7, 422),
    ("placement", "x", 422),
    ("placement.multibox", "", 400),
    ("placement.multibox", "  ", 400),
    ("placement.multibox", "../x", 422),
    ("placement.namespace", "--params=/etc/passwd", 422),
    ("placement.namespace", "a b", 422),
    ("placement.namespace", "", 422),
    ("placement.app_tag", "../../x-y", 422),
    ("placement.app_tag", "nightly", 422),
    ("placement.app_tag", 7, 422),
    ("placement.node", "n2", 422),
    ("cbclient_config", {}, 422),
    ("cbclient_config.client_version", "1.0; rm -rf /", 422),
    ("cbclient_config.cbclient_whl", "/etc/passwd", 422),
    ("cbclient_config.cbclient_whl", "../../x.whl", 422),
    ("cbclient_config.custom_requirements", ["--index-url=http://evil"], 422),
    ("cbclient_config.custom_requirements", ["-r /etc/passwd"], 422),
    ("cbclient_config.custom_requirements", ["git+https://evil/x"], 422),
    ("cbclient_config.custom_requirements", ["x @ file:///etc/passwd"], 422),
    ("job.job_timeout_s", "many", 422),
    ("job.job_timeout_s", -1, 422),
    ("job.job_timeout_s", "-1", 422),
    ("wait_for_ready", "perhaps", 422),
    ("job.job_timeout_s", 1.5, 422),
    ("timeouts.readiness_timeout_s", 0, 422),
    ("metadata", {"x": "y" * 8192}, 422),
    ("metadata", {str(number): 1 for number in range(10_000)}, 422),
    ("metadata", [], 422),
    ("request_id", "", 422),
    ("request_id", "a\nb", 422),
    ("request_id", 7, 422),
    ("invoking_user", "", 422),
]


def read(body: dict[str, Any]) -> CheckedRequest:
    return read_request(body, wheel_dirs=(), model_dirs=())


def put(field: str, value: Any) -> dict[str, Any]:
    body = wanted()
    *path, last = field.split(".")
    table = body
    for name in path:
        table = table.setdefault(name, {"app_tag": "2.3.0"} if name == "cbclient_config" else {})
    table[last] = value
    return body


@pytest.mark.parametrize(("field", "value", "status"), BAD, ids=lambda value: repr(value)[:30])
async def test_a_bad_field_is_refused_and_named_E4_E5(client: Client, field: str, value: Any, status: int) -> None:
    async with client.post("/api/v1/replicas", json=put(field, value)) as answer:
        content = await answer.json()
    assert answer.status == status, content
    named = content["field"]
    # pydantic names an item of a list by its number, and a whole table by the check that failed on it
    assert named == field or named.startswith(f"{field}.") or field.startswith(f"{named}."), content
    async with client.get("/api/v1/replicas") as answer:
        assert (await answer.json())["total"] == 0


OPTIONAL = (
    "full_config placement placement.multibox placement.namespace placement.app_tag placement.node cbclient_config "
    "cbclient_config.cbclient_whl cbclient_config.client_version cbclient_config.modelzoo_branch "
    "cbclient_config.custom_requirements cbclient_config.use_uv replica_config replica_config.replica_config "
    "replica_config.api_config platform_config gateway_config gateway_config.mock_backend gateway_config.extra "
    "catalog_config job job.job_priority job.job_timeout_s job.job_labels job.disable_scheduler timeouts "
    "timeouts.port_discovery_timeout_s timeouts.readiness_timeout_s timeouts.poll_interval_s "
    "timeouts.health_check_timeout_s influxdb influxdb.use_influxdb influxdb.host wait_for_ready run_diagnostics "
    "invoking_user request_id metadata"
).split()


@pytest.mark.parametrize("field", OPTIONAL)
def test_null_for_an_optional_member_is_its_absence_W41(field: str) -> None:
    body, without = put(field, None), put(field, None)
    *path, last = field.split(".")
    table = without
    for name in path:
        table = table[name]
    del table[last]
    assert read(body) == read(without)
    assert warnings(read(body), body) == []


@pytest.mark.parametrize(
    ("field", "value", "taken"),
    [
        ("job.job_timeout_s", "80", 80),
        ("job.job_timeout_s", 80.0, 80),
        ("timeouts.poll_interval_s", "5", 5.0),
        ("wait_for_ready", "true", True),
        ("wait_for_ready", 1, True),
        ("cbclient_config.use_uv", "yes", True),
        ("influxdb.use_influxdb", "off", False),
    ],
)
def test_numbers_and_truths_as_text_are_taken_as_pydantics_lax_mode_takes_them_W41(
    field: str, value: Any, taken: Any
) -> None:
    found: Any = read(put(field, value))
    for name in field.split("."):
        found = getattr(found, name)
    assert (type(found), found) == (type(taken), taken)


async def test_unknown_members_are_taken_and_told_in_warnings_W41(client: Client) -> None:
    body = put("placement.surprise", 1) | {"workdir": "/etc", "influxdb": {"bucket": "b"}}
    async with client.post("/api/v1/replicas", json=body) as answer:
        assert answer.status == 201
        told = (await answer.json())["warnings"]
    note = "is unknown and was not used"
    assert told == [{"field": "placement.surprise", "note": note}, {"field": "workdir", "note": note}]
    async with client.post("/api/v1/replicas", json=wanted()) as answer:
        assert "warnings" not in await answer.json()


def test_warnings_are_bounded_W41() -> None:
    body = wanted() | {"!" * 1000: 1} | {str(number): 1 for number in range(1000)}
    told = warnings(read(body), body)
    assert len(told) == 21
    assert told[-1].note == "981 more members are unknown"
    assert max(len(it.field) for it in told) == 100


NOT_CARRIED_OUT = [
    ("cbclient_config.modelzoo_branch", "main", "cbclient_config.modelzoo_branch"),
    ("gateway_config.extra", {"a": 1}, "gateway_config.extra"),
    ("gateway_config.mock_backend", True, "gateway_config.mock_backend"),
    ("platform_config", {"a": 1}, "platform_config"),
    ("catalog_config", {"a": 1}, "catalog_config"),
    ("influxdb", {"use_influxdb": True, "host": "h"}, "influxdb.use_influxdb"),
    ("invoking_user", "somebody", "invoking_user"),
]


@pytest.mark.parametrize(("field", "value", "warned"), NOT_CARRIED_OUT, ids=[row[0] for row in NOT_CARRIED_OUT])
async def test_a_member_that_changes_nothing_is_answered_with_a_warning_W41(
    client: Client, field: str, value: Any, warned: str
) -> None:
    async with client.post("/api/v1/replicas", json=put(field, value)) as answer:
        assert answer.status == 201
        (warning,) = (await answer.json())["warnings"]
    assert warning["field"] == warned
    assert warning["note"]
    page = (Path(__file__).resolve().parents[3] / "docs" / "agent.md").read_text()
    assert f"`{warned}`" in page


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("job", {"job_priority": "p0", "job_timeout_s": 1, "job_labels": ["a=b"], "disable_scheduler": True}),
        ("influxdb", {"use_influxdb": False, "host": "h"}),
        ("gateway_config", {"mock_backend": False, "extra": {}}),
        ("catalog_config", {}),
        ("wait_for_ready", True),
    ],
)
def test_what_is_carried_out_or_says_nothing_is_not_warned_of_W41(field: str, value: Any) -> None:
    body = put(field, value)
    assert warnings(read(body), body) == []


def test_a_gateways_mocked_backend_is_carried_out() -> None:
    body = put("gateway_config", {"mock_backend": True}) | {"server_mode": "api_gateway"}
    assert warnings(read(body), body) == []


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b'"x"',
        b"\xef\xbb\xbf{}",
        b"\xff",
        b'{"server_mode":"replica","server_mode":"replica","model_name":"m"}',
        b'{"model_name": NaN}',
        b'{"full_config": {"x": 1e400}}',
        b'{"full_config": {"x": ' + b"1" * 100_000 + b"}}",
        b'{"model_name": "\\ud800"}',
        b'{"model_name": "m"} trailing',
        b'{"x":' * 100_000,
    ],
    ids=range(12),
)
async def test_what_is_no_json_object_is_400(client: Client, raw: bytes) -> None:
    async with client.post("/api/v1/replicas", data=raw, headers={"Content-Type": "application/json"}) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]


async def test_a_body_beyond_the_limit_is_413(client: Client) -> None:
    raw = io.BytesIO(b'{"model_name": "' + b"x" * (1 << 20) + b'"}')
    async with client.post("/api/v1/replicas", data=raw, headers={"Content-Type": "application/json"}) as answer:
        assert answer.status == 413


async def test_missing_fields_are_named(client: Client) -> None:
    async with client.post("/api/v1/replicas", json={}) as answer:
        assert answer.status == 422
        details = (await answer.json())["details"]
    assert {detail["field"] for detail in details} == {"server_mode", "model_name"}


@pytest.mark.parametrize("mode", ["platform_workload", "platform_workload_mock"])
async def test_a_mode_without_its_parameter_is_400(client: Client, mode: str) -> None:
    async with client.post("/api/v1/replicas", json=wanted(server_mode=mode)) as answer:
        assert answer.status == 400
        assert (await answer.json())["field"] == "platform_config"


async def test_a_pages_form_is_415(client: Client) -> None:
    async with client.post("/api/v1/replicas", data=b"{}", headers={"Content-Type": "text/plain"}) as answer:
        assert answer.status == 415


async def test_a_pages_script_is_403(client: Client) -> None:
    async with client.post("/api/v1/replicas", json=wanted(), headers={"Origin": "http://evil"}) as answer:
        assert answer.status == 403


@pytest.mark.parametrize(
    "replica_id", ["..%2f..", "%2e%2e", "x", "ABC123DEF456", "abc123def456x", "abc%00def4567", "..........."]
)
async def test_an_id_that_is_none_is_404_E4(client: Client, replica_id: str) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/stop"), ("GET", "/logs"), ("GET", "/events")):
        async with client.request(method, f"/api/v1/replicas/{replica_id}{path}") as answer:
            assert answer.status == 404


@pytest.mark.parametrize("body", [{"force": "yes"}, {"force": 1}, {"surprise": True}, []])
async def test_a_bad_stop_is_refused(client: Client, body: Any) -> None:
    async with client.post("/api/v1/replicas", json=wanted()) as answer:
        replica_id = (await answer.json())["replica_id"]
    async with client.post(f"/api/v1/replicas/{replica_id}/stop", json=body) as answer:
        assert answer.status in (400, 422)


def test_an_absolute_model_dir_may_lie_where_the_operator_allows(tmp_path: Path) -> None:
    body = put("full_config.runconfig.model_dir", str(tmp_path / "models"))
    with pytest.raises(ApiError, match="model_dirs"):
        read_request(body, wheel_dirs=(), model_dirs=())
    assert read_request(body, wheel_dirs=(), model_dirs=(tmp_path,)).model_name == "m"


def test_digest_does_not_depend_on_order_or_request_id() -> None:
    assert digest({"a": 1, "b": 2, "request_id": "x"}) == digest({"b": 2, "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_body_of_large_but_bearable_numbers_passes() -> None:
    assert parse_body(b'{"a": 9223372036854775807}') == {"a": 2**63 - 1}


def test_request_whose_optional_members_are_null_is_the_request_without_them_W21() -> None:
    body = wanted()
    nulls = {
        **body,
        "job": {"job_priority": None, "job_timeout_s": None, "job_labels": None, "disable_scheduler": None},
        "timeouts": None,
        "influxdb": None,
        "metadata": None,
        "platform_config": None,
        "full_config": None,
        "replica_config": {"replica_config": None, "api_config": None},
        "placement": {**body.get("placement", {}), "namespace": None, "node": None},
        "request_id": None,
    }
    read = read_request(nulls, wheel_dirs=(), model_dirs=())
    assert read.job is not None
    assert (read.job.job_labels, read.job.job_priority, read.placement.namespace) == ((), "p2", "inf-integ")
    assert read.model_copy(update={"job": None}) == read_request(body, wheel_dirs=(), model_dirs=())
