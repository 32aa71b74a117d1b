"""The calls about records (docs/contract.md 1)."""

from aiohttp import web

from common.http.errors import ApiError, read_json_object
from common.wire.record import HeartbeatAnswer, Registration
from common.wire.registry import Acknowledgement, ServiceHealth
from registry.core.catalogue import Decision
from registry.core.model import Deregister, Register, SetDraining, Unknown, Update
from registry.core.ownership import Claim
from registry.http.bodies import FailingBody, RegisterBody, UpdateBody, parse
from registry.http.context import GRANT, JSON_HEADERS, REGISTRY, answer, require_entry
from registry.http.guard import EVERYTHING, Level
from registry.http.heartbeat import RECEIVED, received
from registry.http.heartbeat import read as read_heartbeat
from registry.outbound.addresses import AddressPolicy, AddressRefused
from registry.views.render import encode_json


async def get_service(request: web.Request) -> web.Response:
    """`GET /services/{name}`."""
    entry = require_entry(request)
    return web.Response(body=request.app[REGISTRY].renderer.service(entry), headers=JSON_HEADERS)


async def register(request: web.Request) -> web.Response:
    """`POST /services`: 201 for a new owner, 200 when the owner says it again."""
    registry = request.app[REGISTRY]
    registry.writer.check_in_time()
    body = parse(RegisterBody, await read_json_object(request))
    # Not model_dump: it would copy the metadata through pydantic's serializer.
    request.get(GRANT, EVERYTHING).check(Level.REGISTER, body.name)
    check_place(registry.addresses, host=body.host, port=body.port, url=body.url)
    members = {name: member for name in RegisterBody.model_fields if (member := getattr(body, name)) is not None}
    members.setdefault("timestamp", registry.renderer.timestamp())
    registration = Registration(**members)
    decision = await registry.writer.submit(Register(registration))
    status = 200 if decision.claim is Claim.REPEAT else 201
    message = f"Service {registration.name} registered"
    return _with_service(request, decision, message, status=status, told=registry.pace.said)


async def update(request: web.Request) -> web.Response:
    """`PUT /services/{name}`."""
    name = require_entry(request).instance.name
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
    return answer(Acknowledgement(message=f"Service {name} unregistered"))


async def heartbeat(request: web.Request) -> web.Response:
    """`POST /services/{name}/heartbeat`: an empty body, a status, or a replica report."""
    registry = request.app[REGISTRY]
    name = request.match_info["name"]
    await registry.writer.submit(await read_heartbeat(request, name))
    doubt = registry.doubts.doubt(name)
    if doubt is not None:
        timestamp, told_s = registry.renderer.timestamp(), registry.pace.told_s
        return answer(HeartbeatAnswer(message=RECEIVED, timestamp=timestamp, doubt=doubt, heartbeat_interval_s=told_s))
    return web.Response(body=received(registry), headers=JSON_HEADERS)


async def failing(request: web.Request) -> web.Response:
    """`POST /v1/routers/{name}/failing`: what a router gets nothing from; their babysitters hear it."""
    body = parse(FailingBody, await read_json_object(request))
    request.app[REGISTRY].doubts.note(request.match_info["name"], body.failing)
    return answer(Acknowledgement(message=f"{len(body.failing)} servers are in doubt"))


async def drain(request: web.Request) -> web.Response:
    """`POST /services/{name}/drain[?hand_over=true]` and `/undrain`."""
    name = request.match_info["name"]
    on = request.path.endswith("/drain")
    hand_over = request.query.get("hand_over") == "true"
    decision = await request.app[REGISTRY].writer.submit(SetDraining(name, on, hand_over))
    return _with_service(request, decision, f"Service {name} {'drains' if on else 'is back'}")


async def probe_now(request: web.Request) -> web.Response:
    """`GET /services/{name}/health`."""
    registry = request.app[REGISTRY]
    instance = require_entry(request).instance
    verdict = await registry.prober.ask_now(instance)
    entry = require_entry(request)
    return answer(
        ServiceHealth(
            service=instance.name,
            health_status=verdict,
            is_healthy=entry.instance.is_healthy,
            last_heartbeat=registry.renderer.last_heartbeat(entry),
            timestamp=registry.renderer.timestamp(),
        )
    )


def _with_service(
    request: web.Request, decision: Decision, message: str, *, status: int = 200, told: bytes = b""
) -> web.Response:
    """The answer that shows the record a command left, and further members."""
    registry = request.app[REGISTRY]
    name = decision.answer.name if decision.answer else ""
    entry = registry.catalogue.get(name)
    if entry is None:
        raise Unknown(f"service {name!r} was removed meanwhile")
    body = b'{"message":%b,"service":%b%b}' % (encode_json(message), registry.renderer.service(entry), told)
    return web.Response(body=body, status=status, headers=JSON_HEADERS)


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
