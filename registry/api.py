"""The registry's HTTP API (CONTRACT.md 1): parse, one call, render."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import web

from common.http.errors import ApiError, Handler, read_json_object
from registry.catalogue import Catalogue, Decision, Entry
from registry.model import Conflict, Deregister, Drain, Full, Register, Registration, Renew, Unknown, Update
from registry.ownership import Claim
from registry.prober import Prober
from registry.render import Renderer, encode_json
from registry.schema import HeartbeatBody, RegisterBody, UpdateBody, parse
from registry.store import StoreError, StoreFull
from registry.watch import TooManyWatchers, WatchHub
from registry.writer import Writer

BODY_LIMIT_BYTES = 64 << 10
_PLAIN_HEARTBEAT_FIELDS = frozenset({"status", "timestamp", "instance_id", "incarnation"})


@dataclass(frozen=True, slots=True)
class Registry:
    """What the handlers work with."""

    catalogue: Catalogue
    writer: Writer
    renderer: Renderer
    hub: WatchHub
    prober: Prober
    started_at: float


REGISTRY = web.AppKey("registry", Registry)


@web.middleware
async def refusals(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give what catalogue and store refuse its status."""
    try:
        return await handler(request)
    except Unknown as error:
        raise ApiError(404, str(error)) from error
    except Conflict as error:
        raise ApiError(409, str(error)) from error
    except (Full, TooManyWatchers) as error:
        raise ApiError(503, str(error), headers={"Retry-After": "10"}) from error
    except StoreFull as error:
        raise ApiError(507, f"the store has no room: {error}") from error
    except StoreError as error:
        raise ApiError(503, f"the store is not available: {error}", headers={"Retry-After": "2"}) from error


def answer(content: dict[str, Any], *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A JSON response; `msgspec.Raw` members are JSON already."""
    return web.Response(body=encode_json(content), status=status, content_type="application/json", headers=headers)


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
        }
    )


async def get_service(request: web.Request) -> web.Response:
    """`GET /services/{name}`."""
    entry = held_entry(request)
    return web.Response(body=request.app[REGISTRY].renderer.service(entry), content_type="application/json")


async def register(request: web.Request) -> web.Response:
    """`POST /services`: 201 for a new owner, 200 when the owner says it again."""
    body = parse(RegisterBody, await read_json_object(request))
    # Not model_dump: it would copy the metadata through pydantic's serializer.
    members = {name: getattr(body, name) for name in RegisterBody.model_fields}
    if body.timestamp is None:
        members["timestamp"] = request.app[REGISTRY].renderer.timestamp()
    registration = Registration(**members)
    decision = await request.app[REGISTRY].writer.submit(Register(registration))
    status = 200 if decision.claim is Claim.REPEAT else 201
    return _with_service(request, decision, f"Service {registration.name} registered", status=status)


async def update(request: web.Request) -> web.Response:
    """`PUT /services/{name}`."""
    name = held_entry(request).instance.name
    body = parse(UpdateBody, await read_json_object(request))
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
    raw = await read_json_object(request, empty=True)
    name = request.match_info["name"]
    registry = request.app[REGISTRY]
    if raw:
        body = parse(HeartbeatBody, raw)
        report = raw if not raw.keys() <= _PLAIN_HEARTBEAT_FIELDS else None
        command = Renew(name, body.status, body.instance_id, body.incarnation, report)
    else:
        command = Renew(name)
    await registry.writer.submit(command)
    return answer({"message": "Heartbeat received", "timestamp": registry.renderer.timestamp()})


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
