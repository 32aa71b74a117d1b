"""The registry's HTTP API (docs/contract.md 1): parse, one call, render."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import web

from common import __version__
from common.http.errors import ApiError, Handler, read_json_object, render_errors, tell
from registry.addresses import AddressPolicy, AddressRefused
from registry.catalogue import Catalogue, Decision, Entry
from registry.failing import Failing
from registry.fleet import Fleet
from registry.guard import EVERYTHING, Grant, Guard, Level
from registry.heartbeat import read as read_heartbeat
from registry.metrics import Metrics
from registry.model import Conflict, Deregister, Drain, Refused, Register, Registration, Unknown, Update
from registry.origin import ForeignPage, check_local_name, check_origin
from registry.ownership import Claim
from registry.prober import Prober
from registry.relay import Relay
from registry.render import Renderer, encode_json
from registry.replicas import replica_infos
from registry.routers import Routers
from registry.schema import FailingBody, RegisterBody, UpdateBody, parse
from registry.store import StoreError, StoreFull
from registry.watch import TooManyWatchers, WatchHub
from registry.writer import Writer

JSON_HEADERS = {"Content-Type": "application/json"}


@dataclass(slots=True)
class Crowd:
    """How many connections there are, counted now and then, and how many there may be (docs/faults.md C14)."""

    limit: int
    connections: int = 0

    def check(self) -> None:
        """Turn a request away while there are too many.

        Raises:
            ApiError: 503; the connection is closed after it.
        """
        if self.connections > self.limit:
            raise ApiError(503, "too many connections", headers={"Retry-After": "5", "Connection": "close"})


@dataclass(slots=True)
class Registry:
    """What the handlers work with; a reload replaces `guard` and `addresses`."""

    catalogue: Catalogue
    writer: Writer
    renderer: Renderer
    hub: WatchHub
    prober: Prober
    metrics: Metrics
    guard: Guard
    addresses: AddressPolicy
    crowd: Crowd
    relay: Relay
    routers: Routers
    failing: Failing
    on_loopback: bool
    fleet: Fleet
    started_at: float


REGISTRY = web.AppKey("registry", Registry)
GRANT = web.RequestKey("grant", Grant)
READING = frozenset({"GET", "HEAD", "OPTIONS"})
OPEN = frozenset({"/health", "/ui"})


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give what catalogue and store refuse its status, and leave every other fault to `render_errors`.

    One middleware instead of two: each costs every heartbeat an await.
    """
    registry = request.app[REGISTRY]
    try:
        registry.crowd.check()
        check_page(registry, request)
        if registry.guard.grants:
            admit(registry.guard, request)
        answered = await handler(request)
    except (Refused, StoreError, TooManyWatchers) as error:
        answered = refusal(error).response()
    except Exception as error:  # noqa: BLE001 - handed on at once
        answered = await render_errors(request, _raiser(error))
    resource = request.match_info.route.resource
    registry.metrics.answers[resource.canonical if resource else "none", answered.status] += 1
    tell(request, answered.status)
    return answered


def check_page(registry: Registry, request: web.Request) -> None:
    """Keep foreign pages from using a browser that can reach this registry.

    Raises:
        ApiError: 403.
    """
    origin = None if request.method in READING else request.headers.get("Origin")
    ours = request.path.startswith("/ui")
    if origin is None and not ours:
        return
    try:
        if registry.on_loopback and not registry.guard.grants:
            check_local_name(request.host)
        if origin is not None:
            check_origin(origin, request.host)
    except ForeignPage as error:
        raise ApiError(403, str(error)) from error


def admit(guard: Guard, request: web.Request) -> None:
    """Judge the token of a request; `GET /health` and the empty page at `GET /ui` need none.

    Raises:
        ApiError: 401, 403 or 429.
    """
    if request.path in OPEN and request.method in READING:
        return
    grant = guard.admit(request.headers.get("Authorization"), request.remote or "")
    grant.check(Level.READ if request.method in READING else Level.REGISTER, request.match_info.get("name"))
    request[GRANT] = grant


def check_place(policy: AddressPolicy, *, host: str | None, port: int | None, url: str | None) -> None:
    """Judge the addresses that a client wants in its record.

    Raises:
        ApiError: 400, naming the field.
    """
    field = "port"
    try:
        if port is not None:
            policy.check_port(port)
        field = "host"
        if host is not None:
            policy.check(host, policy.lowest_port if port is None else port)
        field = "url"
        if url is not None:
            policy.check_url(url)
    except AddressRefused as error:
        raise ApiError(400, f"field {field!r}: {error}", field=field) from error


def refusal(error: Refused | StoreError | TooManyWatchers) -> ApiError:
    """The answer to what was refused."""
    match error:
        case Unknown():
            return ApiError(404, str(error))
        case Conflict():
            return ApiError(409, str(error))
        case StoreFull():
            return ApiError(507, f"the store has no room: {error}")
        case StoreError():
            return ApiError(503, f"the store is not available: {error}", headers={"Retry-After": "2"})
        case _:
            return ApiError(503, str(error), headers={"Retry-After": "10"})


def _raiser(error: Exception) -> Handler:
    async def fail(_request: web.Request) -> web.StreamResponse:
        raise error

    return fail


def answer(content: dict[str, Any], *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A JSON response; `msgspec.Raw` members are JSON already."""
    return web.Response(body=encode_json(content), status=status, headers={**JSON_HEADERS, **(headers or {})})


def held_entry(request: web.Request) -> Entry:
    """The entry that the path names.

    Raises:
        Unknown: There is none.
    """
    name = request.match_info["name"]
    entry = request.app[REGISTRY].catalogue.get(name)
    if entry is None:
        raise Unknown(f"service {name!r} not found")
    return entry


async def health(request: web.Request) -> web.Response:
    """`GET /health`."""
    registry = request.app[REGISTRY]
    catalogue = registry.catalogue
    return answer(
        {
            "status": "healthy",
            "registry": "running",
            "registered_services": len(catalogue),
            "healthy_services": sum(entry.instance.is_healthy for entry in catalogue),
            "timestamp": registry.renderer.timestamp(),
            "epoch": catalogue.epoch,
            "revision": catalogue.revision,
            "self_preservation": catalogue.preserving_since is not None,
            "store": "unavailable" if registry.writer.away else "ok",
            "version": __version__,
            **count_replicas(registry),
        }
    )


def count_replicas(registry: Registry) -> dict[str, int]:
    """How many replicas there are and how many are ready: those reported, and those made a moment ago."""
    infos = replica_infos(entry.instance for entry in registry.catalogue)
    ready = sum(info["status"] == "ready" for info in infos.values())
    return {"replicas_total": len(infos.keys() | registry.fleet.made().keys()), "replicas_ready": ready}


async def get_service(request: web.Request) -> web.Response:
    """`GET /services/{name}`."""
    entry = held_entry(request)
    return web.Response(body=request.app[REGISTRY].renderer.service(entry), headers=JSON_HEADERS)


async def register(request: web.Request) -> web.Response:
    """`POST /services`: 201 for a new owner, 200 when the owner says it again."""
    body = parse(RegisterBody, await read_json_object(request))
    # Not model_dump: it would copy the metadata through pydantic's serializer.
    registry = request.app[REGISTRY]
    request.get(GRANT, EVERYTHING).check(Level.REGISTER, body.name)
    check_place(registry.addresses, host=body.host, port=body.port, url=body.url)
    members = {name: getattr(body, name) for name in RegisterBody.model_fields}
    if body.timestamp is None:
        members["timestamp"] = registry.renderer.timestamp()
    registration = Registration(**members)
    decision = await registry.writer.submit(Register(registration))
    status = 200 if decision.claim is Claim.REPEAT else 201
    return _with_service(request, decision, f"Service {registration.name} registered", status=status)


async def update(request: web.Request) -> web.Response:
    """`PUT /services/{name}`."""
    name = held_entry(request).instance.name
    body = parse(UpdateBody, await read_json_object(request))
    check_place(request.app[REGISTRY].addresses, host=body.host, port=body.port, url=body.url)
    fields = {key: value for key in body.model_fields_set if (value := getattr(body, key)) is not None}
    decision = await request.app[REGISTRY].writer.submit(Update(name, fields))
    return _with_service(request, decision, f"Service {name} updated")


async def deregister(request: web.Request) -> web.Response:
    """`DELETE /services/{name}[?instance_id=…]`."""
    name = request.match_info["name"]
    command = Deregister(name, request.query.get("instance_id"))
    await request.app[REGISTRY].writer.submit(command)
    return answer({"message": f"Service {name} unregistered"})


async def heartbeat(request: web.Request) -> web.Response:
    """`POST /services/{name}/heartbeat`: an empty body, a status, or a replica report."""
    registry = request.app[REGISTRY]
    name = request.match_info["name"]
    await registry.writer.submit(await read_heartbeat(request, name))
    doubt = registry.failing.doubt(name)
    if doubt is not None:
        said = {"message": "Heartbeat received", "timestamp": registry.renderer.timestamp(), "doubt": doubt}
        return answer(said)
    body = b'{"message":"Heartbeat received","timestamp":"%b"}' % registry.renderer.timestamp().encode()
    return web.Response(body=body, headers=JSON_HEADERS)


async def failing(request: web.Request) -> web.Response:
    """`POST /v1/routers/{name}/failing`: what a router gets nothing from; their babysitters hear it."""
    body = parse(FailingBody, await read_json_object(request))
    request.app[REGISTRY].failing.note(request.match_info["name"], body.failing)
    return answer({"message": f"{len(body.failing)} servers are in doubt"})


async def drain(request: web.Request) -> web.Response:
    """`POST /services/{name}/drain` and `/undrain`."""
    name = request.match_info["name"]
    on = request.path.endswith("/drain")
    decision = await request.app[REGISTRY].writer.submit(Drain(name, on))
    return _with_service(request, decision, f"Service {name} {'drains' if on else 'is back'}")


async def probe_now(request: web.Request) -> web.Response:
    """`GET /services/{name}/health`."""
    registry = request.app[REGISTRY]
    instance = held_entry(request).instance
    verdict = await registry.prober.ask_now(instance)
    entry = held_entry(request)
    return answer(
        {
            "service": instance.name,
            "health_status": verdict.value,
            "is_healthy": entry.instance.is_healthy,
            "last_heartbeat": registry.renderer.last_heartbeat(entry),
            "timestamp": registry.renderer.timestamp(),
        }
    )


async def stats(request: web.Request) -> web.Response:
    """`GET /stats`."""
    registry = request.app[REGISTRY]
    instances = [entry.instance for entry in registry.catalogue]
    healthy = sum(instance.is_healthy for instance in instances)
    return answer(
        {
            "total_services": len(instances),
            "healthy_services": healthy,
            "unhealthy_services": len(instances) - healthy,
            "status_distribution": Counter(instance.status for instance in instances),
            "host_distribution": Counter(instance.registration.host for instance in instances),
            "uptime": round(registry.writer.clock.monotonic() - registry.started_at, 3),
            "timestamp": registry.renderer.timestamp(),
            "watchers": len(registry.hub),
            "suspect_services": sum(instance.suspect for instance in instances),
        }
    )


def _with_service(request: web.Request, decision: Decision, message: str, *, status: int = 200) -> web.Response:
    """The answer that shows the record a command left."""
    registry = request.app[REGISTRY]
    name = decision.answer.name if decision.answer else ""
    entry = registry.catalogue.get(name)
    if entry is None:
        raise Unknown(f"service {name!r} was removed meanwhile")
    return answer({"message": message, "service": msgspec.Raw(registry.renderer.service(entry))}, status=status)
