"""Every call of the registry's contract, with each of its errors."""

import json
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from common.discovery.limits import BODY_LIMIT_BYTES
from registry.core.model import Change, Sweep
from registry.core.store import StoreFull, StoreUnavailable
from registry.store.memory import MemoryStore
from tests.registry.conftest import Client, FakeClock, StartClient, body, ours, parts


async def send(client: Client, method: str, path: str, content: Any = None, **options: Any) -> tuple[int, Any]:
    async with client.request(method, path, json=content, **options) as answer:
        return answer.status, await answer.json()


async def add(client: Client, *records: dict[str, Any]) -> None:
    for record in records:
        status, content = await send(client, "POST", "/services", record)
        assert status == 201, content


async def test_health_counts_services(client: Client) -> None:
    await add(client, body("a"), body("b", status="stopped"))
    status, content = await send(client, "GET", "/health")
    assert status == 200
    assert content["status"] == "healthy"
    assert content["registry"] == "running"
    assert (content["registered_services"], content["healthy_services"]) == (2, 1)
    assert "timestamp" in content


async def test_register_answers_201_with_the_service(client: Client, clock: FakeClock) -> None:
    status, content = await send(client, "POST", "/services", body(timestamp=5.5, metadata={"type": "x"}, weight=2))
    assert status == 201
    assert isinstance(content["message"], str)
    service = content["service"]
    assert service == {
        **body(timestamp=5.5, metadata={"type": "x"}, weight=2.0),
        "last_heartbeat": pytest.approx(clock.utcnow().timestamp(), abs=0.01),
        "health_status": "unknown",
        "is_healthy": True,
        "incarnation": 0,
        "generation": 1,
        "ttl_s": 120.0,
        "draining": False,
        "stale": False,
        "suspect": False,
    }
    assert await send(client, "GET", "/services/svc") == (200, service)


async def test_register_with_curls_form_content_type(client: Client) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    async with client.post("/services", data=json.dumps(body()), headers=headers) as answer:
        assert answer.status == 201


async def test_register_again_replaces_the_record(client: Client) -> None:
    await add(client, body(), body(port=9009, metadata={"new": True}))
    _, service = await send(client, "GET", "/services/svc")
    assert (service["port"], service["metadata"], service["generation"]) == (9009, {"new": True}, 2)


async def test_register_repeat_of_one_incarnation_is_200_C6(client: Client) -> None:
    await add(client, ours())
    assert (await send(client, "POST", "/services", ours()))[0] == 200


async def test_register_of_another_instance_is_409_C6(client: Client) -> None:
    await add(client, ours(instance_id="one"))
    status, content = await send(client, "POST", "/services", ours(instance_id="two"))
    assert status == 409
    assert "one" in content["error"]


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        pytest.param(b"", "invalid JSON", id="M01"),
        (b"{", "invalid JSON"),
        pytest.param(b"[]", "must be a JSON object", id="M03"),
        pytest.param(b'"x"', "must be a JSON object", id="M04"),
        pytest.param(b"\xef\xbb\xbf{}", "invalid JSON", id="M07"),
        pytest.param(b"\xff", "invalid JSON", id="M09"),
        pytest.param(b'{"name":"a","name":"b"}', "appears twice", id="M10"),
        (b'{"weight":NaN}', "NaN"),
        pytest.param(b'{"port":' + b"9" * 5000 + b"}", "invalid JSON", id="M13"),
        (b"[" * 50_000, "invalid JSON"),
        pytest.param(b"{}", "missing required field: name, host, port, hostname, url, status", id="M06"),
    ],
    ids=lambda value: repr(value)[:20],
)
async def test_register_malformed_body_is_400_and_stores_nothing_C15(client: Client, raw: bytes, named: str) -> None:
    async with client.post("/services", data=raw) as answer:
        assert answer.status == 400
        assert named in (await answer.json())["error"]
    assert len(parts(client).catalogue) == 0
    assert parts(client).catalogue.revision == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("host", "169.254.169.254"),
        pytest.param("url", "http://169.254.169.254/", id="M27"),
        pytest.param("url", "http://[::ffff:127.0.0.1]:22/", id="M28"),
    ],
)
async def test_register_of_a_foreign_address_is_400_and_stores_nothing_C16(
    client: Client, field: str, value: str
) -> None:
    status, content = await send(client, "POST", "/services", body(**{field: value}))
    assert (status, content["field"]) == (400, field)
    assert len(parts(client).catalogue) == 0


async def test_body_beyond_the_limit_is_413(client: Client) -> None:
    async with client.post("/services", data=b"x" * (BODY_LIMIT_BYTES + 1)) as answer:
        assert answer.status == 413
        assert "error" in await answer.json()


async def test_get_service_unknown_is_404(client: Client) -> None:
    status, content = await send(client, "GET", "/services/none")
    assert status == 404
    assert "none" in content["error"]


async def test_list_filters_by_status_and_health(client: Client, clock: FakeClock) -> None:
    await add(client, body("old"))
    clock.advance(121)
    await parts(client).writer.submit(Sweep())
    await add(client, body("up"), body("down", status="stopped"))

    async def names(query: str) -> list[str]:
        status, content = await send(client, "GET", f"/services{query}")
        assert status == 200
        assert content["total"] == len(content["services"])
        return sorted(service["name"] for service in content["services"])

    assert await names("") == ["down", "old", "up"]
    assert await names("?status=running") == ["old", "up"]
    assert await names("?healthy=True") == ["up"]
    assert await names("?healthy=FALSE") == ["down", "old"]
    assert await names("?healthy=false&status=running") == ["old"]


async def test_list_with_bad_healthy_is_400(client: Client) -> None:
    status, content = await send(client, "GET", "/services?healthy=maybe")
    assert status == 400
    assert "healthy" in content["error"]


async def test_update_changes_given_fields_and_renews(client: Client, clock: FakeClock) -> None:
    await add(client, body(metadata={"a": 1}))
    clock.advance(119)
    status, content = await send(client, "PUT", "/services/svc", {"port": 9007, "metadata": {"b": 2}, "status": None})
    assert status == 200
    assert (content["service"]["port"], content["service"]["metadata"]) == (9007, {"b": 2})
    clock.advance(119)
    await parts(client).writer.submit(Sweep())
    assert (await send(client, "GET", "/services/svc"))[1]["is_healthy"]


@pytest.mark.parametrize(
    ("path", "content", "status"),
    [("/services/none", {"port": 1}, 404), ("/services/svc", {"port": "1"}, 400), ("/services/svc", [1], 400)],
)
async def test_update_errors(client: Client, path: str, content: Any, status: int) -> None:
    await add(client, body())
    assert (await send(client, "PUT", path, content))[0] == status


async def test_delete_removes_once(client: Client) -> None:
    await add(client, body())
    status, content = await send(client, "DELETE", "/services/svc")
    assert status == 200
    assert "message" in content
    assert (await send(client, "DELETE", "/services/svc"))[0] == 404
    await add(client, body())


async def test_delete_for_another_instance_is_409(client: Client) -> None:
    await add(client, ours(instance_id="one"))
    assert (await send(client, "DELETE", "/services/svc?instance_id=two"))[0] == 409
    assert (await send(client, "DELETE", "/services/svc?instance_id=one"))[0] == 200


async def test_heartbeat_may_have_an_empty_body(client: Client, clock: FakeClock) -> None:
    await add(client, body())
    clock.advance(100)
    async with client.post("/services/svc/heartbeat") as answer:
        assert answer.status == 200
        assert (await answer.json()).keys() == {"message", "timestamp"}
    _, service = await send(client, "GET", "/services/svc")
    assert service["last_heartbeat"] == pytest.approx(clock.utcnow().timestamp(), abs=0.01)


async def test_heartbeat_status_is_shown(client: Client) -> None:
    await add(client, body())
    await send(client, "POST", "/services/svc/heartbeat", {"status": "stopping"})
    _, service = await send(client, "GET", "/services/svc")
    assert (service["status"], service["is_healthy"]) == ("stopping", False)


async def test_heartbeat_report_is_shown_under_metadata(client: Client) -> None:
    await add(client, ours(metadata={"type": "openai-api", "models": ["m"]}))
    report = {"replica_id": "abc", "status": "ready", "running": 3, "instance_id": "i-1", "incarnation": 1}
    assert (await send(client, "POST", "/services/svc/heartbeat", report))[0] == 200
    _, service = await send(client, "GET", "/services/svc")
    assert service["status"] == "running"
    assert service["metadata"] == {"type": "openai-api", "models": ["m"], "replica": report}


@pytest.mark.parametrize(
    ("name", "content", "status"),
    [
        ("none", None, 404),
        ("svc", {"instance_id": "i-1", "incarnation": 0}, 409),
        ("svc", {"instance_id": "i-2", "incarnation": 1}, 409),
        ("svc", {"instance_id": "i-1", "incarnation": 2}, 404),
        ("svc", {"status": 7}, 400),
        ("svc", [], 400),
    ],
)
async def test_heartbeat_errors_change_nothing_C5(client: Client, name: str, content: Any, status: int) -> None:
    await add(client, ours(incarnation=1))
    before = parts(client).catalogue.revision
    found, answered = await send(client, "POST", f"/services/{name}/heartbeat", content)
    assert found == status
    assert answered["error"]
    assert parts(client).catalogue.revision == before


async def test_drain_and_undrain_D28(client: Client) -> None:
    await add(client, ours())
    status, content = await send(client, "POST", "/services/svc/drain")
    assert status == 200
    assert (content["service"]["status"], content["service"]["draining"]) == ("draining", True)
    await send(client, "POST", "/services/svc/heartbeat", {"status": "running"})
    assert (await send(client, "GET", "/services/svc"))[1]["draining"]
    _, content = await send(client, "POST", "/services/svc/undrain")
    assert (content["service"]["status"], content["service"]["draining"]) == ("running", False)
    assert (await send(client, "POST", "/services/none/drain"))[0] == 404


async def test_a_drain_may_hand_over_until_it_ends_A23(client: Client) -> None:
    await add(client, ours())
    _, content = await send(client, "POST", "/services/svc/drain?hand_over=true")
    assert content["service"]["hand_over"] is True
    await send(client, "POST", "/services/svc/heartbeat", {"status": "running"})
    assert (await send(client, "GET", "/services/svc"))[1]["hand_over"] is True
    for call in ("undrain", "drain"):
        assert "hand_over" not in (await send(client, "POST", f"/services/svc/{call}"))[1]["service"]


@pytest.mark.parametrize(("answers", "verdict"), [(200, "healthy"), (500, "unhealthy"), (302, "unhealthy")])
async def test_service_health_probes_now(client: Client, answers: int, verdict: str) -> None:
    async def probed(_request: web.Request) -> web.Response:
        return web.Response(status=answers, headers={"Location": "/elsewhere"})

    app = web.Application()
    app.router.add_get("/health", probed)
    async with TestServer(app, host="127.0.0.1") as server:
        await add(client, body(url=f"http://127.0.0.1:{server.port}"))
        status, content = await send(client, "GET", "/services/svc/health")
    assert status == 200
    assert content.keys() == {"service", "health_status", "is_healthy", "last_heartbeat", "timestamp"}
    assert (content["service"], content["health_status"], content["is_healthy"]) == ("svc", verdict, True)
    assert (await send(client, "GET", "/services/svc"))[1]["health_status"] == verdict


async def test_service_health_unknown_is_404(client: Client) -> None:
    assert (await send(client, "GET", "/services/none/health"))[0] == 404


async def test_stats(client: Client, clock: FakeClock) -> None:
    await add(client, body("a"), body("b", status="stopped"), body("c", host="10.0.0.1"))
    clock.advance(10)
    status, content = await send(client, "GET", "/stats")
    assert status == 200
    assert (content["total_services"], content["healthy_services"], content["unhealthy_services"]) == (3, 2, 1)
    assert content["status_distribution"] == {"running": 2, "stopped": 1}
    assert content["host_distribution"] == {"127.0.0.1": 2, "10.0.0.1": 1}
    assert content["uptime"] == 10
    assert "timestamp" in content


async def test_unknown_path_and_method_are_json_errors(client: Client) -> None:
    assert (await send(client, "GET", "/nowhere"))[0] == 404
    assert (await send(client, "PATCH", "/services"))[0] == 405


async def test_full_registry_is_503(start_registry: StartClient) -> None:
    client = await start_registry(max_services=1)
    await add(client, body("a"))
    async with client.post("/services", json=body("b")) as answer:
        assert answer.status == 503
        assert "Retry-After" in answer.headers


@pytest.mark.parametrize(("failure", "status"), [(StoreFull("x"), 507), (StoreUnavailable("x"), 503)])
async def test_failing_store_refuses_registrations_and_serves_the_rest_C13(
    start_registry: StartClient, failure: Exception, status: int
) -> None:
    class Failing(MemoryStore):
        failing = False

        async def write(self, changes: Sequence[Change]) -> Sequence[Change]:
            if self.failing:
                raise failure
            return await super().write(changes)

    store = Failing()
    client = await start_registry(store)
    await add(client, body("a"))
    store.failing = True
    assert (await send(client, "POST", "/services", body("b")))[0] == status
    assert (await send(client, "DELETE", "/services/a"))[0] == status
    assert (await send(client, "POST", "/services/a/heartbeat"))[0] == 200
    assert (await send(client, "GET", "/services"))[1]["total"] == 1


async def test_every_answer_is_compact_W35(client: Client) -> None:
    metadata = {"type": "openai-api", "models": ["m"], "models_list": [{"id": "m", "object": "model"}]}
    await send(client, "POST", "/services", body(metadata=metadata))
    assert b'"id":"m"' in await (await client.get("/services")).read()
    paths = ("/health", "/services", "/stats", "/api/v1/replicas", "/openapi.json", "/services/nobody", "/nowhere")
    for path in paths:
        raw = await (await client.get(path)).read()
        assert not re.search(rb'[a-z_]": ["{\[0-9tfn]', raw), path


async def test_health_has_an_iso_timestamp_in_both_places_W42(client: Client) -> None:
    for path in ("/health", "/api/v1/health"):
        _, told = await send(client, "GET", path)
        assert datetime.fromisoformat(told["timestamp"]).tzinfo is not None


async def test_heartbeat_of_a_replica_that_drains_is_stopping_in_the_replica_api_W42(client: Client) -> None:
    await send(client, "POST", "/services", body("svc-1", metadata={"type": "openai-api"}))
    for beat in ({"status": "draining"}, {"status": "draining", "replica_status": "stopping"}):
        await send(client, "POST", "/services/svc-1/heartbeat", {"replica_id": "r-1", "updated_at": "2026", **beat})
        _, service = await send(client, "GET", "/services/svc-1")
        _, replica = await send(client, "GET", "/api/v1/replicas/r-1")
        assert (service["status"], replica["status"]) == ("draining", "stopping")
        assert "replica_status" not in service["metadata"]["replica"]
