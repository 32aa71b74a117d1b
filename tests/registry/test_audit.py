"""`GET /api/v1/audit`: what was changed here, and what agents tell of their nodes."""

from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from registry.http.middleware import NO_CHANGE
from registry.http.routes import ROUTES
from tests.audits import check_table, lines
from tests.ports import free_port
from tests.registry.conftest import Client, StartClient, body
from tests.registry.test_guard import ADMIN, READ, REGISTER, bearer, files

FILE = "registry-audit.jsonl"


async def test_every_call_that_changes_something_leaves_a_line(client: Client, tmp_path: Path) -> None:
    await check_table(client, tmp_path / FILE, ROUTES, NO_CHANGE)


async def test_lines_name_the_tokens_role_and_strangers_leave_none(start_registry: StartClient, tmp_path: Path) -> None:
    client = await start_registry(**files(tmp_path))
    for token in ("x" * 32, READ, REGISTER, ADMIN):
        async with client.post("/services/gpu-1/drain", headers=bearer(token)):
            pass
    async with client.post("/services/gpu-1/drain", headers={"Origin": "http://evil.example"}) as answer:
        assert answer.status == 403
    found = [(line["who"], line["status"]) for line in lines(tmp_path / FILE)]
    assert found == [("token read", 403), ("token register gpu-", 404), ("token admin", 404)]
    for token, status in ((READ, 403), (ADMIN, 200)):
        async with client.get("/api/v1/audit", headers=bearer(token)) as answer:
            assert answer.status == status
    async with client.get("/api/v1/audit?who=register", headers=bearer(ADMIN)) as answer:
        assert [line["who"] for line in (await answer.json())["lines"]] == ["token register gpu-"]


@pytest.mark.parametrize("query", ["limit=0", "limit=10001", "limit=x", "since=-1", "since=1e9", "since=99999999999"])
async def test_a_wrong_question_is_refused_by_name(client: Client, query: str) -> None:
    async with client.get(f"/api/v1/audit?{query}") as answer:
        assert (answer.status, (await answer.json())["field"]) == (400, query.partition("=")[0])


async def test_nodes_lines_come_through_their_agents_and_one_that_is_silent_is_named(client: Client) -> None:
    line: dict[str, Any] = {
        "time": "2030-01-01T00:00:00.000Z",
        "service": "agent n1",
        "who": "token",
        "remote": "10.0.0.1",
    }
    line |= {"method": "DELETE", "path": "/api/v1/replicas/r", "status": 200}
    asked = []

    async def told(request: web.Request) -> web.Response:
        asked.append(dict(request.query))
        return web.json_response({"total": 1, "lines": [line], "missing": []})

    app = web.Application()
    app.router.add_get("/api/v1/audit", told)
    async with TestServer(app) as agent:
        for node, port in (("n1", agent.port), ("n2", free_port())):
            record = body(f"agent-{node}", port=port, url=f"http://127.0.0.1:{port}", metadata={"type": "node-agent"})
            record["metadata"]["node"] = node
            async with client.post("/services", json=record) as answer:
                assert answer.status == 201, await answer.text()
        async with client.post("/services/agent-n1/drain"):
            pass
        async with client.get("/api/v1/audit?since=5&limit=7") as answer:
            content = await answer.json()
    assert [one["service"] for one in content["lines"]] == ["registry", "agent n1"]
    assert content["missing"] == ["n2"]
    assert asked == [{"since": "5", "limit": "7"}]
