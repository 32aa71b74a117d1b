"""The description of the API at `/openapi.json`, made from the table of routes and the models of the border."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from common import __version__
from common.http.errors import Handler
from registry.http.bodies import Body


@dataclass(frozen=True, slots=True)
class Parameter:
    """A query parameter; `schema` is JSON Schema."""

    name: str
    schema: Mapping[str, Any]
    text: str


@dataclass(frozen=True, slots=True)
class Route:
    """One call: what serves it, and what it takes and gives.

    `answers` names the schema of each status; `error` stands for the form of all refusals, None for no JSON.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    answers: Mapping[int, str | None]
    body: type[Body] | None = None
    body_required: bool = True
    query: tuple[Parameter, ...] = ()
    content_type: str = "application/json"


def _object(required: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


_STRING: dict[str, Any] = {"type": "string"}
_INTEGER: dict[str, Any] = {"type": "integer"}
_NUMBER: dict[str, Any] = {"type": "number"}
_BOOLEAN: dict[str, Any] = {"type": "boolean"}
_TABLE: dict[str, Any] = {"type": "object"}
_COUNTS: dict[str, Any] = {"type": "object", "additionalProperties": _INTEGER}

SCHEMAS: dict[str, Any] = {
    "error": _object({"error": _STRING}, {"field": _STRING, "details": {"type": "array", "items": _TABLE}}),
    "service": _object(
        {
            "name": _STRING,
            "host": _STRING,
            "port": _INTEGER,
            "hostname": _STRING,
            "url": _STRING,
            "status": _STRING,
            "timestamp": {},
            "last_heartbeat": _NUMBER,
            "health_status": {"enum": ["unknown", "healthy", "unhealthy"]},
            "metadata": _TABLE,
            "is_healthy": _BOOLEAN,
            "incarnation": _INTEGER,
            "generation": _INTEGER,
            "ttl_s": _NUMBER,
            "draining": _BOOLEAN,
            "stale": _BOOLEAN,
            "suspect": _BOOLEAN,
        },
        {"weight": _NUMBER, "instance_id": _STRING},
    ),
    "services": _object(
        {"services": {"type": "array", "items": _ref("service")}, "total": _INTEGER, "timestamp": _STRING}
    ),
    "service_answer": _object({"message": _STRING, "service": _ref("service")}),
    "message": _object({"message": _STRING}, {"timestamp": _STRING}),
    "service_health": _object(
        {
            "service": _STRING,
            "health_status": _STRING,
            "is_healthy": _BOOLEAN,
            "last_heartbeat": _NUMBER,
            "timestamp": _STRING,
        }
    ),
    "health": _object(
        {
            "status": _STRING,
            "registry": _STRING,
            "registered_services": _INTEGER,
            "healthy_services": _INTEGER,
            "timestamp": _STRING,
            "version": _STRING,
            "replicas_total": _INTEGER,
            "replicas_ready": _INTEGER,
        }
    ),
    "stats": _object(
        {
            "total_services": _INTEGER,
            "healthy_services": _INTEGER,
            "unhealthy_services": _INTEGER,
            "status_distribution": _COUNTS,
            "host_distribution": _COUNTS,
            "uptime": _NUMBER,
            "timestamp": _STRING,
        }
    ),
    "replica_info": _object({"replica_id": _STRING, "status": _STRING, "metadata": _TABLE}),
    "replicas": _object({"total": _INTEGER, "replicas": {"type": "array", "items": _ref("replica_info")}}),
    "replica": _object({"replica_id": _STRING, "status": _STRING, "info": _ref("replica_info")}),
    "routers": _object({"routers": {"type": "array", "items": _object({"name": _STRING, "url": _STRING})}}),
    "session": _object({"level": _STRING, "prefix": _STRING, "guarded": _BOOLEAN, "version": _STRING}),
    "created": _object({"replica_id": _STRING, "status": _STRING, "message": _STRING, "request_id": _STRING}),
    "replica_message": _object({"replica_id": _STRING, "status": _STRING, "message": _STRING}),
    "replica_health": _object({"replica_id": _STRING, "healthy": _BOOLEAN, "message": _STRING}),
    "targets": {
        "type": "array",
        "items": _object(
            {
                "targets": {"type": "array", "items": _STRING},
                "labels": {"type": "object", "additionalProperties": _STRING},
            }
        ),
    },
    "document": _TABLE,
    "replicas_health": _object(
        {"status": _STRING, "version": _STRING, "replicas_total": _INTEGER, "replicas_ready": _INTEGER}
    ),
}


def describe(routes: Iterable[Route]) -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    schemas = dict(SCHEMAS)
    paths: dict[str, Any] = {}
    for route in routes:
        if route.body is not None:
            schemas[route.body.__name__] = route.body.model_json_schema()
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "inference-svc registry", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"token": []}],
    }


def _operation(route: Route) -> dict[str, Any]:
    in_path: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"\{(\w+)\}", route.path)
    ]
    in_query = [
        {"name": it.name, "in": "query", "schema": dict(it.schema), "description": it.text} for it in route.query
    ]
    refusals: dict[int, str | None] = {401: "error", 403: "error", 429: "error", 503: "error"}
    operation: dict[str, Any] = {
        "summary": route.summary,
        "parameters": in_path + in_query,
        "responses": {
            str(status): _response(status, schema, route.content_type)
            for status, schema in {**route.answers, **refusals}.items()
        },
    }
    if route.body is not None:
        content = {"application/json": {"schema": _ref(route.body.__name__)}}
        operation["requestBody"] = {"required": route.body_required, "content": content}
    return operation


def _response(status: int, schema: str | None, content_type: str) -> dict[str, Any]:
    described = {"description": web.Response(status=status).reason or str(status)}
    if schema is None:
        return {**described, "content": {content_type: {"schema": {"type": "string"}}}}
    return {**described, "content": {"application/json": {"schema": _ref(schema)}}}
