"""The table of calls: it makes the routes, and it describes them."""

from aiohttp import web

from common.discovery.replica import FILTERS
from common.http.errors import detailed
from registry.http import listing, page, replicas, services, status
from registry.http.bodies import (
    CreateReplicaBody,
    FailingBody,
    HeartbeatBody,
    RegisterBody,
    StopReplicaBody,
    UpdateBody,
)
from registry.http.context import answer
from registry.http.openapi import Parameter, Route, describe

_NUMBER = {"type": "integer", "minimum": 0, "maximum": 10**15}
_HEALTHY = {"type": "string", "pattern": "^([Tt][Rr][Uu][Ee]|[Ff][Aa][Ll][Ss][Ee])$"}
_EPOCH = Parameter("epoch", {"type": "string"}, "Epoch that the revision belongs to.")
_OWNER = Parameter("instance_id", {"type": "string"}, "Only if this instance owns the record.")
_WAIT = {"type": "string", "pattern": "^[0-9]{1,5}(\\.[0-9]{1,3})?(ms|s|m)?$"}
_TEXT = {"type": "string"}
_EPOCH_S = {"type": "string", "pattern": "^[0-9]{1,12}(\\.[0-9]{1,6})?$"}
_LONG_POLL = (
    Parameter("index", _NUMBER, "Wait for a revision other than this one."),
    Parameter("wait", _WAIT, "How long to wait, like 30s."),
    _EPOCH,
)
_FILTERS = tuple(Parameter(name, _TEXT, f"Only this {name}.") for name in FILTERS)


async def openapi(request: web.Request) -> web.Response:
    """`GET /openapi.json`."""
    del request
    return answer(describe(ROUTES))


_SERVICE = {200: "service_answer", 404: "error"}
_WRITES = {409: "error", 507: "error"}
_RELAYED = {404: "error", 502: "error"}
_BODY = {400: "error", 413: "error"}
_REFUSED = {408: "error", 409: "error", 415: "error", 422: "error", 502: "error", 504: "error", 507: "error"}
_AGENT = {404: "error", **_REFUSED}
_REPLICA = "/api/v1/replicas/{id}"

ROUTES: tuple[Route, ...] = (
    # First, because aiohttp tries the patterns in turn and nearly every request is a heartbeat.
    Route(
        "POST",
        "/services/{name}/heartbeat",
        services.heartbeat,
        "Renew the lease; may carry a status or a replica report.",
        {200: "message", 404: "error", **_BODY, **_WRITES},
        body=HeartbeatBody,
        body_required=False,
    ),
    Route("GET", "/health", status.health, "How the registry is.", {200: "health"}),
    Route(
        "GET",
        "/services",
        listing.list_services,
        "Every record, at once or when something changes.",
        {200: "services", 400: "error"},
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
        {201: "service_answer", 200: "service_answer", **_BODY, **_WRITES},
        body=RegisterBody,
    ),
    Route("GET", "/services/{name}", services.get_service, "One record.", {200: "service", 404: "error"}),
    Route(
        "PUT",
        "/services/{name}",
        services.update,
        "Change some fields; counts as a heartbeat.",
        {**_SERVICE, **_BODY, **_WRITES},
        body=UpdateBody,
    ),
    Route(
        "DELETE",
        "/services/{name}",
        services.deregister,
        "Remove a record.",
        {200: "message", 404: "error", **_WRITES},
        query=(_OWNER,),
    ),
    Route("POST", "/services/{name}/drain", services.drain, "No new requests to it.", {**_SERVICE, **_WRITES}),
    Route("POST", "/services/{name}/undrain", services.drain, "Requests to it again.", {**_SERVICE, **_WRITES}),
    Route(
        "GET",
        "/services/{name}/health",
        services.probe_now,
        "Probe it now.",
        {200: "service_health", 404: "error"},
    ),
    Route("GET", "/stats", status.stats, "Counts.", {200: "stats"}),
    Route(
        "GET",
        "/v1/watch",
        listing.watch,
        "A stream of changes, one JSON object per line.",
        {200: None, 400: "error"},
        query=(
            Parameter("since", _NUMBER, "Only what came after this revision."),
            _EPOCH,
            Parameter("router", _TEXT, "The router that watches."),
            Parameter("router_url", _TEXT, "Where it is reached."),
        ),
        content_type="application/x-ndjson",
    ),
    Route(
        "POST",
        "/v1/routers/{name}/failing",
        services.failing,
        "What a router says of servers that it gets nothing from; their babysitters hear it.",
        {200: "message", **_BODY},
        body=FailingBody,
    ),
    Route(
        "GET",
        "/v1/replicas",
        replicas.list_replicas,
        "Every replica reported, at once or when something changes.",
        {200: "replicas", 400: "error"},
        query=(*_FILTERS, *_LONG_POLL),
    ),
    Route(
        "GET",
        "/api/v1/replicas",
        replicas.list_replicas,
        "Every replica reported, as the release server lists them.",
        {200: "replicas", 400: "error"},
        query=(*_FILTERS, *_LONG_POLL),
    ),
    Route(
        "POST",
        "/api/v1/replicas",
        replicas.create,
        "Make a replica, on the node named or where there is room.",
        {201: "created", 200: "created", **_BODY, **_REFUSED},
        body=CreateReplicaBody,
    ),
    Route("GET", _REPLICA, replicas.get_replica, "One replica.", {200: "replica", **_AGENT}),
    Route("DELETE", _REPLICA, replicas.pass_on, "Stop a replica and remove it.", {200: "replica_message", **_AGENT}),
    Route(
        "POST",
        f"{_REPLICA}/stop",
        replicas.pass_on,
        "Stop a replica.",
        {200: "replica_message", **_BODY, **_AGENT},
        body=StopReplicaBody,
        body_required=False,
    ),
    Route("POST", f"{_REPLICA}/health", replicas.pass_on, "Ask its server now.", {200: "replica_health", **_AGENT}),
    Route(
        "POST", f"{_REPLICA}/retry", replicas.pass_on, "Begin a failed one again.", {202: "replica_message", **_AGENT}
    ),
    Route("GET", f"{_REPLICA}/timeline", replicas.read_on, "What it went through.", {200: "document", **_AGENT}),
    Route(
        "GET",
        f"{_REPLICA}/events",
        replicas.stream,
        "What happens to it.",
        {200: None, **_AGENT},
        query=(Parameter("until", _TEXT, "End when it is ready."), Parameter("logs", _TEXT, "Logs to send as well.")),
        content_type="text/event-stream",
    ),
    Route(
        "GET",
        f"{_REPLICA}/logs",
        replicas.stream,
        "The end of a log.",
        {200: None, **_AGENT},
        query=(Parameter("stream", _TEXT, "Which one."), Parameter("tail", _TEXT, "Lines.")),
        content_type="text/plain",
    ),
    Route("GET", "/api/v1/health", status.replicas_health, "Counts of replicas.", {200: "replicas_health"}),
    Route("GET", "/metrics", status.metrics, "For Prometheus.", {200: None}, content_type="text/plain"),
    Route(
        "GET", "/sd/prometheus", status.prometheus_targets, "What Prometheus should scrape (http_sd).", {200: "targets"}
    ),
    Route("GET", "/ui", page.page, "The operator's page.", {200: None}, content_type="text/html"),
    Route("GET", "/ui/session", page.session, "What the caller may do.", {200: "session"}),
    Route("GET", "/ui/routers", page.routers, "The routers that watch this registry.", {200: "routers"}),
    Route(
        "GET",
        "/ui/routers/{router}/traffic",
        page.traffic,
        "A router's last quarter of an hour.",
        {200: "document", 400: "error", **_RELAYED},
        query=(Parameter("since", _EPOCH_S, "Only points later than this."),),
    ),
    Route(
        "POST",
        "/ui/routers/{router}/chat",
        page.chat,
        "One chat completion by this router, streamed.",
        {200: None, **_BODY, **_RELAYED},
        content_type="text/event-stream",
    ),
    Route(
        "GET",
        "/ui/babysitters/{name}/timeline",
        page.timeline,
        "A replica's transitions and stages.",
        {200: "document", **_RELAYED},
    ),
    Route(
        "GET",
        "/ui/babysitters/{name}/logs",
        page.logs,
        "The end of a server's output.",
        {200: None, 400: "error", **_RELAYED},
        query=(
            Parameter("stream", {"enum": ["stdout", "stderr"]}, "Which output."),
            Parameter("tail", {"type": "integer", "minimum": 0, "maximum": page.LOG_LINES_LIMIT}, "How many lines."),
        ),
        content_type="text/plain",
    ),
    Route("POST", "/ui/babysitters/{name}/stop", page.act, "Stop a replica.", {202: "document", **_RELAYED}),
    Route("POST", "/ui/babysitters/{name}/retry", page.act, "Try a failed replica.", {202: "document", **_RELAYED}),
    Route("GET", "/openapi.json", openapi, "This description.", {200: "document"}),
)


STREAMS = frozenset({"/v1/watch", f"{_REPLICA}/events", f"{_REPLICA}/logs"})
"""Calls whose answers may have no end."""


def add_routes(app: web.Application) -> None:
    """Serve the table."""
    for route in ROUTES:
        handler = detailed(route.handler) if route.path.startswith("/api/v1/") else route.handler
        if route.method == "GET":
            app.router.add_get(route.path, handler, allow_head=route.path not in STREAMS)
        else:
            app.router.add_route(route.method, route.path, handler)
