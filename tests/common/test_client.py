import ast
import asyncio
import socket
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from pytest_aiohttp.plugin import AiohttpServer

from common import __version__
from common.http.client import AnswerTooLarge, make_session, no_connection, read_bounded
from common.http.resolver import Resolver

PROJECT = Path(__file__).resolve().parents[2]


async def test_the_session_names_itself_keeps_no_cookies_and_ignores_proxies(aiohttp_server: AiohttpServer) -> None:
    seen: list[web.Request] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request)
        response = web.Response()
        response.set_cookie("user", "one")
        return response

    app = web.Application()
    app.router.add_get("/", answer)
    server = await aiohttp_server(app)
    async with make_session(timeout_s=2) as session:
        for _ in range(2):
            async with session.get(server.make_url("/")) as reply:
                assert reply.status == 200
        assert session.trust_env is False
    assert all(request.headers["User-Agent"] == f"inference-svc/{__version__}" for request in seen)
    assert all("Cookie" not in request.headers for request in seen)


async def test_the_session_has_the_timeouts_asked_for() -> None:
    async with make_session(timeout_s=7, connect_timeout_s=1) as session:
        assert (session.timeout.total, session.timeout.sock_connect) == (7, 1)


async def test_body_that_comes_in_many_packets_is_read_whole_and_bounded_W14(aiohttp_server: AiohttpServer) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(5):
            await response.write(b"12345")
            await asyncio.sleep(0.01)
        return response

    app = web.Application()
    app.router.add_get("/", answer)
    server = await aiohttp_server(app)
    async with make_session(timeout_s=2) as session:
        async with session.get(server.make_url("/")) as reply:
            assert await read_bounded(reply, 25) == b"12345" * 5
        async with session.get(server.make_url("/")) as reply:
            with pytest.raises(AnswerTooLarge, match="more than 24 bytes"):
                await read_bounded(reply, 24)


@pytest.mark.parametrize("service", ["registry", "router", "babysitter", "common", "ctl"])
def test_no_service_takes_one_read_for_a_whole_body_W14(service: str) -> None:
    readers = [
        f"{path}:{node.lineno}"
        for path in sorted((PROJECT / service).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Attribute)
        and node.attr == "read"
        and isinstance(node.value, ast.Attribute)
        and node.value.attr == "content"
    ]
    assert readers == []


async def test_a_host_without_an_address_is_told_in_the_resolvers_words_W33(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nobody(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(Resolver, "resolve", nobody)
    async with make_session(timeout_s=5) as session:
        with pytest.raises(aiohttp.ClientConnectorError) as told:
            await session.get("http://nobody.invalid:1")
    assert no_connection(told.value) == "Name or service not known"
