"""The description that a table of calls gives of itself."""

import json
import re
from http import HTTPStatus
from typing import Any

from aiohttp import web

from common.http.openapi import Parameter, Route, add_routes, describe
from common.wire.base import JsonObject
from common.wire.create import CreateRequest
from common.wire.record import ServiceRecord
from common.wire.replica import Created, ReplicaList


async def handler(request: web.Request) -> web.Response:
    del request
    return web.Response()


ROUTES = (
    Route("GET", "/things/{name}", handler, "One.", {200: ReplicaList}, (404,)),
    Route(
        "GET", "/many", handler, "All.", {200: list[ServiceRecord]}, query=(Parameter("n", {"type": "integer"}, "?"),)
    ),
    Route("POST", "/things", handler, "Make.", {201: Created}, (409,), body=CreateRequest),
    Route("GET", "/events", handler, "News.", {200: None}, content_type="text/event-stream", endless=True),
    Route("GET", "/any", handler, "Whatever.", {200: JsonObject}),
)


def described() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(json.dumps(describe("a thing", ROUTES, faults=(401,))))
    return document


def test_every_reference_names_a_schema_structs_and_models_alike() -> None:
    document = described()
    schemas = document["components"]["schemas"]
    named = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document)))
    assert named <= schemas.keys()
    assert {
        "ReplicaList",
        "ReplicaInfo",
        "Stage",
        "ServiceRecord",
        "Created",
        "CreateRequest",
        "Placement",
        "ErrorBody",
    } <= named
    assert schemas["CreateRequest"]["required"] == ["server_mode", "model_name"]


def test_answers_faults_parameters_and_bodies_are_told() -> None:
    paths = described()["paths"]
    one = paths["/things/{name}"]["get"]
    assert [(it["name"], it["in"]) for it in one["parameters"]] == [("name", "path")]
    fault = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
    assert {status: it["content"] for status, it in one["responses"].items()} == {
        "200": {"application/json": {"schema": {"$ref": "#/components/schemas/ReplicaList"}}},
        "404": fault,
        "401": fault,
    }
    assert one["responses"]["404"]["description"] == HTTPStatus(404).phrase
    items = paths["/many"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert items == {"type": "array", "items": {"$ref": "#/components/schemas/ServiceRecord"}}
    body = {"$ref": "#/components/schemas/CreateRequest"}
    assert paths["/things"]["post"]["requestBody"] == {
        "required": True,
        "content": {"application/json": {"schema": body}},
    }
    assert list(paths["/events"]["get"]["responses"]["200"]["content"]) == ["text/event-stream"]


def test_the_table_is_served_and_what_has_no_end_has_no_head() -> None:
    app = web.Application()
    add_routes(app, ROUTES)
    served = {(route.method, route.resource.canonical) for route in app.router.routes() if route.resource}
    assert {("HEAD", "/many"), ("POST", "/things"), ("GET", "/events")} <= served
    assert ("HEAD", "/events") not in served
