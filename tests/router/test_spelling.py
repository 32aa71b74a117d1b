"""Paths as people type them, and what an unknown one is told."""

import json

import openai
import pytest

from router.proxy.spelling import known_path, nearest
from router.settings import RouterSettings
from tests.router.conftest import MakePlane
from tests.router.fakes import Call, plain, request

CHAT = b"/v1/chat/completions"
PREFIXES = (b"/openai", b"/api")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (CHAT, CHAT),
        (b"//v1/chat/completions", CHAT),
        (b"/v1//chat/completions", CHAT),
        (b"/v1/chat///completions", CHAT),
        (b"/v1/chat/completions/", CHAT),
        (b"/openai/v1/chat/completions", CHAT),
        (b"/openai//v1/chat/completions", CHAT),
        (b"/openai/chat/completions", b"/chat/completions"),
        (b"/api/v1/chat/completions", CHAT),
        (b"/api/v1/models", b"/v1/models"),
        (b"/api/v1/models/org/name", b"/v1/models/org/name"),
        (b"/v1/models/", b"/v1/models"),
        (b"//health", b"/health"),
        (b"/openai/props", b"/props"),
        (b"//props", b"/props"),
    ],
)
def test_path_as_people_type_it_is_the_known_one_W13(written: bytes, meant: bytes) -> None:
    assert known_path(written, PREFIXES, {b"/props"}) == meant


@pytest.mark.parametrize(
    "path",
    [
        b"/",
        b"/api/v1/replicas",
        b"/api/v1/health",
        b"/openai/admin/explain",
        b"//admin/explain",
        b"//evil/v1/chat/completions",
        b"/openai/openai/v1/chat/completions",
        b"/openaix/v1/chat/completions",
        b"/v1/chat/../chat/completions",
        b"/v1/%2fchat/completions",
        b"/V1/chat/completions",
        b"/props",
    ],
)
def test_path_that_leads_to_no_known_one_stays_as_it_came_W13(path: bytes) -> None:
    assert known_path(path, PREFIXES) == path


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"/openai/v1/chat/completions", "/v1/chat/completions"),
        (b"/v1/v1/messages", "/v1/messages"),
        (b"/v1/chat/completion", "/v1/chat/completions"),
        (b"/v1/embedding/", "/v1/embeddings"),
        (b"/" + b"x" * 8000, None),
    ],
)
def test_unknown_path_has_a_nearest_one_if_anything_is_near_W13(path: bytes, expected: str | None) -> None:
    assert nearest(path) == expected


async def test_prefix_is_taken_off_by_setting_and_named_without_W13(planes: MakePlane) -> None:
    async def echo(call: Call) -> None:
        await call.send(plain(json.dumps({"id": call.line.decode(), "object": "x", "data": []}).encode()))

    for prefixes, status in (((), 404), (PREFIXES, 200)):
        plane = await planes(strip_prefixes=prefixes)
        plane.route(await plane.add(echo), api_prefix="/v1")
        for path in ("/openai/v1/embeddings", "/api/v1/embeddings", "/openai//v1/embeddings?api-version=1"):
            reply = await plane.send(request(b'{"model":"m"}', path), until_close=True)
            assert reply.status == status
            if status == 404:
                assert json.loads(reply.body)["error"]["message"].endswith("; the nearest is /v1/embeddings")
            else:
                query = path.partition("?")[2]
                assert json.loads(reply.body)["id"] == f"POST /v1/embeddings{query and '?' + query} HTTP/1.1"
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{plane.port}//v1/", api_key="k") as client:
            assert (await client.chat.completions.create(model="m", messages=[])).id.startswith("POST /v1/chat/")


@pytest.mark.parametrize("wrong", ["openai", "/openai/", "/", "/a b", "//a", ""])
def test_prefix_that_is_none_is_refused_W13(wrong: str) -> None:
    with pytest.raises(ValueError, match="strip_prefixes"):
        RouterSettings(strip_prefixes=(wrong,))
    assert RouterSettings(strip_prefixes=("/openai", "/api/v2")).strip_prefixes == ("/openai", "/api/v2")
