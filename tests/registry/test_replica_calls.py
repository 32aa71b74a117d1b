"""The replica API of the fleet: writes go to the node's agent, and an agent that misbehaves takes nobody with it."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from registry.fleet import agents
from registry.http import replicas
from tests.registry.conftest import Client, StartClient, ours, parts

REPLICAS = "/api/v1/replicas"
WANTED = {"server_mode": "replica", "model_name": "m"}
ID = "abc123def456"
WARNINGS = [{"field": "invoking_user", "note": "is kept in request.json only"}]


@dataclass
class FakeAgent:
    """An agent that answers from `replicas` and notes what it was asked."""

    node: str
    replicas: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    hang: asyncio.Event | None = None
    status: int | None = None
    url: str = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.method, request.path_qs))
        self.tokens.append(request.headers.get("Authorization"))
        self.bodies.append(await request.read())
        if self.hang is not None:
            await self.hang.wait()
        if self.status is not None:
            return web.json_response({"error": "as told", "field": "model_name"}, status=self.status)
        if request.method == "POST" and request.path == REPLICAS:
            replica_id = f"{self.node}{len(self.replicas):0{12 - len(self.node)}}"
            self.replicas[replica_id] = {}
            content = {"replica_id": replica_id, "status": "pending", "message": "x", "base_url": None}
            return web.json_response({**content, "request_id": "q", "warnings": WARNINGS}, status=201)
        if request.path.endswith("/events"):
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await response.write(b"event: snapshot\n\n")
            if "cut" in request.query and request.transport is not None:
                request.transport.abort()
            elif self.hang is None:
                await response.write(b"event: end\n\n")
            return response
        replica_id = request.path.split("/")[4]
        if replica_id not in self.replicas:
            return web.json_response({"error": "not here"}, status=404)
        return web.json_response({"replica_id": replica_id, "status": "pending", "info": {"from": self.node}})


Start = Callable[..., Awaitable[FakeAgent]]


def report(agent: FakeAgent, **more: Any) -> dict[str, Any]:
    return {"instance_id": agent.node, "incarnation": 1, "replicas_live": 0, "capacity": 9, "replicas": [], **more}


@asynccontextmanager
async def serving(agent: FakeAgent) -> AsyncIterator[FakeAgent]:
    app = web.Application(client_max_size=2 << 20)
    app.router.add_route("*", "/{path:.*}", agent.answer)
    async with TestServer(app) as server:
        agent.url = str(server.make_url("")).rstrip("/")
        yield agent
        if agent.hang is not None:
            agent.hang.set()


async def join(client: Client, agent: FakeAgent, **more: Any) -> None:
    """Register the agent and let it beat."""
    port = int(agent.url.rpartition(":")[2])
    place: dict[str, Any] = {"host": "127.0.0.1", "port": port, "url": agent.url}
    said = ours(
        f"agent-{agent.node}", instance_id=agent.node, **place, metadata={"type": "node-agent", "node": agent.node}
    )
    async with client.post("/services", json=said) as answer:
        assert answer.status in (200, 201)
    async with client.post(f"/services/agent-{agent.node}/heartbeat", json=report(agent, **more)) as answer:
        assert answer.status == 200


async def ask(client: Client, method: str, path: str, **more: Any) -> tuple[int, Any]:
    async with client.request(method, path, **more) as answer:
        return answer.status, await answer.json()


@pytest.fixture
async def one(client: Client) -> AsyncIterator[FakeAgent]:
    async with serving(FakeAgent("n1")) as agent:
        await join(client, agent)
        yield agent


@pytest.fixture
async def two(client: Client) -> AsyncIterator[tuple[FakeAgent, FakeAgent]]:
    async with serving(FakeAgent("n1")) as first, serving(FakeAgent("n2")) as second:
        await join(client, first, replicas_live=3)
        await join(client, second, replicas_live=1)
        yield first, second


async def test_create_goes_to_the_only_agent_and_its_answer_is_unchanged(client: Client, one: FakeAgent) -> None:
    body = json.dumps({**WANTED, "full_config": {"x": "y" * 200_000}}).encode()
    status, content = await ask(client, "POST", REPLICAS, data=body, headers={"Content-Type": "application/json"})
    assert (status, content["replica_id"], content["base_url"]) == (201, "n10000000000", None)
    assert content["warnings"] == WARNINGS
    assert one.bodies == [body], "the bytes as they came, beyond the limit of the registry's own calls"


async def test_create_goes_to_the_least_laden_and_counts_what_no_heartbeat_shows_yet(
    client: Client, two: tuple[FakeAgent, FakeAgent]
) -> None:
    for _ in range(6):
        assert (await ask(client, "POST", REPLICAS, json=WANTED))[0] == 201
    assert [len(agent.replicas) for agent in two] == [2, 4]


async def test_create_goes_to_the_node_named(client: Client, two: tuple[FakeAgent, FakeAgent]) -> None:
    status, _ = await ask(client, "POST", REPLICAS, json={**WANTED, "placement": {"node": "n1"}})
    assert status == 201
    assert [len(agent.replicas) for agent in two] == [1, 0]


@pytest.mark.parametrize("node", ["n9", "", 7, ["n1"]])
async def test_create_on_a_node_that_is_none_is_422(client: Client, one: FakeAgent, node: Any) -> None:
    status, content = await ask(client, "POST", REPLICAS, json={**WANTED, "placement": {"node": node}})
    assert (status, content["field"]) == (422, "placement.node")
    assert one.asked == []


async def test_the_same_request_goes_to_where_it_went_before_E1(
    client: Client, two: tuple[FakeAgent, FakeAgent]
) -> None:
    await ask(client, "POST", REPLICAS, json={**WANTED, "request_id": "q", "placement": {"node": "n1"}})
    await ask(client, "POST", REPLICAS, json={**WANTED, "request_id": "q"})
    assert [len(agent.replicas) for agent in two] == [2, 0]


async def test_a_request_without_an_answer_goes_to_the_same_node_again_E1(
    client: Client, two: tuple[FakeAgent, FakeAgent], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask_of = agents.AgentClient.ask
    monkeypatch.setattr(agents.AgentClient, "ask", lambda self, *a, **k: ask_of(self, *a, **{**k, "timeout_s": 0.3}))
    two[1].hang = asyncio.Event()
    body = {**WANTED, "request_id": "q"}
    assert (await ask(client, "POST", REPLICAS, json=body))[0] == 504
    await join(client, two[1], replicas_live=9)  # by now the other node looks better
    two[1].hang.set()
    two[1].hang = None
    assert (await ask(client, "POST", REPLICAS, json=body))[0] == 201
    assert two[0].asked == []


async def test_create_without_an_agent_is_503(client: Client) -> None:
    status, content = await ask(client, "POST", REPLICAS, json=WANTED)
    assert status == 503
    assert "no node agent is registered" in content["error"]


@pytest.mark.parametrize("status", [400, 409, 422, 503, 507])
async def test_an_agents_refusal_is_passed_on_unchanged(client: Client, one: FakeAgent, status: int) -> None:
    one.status = status
    assert await ask(client, "POST", REPLICAS, json=WANTED) == (status, {"error": "as told", "field": "model_name"})


@pytest.mark.parametrize("raw", [b"", b"[]", b"\xff", b'{"a":1,"a":2}', b"{" * 100_000])
async def test_what_is_no_json_object_is_400_here_already(client: Client, one: FakeAgent, raw: bytes) -> None:
    status, _ = await ask(client, "POST", REPLICAS, data=raw, headers={"Content-Type": "application/json"})
    assert status == 400
    assert one.asked == []


async def test_a_pages_call_is_refused_M36(client: Client, one: FakeAgent) -> None:
    assert (await ask(client, "POST", REPLICAS, json=WANTED, headers={"Origin": "http://evil"}))[0] == 403
    text = {"Content-Type": "text/plain"}
    assert (await ask(client, "POST", REPLICAS, data=b"{}", headers=text))[0] == 415
    assert (await ask(client, "DELETE", f"{REPLICAS}/{ID}", headers={"Origin": "http://evil"}))[0] == 403
    assert one.asked == []


async def test_a_body_beyond_the_limit_is_413(client: Client, one: FakeAgent) -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 65_536

    async with client.post(REPLICAS, data=body(), headers={"Content-Type": "application/json"}) as answer:
        assert answer.status == 413
    assert one.asked == []


async def test_an_agent_that_hangs_is_504_and_the_registry_goes_on(
    client: Client, one: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents, "CALL_TIMEOUT_S", 0.3)
    ask_of = agents.AgentClient.ask
    monkeypatch.setattr(agents.AgentClient, "ask", lambda self, *a, **k: ask_of(self, *a, **{"timeout_s": 0.3, **k}))
    one.hang = asyncio.Event()
    calls = [asyncio.ensure_future(ask(client, "POST", REPLICAS, json=WANTED)) for _ in range(20)]
    async with asyncio.timeout(5):
        assert (await ask(client, "GET", "/health"))[0] == 200
        answers = await asyncio.gather(*calls)
    assert {status for status, _ in answers} == {504}
    assert "did not answer within" in answers[0][1]["error"]


async def test_an_agent_that_is_gone_is_passed_by_for_the_next(client: Client) -> None:
    async with serving(FakeAgent("n2")) as second:
        async with serving(FakeAgent("n1")) as first:
            await join(client, first)
        await join(client, second, replicas_live=5)
        status, content = await ask(client, "POST", REPLICAS, json=WANTED)
        assert (status, content["replica_id"][:2]) == (201, "n2")
        status, content = await ask(client, "POST", REPLICAS, json={**WANTED, "placement": {"node": "n1"}})
        assert status == 503
        assert "cannot be reached" in content["error"]


async def test_a_replica_is_known_before_its_babysitter_is_heard(client: Client, one: FakeAgent) -> None:
    _, made = await ask(client, "POST", REPLICAS, json={**WANTED, "request_id": "q", "metadata": {"a": 1}})
    replica_id = made["replica_id"]
    status, listed = await ask(client, "GET", f"{REPLICAS}?status=pending")
    assert (status, [it["replica_id"] for it in listed["replicas"]]) == (200, [replica_id])
    assert listed["replicas"][0]["metadata"] == {"a": 1, "node": "n1", "stale": False, "draining": False}
    status, found = await ask(client, "GET", f"{REPLICAS}/{replica_id}")
    assert (status, found["info"]) == (200, {"from": "n1"}), "its agent knows best"
    assert (await ask(client, "GET", "/api/v1/health"))[1]["replicas_total"] == 1
    assert (await ask(client, "DELETE", f"{REPLICAS}/{replica_id}"))[0] == 200
    assert (await ask(client, "GET", REPLICAS))[1]["total"] == 0
    assert one.asked[-1] == ("DELETE", f"{REPLICAS}/{replica_id}")


async def test_a_call_about_a_replica_goes_to_the_node_of_its_record(
    client: Client, two: tuple[FakeAgent, FakeAgent]
) -> None:
    two[1].replicas[ID] = {}
    await client.post("/services", json=ours(ID, instance_id="i", metadata={"type": "cbclient", "node": "n2"}))
    beat = {"replica_id": ID, "status": "ready", "instance_id": "i", "incarnation": 1}
    await client.post(f"/services/{ID}/heartbeat", json=beat)
    assert (await ask(client, "GET", f"{REPLICAS}/{ID}"))[1]["info"]["metadata"]["node"] == "n2"
    for method, path in (
        ("POST", "/stop"),
        ("POST", "/health"),
        ("POST", "/retry"),
        ("GET", "/timeline"),
        ("DELETE", ""),
    ):
        assert (await ask(client, method, f"{REPLICAS}/{ID}{path}"))[0] == 200
        assert two[1].asked[-1] == (method, f"{REPLICAS}/{ID}{path}")
    assert two[0].asked == []


async def test_a_replica_that_nobody_told_of_is_looked_for_and_else_404(
    client: Client, two: tuple[FakeAgent, FakeAgent]
) -> None:
    two[1].replicas[ID] = {}
    assert (await ask(client, "GET", f"{REPLICAS}/{ID}"))[1]["info"] == {"from": "n2"}
    for path in (f"{REPLICAS}/zzz123def456", f"{REPLICAS}/..%2fx", f"{REPLICAS}/zzz123def456/timeline"):
        status, content = await ask(client, "GET", path)
        assert status == 404
        assert content["error"] == content["detail"]


async def test_a_replica_that_no_agent_made_is_409(client: Client, one: FakeAgent) -> None:
    await client.post("/services", json=ours(ID, instance_id="i"))
    await client.post(f"/services/{ID}/heartbeat", json={"replica_id": ID, "instance_id": "i", "incarnation": 1})
    assert (await ask(client, "DELETE", f"{REPLICAS}/{ID}"))[0] == 409
    assert one.asked == []


async def test_a_replica_whose_agent_is_not_registered_is_503(client: Client, one: FakeAgent) -> None:
    await client.post("/services", json=ours(ID, instance_id="i", metadata={"node": "n7"}))
    await client.post(f"/services/{ID}/heartbeat", json={"replica_id": ID, "instance_id": "i", "incarnation": 1})
    status, content = await ask(client, "DELETE", f"{REPLICAS}/{ID}")
    assert status == 503
    assert "n7" in content["error"]
    assert one.asked == []


async def test_events_are_passed_on_as_they_come_and_a_cut_is_a_cut(client: Client, one: FakeAgent) -> None:
    one.replicas[ID] = {}
    async with client.get(f"{REPLICAS}/{ID}/events?until=ready&logs=stdout") as answer:
        assert answer.content_type == "text/event-stream"
        assert await answer.read() == b"event: snapshot\n\nevent: end\n\n"
    assert one.asked[-1] == ("GET", f"{REPLICAS}/{ID}/events?until=ready&logs=stdout")
    async with client.get(f"{REPLICAS}/{ID}/events?cut=1") as answer:
        with pytest.raises(Exception, match=r"TransferEncoding|payload|disconnected|closed"):
            await answer.read()
    assert parts(client).agents.streams == 0


async def test_streams_are_bounded(client: Client, one: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    one.replicas[ID] = {}
    monkeypatch.setattr(replicas, "STREAMS_MOST", 0)
    assert (await ask(client, "GET", f"{REPLICAS}/{ID}/events"))[0] == 503


def token_file(folder: Path, name: str) -> str:
    path = folder / name
    path.write_text(name * 40)
    path.chmod(0o600)
    return str(path)


async def test_only_an_administrator_makes_replicas_and_agents_get_their_own_token(
    start_registry: StartClient, tmp_path: Path
) -> None:
    files = {level: token_file(tmp_path, level) for level in ("read", "register", "admin", "agent")}
    client = await start_registry(
        read_token_file=[files["read"]],
        register_token_file=[files["register"]],
        admin_token_file=[files["admin"]],
        agent_token_file=files["agent"],
    )
    bearer = {level: {"Authorization": f"Bearer {level * 40}"} for level in files}
    async with serving(FakeAgent("n1")) as agent:
        client.session.headers.update(bearer["register"])
        await join(client, agent)
        for level, status in (("read", 403), ("register", 403), ("agent", 401), ("admin", 201)):
            assert (await ask(client, "POST", REPLICAS, json=WANTED, headers=bearer[level]))[0] == status
        replica_id = next(iter(agent.replicas))
        assert (await ask(client, "GET", f"{REPLICAS}/{replica_id}", headers=bearer["read"]))[0] == 200
        assert (await ask(client, "DELETE", f"{REPLICAS}/{replica_id}", headers=bearer["register"]))[0] == 403
        assert set(agent.tokens) == {f"Bearer {'agent' * 40}"}
        agent.status = 401
        status, content = await ask(client, "POST", REPLICAS, json=WANTED, headers=bearer["admin"])
        assert status == 502
        assert "--agent-token-file" in content["error"]
