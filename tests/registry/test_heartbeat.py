"""The quick way of reading a heartbeat accepts nothing that the thorough way would not, and reads it the same."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.http.errors import ApiError, check_values, parse_json_object
from common.wire.replica import ReplicaHeartbeat, Stage
from registry.core.model import Renew
from registry.core.report import make_report, report_text
from registry.http import heartbeat
from registry.http.heartbeat import _quickly
from tests.registry.conftest import Client, body


async def read(raw: bytes) -> Renew:
    request = make_mocked_request("POST", "/services/x/heartbeat")
    request._read_bytes = raw
    return await heartbeat.read(request, "x")


@pytest.mark.parametrize("spaced", [False, True])
@pytest.mark.parametrize("size", [0, 30_000])
async def test_report_over_http_in_any_form_and_size(client: Client, spaced: bool, size: int) -> None:  # noqa: FBT001 - a parameter
    await client.post("/services", json=body())
    report = {"replica_id": "r", "status": "ready", "padding": "x" * size}
    raw = json.dumps(report, separators=(" , ", " : ") if spaced else (",", ":"))
    async with client.post("/services/svc/heartbeat", data=raw) as answer:
        assert answer.status == 200
    async with client.get("/services/svc") as answer:
        assert (await answer.json())["metadata"]["replica"] == report


async def test_report_in_pieces_is_read_whole(client: Client) -> None:
    await client.post("/services", json=body())

    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"replica_id":"r",'
        await asyncio.sleep(0.02)
        yield b'"running":1}'

    async with client.post("/services/svc/heartbeat", data=pieces()) as answer:
        assert answer.status == 200
    async with client.get("/services/svc") as answer:
        assert (await answer.json())["metadata"]["replica"] == {"replica_id": "r", "running": 1}


async def test_empty_body_says_nothing() -> None:
    assert await read(b"") == Renew("x")


async def test_plain_status_is_no_report() -> None:
    raw = json.dumps({"status": "running", "timestamp": 1.5, "instance_id": "i", "incarnation": 3}).encode()
    assert await read(raw) == Renew("x", "running", "i", 3)


async def test_report_is_kept_whole_whichever_way_it_is_read() -> None:
    report = {"replica_id": "r", "status": "ready", "models": ["m"], "running": 1, "extra": {"deep": [1, {"a": "b"}]}}
    for spaced in (json.dumps(report), json.dumps(report, separators=(" , ", " : "))):
        assert await read(spaced.encode()) == Renew("x", "ready", None, None, make_report(report))
        assert json.loads(report_text(make_report(report))) == report


@pytest.mark.parametrize(
    "raw",
    [
        b"[]",
        b"{",
        b'{"a":1,"a":2}',
        b'{"a":1,"a":2,"b" :3}',
        b'{"a":"\\":","a":2}',
        b'{"a":{"b":1,"b":2}}',
        b'{"status":7}',
        b'{"status":""}',
        b'{"status":"a\\u0000b"}',
        b'{"instance_id":"a b"}',
        b'{"instance_id":"a\\n"}',
        b'{"stages":[{"name":"a","name":"b"}]}',
        b'{"stages":[{"took_s":99999999999999999999}]}',
        b'{"incarnation":-1}',
        b'{"incarnation":true}',
        b'{"incarnation":1.5}',
        b'{"running":1e400}',
        b'{"running":NaN}',
        b'{"running":99999999999999999999}',
        b'{"x":"\\ud800"}',
        b'{"x":"\xff"}',
        b"\xef\xbb\xbf{}",
    ],
)
async def test_faulty_heartbeat_is_refused_C15(raw: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        await read(raw)
    assert caught.value.status == 400


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**65), 2**65),
    st.floats(),
    st.text(max_size=70),
    st.lists(st.text(max_size=5), max_size=3),
)
VALUES = st.one_of(
    SCALARS,
    st.lists(st.dictionaries(st.sampled_from(["name", 'a":']), SCALARS, max_size=2), max_size=2),
    st.dictionaries(st.text(max_size=3), SCALARS, max_size=2),
)
KEYS = st.sampled_from(["status", "instance_id", "incarnation", "running", "models", 'a":', "b"])


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=5), st.booleans())
def test_quick_reading_agrees_with_the_thorough_one(said: dict[str, Any], compact: bool) -> None:  # noqa: FBT001 - hypothesis gives it
    raw = json.dumps(said, separators=(",", ":") if compact else None).encode()
    quick = _quickly(raw)
    if quick is not None:
        slow = parse_json_object(raw)
        check_values(slow, status=400)
        assert quick == slow


async def test_every_bad_member_is_named() -> None:
    with pytest.raises(ApiError) as caught:
        await read(b'{"status":"a\\u0007","incarnation":-1,"instance_id":"i"}')
    assert caught.value.fields["field"] == "status"
    assert [detail["field"] for detail in caught.value.fields["details"]] == ["status", "incarnation"]


def test_a_babysitters_own_report_is_read_quickly() -> None:
    stage = {"name": "compile", "state": "done", "began_at": "2026-01-01T00:00:00Z", "took_s": 1.5, "attempt": 1}
    report = ReplicaHeartbeat(
        replica_id="abc123def456",
        status="running",
        stages=[msgspec.convert(stage, Stage)],
        wsjob_states={"wsjob-1": "running"},
        models=["m"],
        metadata={"team": "a"},
    )
    assert _quickly(msgspec.json.encode(report)) is not None
