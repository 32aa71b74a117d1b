"""Pages in a browser: preflights, answers, errors and streams carry what the standard asks for, and only for listed origins."""

import asyncio
import hashlib

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware

from router.keys import Key
from router.settings import RouterSettings
from tests.router.conftest import MakePlane
from tests.router.fakes import DONE, SSE_HEAD, Call, Plane, Reply, event, plain, request

PAGE = "https://app.example"
LISTED = {"cors_origins": frozenset({PAGE.encode(), b"http://localhost:3000"})}
CHAT = b'{"model":"m","messages":[]}'
STREAM = b'{"model":"m","stream":true,"messages":[]}'
ALLOW = "access-control-allow-origin"


def question(origin: str = PAGE, path: str = "/v1/chat/completions", more: str = "") -> bytes:
    asked = (
        f"access-control-request-method: POST\r\naccess-control-request-headers: authorization,content-type\r\n{more}"
    )
    return f"OPTIONS {path} HTTP/1.1\r\nhost: r\r\norigin: {origin}\r\n{asked}\r\n".encode()


def from_page(origin: str = PAGE, more: str = "") -> str:
    return f"origin: {origin}\r\n{more}"


def fields(reply: Reply) -> list[tuple[str, str]]:
    lines = (line.split(": ", 1) for line in reply.head.decode().split("\r\n")[1:])
    return sorted((name, value) for name, value in lines if name.startswith("access-control") or name == "vary")


async def with_its_own_cors(call: Call) -> None:
    if b'"stream":true' in call.body:
        await call.send(SSE_HEAD[:-2] + b"Access-Control-Allow-Origin: *\r\n\r\n" + event("a") + DONE)
    else:
        await call.send(plain(b'{"ok":1}', extra=b"Access-Control-Allow-Origin: *\r\n"))


@pytest.mark.parametrize("origins", [(PAGE, "http://localhost:3000"), ("*",)])
async def test_answers_and_preflights_say_what_starlettes_middleware_says_W10(
    planes: MakePlane, origins: tuple[str, ...]
) -> None:
    plane = await planes(cors_origins=frozenset(origin.encode() for origin in origins))
    plane.route(await plane.add(with_its_own_cors))
    middleware = CORSMiddleware(
        Starlette(),
        allow_origins=origins,
        allow_methods=["*"],
        allow_headers=["*"],
        allow_credentials=origins != ("*",),
    )
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(middleware), base_url="http://r") as reference:
        for origin in (PAGE, "https://evil.example"):
            theirs = await reference.options("/", headers={"origin": origin, **asked})
            ours = await plane.send(question(origin))
            assert (ours.status == 204) == (theirs.status_code == 200)
            names = (ALLOW, "access-control-allow-credentials", "access-control-allow-headers")
            if ours.status == 204:
                assert [ours.header(name) for name in names] == [theirs.headers.get(name) for name in names]
                assert "POST" in (ours.header("access-control-allow-methods") or "")
            answer = await plane.post(CHAT, headers=from_page(origin))
            theirs = await reference.post("/", headers={"origin": origin})
            if origin == PAGE or origins == ("*",):
                assert [answer.header(name) for name in names[:2]] == [theirs.headers.get(name) for name in names[:2]]
            else:
                assert answer.header(ALLOW) is None


async def test_preflight_needs_no_key_and_keeps_the_connection_W10(planes: MakePlane) -> None:
    plane = await planes(**LISTED)
    replica = await plane.add(with_its_own_cors)
    plane.route(replica)
    plane.engine.set_keys((Key(name="team", sha256=hashlib.sha256(b"k").hexdigest()),))
    key = "authorization: Bearer k\r\n"
    raw = question() + request(CHAT, headers=from_page(more=key))
    reply = await plane.send(raw, until_close=True)
    first, second = reply.raw.split(b"\r\n\r\n", 1)
    assert first.startswith(b"HTTP/1.1 204 No Content\r\n")
    assert b"content-length" not in first
    assert second.startswith(b"HTTP/1.1 200")
    assert len(replica.calls) == 1


async def test_errors_of_every_kind_can_be_read_by_the_page_W10(planes: MakePlane) -> None:
    plane = await planes(max_body_bytes=1024, **LISTED)
    for body, path, status in (
        (CHAT, "/v1/chat/completions", 503),
        (b"no", "/v1/chat/completions", 400),
        (CHAT, "/nothing/like/it", 404),
        (b"x" * 2000, "/v1/chat/completions", 413),
    ):
        reply = await plane.post(body, path, from_page())
        assert (reply.status, reply.header(ALLOW)) == (status, PAGE)
        assert "retry-after" in (reply.header("access-control-expose-headers") or "")
    plane.engine.set_keys((Key(name="team", sha256=hashlib.sha256(b"k").hexdigest()),))
    reply = await plane.post(CHAT, headers=from_page())
    assert (reply.status, reply.header(ALLOW)) == (401, PAGE)


async def test_streams_carry_the_origin_once_also_when_begun_early_W10(planes: MakePlane) -> None:
    plane = await planes(sse_keepalive_s=0.1, **LISTED)
    plane.route(await plane.add(with_its_own_cors))
    expected = [
        ("access-control-allow-credentials", "true"),
        (ALLOW, PAGE),
        ("access-control-expose-headers", "retry-after, x-attempts, x-request-id, x-served-by, x-should-retry"),
        ("vary", "Origin"),
    ]
    assert fields(await plane.post(STREAM, headers=from_page())) == expected
    assert fields(await plane.post(CHAT, headers=from_page())) == expected

    async def slow(call: Call) -> None:
        await asyncio.sleep(1)
        await with_its_own_cors(call)

    plane.route(await plane.add(slow))
    early = await plane.post(STREAM, headers=from_page())
    assert b": keep-alive" in early.body
    assert fields(early) == expected


async def test_without_the_setting_no_page_is_answered_W10(plane: Plane) -> None:
    plane.route(await plane.add(with_its_own_cors))
    assert (await plane.send(question())).status == 405
    assert fields(await plane.post(CHAT, headers=from_page())) == []


@pytest.mark.parametrize("path", ["/admin/explain", "/api/v1/replicas"])
async def test_what_changes_the_fleet_answers_no_page_W10(planes: MakePlane, path: str) -> None:
    plane = await planes(cors_origins=frozenset({b"*"}))
    reply = await plane.send(question(path=path))
    assert (reply.status == 204, reply.header(ALLOW)) == (False, None)
    assert (await plane.post(CHAT, path, from_page())).header(ALLOW) is None


@pytest.mark.parametrize(
    "wrong", [("https://a/",), ("a.example",), ("https://A.example",), ("*", "https://a"), ("null",)]
)
def test_origin_that_no_browser_sends_is_refused_W10(wrong: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="cors_origins"):
        RouterSettings(cors_origins=wrong)
    good = ("https://app.example", "http://localhost:3000", "tauri://localhost", "http://[::1]:80")
    assert RouterSettings(cors_origins=good).cors_origins == good
