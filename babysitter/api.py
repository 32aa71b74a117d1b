"""What the babysitter answers at port + 1: the contract's three calls, and for operators the timeline and the log.

The contract's calls and the metrics are open wherever the babysitter listens; the others need a token on any address but a loopback
one (docs/adr/0002).
"""

import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus

import msgspec
from aiohttp import web

from babysitter import events as ev
from babysitter import metrics as scrapes
from babysitter import view as answers
from babysitter.adapters import AdapterError
from babysitter.lifecycle import SLEEPING, ReplicaState
from babysitter.log_answer import send_log
from babysitter.supervisor import Supervisor
from common.clock import now_iso
from common.http import openapi
from common.http.access import bearer_matches
from common.http.answers import json_answer
from common.http.audit import AuditLog, audited
from common.http.errors import ApiError, json_errors, read_json_object
from common.http.openapi import Parameter, Route
from common.http.tls import Tls
from common.wire.babysitter import BabysitterHealth, BabysitterInfo, BabysitterTimeline, BabysitterTold
from common.wire.base import JsonObject
from common.wire.fault import CANNOT_SLEEP
from common.wire.lora import LoraAdapter, LoraCall
from common.wire.models import ModelList
from common.wire.replica import StopRequest

DEMAND = "/lora/demand"
NO_CHANGE = {("POST", DEMAND): "a router's, for a request"}
"""Calls that are not in the audit, though their method is no reading one, and why."""
OPEN = frozenset({"/health", "/models", "/v1/models", "/info", "/metrics", "/openapi.json"})


@dataclass(frozen=True, slots=True)
class ApiContext:
    """Where the answers come from.

    `guarded`: calls outside `OPEN` need `token` (None: there is no way in). `server_key` is the server's own: who may send it
    requests may have an adapter loaded for them.
    """

    supervisor: Supervisor
    router_url: str | None
    started: float
    guarded: bool = False
    token: str | None = None
    server_key: str | None = None
    tls: Tls = field(default_factory=Tls)
    audit: AuditLog | None = None


CONTEXT: web.AppKey[ApiContext] = web.AppKey("context", ApiContext)


def make_app(context: ApiContext) -> web.Application:
    """The babysitter's application."""
    app = web.Application(client_max_size=1 << 16, middlewares=[_audit, json_errors, _guard])
    app[CONTEXT] = context
    openapi.add_routes(app, ROUTES)
    return app


def _role(request: web.Request) -> str | None:
    """There is one token, and none is needed on loopback."""
    return "token" if request.app[CONTEXT].guarded else None


_audit = audited(lambda request: request.app[CONTEXT].audit, NO_CHANGE, _role)


@web.middleware
async def _guard(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    context = request.app[CONTEXT]
    if context.guarded and request.path not in OPEN:
        shown = request.headers.get("Authorization")
        tokens = (context.token, context.server_key if request.path == DEMAND else None)
        if not any(token is not None and bearer_matches(shown, token) for token in tokens):
            raise ApiError(HTTPStatus.UNAUTHORIZED, "a bearer token is needed here (setting api_token_file)")
    if request.method != "GET" and "Origin" in request.headers:
        raise ApiError(HTTPStatus.FORBIDDEN, "pages of a browser may not change anything here")
    return await handler(request)


async def health(request: web.Request) -> web.Response:
    """`GET /health`: 200 while the babysitter runs; the body tells how the server is."""
    return json_answer(answers.health(request.app[CONTEXT].supervisor.view(), now_iso()))


async def models(request: web.Request) -> web.Response:
    """`GET /models`: the server's models, 503 until it is ready."""
    view = request.app[CONTEXT].supervisor.view()
    if view.state is not ReplicaState.READY:
        raise ApiError(HTTPStatus.SERVICE_UNAVAILABLE, f"the server is not ready: {view.status}")
    return json_answer(answers.model_list(view))


async def info(request: web.Request) -> web.Response:
    """`GET /info`: who this is, and the replica's whole report."""
    context = request.app[CONTEXT]
    view, uptime_s = context.supervisor.view(), round(time.monotonic() - context.started, 3)
    return json_answer(answers.info(view, uptime_s=uptime_s, router_url=context.router_url))


async def metrics(request: web.Request) -> web.Response:
    """`GET /metrics`: for Prometheus; numbers only, so it is open like the contract's calls."""
    context = request.app[CONTEXT]
    uptime_s = round(time.monotonic() - context.started, 3)
    families = scrapes.families(context.supervisor.view(), uptime_s, context.tls.material.expires_at)
    return web.Response(body=scrapes.page(families), headers={"Content-Type": scrapes.CONTENT_TYPE})


async def timeline(request: web.Request) -> web.Response:
    """`GET /timeline`: every transition with time, cause and how long the old state lasted, and the last deployment."""
    supervisor = request.app[CONTEXT].supervisor
    return json_answer(answers.timeline(supervisor.view(), supervisor.memory))


async def stop(request: web.Request) -> web.Response:
    """`POST /stop [{"force": true}]`: end the server for good, whatever `on_exit` says; the babysitter ends with it."""
    body = await read_json_object(request, empty=True)
    force = False if body.get("force") is None else body["force"]
    if not isinstance(force, bool) or set(body) - {"force"}:
        raise ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, "force: must be true or false, and is the only member")
    supervisor = request.app[CONTEXT].supervisor
    await supervisor.stop_for_good("stopped by a call", force=force)
    return json_answer(BabysitterTold(status="stopping", name=supervisor.spec.name), status=HTTPStatus.ACCEPTED)


async def retry(request: web.Request) -> web.Response:
    """`POST /retry`: start a failed replica again, with a clean count; 409 in any other state."""
    supervisor = request.app[CONTEXT].supervisor
    if supervisor.spec.peers is not None:
        raise ApiError(HTTPStatus.CONFLICT, "a member of a group is not started again without the others")
    if supervisor.state is not ReplicaState.FAILED:
        raise ApiError(HTTPStatus.CONFLICT, f"only a failed replica is retried; this one is {supervisor.state.value}")
    supervisor.tell(ev.Retry(deploy=supervisor.spec.deployer is not None))
    return json_answer(BabysitterTold(status="starting", name=supervisor.spec.name), status=HTTPStatus.ACCEPTED)


async def sleep(request: web.Request) -> web.Response:
    """`POST /sleep`: no new requests, then, once it has none, its engine sleeps; 409 where it cannot."""
    supervisor = request.app[CONTEXT].supervisor
    if (reason := supervisor.sleeper.cannot) is not None:
        raise ApiError(HTTPStatus.CONFLICT, f"it cannot sleep: {reason}", code=CANNOT_SLEEP)
    if supervisor.state is not ReplicaState.READY and supervisor.state not in SLEEPING:
        state = supervisor.state.value
        raise ApiError(HTTPStatus.CONFLICT, f"only a replica that is ready goes to sleep; this one is {state}")
    supervisor.tell(ev.SleepRequested())
    return json_answer(BabysitterTold(status="dozing", name=supervisor.spec.name), status=HTTPStatus.ACCEPTED)


async def wake(request: web.Request) -> web.Response:
    """`POST /wake`: wake a replica that sleeps, or is about to; 409 in any other state."""
    supervisor = request.app[CONTEXT].supervisor
    if supervisor.state not in SLEEPING:
        raise ApiError(
            HTTPStatus.CONFLICT, f"only a replica that sleeps is woken; this one is {supervisor.state.value}"
        )
    supervisor.tell(ev.WakeRequested())
    return json_answer(BabysitterTold(status="waking", name=supervisor.spec.name), status=HTTPStatus.ACCEPTED)


async def load_adapter(request: web.Request) -> web.Response:
    """`POST /lora/load {"name": …}`: load an adapter of the settings; answers when that is done."""
    return await _adapter(request, request.app[CONTEXT].supervisor.adapters.load)


async def demand_adapter(request: web.Request) -> web.Response:
    """`POST /lora/demand {"name": …}`: the same for a request, where the settings say on_demand; routers call it."""
    return await _adapter(request, partial(request.app[CONTEXT].supervisor.adapters.load, on_demand=True))


async def unload_adapter(request: web.Request) -> web.Response:
    """`POST /lora/unload {"name": …}`: no new requests for an adapter, then, once it has none, unload it."""
    return await _adapter(request, request.app[CONTEXT].supervisor.adapters.unload)


async def _adapter(request: web.Request, step: Callable[[str], Awaitable[LoraAdapter]]) -> web.Response:
    try:
        call = msgspec.convert(await read_json_object(request), LoraCall)
    except msgspec.ValidationError as error:
        raise ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, f"name: must be an adapter's name ({error})") from error
    try:
        return json_answer(await step(call.name))
    except AdapterError as error:
        headers = {"Retry-After": "1"} if error.status == HTTPStatus.SERVICE_UNAVAILABLE else {}
        raise ApiError(error.status, str(error), headers=headers) from error


async def logs(request: web.Request) -> web.StreamResponse:
    """`GET /logs?stream=stdout&tail=100&follow=1`: the last lines of the server's output, and what comes after."""
    files = request.app[CONTEXT].supervisor.log
    streams = {"stdout": files.stdout, "stderr": files.stderr}
    name = request.query.get("stream", "stdout")
    if name not in streams:
        raise ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, "stream: must be stdout or stderr")

    def look() -> None:
        with contextlib.suppress(OSError):
            files.look()

    return await send_log(request, streams[name], look)


async def description(_request: web.Request) -> web.Response:
    """`GET /openapi.json`."""
    return json_answer(describe())


def describe() -> JsonObject:
    """The OpenAPI document of these calls."""
    return openapi.describe("inference-svc babysitter", ROUTES, faults=(401, 403))


ROUTES = (
    Route("GET", "/health", health, "How the server is; 200 while the babysitter runs.", {200: BabysitterHealth}),
    Route("GET", "/models", models, "The server's models, 503 until it is ready.", {200: ModelList}, faults=(503,)),
    Route("GET", "/v1/models", models, "The server's models, 503 until it is ready.", {200: ModelList}, faults=(503,)),
    Route("GET", "/info", info, "Who this is, and the replica's whole report.", {200: BabysitterInfo}),
    Route(
        "GET",
        "/metrics",
        metrics,
        "For Prometheus; numbers only, so it is open like the contract's calls.",
        {200: None},
        content_type="text/plain; version=0.0.4",
    ),
    Route(
        "GET",
        "/timeline",
        timeline,
        "Every transition with time, cause and how long the old state lasted, and the last deployment.",
        {200: BabysitterTimeline},
    ),
    Route(
        "GET",
        "/logs",
        logs,
        "The last lines of the server's output, and what comes after.",
        {200: None},
        faults=(422,),
        query=(
            Parameter("stream", {"enum": ["stdout", "stderr"], "default": "stdout"}, "Which output."),
            Parameter("tail", {"type": "integer", "minimum": 0, "default": 100}, "How many lines."),
            Parameter("follow", {"type": "boolean", "default": False}, "Go on with what comes after."),
        ),
        endless=True,
    ),
    Route(
        "POST",
        "/stop",
        stop,
        "End the server for good, whatever `on_exit` says; the babysitter ends with it.",
        {202: BabysitterTold},
        faults=(422,),
        body=StopRequest,
        body_required=False,
    ),
    Route(
        "POST",
        "/retry",
        retry,
        "Start a failed replica again, with a clean count; 409 in any other state.",
        {202: BabysitterTold},
        faults=(409,),
    ),
    Route(
        "POST",
        "/sleep",
        sleep,
        "No new requests, then, once it has none, its engine sleeps; 409 where it cannot.",
        {202: BabysitterTold},
        faults=(409,),
    ),
    Route(
        "POST",
        "/wake",
        wake,
        "Wake a replica that sleeps, or is about to; 409 in any other state.",
        {202: BabysitterTold},
        faults=(409,),
    ),
    *(
        Route("POST", path, handler, text, {200: LoraAdapter}, faults=(404, 409, 422, 502, 503), body=LoraCall)
        for path, handler, text in (
            ("/lora/load", load_adapter, "Load an adapter of the settings; answers when that is done."),
            (DEMAND, demand_adapter, "The same for a request, where the settings say on_demand; routers call it."),
            ("/lora/unload", unload_adapter, "Unload an adapter, once it has no requests."),
        )
    ),
    Route("GET", "/openapi.json", description, "This description.", {200: JsonObject}),
)
