"""One table of calls per service: it makes the routes, and it describes them at `/openapi.json`.

A service writes each call once, with the types of `common/wire` that it takes and gives:

    ROUTES = (
        Route("GET", "/health", health, "How it is.", {200: Health}),
        Route("POST", "/things/{name}", put, "Make one.", {201: Thing}, faults=(404, 409), body=ThingBody),
        Route("GET", "/log", log, "The end of it.", {200: None}, query=(Parameter("tail", DIGITS, "Lines."),)),
    )

    add_routes(app, ROUTES)
    document = describe("inference-svc thing", ROUTES, faults=(401, 403))

A type is whatever msgspec describes (structs, `list[Thing]`, `JsonObject` for a document of any form) or a pydantic model.
None stands for an answer that is no JSON; `content_type` names what it is then. Each status of `faults`, the call's and
the service's, is answered with an `ErrorBody`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import msgspec
from aiohttp import web
from pydantic import BaseModel

from common import __version__
from common.http.errors import Handler
from common.wire.base import JsonObject
from common.wire.fault import ErrorBody

REFERENCE = "#/components/schemas/"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A query parameter; `schema` is JSON Schema."""

    name: str
    schema: Mapping[str, Any]
    text: str


@dataclass(frozen=True, slots=True)
class Route:
    """One call: what serves it, and what it takes and gives.

    Args:
        answers: The type of each status that is no fault; None for an answer that is no JSON.
        faults: Further statuses, whose body is an `ErrorBody`.
        body: The type of the request's body.
        body_required: False where an empty body will do.
        content_type: Of answers that are no JSON.
        endless: The answer may have no end; `HEAD` is not served.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    answers: Mapping[int, Any]
    faults: tuple[int, ...] = ()
    body: Any = None
    body_required: bool = True
    query: tuple[Parameter, ...] = ()
    content_type: str = "text/plain"
    endless: bool = False


def add_routes(app: web.Application, routes: Iterable[Route]) -> None:
    """Serve the table, in its order; `HEAD` where `GET` is served and ends."""
    for route in routes:
        if route.method == "GET":
            app.router.add_get(route.path, route.handler, allow_head=not route.endless)
        else:
            app.router.add_route(route.method, route.path, route.handler)


def describe(title: str, routes: Iterable[Route], *, faults: tuple[int, ...]) -> JsonObject:
    """The OpenAPI 3.1 document.

    Args:
        title: The service's name.
        routes: Its calls.
        faults: Statuses that every call may be refused with.
    """
    routes = tuple(routes)
    kinds = [kind for route in routes for kind in (route.body, *route.answers.values()) if kind is not None]
    schemas, components = _schemas([*kinds, ErrorBody])
    paths: dict[str, JsonObject] = {}
    for route in routes:
        paths.setdefault(_plain(route), {})[route.method.lower()] = _operation(route, schemas, faults)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": __version__},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"token": []}],
    }


def _plain(route: Route) -> str:
    """The path without the patterns that aiohttp takes for its parameters."""
    return re.sub(r"\{(\w+):[^{}]*\}", r"{\1}", route.path)


def _schemas(kinds: Iterable[Any]) -> tuple[dict[Any, JsonObject], JsonObject]:
    """The schema of each type, and the named ones that they refer to."""
    models = {kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)}
    structs = [kind for kind in kinds if kind not in models]
    described, components = msgspec.json.schema_components(structs, ref_template=f"{REFERENCE}{{name}}")
    schemas = {kind: dict(schema) for kind, schema in zip(structs, described, strict=True)}
    for model in models:
        schema = model.model_json_schema(ref_template=f"{REFERENCE}{{model}}")
        components |= {**schema.pop("$defs", {}), model.__name__: schema}
        schemas[model] = {"$ref": f"{REFERENCE}{model.__name__}"}
    return schemas, components


def _operation(route: Route, schemas: Mapping[Any, JsonObject], faults: tuple[int, ...]) -> JsonObject:
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"\{(\w+)\}", _plain(route))
    ]
    in_query = [
        {"name": it.name, "in": "query", "schema": dict(it.schema), "description": it.text} for it in route.query
    ]
    answers = dict(route.answers) | dict.fromkeys((*route.faults, *faults), ErrorBody)
    operation: JsonObject = {
        "summary": route.summary,
        "parameters": in_path + in_query,
        "responses": {str(status): _response(status, kind, schemas, route) for status, kind in answers.items()},
    }
    if route.body is not None:
        content = {"application/json": {"schema": schemas[route.body]}}
        operation["requestBody"] = {"required": route.body_required, "content": content}
    return operation


def _response(status: int, kind: Any, schemas: Mapping[Any, JsonObject], route: Route) -> JsonObject:
    text = {route.content_type: {"schema": {"type": "string"}}}
    content = text if kind is None else {"application/json": {"schema": schemas[kind]}}
    return {"description": HTTPStatus(status).phrase, "content": content}
