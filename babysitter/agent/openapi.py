"""The description of the API at `/openapi.json`, made from the create request's model and a table of the calls."""

from typing import Any

from babysitter.cbclient.request import CreateRequest
from common import __version__
from common.discovery.replica import FILTERS

_STRING: dict[str, Any] = {"type": "string"}
_TEXT: dict[str, Any] = {"type": ["string", "null"]}
_INTEGER: dict[str, Any] = {"type": "integer"}
_TABLE: dict[str, Any] = {"type": "object"}
_STATUS: dict[str, Any] = {
    "enum": "pending creating starting waiting_for_ready ready unhealthy stopping stopped failed".split()  # noqa: SIM905 - one word per status
}
_LINES: dict[str, Any] = {"type": "string", "pattern": "^[0-9]{1,6}$"}


def _object(**members: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": members, "required": list(members)}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


SCHEMAS: dict[str, Any] = {
    "error": {"type": "object", "properties": {"error": _STRING, "field": _STRING}, "required": ["error"]},
    "created": _object(
        replica_id=_STRING, status=_STATUS, message=_STRING, base_url={"type": "null"}, request_id=_STRING
    ),  # and `warnings`, a list of sentences, where a request has members that nobody reads
    "answer": _object(replica_id=_STRING, status=_STRING, message=_STRING),
    "info": _object(
        replica_id=_STRING,
        server_mode=_TEXT,
        model_name=_TEXT,
        status=_STATUS,
        display_status={"enum": ["Pending", "Active", "Failed"]},
        endpoint=_STRING,
        base_url=_TEXT,
        host=_TEXT,
        port=_INTEGER,
        multibox=_TEXT,
        namespace=_TEXT,
        workdir=_STRING,
        venv_path=_TEXT,
        compile_wsjob=_list(_STRING),
        execute_wsjob=_list(_STRING),
        created_at=_STRING,
        updated_at=_STRING,
        ready_at=_TEXT,
        error_message=_TEXT,
        request_id=_STRING,
        diagnostics={},
        metadata=_TABLE,
    ),
    "replica": _object(replica_id=_STRING, status=_STATUS, info=_ref("info")),
    "replicas": _object(total=_INTEGER, replicas=_list(_ref("info"))),
    "replica_health": _object(replica_id=_STRING, healthy={"type": "boolean"}, base_url=_TEXT, message=_STRING),
    "timeline": _object(
        replica_id=_STRING, status=_STATUS, transitions=_list(_TABLE), stages=_list(_TABLE), jobs=_TABLE
    ),
    "health": _object(
        status=_STRING,
        version=_STRING,
        node=_STRING,
        timestamp=_STRING,
        replicas_total=_INTEGER,
        replicas_ready=_INTEGER,
    ),
    "StopBody": {
        "type": "object",
        "properties": {"force": {"type": "boolean"}},
        "additionalProperties": False,
    },
    "document": _TABLE,
}
ONE = "/api/v1/replicas/{id}"
CALLS: tuple[tuple[str, str, str, dict[int, str | None], str | None, tuple[tuple[str, dict[str, Any]], ...]], ...] = (
    ("get", "/health", "How the agent is.", {200: "health"}, None, ()),
    ("get", "/api/v1/health", "How the agent is.", {200: "health"}, None, ()),
    (
        "post",
        "/api/v1/replicas",
        "Make a replica.",
        {201: "created", 200: "created", 409: "error", 413: "error", 503: "error", 507: "error"},
        "CreateRequest",
        (),
    ),
    ("get", "/api/v1/replicas", "Every replica.", {200: "replicas"}, None, tuple((name, _STRING) for name in FILTERS)),
    ("get", ONE, "One replica.", {200: "replica", 404: "error"}, None, ()),
    ("delete", ONE, "Stop it and remove it.", {200: "answer", 404: "error"}, None, ()),
    ("post", f"{ONE}/stop", "Stop it.", {200: "answer", 404: "error", 413: "error"}, "StopBody", ()),
    ("post", f"{ONE}/health", "Ask its server now.", {200: "replica_health", 404: "error"}, None, ()),
    ("post", f"{ONE}/retry", "Begin a failed one again.", {202: "answer", 404: "error", 409: "error"}, None, ()),
    ("get", f"{ONE}/timeline", "What it went through.", {200: "timeline", 404: "error"}, None, ()),
    (
        "get",
        f"{ONE}/logs",
        "The end of a log.",
        {200: None, 404: "error"},
        None,
        (("stream", {"enum": ["stdout", "stderr", "worker", "deploy"]}), ("tail", _LINES), ("follow", _STRING)),
    ),
    (
        "get",
        f"{ONE}/events",
        "What happens to it, as an event stream.",
        {200: None, 404: "error"},
        None,
        (("until", {"const": "ready"}), ("logs", _STRING), ("tail", _LINES)),
    ),
    ("get", "/metrics", "For Prometheus.", {200: None}, None, ()),
    ("get", "/openapi.json", "This description.", {200: "document"}, None, ()),
)


def describe() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    request = CreateRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas = {**SCHEMAS, **request.pop("$defs", {}), "CreateRequest": request}
    paths: dict[str, Any] = {}
    for method, path, summary, answers, body, query in CALLS:
        refusals: dict[int, str | None] = {400: "error", 401: "error", 403: "error", 415: "error", 422: "error"}
        parameters = [{"name": "id", "in": "path", "required": True, "schema": {**_STRING, "minLength": 1}}]
        operation: dict[str, Any] = {
            "summary": summary,
            "parameters": (parameters if "{id}" in path else [])
            + [{"name": name, "in": "query", "schema": schema} for name, schema in query],
            "responses": {str(code): _response(schema, path) for code, schema in {**answers, **refusals}.items()},
        }
        if body is not None:
            content = {"application/json": {"schema": _ref(body)}}
            operation["requestBody"] = {"required": body == "CreateRequest", "content": content}
        paths.setdefault(path, {})[method] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "inference-svc node agent", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"token": []}],
    }


def _response(schema: str | None, path: str) -> dict[str, Any]:
    if schema is None:
        kind = "text/event-stream" if path.endswith("/events") else "text/plain"
        return {"description": "A stream.", "content": {kind: {"schema": _STRING}}}
    return {"description": schema, "content": {"application/json": {"schema": _ref(schema)}}}
