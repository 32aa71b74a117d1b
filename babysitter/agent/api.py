"""The agent's HTTP API (docs/contract.md 5, docs/agent.md): parse, one call, render."""

import asyncio
from dataclasses import dataclass, field
from http import HTTPStatus

import aiohttp
import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType
from msgspec.structs import asdict

from babysitter import metrics as scrapes
from babysitter.agent import groups, streams
from babysitter.agent.controller import ReplicaController
from babysitter.agent.manager import ReplicaManager
from babysitter.agent.metrics import families
from babysitter.agent.model import Desired
from babysitter.agent.requests import check_content_type, parse_body, warnings, wrong
from common import __version__
from common.clock import now_iso
from common.discovery.replica import FILTERS, select
from common.http.answers import json_answer
from common.http.audit import AuditLog, Wanted, read
from common.http.errors import ApiError
from common.http.tls import Tls
from common.wire.audit import AuditLine, AuditList
from common.wire.base import JsonObject
from common.wire.deployment import TemplateInfo, TemplateList
from common.wire.fault import ErrorBody
from common.wire.read import read_json_lenient
from common.wire.replica import (
    AgentHealth,
    Created,
    OneReplica,
    ReplicaHealth,
    ReplicaList,
    ReplicaMessage,
    Timeline,
)
from common.wire.words import ReplicaStatus

BODY_TIMEOUT_S = 30.0


@dataclass(slots=True)
class AgentContext:
    """What the handlers work with. Every call but those of `OPEN` needs `token`, unless it is None; a reload changes it."""

    manager: ReplicaManager
    node: str
    token: str | None = None
    tls: Tls = field(default_factory=Tls)
    audit: AuditLog | None = None


AGENT: web.AppKey[AgentContext] = web.AppKey("agent", AgentContext)


async def health(request: web.Request) -> web.Response:
    """`GET /health` and `GET /api/v1/health`."""
    agent = request.app[AGENT]
    counts = asdict(agent.manager.counts())
    return json_answer(AgentHealth(version=__version__, node=agent.node, timestamp=now_iso(), **counts))


async def metrics(request: web.Request) -> web.Response:
    """`GET /metrics`: for Prometheus; numbers only, so it needs no token."""
    agent = request.app[AGENT]
    controllers = agent.manager.controllers()
    silent = sum(not controller.has_babysitter and not controller.record.over for controller in controllers)
    statuses = [controller.info().status for controller in controllers]
    manager, watch = agent.manager, agent.manager.accelerators
    accelerators = watch.glance(manager.holds())
    told = families(
        agent.node,
        statuses,
        manager.counts(),
        silent,
        accelerators=accelerators,
        readings=watch.readings,
        expires_at=agent.tls.material.expires_at,
    )
    body = scrapes.page(told)
    return web.Response(body=body, headers={"Content-Type": scrapes.CONTENT_TYPE})


async def create(request: web.Request) -> web.Response:
    """`POST /api/v1/replicas`: 201 at once, 200 for the same again."""
    check_content_type(request)
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            raw = await request.read()
    except TimeoutError as error:
        raise ApiError(408, "the body did not come in time", headers={"Connection": "close"}) from error
    body, manager = parse_body(raw), request.app[AGENT].manager
    create_request = manager.read(body)
    # Shielded: a client that goes away in the middle leaves a whole replica, which it finds by its request_id.
    controller, repeated = await asyncio.shield(manager.create(create_request, body))
    member = await asyncio.to_thread(groups.member_of, controller.record, manager.settings)
    created = Created(
        replica_id=controller.replica_id,
        status=controller.info().status if repeated else ReplicaStatus.PENDING,
        message=f"Replica {controller.replica_id} created {'before, by this request_id' if repeated else 'successfully'}",
        request_id=controller.record.request_id,
        warnings=warnings(create_request, body) or UNSET,
        member=member or UNSET,
    )
    return json_answer(created, status=HTTPStatus.OK if repeated else HTTPStatus.CREATED)


async def audit(request: web.Request) -> web.Response:
    """`GET /api/v1/audit`: the agent's own lines, and those of the babysitters of its replicas."""
    wanted, writer = Wanted.of(request), request.app[AGENT].audit

    def lines() -> list[AuditLine]:
        return read([writer.path, *writer.path.parent.glob(f"*/{writer.path.name}")], wanted) if writer else []

    found = await asyncio.to_thread(lines)
    return json_answer(AuditList(total=len(found), lines=found))


async def templates(request: web.Request) -> web.Response:
    """`GET /api/v1/templates`: what replicas can be made of here."""
    manager = request.app[AGENT].manager
    infos = [TemplateInfo(**asdict(glance), nodes=[manager.settings.node]) for glance in manager.templates.all()]
    return json_answer(TemplateList(total=len(infos), templates=infos))


async def list_replicas(request: web.Request) -> web.Response:
    """`GET /api/v1/replicas[?server_mode=…][&status=…][&model_name=…]`."""
    filters = {key: request.query[key] for key in FILTERS if key in request.query}
    infos = select((controller.info() for controller in request.app[AGENT].manager.controllers()), filters)
    return json_answer(ReplicaList(total=len(infos), replicas=infos))


async def get_replica(request: web.Request) -> web.Response:
    """`GET /api/v1/replicas/{id}`."""
    info = _controller(request).info()
    return json_answer(OneReplica(replica_id=info.replica_id, status=info.status, info=info))


async def members(request: web.Request) -> web.Response:
    """`POST /api/v1/replicas/{id}/members`: its group is complete."""
    controller, manager = _controller(request), request.app[AGENT].manager
    check_content_type(request)
    body = parse_body(await request.read())
    await asyncio.shield(groups.begin(manager, controller, body))
    message = f"Replica {controller.replica_id} begins"
    return json_answer(
        ReplicaMessage(replica_id=controller.replica_id, status=controller.info().status, message=message)
    )


async def delete(request: web.Request) -> web.Response:
    """`DELETE /api/v1/replicas/{id}`."""
    controller = _controller(request)
    await asyncio.shield(controller.want(Desired.DELETED))
    return _stopped(controller)


async def stop(request: web.Request) -> web.Response:
    """`POST /api/v1/replicas/{id}/stop[{"force": true}]`."""
    controller = _controller(request)
    check_content_type(request)
    raw = await request.read()
    body = parse_body(raw) if raw else {}
    body = {name: value for name, value in body.items() if value is not None}
    unknown = sorted(set(body) - {"force"})
    if unknown:
        raise wrong(unknown[0], "extra inputs are not permitted")
    force = body.get("force", False)
    if not isinstance(force, bool):
        raise wrong("force", "must be true or false")
    await asyncio.shield(controller.want(Desired.STOPPED, force=force))
    return _stopped(controller)


async def retry(request: web.Request) -> web.Response:
    """`POST /api/v1/replicas/{id}/retry`."""
    controller = _controller(request)
    replica_id = controller.replica_id
    if controller.info().status is not ReplicaStatus.FAILED or not await controller.retry():
        status = controller.info().status
        raise ApiError(HTTPStatus.CONFLICT, f"only a failed replica is retried; {replica_id} is {status}")
    message = f"Replica {replica_id} is retried"
    content = ReplicaMessage(replica_id=replica_id, status=ReplicaStatus.STARTING, message=message)
    return json_answer(content, status=HTTPStatus.ACCEPTED)


async def rouse(request: web.Request) -> web.Response:
    """`POST /api/v1/replicas/{id}/sleep` and `/wake`: as its babysitter answers."""
    controller, verb = _controller(request), request.path.rpartition("/")[2]
    replica_id = controller.replica_id
    if not controller.has_babysitter or controller.record.over:
        raise ApiError(HTTPStatus.CONFLICT, f"replica {replica_id} is {controller.info().status}")
    status, raw = await controller.ask(f"/{verb}")
    if status != HTTPStatus.ACCEPTED:
        refusal = _refusal(raw)
        code: JsonObject = {} if isinstance(refusal.code, UnsetType) else {"code": refusal.code}
        raise ApiError(status, f"replica {replica_id}: {refusal.error}", **code)
    message = f"Replica {replica_id} {'goes to sleep' if verb == 'sleep' else 'wakes'}"
    content = ReplicaMessage(replica_id=replica_id, status=controller.info().status, message=message)
    return json_answer(content, status=HTTPStatus.ACCEPTED)


def _refusal(raw: bytes) -> ErrorBody:
    try:
        return read_json_lenient(ErrorBody, raw)
    except msgspec.MsgspecError:
        return ErrorBody(error="its babysitter does not answer; try again")


async def replica_health(request: web.Request) -> web.Response:
    """`POST /api/v1/replicas/{id}/health`: asks the server now."""
    controller, manager = _controller(request), request.app[AGENT].manager
    info = controller.info()
    base_url, status = info.base_url, info.status
    healthy, message = False, f"Replica {controller.replica_id} is {status}"
    if base_url is not None and info.replica_pid is not None:
        timeout = aiohttp.ClientTimeout(total=manager.settings.default_health_timeout_s)
        try:
            async with manager.session.get(f"{base_url}/health", timeout=timeout, allow_redirects=False) as answer:
                healthy = answer.status == HTTPStatus.OK
                message = f"{base_url}/health answers {answer.status}; the replica is {status}"
        except (aiohttp.ClientError, TimeoutError) as error:
            message = f"{base_url}/health: {str(error) or type(error).__name__}; the replica is {status}"
    return json_answer(
        ReplicaHealth(replica_id=controller.replica_id, healthy=healthy, base_url=base_url, message=message)
    )


async def timeline(request: web.Request) -> web.Response:
    """`GET /api/v1/replicas/{id}/timeline`."""
    controller = _controller(request)
    memory = controller.state().memory
    return json_answer(
        Timeline(
            replica_id=controller.replica_id,
            status=controller.info().status,
            transitions=memory.timeline,
            stages=memory.stages,
            jobs=memory.jobs,
        )
    )


async def events(request: web.Request) -> web.StreamResponse:
    """`GET /api/v1/replicas/{id}/events`."""
    return await streams.events(request, _controller(request))


async def logs(request: web.Request) -> web.StreamResponse:
    """`GET /api/v1/replicas/{id}/logs`."""
    return await streams.logs(request, _controller(request))


def _controller(request: web.Request) -> ReplicaController:
    return request.app[AGENT].manager.controller(request.match_info["id"])


def _stopped(controller: ReplicaController) -> web.Response:
    outcome = "stopped successfully"
    if not controller.record.over:
        outcome = "is being stopped; it is over when its status says stopped"
    message = f"Replica {controller.replica_id} {outcome}"
    return json_answer(ReplicaMessage(replica_id=controller.replica_id, status=ReplicaStatus.STOPPED, message=message))
