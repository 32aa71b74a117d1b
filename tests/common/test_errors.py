import json
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, make_mocked_request
from pytest_aiohttp.plugin import AiohttpClient

from common.http.errors import ApiError, detailed, json_errors, read_json_object

Client = TestClient[web.Request, web.Application]


@pytest.fixture
async def client(aiohttp_client: AiohttpClient) -> Client:
    async def echo(request: web.Request) -> web.Response:
        return web.json_response(await read_json_object(request))

    async def echo_or_nothing(request: web.Request) -> web.Response:
        return web.json_response(await read_json_object(request, empty=True))

    async def refuse(_request: web.Request) -> web.Response:
        raise ApiError(429, "slow down", headers={"Retry-After": "3"}, field="port")

    async def defect(_request: web.Request) -> web.Response:
        raise KeyError("secret detail")

    async def move(_request: web.Request) -> web.Response:
        raise web.HTTPFound("/elsewhere")

    app = web.Application(middlewares=[json_errors], client_max_size=8192)
    app.router.add_post("/echo", echo)
    app.router.add_post("/maybe", echo_or_nothing)
    app.router.add_get("/refuse", refuse)
    app.router.add_get("/defect", defect)
    app.router.add_get("/move", move)
    return await aiohttp_client(app)


async def test_an_api_error_is_json_with_its_status_headers_and_fields(client: Client) -> None:
    answer = await client.get("/refuse")
    assert answer.status == 429
    assert answer.headers["Retry-After"] == "3"
    assert await answer.json() == {"error": "slow down", "field": "port"}


async def test_unknown_paths_and_methods_are_json(client: Client) -> None:
    answer = await client.get("/nowhere")
    assert (answer.status, await answer.json()) == (404, {"error": "Not Found"})
    answer = await client.get("/echo")
    assert (answer.status, await answer.json()) == (405, {"error": "Method Not Allowed"})
    assert answer.headers["Allow"] == "POST"


async def test_a_defect_is_500_and_tells_nothing(client: Client) -> None:
    answer = await client.get("/defect")
    assert (answer.status, await answer.json()) == (500, {"error": "internal error"})


async def test_a_redirect_stays_one(client: Client) -> None:
    answer = await client.get("/move", allow_redirects=False)
    assert (answer.status, answer.headers["Location"]) == (302, "/elsewhere")


@pytest.mark.parametrize("content_type", ["application/json", "application/x-www-form-urlencoded", "text/plain"])
async def test_a_json_object_is_read_whatever_its_content_type(client: Client, content_type: str) -> None:
    answer = await client.post("/echo", data='{"a": "ü"}'.encode(), headers={"Content-Type": content_type})
    assert await answer.json() == {"a": "ü"}


async def test_a_whole_surrogate_pair_is_one_character(client: Client) -> None:
    assert await (await client.post("/echo", data=rb'{"a": "\uD83D\ude00"}')).json() == {"a": "\U0001f600"}


async def test_no_body_counts_as_an_empty_object_only_where_that_is_allowed(client: Client) -> None:
    assert await (await client.post("/maybe")).json() == {}
    answer = await client.post("/echo")
    assert answer.status == 400
    assert (await answer.json())["error"].startswith("invalid JSON")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        pytest.param(b"{", "invalid JSON: ", id="half"),
        pytest.param(b"\xff", "invalid JSON: ", id="M09"),
        pytest.param(b"\xef\xbb\xbf{}", "invalid JSON: ", id="M07"),
        pytest.param(b'{"name":"a","name":"b"}', "invalid JSON: a key appears twice", id="M10"),
        pytest.param(b'{"n": NaN}', "invalid JSON: NaN is no JSON number", id="NaN"),
        pytest.param(b'{"n": 1e400}', "invalid JSON: ", id="M12"),
        pytest.param(b'{"n": ' + b"1" * 5000 + b"}", "invalid JSON: ", id="M13"),
        pytest.param(rb'{"n": "\ud800"}', "invalid JSON: ", id="half a surrogate pair"),
        pytest.param(b"[" * 1000, "invalid JSON: ", id="deep"),
        pytest.param(b"[]", "the body must be a JSON object, not list", id="M03"),
        pytest.param(b'"x"', "the body must be a JSON object, not str", id="M04"),
    ],
)
async def test_what_is_no_json_object_is_400(client: Client, raw: bytes, message: str) -> None:
    answer = await client.post("/echo", data=raw)
    assert answer.status == 400
    assert (await answer.json())["error"].startswith(message)


async def test_a_body_over_the_limit_is_413_M15(client: Client) -> None:
    answer = await client.post("/echo", data=b" " * 8193)
    assert answer.status == 413
    assert "error" in await answer.json()


def test_response_of_an_api_error_without_fields() -> None:
    made: Any = ApiError(404, "no such service").response()
    assert json.loads(made.text) == {"error": "no such service"}


async def test_detailed_errors_carry_their_text_twice_and_keep_a_detail_of_their_own() -> None:
    async def refuse(_request: web.Request) -> web.Response:
        raise ApiError(422, "no", field="x")

    async def explain(_request: web.Request) -> web.Response:
        raise ApiError(422, "no", detail="because")

    for handler, told in ((refuse, "no"), (explain, "because")):
        with pytest.raises(ApiError) as caught:
            await detailed(handler)(make_mocked_request("GET", "/"))
        assert caught.value.fields["detail"] == told
