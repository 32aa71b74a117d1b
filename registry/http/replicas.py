"""The release server's replica API for the whole fleet (docs/contract.md 5): reads from heartbeats, writes to the node's agent."""

import asyncio
import json
from typing import Any

import aiohttp
from aiohttp import web

from common.discovery.replica import FILTERS, select
from common.http.errors import ApiError, parse_json_object
from common.http.relay import pass_bytes
from common.names import is_replica_id
from registry.fleet.agents import STREAMS_MOST, AgentAnswer, AgentAway
from registry.fleet.placement import NoAgent, NodeAgent, agents, ranked
from registry.fleet.replicas import pending_info, replica_infos
from registry.http.context import GRANT, REGISTRY, Registry, answer
from registry.http.guard import EVERYTHING, Level
from registry.http.listing import wait_for_news

BODY_LIMIT_BYTES = 1 << 20
BODY_TIMEOUT_S = 30.0
RETRY = {"Retry-After": "5"}
CREATED, OK = 201, 200


def known_infos(registry: Registry) -> dict[str, dict[str, Any]]:
    """Every replica: those that were reported, and those made a moment ago."""
    infos = replica_infos(entry.instance for entry in registry.catalogue)
    for replica_id, made in registry.created.recent().items():
        infos.setdefault(replica_id, dict(made.info))
    return infos


async def list_replicas(request: web.Request) -> web.Response:
    """`GET /api/v1/replicas[?server_mode=…][&status=…][&model_name=…]`, and the same at `/v1/replicas` with long poll."""
    await wait_for_news(request)
    catalogue = request.app[REGISTRY].catalogue
    wanted = {key: request.query[key] for key in FILTERS if key in request.query}
    found = select(known_infos(request.app[REGISTRY]).values(), wanted)
    headers = {"X-Index": str(catalogue.revision), "X-Epoch": catalogue.epoch}
    return answer({"total": len(found), "replicas": found}, headers=headers)


async def create(request: web.Request) -> web.Response:
    """`POST /api/v1/replicas`: at the agent of `placement.node`, else where there is most room."""
    registry = _may_write(request)
    if request.content_type not in (
        "application/json",
        "application/x-www-form-urlencoded",
        "application/octet-stream",
    ):
        raise ApiError(415, f"Content-Type: must be application/json, not {request.content_type}", field="Content-Type")
    raw = await _read(request)
    body = parse_json_object(raw)
    candidates = _candidates(registry, body)
    asked = body.get("request_id")
    request_id, reason = asked if isinstance(asked, str) else None, ""
    for agent in candidates:
        registry.created.asks(request_id, agent.node)
        try:
            told = await registry.agents.ask(agent, "POST", "/api/v1/replicas", body=raw)
        except AgentAway as error:
            registry.created.unasked(request_id)
            reason = str(error)
            continue
        _remember(registry, agent, body, told)
        return _render(told)
    raise ApiError(503, reason, headers=RETRY)


async def pass_on(request: web.Request) -> web.Response:
    """A call about one replica, answered by its node's agent: `DELETE`, and `POST` of stop, health and retry."""
    registry = _may_write(request)
    replica_id = _id(request)
    raw = await _read(request)
    agent = await _agent_of(registry, replica_id)
    told = await _ask(registry, agent, request.method, request.path, raw or None)
    if request.method == "DELETE" or request.path.endswith("/stop"):
        registry.created.forget(replica_id)
    return _render(told)


async def read_on(request: web.Request) -> web.Response:
    """A question about one replica that only its agent can answer: the timeline."""
    registry = request.app[REGISTRY]
    agent = await _agent_of(registry, _id(request))
    return _render(await _ask(registry, agent, "GET", request.path, None))


async def get_replica(request: web.Request) -> web.Response:
    """`GET /api/v1/replicas/{id}`: from heartbeats; a replica that none tells of is looked for at the agents."""
    registry = request.app[REGISTRY]
    replica_id = request.match_info["id"]
    info = replica_infos(entry.instance for entry in registry.catalogue).get(replica_id)
    if info is not None:
        return answer({"replica_id": replica_id, "status": info["status"], "info": info})
    agent = await _agent_of(registry, _id(request))
    return _render(await _ask(registry, agent, "GET", f"/api/v1/replicas/{replica_id}", None))


async def stream(request: web.Request) -> web.StreamResponse:
    """`GET /api/v1/replicas/{id}/events` and `/logs`: what the agent sends, as it comes."""
    registry = request.app[REGISTRY]
    client = registry.agents
    agent = await _agent_of(registry, _id(request))
    if client.streams >= STREAMS_MOST:
        raise ApiError(503, "too many streams", headers=RETRY)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=2.0)
    url = f"{agent.url}{request.path}"
    client.streams += 1
    try:
        async with asyncio.timeout(10.0) as deadline:
            call = client.session.get(
                url, params=request.query, headers=client.headers, timeout=timeout, allow_redirects=False
            )
            async with call as told:
                deadline.reschedule(None)
                response = web.StreamResponse(status=told.status)
                response.headers["Content-Type"] = plain_type(told.headers.get("Content-Type", ""))
                for name in ("Cache-Control", "X-Accel-Buffering"):
                    if name in told.headers:
                        response.headers[name] = told.headers[name]
                await response.prepare(request)
                await pass_bytes(request, told, response)
                return response
    except TimeoutError as error:
        raise ApiError(504, f"the agent of node {agent.node!r} did not answer") from error
    except aiohttp.ClientConnectorError as error:
        raise ApiError(503, f"the agent of node {agent.node!r} cannot be reached", headers=RETRY) from error
    finally:
        client.streams -= 1


def _may_write(request: web.Request) -> Registry:
    """Replicas are made and ended by administrators only, where there are tokens."""
    request.get(GRANT, EVERYTHING).check(Level.ADMIN, None)
    return request.app[REGISTRY]


def _id(request: web.Request) -> str:
    replica_id = request.match_info["id"]
    if not is_replica_id(replica_id):
        raise ApiError(404, f"replica {replica_id!r} not found")
    return replica_id


async def _read(request: web.Request) -> bytes:
    """The body, which may be larger than that of the registry's own calls."""
    raw = b""
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.content.iter_any():
                raw += chunk
                if len(raw) > BODY_LIMIT_BYTES:
                    raise ApiError(413, f"the body may have {BODY_LIMIT_BYTES} bytes", headers={"Connection": "close"})
    except TimeoutError as error:
        raise ApiError(408, "the body did not come in time", headers={"Connection": "close"}) from error
    return raw


def _candidates(registry: Registry, body: dict[str, Any]) -> list[NodeAgent]:
    """The agents to ask, the best first. A request that was made before goes to where it went then (E1)."""
    placement = body.get("placement")
    node = placement.get("node") if isinstance(placement, dict) else None
    if node is not None and not isinstance(node, str):
        raise ApiError(422, "field 'placement.node': must be the name of a node", field="placement.node")
    reported = replica_infos(entry.instance for entry in registry.catalogue)
    infos = {key: made.info for key, made in registry.created.recent().items()} | reported
    asked = body.get("request_id")
    if node is None and isinstance(asked, str):
        nodes = [info["metadata"].get("node") for info in infos.values() if info["request_id"] == asked]
        node = next((it for it in nodes if isinstance(it, str)), None) or registry.created.asked_before(asked)
    known = agents(entry.instance for entry in registry.catalogue)
    try:
        return ranked(known, node=node, placed=registry.created.placed(reported))
    except NoAgent as error:
        if error.unknown_node:
            raise ApiError(422, f"field 'placement.node': {error}", field="placement.node") from error
        raise ApiError(503, str(error), headers=RETRY) from error


def _remember(registry: Registry, agent: NodeAgent, body: dict[str, Any], told: AgentAnswer) -> None:
    if told.status not in (CREATED, OK):
        return
    try:
        content = json.loads(told.body)
        replica_id, request_id = content["replica_id"], content.get("request_id")
    except (ValueError, KeyError, TypeError):
        return
    if isinstance(replica_id, str) and told.status == CREATED:
        info = pending_info(replica_id, body, node=agent.node, request_id=request_id)
        registry.created.remember(replica_id, info, node=agent.node, request_id=request_id)


async def _agent_of(registry: Registry, replica_id: str) -> NodeAgent:
    """The agent of the replica's node.

    Raises:
        ApiError: 404, nobody knows the replica; 409, no agent made it; 503, its agent is not registered.
    """
    known = agents(entry.instance for entry in registry.catalogue)
    info = known_infos(registry).get(replica_id)
    if info is None:
        found = await registry.agents.search(known, replica_id)
        if found is None:
            raise ApiError(404, f"replica {replica_id!r} not found")
        return found
    node = info["metadata"].get("node")
    if node is None:
        raise ApiError(409, f"replica {replica_id!r} was made by no agent; ask its babysitter")
    for agent in known:
        if agent.node == node:
            return agent
    raise ApiError(503, f"the agent of node {node!r} is not registered", headers=RETRY)


async def _ask(registry: Registry, agent: NodeAgent, method: str, path: str, body: bytes | None) -> AgentAnswer:
    try:
        return await registry.agents.ask(agent, method, path, body=body)
    except AgentAway as error:
        raise ApiError(503, str(error), headers=RETRY) from error


def plain_type(told: str) -> str:
    """The type of an answer that is passed on: never one that a browser would show as a page of this registry."""
    return told if told.startswith(("application/json", "text/event-stream", "text/plain")) else "text/plain"


def _render(told: AgentAnswer) -> web.Response:
    return web.Response(status=told.status, body=told.body, headers={"Content-Type": plain_type(told.content_type)})
