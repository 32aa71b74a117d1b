"""The audit of this registry and of the nodes: what agents and their babysitters wrote is asked of the agents."""

import asyncio

import msgspec
from aiohttp import web
from yarl import URL

from common.http.audit import QUERY, Wanted, read
from common.http.errors import ApiError
from common.http.openapi import Route
from common.wire.audit import AuditLine, AuditList
from registry.fleet.agents import SEARCH_TIMEOUT_S, AgentAway
from registry.fleet.placement import NodeAgent
from registry.http.context import GRANT, REGISTRY, Registry, answer
from registry.http.guard import EVERYTHING, Level

PATH = "/api/v1/audit"


async def audit(request: web.Request) -> web.Response:
    """`GET /api/v1/audit`: an administrator's, as lines name people and what they did."""
    request.get(GRANT, EVERYTHING).check(Level.ADMIN, None)
    registry, wanted = request.app[REGISTRY], Wanted.of(request)
    agents = list(registry.index.agents)
    own, *theirs = await asyncio.gather(
        asyncio.to_thread(read, [registry.audit.path], wanted), *(_ask(registry, agent, wanted) for agent in agents)
    )
    told = {agent.node: lines for agent, lines in zip(agents, theirs, strict=True)}
    lines = wanted.latest([*(own or ()), *(line for of_node in theirs for line in of_node or ())])
    missing = sorted(node for node, of_node in told.items() if of_node is None)
    return answer(AuditList(total=len(lines), lines=lines, missing=missing))


async def _ask(registry: Registry, agent: NodeAgent, wanted: Wanted) -> list[AuditLine] | None:
    """What a node's agent has; None where it cannot be had, as of an older one."""
    path = str(URL(PATH).with_query(wanted.query))
    try:
        got = await registry.agents.ask(agent, "GET", path, timeout_s=SEARCH_TIMEOUT_S)
        return msgspec.json.decode(got.body, type=AuditList).lines if got.status == 200 else None  # noqa: PLR2004 - OK
    except (AgentAway, ApiError, msgspec.MsgspecError):
        return None


AUDIT_ROUTES: tuple[Route, ...] = (
    Route("GET", PATH, audit, "Who changed what, here and on the nodes.", {200: AuditList}, (400,), query=QUERY),
)
