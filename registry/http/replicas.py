"""The release server's replica API for the whole fleet (docs/contract.md 5): reads from heartbeats, writes to the node's agent."""

import asyncio
from http import HTTPStatus
from itertools import chain

import aiohttp
import msgspec
import structlog
from aiohttp import web

from common.discovery.replica import FILTERS, fits
from common.http.errors import ApiError, parse_json_object
from common.http.relay import pass_bytes
from common.names import is_replica_id
from common.paced import paced
from common.wire.create import RequestGlance
from common.wire.fault import NO_ACCELERATORS, ErrorBody
from common.wire.read import read_json_lenient, read_lenient
from common.wire.replica import Created, InfoMarks, OneReplica, ReplicaInfo
from registry.fleet.agents import STREAMS_MOST, AgentAnswer, AgentAway
from registry.fleet.placement import NoAgent, NodeAgent, ranked
from registry.fleet.replicas import pending_info
from registry.http.context import GRANT, REGISTRY, Registry, answer, long_answer
from registry.http.guard import EVERYTHING, Level
from registry.http.listing import wait_for_news
from registry.views.render import encode_json, json_array

log = structlog.get_logger(__name__)
BODY_LIMIT_BYTES = 1 << 20
BODY_TIMEOUT_S = 30.0
RETRY = {"Retry-After": "5"}
CREATED = 201


async def list_replicas(request: web.Request) -> web.Response:
    """`GET /api/v1/replicas[?server_mode=…][&status=…][&model_name=…]`, and the same at `/v1/replicas` with long poll."""
    await wait_for_news(request)
    registry = request.app[REGISTRY]
    filters = {key: request.query[key] for key in FILTERS if key in request.query}
    headers = {"X-Index": str(registry.catalogue.revision), "X-Epoch": registry.catalogue.epoch}
    recent = [made.info for key, made in registry.created.recent().items() if key not in registry.index]
    recent = [made.info for key, made in registry.created.recent().items() if key not in registry.index]
    told = chain(registry.index.infos(), recent)
    shown = [encode_json(info) async for info in paced(told) if fits(info, filters)]
    return long_answer([b'{"total":%d,"replicas":' % len(shown), *await json_array(shown), b"}"], headers=headers)


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
    glance = read_lenient(RequestGlance, parse_json_object(raw))
    reason, refused = "", None
    for agent in _candidates(registry, glance):
        registry.created.asks(glance.request_id, agent.node)
        try:
            response = await registry.agents.ask(agent, "POST", "/api/v1/replicas", body=raw)
        except AgentAway as error:
            registry.created.unasked(glance.request_id)
            reason = str(error)
            continue
        if lacks_accelerators(response):  # it made nothing; another node may have them
            registry.created.unasked(glance.request_id)
            refused = min(refused or response, response, key=lambda one: one.status != HTTPStatus.SERVICE_UNAVAILABLE)
            continue
        _remember(registry, agent, glance, response)
        return _render(response)
    if refused is not None:
        return _render(refused)
    raise ApiError(503, reason, headers=RETRY)


def lacks_accelerators(response: AgentAnswer) -> bool:
    """True for an agent's refusal that says so by its `code`."""
    if response.status not in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.UNPROCESSABLE_ENTITY):
        return False
    try:
        return read_json_lenient(ErrorBody, response.body).code == NO_ACCELERATORS
    except msgspec.MsgspecError:
        return False


async def pass_on(request: web.Request) -> web.Response:
    """A call about one replica, answered by its node's agent: `DELETE`, and `POST` of stop, health, retry, sleep and wake."""
    registry = _may_write(request)
    replica_id = _id(request)
    raw = await _read(request)
    agent = await _agent_of(registry, replica_id)
    response = await _ask(registry, agent, request.method, request.path, raw or None)
    if request.method == "DELETE" or request.path.endswith("/stop"):
        registry.created.forget(replica_id)
    return _render(response)


async def read_on(request: web.Request) -> web.Response:
    """A question about one replica that only its agent can answer: the timeline."""
    registry = request.app[REGISTRY]
    agent = await _agent_of(registry, _id(request))
    return _render(await _ask(registry, agent, "GET", request.path, None))


async def get_replica(request: web.Request) -> web.Response:
    """`GET /api/v1/replicas/{id}`: from heartbeats; a replica that none tells of is looked for at the agents."""
    registry = request.app[REGISTRY]
    replica_id = request.match_info["id"]
    info = registry.index.get(replica_id)
    if info is not None:
        return answer(OneReplica(replica_id=replica_id, status=info.status, info=info))
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
            async with call as upstream:
                deadline.reschedule(None)
                response = web.StreamResponse(status=upstream.status)
                response.headers["Content-Type"] = plain_type(upstream.headers.get("Content-Type", ""))
                for name in ("Cache-Control", "X-Accel-Buffering"):
                    if name in upstream.headers:
                        response.headers[name] = upstream.headers[name]
                await response.prepare(request)
                await pass_bytes(request, upstream, response)
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


def _candidates(registry: Registry, glance: RequestGlance) -> list[NodeAgent]:
    """The agents to ask, the best first. A request that was made before goes to where it went then (E1)."""
    node = glance.placement.node
    if node is not None and not isinstance(node, str):
        raise ApiError(422, "field 'placement.node': must be the name of a node", field="placement.node")
    if node is None and glance.request_id is not None:
        node = _node_of_request(registry, glance.request_id)
    try:
        return ranked(registry.index.agents, node=node, placed=registry.created.placed(registry.index))
    except NoAgent as error:
        if error.unknown_node:
            raise ApiError(422, f"field 'placement.node': {error}", field="placement.node") from error
        raise ApiError(503, str(error), headers=RETRY) from error


def _node_of_request(registry: Registry, request_id: str) -> str | None:
    """Where a create request went that came before: by what is reported, was just made, or was only asked."""
    recent = [made.info for made in registry.created.recent().values() if made.info.request_id == request_id]
    for info in (*registry.index.of_request(request_id), *recent):
        if (node := _node(info)) is not None:
            return node
    return registry.created.asked_before(request_id)


def _node(info: ReplicaInfo) -> str | None:
    return read_lenient(InfoMarks, info.metadata).node or None


def _remember(registry: Registry, agent: NodeAgent, glance: RequestGlance, response: AgentAnswer) -> None:
    if response.status != CREATED:
        return
    try:
        created = read_json_lenient(Created, response.body)
    except msgspec.MsgspecError as error:
        log.warning("fleet.created_unreadable", node=agent.node, reason=str(error))
        return
    info = pending_info(created.replica_id, glance, node=agent.node, request_id=created.request_id)
    registry.created.remember(info, node=agent.node)


async def _agent_of(registry: Registry, replica_id: str) -> NodeAgent:
    """The agent of the replica's node.

    Raises:
        ApiError: 404, nobody knows the replica; 409, no agent made it; 503, its agent is not registered.
    """
    agents = registry.index.agents
    made = registry.created.recent().get(replica_id)
    info = registry.index.get(replica_id) or (made.info if made else None)
    if info is None:
        agent = await registry.agents.search(agents, replica_id)
        if agent is None:
            raise ApiError(404, f"replica {replica_id!r} not found")
        return agent
    node = _node(info)
    if node is None:
        raise ApiError(409, f"replica {replica_id!r} was made by no agent; ask its babysitter")
    for agent in agents:
        if agent.node == node:
            return agent
    raise ApiError(503, f"the agent of node {node!r} is not registered", headers=RETRY)


async def _ask(registry: Registry, agent: NodeAgent, method: str, path: str, body: bytes | None) -> AgentAnswer:
    try:
        return await registry.agents.ask(agent, method, path, body=body)
    except AgentAway as error:
        raise ApiError(503, str(error), headers=RETRY) from error


def plain_type(content_type: str) -> str:
    """The type of an answer that is passed on: never one that a browser would show as a page of this registry."""
    plain = content_type.startswith(("application/json", "text/event-stream", "text/plain"))
    return content_type if plain else "text/plain"


def _render(response: AgentAnswer) -> web.Response:
    return web.Response(
        status=response.status, body=response.body, headers={"Content-Type": plain_type(response.content_type)}
    )
