"""The table of the agent's calls: it makes the routes, and it describes them. Who may call them."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus

from aiohttp import web

from babysitter.agent import api
from babysitter.agent.api import AGENT, AgentContext
from babysitter.agent.requests import BODY_LIMIT_BYTES
from babysitter.agent.streams import STREAMS
from common.discovery.replica import FILTERS
from common.http import openapi
from common.http.access import bearer_matches
from common.http.answers import json_answer
from common.http.audit import QUERY, READING, audited
from common.http.errors import ApiError, detailed, json_errors
from common.http.openapi import Parameter, Route
from common.wire.audit import AuditList
from common.wire.base import JsonObject
from common.wire.create import CreateBody
from common.wire.deployment import TemplateList
from common.wire.group import GroupMembers
from common.wire.replica import (
    AgentHealth,
    Created,
    OneReplica,
    ReplicaHealth,
    ReplicaList,
    ReplicaMessage,
    StopRequest,
    Timeline,
)

OPEN = frozenset({"/health", "/api/v1/health", "/metrics"})
NO_CHANGE = {("POST", "/api/v1/replicas/{id}/health"): "a question to the server"}
"""Calls that are not in the audit, though their method is no reading one, and why."""

_TEXT = {"type": "string"}
_LINES = Parameter("tail", {"type": "string", "pattern": "^[0-9]{1,6}$"}, "Lines of what was written before.")
_STREAM = Parameter("stream", {"enum": list(STREAMS)}, "Which of the replica's logs.")
_REPLICAS = "/api/v1/replicas"
_ONE = f"{_REPLICAS}/{{id}}"
_CREATED = {201: Created, 200: Created}


async def description(request: web.Request) -> web.Response:
    """`GET /openapi.json`."""
    del request
    return json_answer(describe())


ROUTES = (
    Route("GET", "/health", api.health, "How the agent is.", {200: AgentHealth}),
    Route("GET", "/api/v1/health", api.health, "How the agent is.", {200: AgentHealth}),
    Route("GET", "/metrics", api.metrics, "For Prometheus.", {200: None}),
    Route("GET", "/openapi.json", description, "This description.", {200: JsonObject}),
    Route(
        "POST", _REPLICAS, api.create, "Make a replica.", _CREATED, faults=(408, 409, 413, 503, 507), body=CreateBody
    ),
    Route(
        "GET",
        _REPLICAS,
        api.list_replicas,
        "Every replica.",
        {200: ReplicaList},
        query=tuple(Parameter(name, _TEXT, f"Only this {name}.") for name in FILTERS),
    ),
    Route(
        "GET",
        "/api/v1/audit",
        api.audit,
        "Who changed what on this node.",
        {200: AuditList},
        faults=(400,),
        query=QUERY,
    ),
    Route("GET", "/api/v1/templates", api.templates, "What replicas can be made of here.", {200: TemplateList}),
    Route("GET", _ONE, api.get_replica, "One replica.", {200: OneReplica}, faults=(404,)),
    Route("DELETE", _ONE, api.delete, "Stop it and remove it.", {200: ReplicaMessage}, faults=(404,)),
    Route(
        "POST",
        f"{_ONE}/stop",
        api.stop,
        "Stop it.",
        {200: ReplicaMessage},
        faults=(404, 413),
        body=StopRequest,
        body_required=False,
    ),
    Route(
        "POST",
        f"{_ONE}/members",
        api.members,
        "Begin a member of a group, which is complete.",
        {200: ReplicaMessage},
        faults=(404, 409, 413, 507),
        body=GroupMembers,
    ),
    Route("POST", f"{_ONE}/health", api.replica_health, "Ask its server now.", {200: ReplicaHealth}, faults=(404,)),
    Route("POST", f"{_ONE}/retry", api.retry, "Begin a failed one again.", {202: ReplicaMessage}, faults=(404, 409)),
    Route(
        "POST",
        f"{_ONE}/sleep",
        api.rouse,
        "No new requests, then, once it has none, its engine sleeps.",
        {202: ReplicaMessage},
        faults=(404, 409, 503),
    ),
    Route("POST", f"{_ONE}/wake", api.rouse, "Wake one that sleeps.", {202: ReplicaMessage}, faults=(404, 409, 503)),
    Route(
        "GET",
        f"{_ONE}/events",
        api.events,
        "What happens to it, as an event stream.",
        {200: None},
        faults=(404,),
        query=(
            Parameter("until", {"const": "ready"}, "End when it is ready or failed, too."),
            Parameter("logs", _TEXT, "Logs whose lines come as events, separated by commas."),
            _LINES,
        ),
        content_type="text/event-stream",
        endless=True,
    ),
    Route("GET", f"{_ONE}/timeline", api.timeline, "What it went through.", {200: Timeline}, faults=(404,)),
    Route(
        "GET",
        f"{_ONE}/logs",
        api.logs,
        "The end of a log.",
        {200: None},
        faults=(404,),
        query=(_STREAM, _LINES, Parameter("follow", _TEXT, "1: go on with what is written from now on.")),
        endless=True,
    ),
)


def describe() -> JsonObject:
    """The description of the API."""
    return openapi.describe("inference-svc node agent", ROUTES, faults=(400, 401, 403, 415, 422))


def make_app(agent: AgentContext) -> web.Application:
    """The agent as an application."""
    app = web.Application(client_max_size=BODY_LIMIT_BYTES, middlewares=[_audit, json_errors, _guard])
    app[AGENT] = agent
    openapi.add_routes(app, ROUTES)
    return app


def _role(request: web.Request) -> str | None:
    """There is one token."""
    return "token" if request.app[AGENT].token is not None else None


_audit = audited(lambda request: request.app[AGENT].audit, NO_CHANGE, _role)


@web.middleware
async def _guard(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    token = request.app[AGENT].token
    if token is not None and request.path not in OPEN:
        headers = request.headers.getall("Authorization", [])
        if len(headers) != 1 or not bearer_matches(headers[0], token):
            raise ApiError(
                HTTPStatus.UNAUTHORIZED, "a valid bearer token is needed", headers={"WWW-Authenticate": "Bearer"}
            )
    if request.method not in READING and "Origin" in request.headers:
        raise ApiError(HTTPStatus.FORBIDDEN, "pages of a browser may not change anything here")
    return await detailed(handler)(request)
