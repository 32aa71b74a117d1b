from typing import Any

import pytest

from common.http.errors import ApiError
from common.wire.record import Heartbeat, Registration
from registry.http.bodies import RegisterBody, UpdateBody, parse
from registry.http.heartbeat import check
from tests.registry.conftest import body

BAD: list[tuple[str, Any, str]] = [
    ("name", "", "M16"),
    ("name", ".", "M24"),
    ("name", "..", "M24"),
    ("name", "../../etc", "M18"),
    ("name", "..%2f..", "M19"),
    ("name", "a\x00b", "M21"),
    ("name", "a\nb", "M22"),
    ("name", "a" * 129, ""),
    ("name", "é", ""),
    ("name", 7, ""),
    ("host", "", ""),
    ("host", "a b", ""),
    ("host", "h/x", ""),
    ("host", "u@h", ""),
    ("host", "gpu1..lab", ""),
    ("host", "h" * 64, ""),
    ("url", "http://gpu1..lab:8000", ""),
    ("port", 0, "M31"),
    ("port", -1, "M31"),
    ("port", 65536, "M31"),
    ("port", "80", "M31"),
    ("port", True, "M31"),
    ("port", 80.5, ""),
    ("port", None, ""),
    ("hostname", "a\nb", ""),
    ("hostname", 3, ""),
    ("url", "file:///etc/passwd", "M25"),
    ("url", "http://", ""),
    ("url", "http://h\r\nX: y", "M30"),
    ("url", "http://u:p@h:1", ""),
    ("url", "http://h:99999", ""),
    ("url", "http://h:0", ""),
    ("url", "http://h:1/path", ""),
    ("url", "http://h:1?q", ""),
    ("url", "http://h:1#f", ""),
    ("url", "http://[::1", ""),
    ("url", "http://h\\@evil", ""),
    ("url", "//h:1", ""),
    ("status", "", ""),
    ("status", "x" * 65, ""),
    ("status", None, ""),
    ("metadata", [], ""),
    ("metadata", "x", ""),
    ("metadata", {"x": "y" * 8192}, "M33"),
    ("metadata", {str(number): 1 for number in range(10_000)}, "M33"),
    ("metadata", {"x": 10**30}, ""),
    ("weight", -1, ""),
    ("weight", "1", ""),
    ("weight", True, ""),
    ("instance_id", "a b", ""),
    ("instance_id", "x" * 65, ""),
    ("incarnation", -1, ""),
    ("incarnation", "1", ""),
    ("incarnation", True, ""),
    ("ttl_s", 0, ""),
    ("ttl_s", 1e9, ""),
    ("ttl_s", True, ""),
]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param(field, value, id=f"{known + '-' if known else ''}{field}-{value!r:.24}")
        for field, value, known in BAD
    ],
)
def test_register_bad_value_is_refused_and_the_field_named_C15(field: str, value: Any) -> None:
    with pytest.raises(ApiError) as caught:
        parse(RegisterBody, body(**{field: value}))
    assert caught.value.status == 400
    assert caught.value.fields["field"] == field
    assert field in caught.value.message


@pytest.mark.parametrize("field", ["name", "host", "port", "hostname", "url", "status"])
def test_register_missing_field_is_named(field: str) -> None:
    sent = body()
    del sent[field]
    with pytest.raises(ApiError, match=f"missing required field: {field}$"):
        parse(RegisterBody, sent)


def test_register_several_faults_are_all_named() -> None:
    sent = body(port="x", weight=-1)
    del sent["url"]
    with pytest.raises(ApiError) as caught:
        parse(RegisterBody, sent)
    assert caught.value.message.startswith("missing required field: url; field 'port': ")
    assert {detail["field"] for detail in caught.value.fields["details"]} == {"port", "url", "weight"}


def test_nesting_beyond_limit_is_refused_without_recursion() -> None:
    deep: Any = {}
    for _ in range(5000):
        deep = {"x": deep}
    with pytest.raises(ApiError, match="'metadata': is nested deeper"):
        parse(RegisterBody, body(metadata=deep))


@pytest.mark.parametrize(
    ("sent", "member", "expected"),
    [
        (body(url="http://h:1/"), "url", "http://h:1"),
        (body(url="https://[::1]:443"), "url", "https://[::1]:443"),
        (body(metadata=None), "metadata", {}),
        (body(weight=2), "weight", 2.0),
        pytest.param(body(something_else=1), "name", "svc", id="M36"),
        (body(host="::1"), "host", "::1"),
        (body(timestamp="2026-01-01"), "timestamp", "2026-01-01"),
    ],
)
def test_register_accepts(sent: dict[str, Any], member: str, expected: Any) -> None:
    assert getattr(parse(RegisterBody, sent), member) == expected


def test_update_may_be_partial_but_not_wrong() -> None:
    assert parse(UpdateBody, {"port": 5}).model_fields_set == {"port"}
    with pytest.raises(ApiError, match="'port'"):
        parse(UpdateBody, {"port": "5"})


def test_heartbeat_of_wrong_type_is_refused() -> None:
    with pytest.raises(ApiError, match="'incarnation'"):
        check({"incarnation": "1"})


def test_null_for_an_optional_member_is_absent_W21() -> None:
    nulls = dict.fromkeys(("timestamp", "metadata", "weight", "instance_id", "incarnation", "ttl_s"))
    assert parse(RegisterBody, {**body(), **nulls}) == parse(RegisterBody, body())
    assert check({"status": None, "incarnation": None}) == Heartbeat()
    assert parse(UpdateBody, {"host": None, "metadata": None}).model_fields_set == set()


def test_metadata_member_that_is_null_is_absent_W21() -> None:
    read = parse(RegisterBody, body(metadata={"cache_type": None, "models": ["m"], "inner": {"x": None}}))
    assert read.metadata == {"models": ["m"], "inner": {"x": None}}


def test_models_of_a_babysitter_of_the_old_kind_do_not_count_as_metadata_W16() -> None:
    adapters = [{"id": f"a{number}", "permission": "p" * 2000} for number in range(16)]
    metadata = {"models": [adapter["id"] for adapter in adapters], "models_list": adapters, "rest": "x" * 8000}
    assert parse(RegisterBody, body(metadata=metadata)).metadata == metadata
    for name in ("models", "models_list"):
        with pytest.raises(ApiError, match="bytes of models"):
            parse(RegisterBody, body(metadata={name: ["m" * 1000] * 400}))


def test_a_registration_is_what_crosses_the_border() -> None:
    assert set(RegisterBody.model_fields) == set(Registration.__struct_fields__)
    assert set(UpdateBody.model_fields) < set(Registration.__struct_fields__)
