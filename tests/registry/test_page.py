"""The page's own calls: who may make them, where they lead, and what can come back."""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from common.wire.registry import Peer
from registry.http import page
from registry.http.origin import ForeignPage, check_local_name, check_origin
from registry.outbound import relay
from tests.registry.conftest import Client, StartClient, body, ours, parts


@dataclass
class Upstream:
    """A babysitter and a router that remember what they were asked."""

    url: str = ""
    asked: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    answer: Any = None


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    made = Upstream()

    async def handle(request: web.Request) -> web.StreamResponse:
        made.asked.append((request.method, request.path_qs, dict(request.headers), await request.read()))
        if callable(made.answer):
            return await made.answer(request)  # type: ignore[no-any-return]
        return web.json_response({"ok": True})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    async with TestServer(app) as server:
        made.url = f"http://127.0.0.1:{server.port}"
        yield made


async def introduce(client: Client, upstream: Upstream) -> None:
    """Register it as the babysitter `b`, and let it watch as the router `router-a`."""
    port = int(upstream.url.rpartition(":")[2])
    record = ours("b", port=port, url=upstream.url, metadata={"type": "vLLM"})
    assert (await client.post("/services", json=record)).status == 201
    watching = parts(client).routers.watching(Peer("router-a", upstream.url))
    watching.__enter__()  # for as long as the registry lives


async def test_the_page_is_whole_in_one_file_and_its_policy_forbids_the_rest(client: Client) -> None:
    async with client.get("/ui") as answer:
        text = await answer.text()
        policy = answer.headers["Content-Security-Policy"]
        assert answer.content_type == "text/html"
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert policy.count("'sha256-") == 2
    assert re.findall(r"""\s(?:src|href)=["'](?!data:)[^"']*""", text) == []
    assert re.findall(r"<[a-z][^>]*\s(?:on[a-z]+|style)=", text.split("<script>")[0]) == []
    assert (
        re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|new Function|url\(|@import", text)
        == []
    )


async def test_timeline_and_log_come_from_the_records_address_C16(client: Client, upstream: Upstream) -> None:
    await introduce(client, upstream)
    async with client.get("/ui/babysitters/b/timeline") as answer:
        assert await answer.json() == {"ok": True}
    async with client.get("/ui/babysitters/b/logs", params={"stream": "stderr", "tail": "5"}) as answer:
        assert (answer.status, answer.content_type) == (200, "text/plain")
    assert [(method, path) for method, path, _, _ in upstream.asked] == [
        ("GET", "/timeline"),
        ("GET", "/logs?stream=stderr&tail=5"),
    ]


@pytest.mark.parametrize(
    "path",
    [
        "/ui/babysitters/none/timeline",
        "/ui/babysitters/s-server/timeline",
        "/ui/routers/b/traffic",
        "/ui/routers/none/traffic",
        "/ui/babysitters/b/models",
        "/ui/babysitters/b%2f..%2fx/timeline",
    ],
)
async def test_nothing_else_can_be_reached_C16(client: Client, upstream: Upstream, path: str) -> None:
    await introduce(client, upstream)
    await client.post("/services", json=body("s-server", metadata={"type": "openai-api"}))
    assert (await client.get(path)).status == 404
    assert upstream.asked == []


@pytest.mark.parametrize(
    "query", ["stream=/etc/passwd", "tail=-1", "tail=1e3", "tail=9999", "tail=5%26follow=1", "stream=stdout%0d%0aX:1"]
)
async def test_odd_parameters_are_400_and_go_nowhere(client: Client, upstream: Upstream, query: str) -> None:
    await introduce(client, upstream)
    assert (await client.get(f"/ui/babysitters/b/logs?{query}")).status == 400
    assert (await client.get("/ui/routers/router-a/traffic?since=1%26x=2")).status == 400
    assert upstream.asked == []


async def test_a_redirect_is_not_followed(client: Client, upstream: Upstream) -> None:
    async def answer_elsewhere(_request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound("http://169.254.169.254/latest")

    await introduce(client, upstream)
    upstream.answer = answer_elsewhere
    async with client.get("/ui/babysitters/b/timeline") as answer:
        assert answer.status == 502
        assert (await answer.json())["upstream_status"] == 302


async def test_an_answer_is_never_a_page_nor_without_end(
    client: Client, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer_html(_request: web.Request) -> web.StreamResponse:
        return web.Response(text="<script>1</script>" * 10, content_type="text/html", headers={"Set-Cookie": "a=b"})

    await introduce(client, upstream)
    upstream.answer = answer_html
    for path, kind in (("timeline", "application/json"), ("logs", "text/plain")):
        async with client.get(f"/ui/babysitters/b/{path}") as answer:
            assert (answer.content_type, answer.headers["X-Content-Type-Options"]) == (kind, "nosniff")
            assert "Set-Cookie" not in answer.headers
    monkeypatch.setattr(relay, "ANSWER_LIMIT_BYTES", 20)
    async with client.get("/ui/babysitters/b/timeline") as answer:
        assert answer.status == 502


async def test_who_is_away_is_502_with_its_address(client: Client) -> None:
    await client.post("/services", json=ours("gone", port=1025, url="http://127.0.0.1:1025", metadata={"type": "vLLM"}))
    async with client.get("/ui/babysitters/gone/timeline") as answer:
        assert answer.status == 502
        assert "gone at http://127.0.0.1:1025" in (await answer.json())["error"]


async def test_too_many_calls_at_once_are_503(client: Client, upstream: Upstream) -> None:
    await introduce(client, upstream)
    parts(client).relay._running = relay.AT_ONCE
    async with client.get("/ui/babysitters/b/timeline") as answer:
        assert answer.status == 503


async def test_stop_and_retry_go_to_the_babysitter_with_its_own_token(client: Client, upstream: Upstream) -> None:
    await introduce(client, upstream)
    for verb in ("stop", "retry"):
        headers = {page.UPSTREAM_AUTHORIZATION: "Bearer theirs", "Authorization": "Bearer ours"}
        assert (await client.post(f"/ui/babysitters/b/{verb}", headers=headers)).status == 202
    assert [(method, path, sent.get("Authorization")) for method, path, sent, _ in upstream.asked] == [
        ("POST", "/stop", "Bearer theirs"),
        ("POST", "/retry", "Bearer theirs"),
    ]
    assert not any("Origin" in sent for _, _, sent, _ in upstream.asked)


async def test_a_chat_is_streamed_from_the_router(client: Client, upstream: Upstream) -> None:
    async def answer_stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/html"})
        await response.prepare(request)
        for piece in (b"data: one\n\n", b"data: [DONE]\n\n"):
            await response.write(piece)
        return response

    await introduce(client, upstream)
    upstream.answer = answer_stream
    async with client.post("/ui/routers/router-a/chat", json={"model": "m", "messages": []}) as answer:
        assert (answer.status, answer.content_type) == (200, "text/event-stream")
        assert await answer.read() == b"data: one\n\ndata: [DONE]\n\n"
    assert upstream.asked[0][1] == "/v1/chat/completions"


async def test_a_chat_that_breaks_says_so_in_the_stream(client: Client, upstream: Upstream) -> None:
    async def break_off(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"data: one\n\n")
        assert request.transport is not None
        request.transport.abort()
        return response

    await introduce(client, upstream)
    upstream.answer = break_off
    async with client.post("/ui/routers/router-a/chat", json={"model": "m"}) as answer:
        first, _, rest = (await answer.read()).partition(b"\n\n")
        assert (answer.status, first) == (200, b"data: one")
        assert rest.startswith(b'data: {"error":{"message":"router-a at ')
    assert parts(client).relay._streaming == parts(client).relay._running == 0


async def test_chats_leave_room_for_the_rest_of_the_page(client: Client, upstream: Upstream) -> None:
    await introduce(client, upstream)
    parts(client).relay._streaming = relay.STREAMS_AT_ONCE
    assert (await client.post("/ui/routers/router-a/chat", json={"model": "m"})).status == 503
    assert (await client.get("/ui/babysitters/b/timeline")).status == 200


async def test_a_refused_chat_says_why(client: Client, upstream: Upstream) -> None:
    async def refuse(_request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "no such model"}}, status=404)

    await introduce(client, upstream)
    upstream.answer = refuse
    async with client.post("/ui/routers/router-a/chat", json={"model": "m"}) as answer:
        told = await answer.json()
        assert (answer.status, told["upstream_status"]) == (502, 404)
        assert "no such model" in told["error"]


async def test_pages_of_other_origins_change_nothing_and_other_names_see_nothing(client: Client) -> None:
    await client.post("/services", json=body("a"))
    here = f"http://127.0.0.1:{client.port}"
    for origin, status in (("https://evil.example", 403), ("null", 403), (f"{here}1", 403), (here, 200)):
        async with client.post("/services/a/drain", headers={"Origin": origin}) as answer:
            assert answer.status == status, origin
    evil = {"Host": f"evil.example:{client.port}", "Origin": f"http://evil.example:{client.port}"}
    assert (await client.post("/services/a/drain", headers=evil)).status == 403
    for path in ("/ui", "/ui/session", "/ui/routers", "/ui/babysitters/a/logs"):
        assert (await client.get(path, headers={"Host": "evil.example"})).status == 403
    assert (await client.get("/services", headers={"Host": "evil.example"})).status == 200  # scripts use any name


async def test_with_tokens_the_empty_page_is_open_and_its_calls_are_not(
    start_registry: StartClient, tmp_path: Path
) -> None:
    for name in ("read", "register"):
        (tmp_path / name).write_text(name[2] * 40)
        (tmp_path / name).chmod(0o600)
    client = await start_registry(
        read_token_file=(str(tmp_path / "read"),), register_token_file=(f"b={tmp_path / 'register'}",)
    )
    assert (await client.get("/ui", headers={"Host": "ops.example"})).status == 200
    for path in ("/ui/session", "/ui/routers", "/sd/prometheus", "/ui/babysitters/b/logs"):
        assert (await client.get(path)).status == 401
    reader, writer = ({"Authorization": f"Bearer {letter * 40}"} for letter in ("a", "g"))
    shown = await (await client.get("/ui/session", headers=reader)).json()
    assert (shown["level"], shown["guarded"]) == ("read", True)
    assert (await (await client.get("/ui/session", headers=writer)).json())["prefix"] == "b"
    for verb in ("stop", "retry"):
        for headers in (reader, writer):
            assert (await client.post(f"/ui/babysitters/b/{verb}", headers=headers)).status == 403
    assert (await client.post("/services/other/drain", headers=writer)).status == 403
    assert (await client.post("/services/b/drain", headers=writer)).status == 404


@pytest.mark.parametrize("host", ["localhost", "localhost:18000", "127.0.0.1:1", "[::1]:18000", "a.localhost"])
def test_names_that_no_foreign_server_gives_are_local(host: str) -> None:
    check_local_name(host)


@pytest.mark.parametrize("host", ["evil.example", "", "localhost.evil.example", "[::1", "127.0.0.1.nip.io:18000"])
def test_other_names_are_not(host: str) -> None:
    with pytest.raises(ForeignPage):
        check_local_name(host)


def test_an_origin_is_compared_with_the_host() -> None:
    check_origin("https://Ops.example", "ops.example")
    for origin in ("null", "", "https://[", "ops.example"):
        with pytest.raises(ForeignPage):
            check_origin(origin, "ops.example")
    with pytest.raises(ForeignPage):
        check_origin("null", "")
