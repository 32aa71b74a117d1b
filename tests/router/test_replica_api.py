"""`/api/v1/*` through the router: to the registry and nowhere else, and only for those who may."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from common.exits import ConfigurationError
from common.http.audit import AuditLog
from common.http.client import make_session
from router.assemble import make_replica_api
from router.control.app import Overview, make_app
from router.control.replica_api import ReplicaApi
from router.keys import Key
from router.proxy import checks
from router.proxy.parsing import parse_request
from router.settings import RouterSettings
from tests.audits import lines
from tests.ports import free_port
from tests.router.fakes import Plane, request

REPLICAS = "/api/v1/replicas"
Client = TestClient[web.Request, web.Application]


@dataclass
class FakeRegistry:
    """Notes what it is asked."""

    asked: list[tuple[str, str, str | None, bytes]] = field(default_factory=list)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        given = request.headers.get("Authorization")
        self.asked.append((request.method, request.raw_path, given, await request.read()))
        if request.path.endswith("/events"):
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await response.write(b"event: snapshot\n\n")
            await self.release.wait()
            await response.write(b"event: end\n\n")
            return response
        if request.path.endswith("/busy"):
            return web.json_response({"error": "full"}, status=503, headers={"Retry-After": "7"})
        return web.json_response({"path": request.path}, status=201)


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    made = FakeRegistry()
    app = web.Application(client_max_size=2 << 20)
    app.router.add_route("*", "/{path:.*}", made.answer)
    async with TestServer(app) as server:
        made.url = str(server.make_url("")).rstrip("/")
        yield made


async def start(aiohttp_client: Any, session: Any, *urls: str, token: str | None = None) -> Client:
    api = ReplicaApi(session, urls, lambda: urls[0], token)
    client: Client = await aiohttp_client(make_app(cast("Overview", None), api))
    return client


@pytest.fixture
async def client(aiohttp_client: Any, registry: FakeRegistry) -> AsyncIterator[Client]:
    async with make_session(timeout_s=5) as session:
        yield await start(aiohttp_client, session, registry.url)


async def test_calls_reach_the_registry_with_query_body_and_authorization(
    client: Client, registry: FakeRegistry
) -> None:
    headers = {"Authorization": "Bearer x"}
    async with client.post(REPLICAS, json={"a": "y" * 200_000}, headers=headers) as answer:
        assert (answer.status, await answer.json()) == (201, {"path": REPLICAS})
    async with client.get(f"{REPLICAS}?status=ready&model_name=a%26b") as answer:
        assert answer.status == 201
    async with client.delete(f"{REPLICAS}/abc123def456") as answer:
        assert answer.status == 201
    async with client.get(f"{REPLICAS}/busy") as answer:
        assert (answer.status, answer.headers["Retry-After"]) == (503, "7")
    assert [(method, path, given) for method, path, given, _ in registry.asked] == [
        ("POST", REPLICAS, "Bearer x"),
        ("GET", f"{REPLICAS}?status=ready&model_name=a%26b", None),
        ("DELETE", f"{REPLICAS}/abc123def456", None),
        ("GET", f"{REPLICAS}/busy", None),
    ]
    assert len(registry.asked[0][3]) > 200_000


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/../services",
        "/api/v1/%2e%2e/services",
        "/api/v1//evil/x",
        "/api/v1/replicas/..%2f..%2fservices",
        "/api/v1/a;b",
    ],
)
async def test_no_path_leads_elsewhere_R61(client: Client, registry: FakeRegistry, path: str) -> None:
    async with client.session.get(URL(str(client.make_url("/")).rstrip("/") + path, encoded=True)) as answer:
        assert answer.status == 404
    assert registry.asked == []


async def test_events_come_as_they_are_sent(client: Client, registry: FakeRegistry) -> None:
    async with client.get(f"{REPLICAS}/abc123def456/events") as answer:
        assert await answer.content.readuntil(b"\n\n") == b"event: snapshot\n\n"
        registry.release.set()
        assert await answer.read() == b"event: end\n\n"


async def test_what_a_pages_form_could_send_is_415(client: Client, registry: FakeRegistry) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        async with client.post(REPLICAS, data=b"{}", headers={"Content-Type": kind}) as answer:
            assert answer.status == 415
    assert registry.asked == []


async def test_the_next_registry_is_asked_when_one_is_away(aiohttp_client: Any, registry: FakeRegistry) -> None:
    away = f"http://127.0.0.1:{free_port()}"
    async with make_session(timeout_s=5) as session:
        client = await start(aiohttp_client, session, away, registry.url)
        async with client.get(REPLICAS) as answer:
            assert answer.status == 201
        client = await start(aiohttp_client, session, away)
        async with client.get(REPLICAS) as answer:
            assert answer.status == 503
            assert away in (await answer.json())["error"]


async def test_a_caller_with_a_key_gets_the_registrys_token(aiohttp_client: Any, registry: FakeRegistry) -> None:
    async with make_session(timeout_s=5) as session:
        client = await start(aiohttp_client, session, registry.url, token="of-the-registry")
        async with client.get(REPLICAS, headers={"Authorization": "Bearer key-of-the-router"}):
            assert registry.asked[0][2] == "Bearer of-the-registry"


async def test_without_the_setting_there_is_no_such_path(aiohttp_client: Any) -> None:
    client: Client = await aiohttp_client(make_app(cast("Overview", None)))
    async with client.get(REPLICAS) as answer:
        assert answer.status == 404
    assert make_replica_api(RouterSettings(), cast("Any", None), cast("Any", None), 8000) is None


def test_a_token_is_never_lent_to_callers_without_a_key(tmp_path: Path) -> None:
    settings = RouterSettings(expose_replica_api=True, replica_api_token_file=tmp_path / "token")
    with pytest.raises(ConfigurationError, match="api_keys_file"):
        make_replica_api(settings, cast("Any", None), cast("Any", None), 8000)


async def test_what_a_call_changes_is_in_the_audit_with_the_keys_name_and_the_clients_address(
    aiohttp_client: Any, registry: FakeRegistry, tmp_path: Path
) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", "router 8000")
    async with make_session(timeout_s=5) as session:
        api = ReplicaApi(session, (registry.url,), lambda: registry.url, audit=log)
        client: Client = await aiohttp_client(make_app(cast("Overview", None), api))
        told = {"X-Svc-Key": "team%20a", "X-Forwarded-For": "10.0.0.7", "X-Request-Id": "r-1"}
        for method, path in (("GET", REPLICAS), ("POST", REPLICAS), ("DELETE", f"{REPLICAS}/r")):
            async with client.request(method, path, headers=told):
                pass
    found = [
        (line["who"], line["remote"], line["request_id"], line["method"], line["status"]) for line in lines(log.path)
    ]
    assert found == [("key team a", "10.0.0.7", "r-1", method, 201) for method in ("POST", "DELETE")]


async def test_a_worker_tells_the_control_plane_whose_key_a_call_showed(plane: Plane, tmp_path: Path) -> None:
    asked = []

    async def note(request: web.Request) -> web.Response:
        asked.append(request.headers.getall("X-Svc-Key", []))
        return web.Response()

    app = web.Application()
    app.router.add_post(f"{REPLICAS}/r/stop", note)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "control.sock")).start()
    plane.engine.set_keys((Key("the \r\nboss", hashlib.sha256(b"k").hexdigest(), admin=True),))
    headers = "authorization: Bearer k\r\nx-svc-key: somebody else\r\n"
    await plane.send(request(b"{}", f"{REPLICAS}/r/stop", headers))
    await runner.cleanup()
    assert asked == [["the%20%0D%0Aboss"]]


@pytest.mark.parametrize(("admin", "path", "refused"), [(False, b"/api/v1/replicas", True), (True, b"/api/v1/replicas", False), (False, b"/v1/models", False)])  # fmt: skip
async def test_with_api_keys_the_replica_api_is_for_administrators(
    plane: Plane,
    admin: bool,  # noqa: FBT001 - a row
    path: bytes,
    refused: bool,  # noqa: FBT001 - a row
) -> None:
    engine = plane.engine
    engine.set_keys((Key(name="k", sha256=hashlib.sha256(b"secret").hexdigest(), admin=admin),))
    head = parse_request(b"GET %b HTTP/1.1\r\nhost: r\r\nauthorization: Bearer secret\r\n\r\n" % path)
    if refused:
        with pytest.raises(checks.Rejected, match="administrator"):
            checks.key_of(engine, head)
    else:
        key = checks.key_of(engine, head)
        assert key is not None
        assert key.admin is admin
