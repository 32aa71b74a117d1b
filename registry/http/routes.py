"""The table of calls: it makes the routes, and it describes them."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

from aiohttp import web

from common.discovery.replica import FILTERS
from common.http import openapi
from common.http.errors import detailed
from common.http.openapi import Parameter, Route
from common.wire.base import JsonObject
from common.wire.create import CreateBody
from common.wire.deployment import NodeInfo, NodeList, TemplateList
from common.wire.record import Heartbeat, HeartbeatAnswer, ServiceRecord
from common.wire.registry import (
    Acknowledgement,
    RegistryHealth,
    RegistryStats,
    ReplicasHealth,
    RouterList,
    ServiceAnswer,
    ServiceHealth,
    ServiceList,
    Session,
    TargetGroup,
)
from common.wire.replica import Created, OneReplica, ReplicaHealth, ReplicaList, ReplicaMessage, StopRequest, Timeline
from registry.http import listing, nodes, page, replicas, services, status, templates
from registry.http.audit import AUDIT_ROUTES
from registry.http.bodies import FailingBody, RegisterBody, UpdateBody
from registry.http.context import long_answer
from registry.http.deployment_routes import DEPLOYMENT_ROUTES
from registry.http.key_routes import KEY_ROUTES
from registry.http.usage import USAGE_ROUTES
from registry.views.render import encode_json

_NUMBER = {"type": "integer", "minimum": 0, "maximum": 10**15}
_HEALTHY = {"type": "string", "pattern": "^([Tt][Rr][Uu][Ee]|[Ff][Aa][Ll][Ss][Ee])$"}
_EPOCH = Parameter("epoch", {"type": "string"}, "Epoch that the revision belongs to.")
_OWNER = Parameter("instance_id", {"type": "string"}, "Only if this instance owns the record.")
_HAND_OVER = Parameter(
    "hand_over", {"type": "boolean"}, "Routers move its streams to others, for models with `rescue`."
)
_WAIT = {"type": "string", "pattern": "^[0-9]{1,5}(\\.[0-9]{1,3})?(ms|s|m)?$"}
_TEXT = {"type": "string"}
_EPOCH_S = {"type": "string", "pattern": "^[0-9]{1,12}(\\.[0-9]{1,6})?$"}
_LONG_POLL = (
    Parameter("index", _NUMBER, "Wait for a revision other than this one."),
    Parameter("wait", _WAIT, "How long to wait, like 30s."),
    _EPOCH,
)
_FILTERS = tuple(Parameter(name, _TEXT, f"Only this {name}.") for name in FILTERS)


async def description(request: web.Request) -> web.Response:
    """`GET /openapi.json`."""
    del request
    return long_answer([_description()])


@cache
def _description() -> bytes:
    return encode_json(openapi.describe("inference-svc registry", ROUTES, faults=(401, 403, 429, 503)))


_WRITES = (409, 507)
_BODY = (400, 413)
_RELAYED = (404, 502)
_AGENT = (404, 408, 409, 415, 422, 502, 504, 507)
_REPLICA = "/api/v1/replicas/{id}"
_NODE = "/api/v1/nodes/{node}"

ROUTES: tuple[Route, ...] = (
    # First, because aiohttp tries the patterns in turn and nearly every request is a heartbeat.
    Route(
        "POST",
        "/services/{name}/heartbeat",
        services.heartbeat,
        "Renew the lease; may carry a status or a replica report.",
        {200: HeartbeatAnswer},
        (404, *_BODY, *_WRITES),
        body=Heartbeat,
        body_required=False,
    ),
    Route("GET", "/health", status.health, "How the registry is.", {200: RegistryHealth}),
    Route(
        "GET",
        "/services",
        listing.list_services,
        "Every record, at once or when something changes.",
        {200: ServiceList},
        (400,),
        query=(
            Parameter("status", _TEXT, "Only records of this status."),
            Parameter("healthy", _HEALTHY, "Only healthy records, or only others."),
            *_LONG_POLL,
        ),
    ),
    Route(
        "POST",
        "/services",
        services.register,
        "Register, or register again.",
        {201: ServiceAnswer, 200: ServiceAnswer},
        (*_BODY, *_WRITES),
        body=RegisterBody,
    ),
    Route("GET", "/services/{name}", services.get_service, "One record.", {200: ServiceRecord}, (404,)),
    Route(
        "PUT",
        "/services/{name}",
        services.update,
        "Change some fields; counts as a heartbeat.",
        {200: ServiceAnswer},
        (404, *_BODY, *_WRITES),
        body=UpdateBody,
    ),
    Route(
        "DELETE",
        "/services/{name}",
        services.deregister,
        "Remove a record.",
        {200: Acknowledgement},
        (404, *_WRITES),
        query=(_OWNER,),
    ),
    Route(
        "POST",
        "/services/{name}/drain",
        services.drain,
        "No new requests to it.",
        {200: ServiceAnswer},
        (404, *_WRITES),
        query=(_HAND_OVER,),
    ),
    Route(
        "POST",
        "/services/{name}/undrain",
        services.drain,
        "Requests to it again.",
        {200: ServiceAnswer},
        (404, *_WRITES),
    ),
    Route("GET", "/services/{name}/health", services.probe_now, "Probe it now.", {200: ServiceHealth}, (404,)),
    Route("GET", "/stats", status.stats, "Counts.", {200: RegistryStats}),
    Route(
        "GET",
        "/v1/watch",
        listing.watch,
        "A stream of changes, one JSON object per line.",
        {200: None},
        (400,),
        query=(
            Parameter("since", _NUMBER, "Only what came after this revision."),
            _EPOCH,
            Parameter("router", _TEXT, "The router that watches."),
            Parameter("router_url", _TEXT, "Where it is reached."),
        ),
        content_type="application/x-ndjson",
        endless=True,
    ),
    Route(
        "POST",
        "/v1/routers/{name}/failing",
        services.failing,
        "What a router says of servers that it gets nothing from; their babysitters hear it.",
        {200: Acknowledgement},
        _BODY,
        body=FailingBody,
    ),
    Route(
        "GET",
        "/v1/replicas",
        replicas.list_replicas,
        "Every replica reported, at once or when something changes.",
        {200: ReplicaList},
        (400,),
        query=(*_FILTERS, *_LONG_POLL),
    ),
    Route(
        "GET",
        "/api/v1/replicas",
        replicas.list_replicas,
        "Every replica reported, as the release server lists them.",
        {200: ReplicaList},
        (400,),
        query=(*_FILTERS, *_LONG_POLL),
    ),
    Route(
        "POST",
        "/api/v1/replicas",
        replicas.create,
        "Make a replica, on the node named or where there is room.",
        {201: Created, 200: Created},
        (*_BODY, *_AGENT),
        body=CreateBody,
    ),
    Route("GET", "/api/v1/templates", templates.list_templates, "What nodes make replicas of.", {200: TemplateList}),
    Route("GET", _REPLICA, replicas.get_replica, "One replica.", {200: OneReplica}, _AGENT),
    Route("DELETE", _REPLICA, replicas.pass_on, "Stop a replica and remove it.", {200: ReplicaMessage}, _AGENT),
    Route(
        "POST",
        f"{_REPLICA}/stop",
        replicas.pass_on,
        "Stop a replica.",
        {200: ReplicaMessage},
        (*_BODY, *_AGENT),
        body=StopRequest,
        body_required=False,
    ),
    Route("POST", f"{_REPLICA}/health", replicas.pass_on, "Ask its server now.", {200: ReplicaHealth}, _AGENT),
    Route("POST", f"{_REPLICA}/retry", replicas.pass_on, "Begin a failed one again.", {202: ReplicaMessage}, _AGENT),
    Route(
        "POST",
        f"{_REPLICA}/sleep",
        replicas.pass_on,
        "No new requests, then, once it has none, its engine sleeps.",
        {202: ReplicaMessage},
        _AGENT,
    ),
    Route("POST", f"{_REPLICA}/wake", replicas.pass_on, "Wake one that sleeps.", {202: ReplicaMessage}, _AGENT),
    Route("GET", f"{_REPLICA}/timeline", replicas.read_on, "What it went through.", {200: Timeline}, _AGENT),
    Route(
        "GET",
        f"{_REPLICA}/events",
        replicas.stream,
        "What happens to it.",
        {200: None},
        _AGENT,
        query=(Parameter("until", _TEXT, "End when it is ready."), Parameter("logs", _TEXT, "Logs to send as well.")),
        content_type="text/event-stream",
        endless=True,
    ),
    Route(
        "GET",
        f"{_REPLICA}/logs",
        replicas.stream,
        "The end of a log.",
        {200: None},
        _AGENT,
        query=(Parameter("stream", _TEXT, "Which one."), Parameter("tail", _TEXT, "Lines.")),
        endless=True,
    ),
    Route("GET", "/api/v1/nodes", nodes.list_nodes, "Every node that has an agent.", {200: NodeList}),
    Route(
        "POST",
        f"{_NODE}/drain",
        nodes.drain,
        "No new replicas on that node; deployments move theirs.",
        {200: NodeInfo},
        (404, *_WRITES),
    ),
    Route(
        "POST", f"{_NODE}/undrain", nodes.drain, "New replicas on that node again.", {200: NodeInfo}, (404, *_WRITES)
    ),
    *DEPLOYMENT_ROUTES,
    *KEY_ROUTES,
    *USAGE_ROUTES,
    *AUDIT_ROUTES,
    Route("GET", "/api/v1/health", status.replicas_health, "Counts of replicas.", {200: ReplicasHealth}),
    Route("GET", "/metrics", status.metrics, "For Prometheus.", {200: None}),
    Route(
        "GET",
        "/sd/prometheus",
        status.prometheus_targets,
        "What Prometheus should scrape (http_sd).",
        {200: list[TargetGroup]},
    ),
    Route("GET", "/ui", page.page, "The operator's page.", {200: None}, content_type="text/html"),
    Route("GET", "/ui/session", page.session, "What the caller may do.", {200: Session}),
    Route("GET", "/ui/routers", page.routers, "The routers that watch this registry.", {200: RouterList}),
    Route(
        "GET",
        "/ui/routers/{router}/traffic",
        page.traffic,
        "A router's last quarter of an hour.",
        {200: JsonObject},
        (400, *_RELAYED),
        query=(Parameter("since", _EPOCH_S, "Only points later than this."),),
    ),
    Route(
        "POST",
        "/ui/routers/{router}/chat",
        page.chat,
        "One chat completion by this router, streamed.",
        {200: None},
        (*_BODY, *_RELAYED),
        content_type="text/event-stream",
    ),
    Route(
        "GET",
        "/ui/babysitters/{name}/timeline",
        page.timeline,
        "A replica's transitions and stages.",
        {200: JsonObject},
        _RELAYED,
    ),
    Route(
        "GET",
        "/ui/babysitters/{name}/logs",
        page.logs,
        "The end of a server's output.",
        {200: None},
        (400, *_RELAYED),
        query=(
            Parameter("stream", {"enum": ["stdout", "stderr"]}, "Which output."),
            Parameter("tail", {"type": "integer", "minimum": 0, "maximum": page.LOG_LINES_LIMIT}, "How many lines."),
        ),
    ),
    Route("POST", "/ui/babysitters/{name}/stop", page.act, "Stop a replica.", {202: JsonObject}, _RELAYED),
    Route("POST", "/ui/babysitters/{name}/retry", page.act, "Try a failed replica.", {202: JsonObject}, _RELAYED),
    Route("GET", "/openapi.json", description, "This description.", {200: JsonObject}),
)


def add_routes(app: web.Application) -> None:
    """Serve the table."""
    openapi.add_routes(app, _served())


def _served() -> Iterator[Route]:
    """The calls; those that clients of the release server make tell of faults as it does."""
    for route in ROUTES:
        yield replace(route, handler=detailed(route.handler)) if route.path.startswith("/api/v1/") else route
