"""The nodes: what their agents tell of them, and draining one for maintenance."""

from aiohttp import web

from common.http.errors import ApiError
from common.wire.deployment import NodeInfo, NodeList
from registry.core.model import SetDraining
from registry.fleet.placement import NodeAgent
from registry.http.context import GRANT, REGISTRY, Registry, answer
from registry.http.guard import EVERYTHING, Level


async def list_nodes(request: web.Request) -> web.Response:
    """`GET /api/v1/nodes`."""
    nodes = [node_info(agent) for agent in request.app[REGISTRY].index.agents]
    return answer(NodeList(total=len(nodes), nodes=nodes))


async def drain(request: web.Request) -> web.Response:
    """`POST /api/v1/nodes/{node}/drain` and `/undrain`: it gets no new replicas; what it has is its owners' to move."""
    request.get(GRANT, EVERYTHING).check(Level.ADMIN, None)
    registry, node = request.app[REGISTRY], request.match_info["node"]
    _agent(registry, node)
    await registry.writer.submit(SetDraining(f"agent-{node}", request.path.endswith("/drain")))
    return answer(node_info(_agent(registry, node)))


def node_info(agent: NodeAgent) -> NodeInfo:
    """A node as it is shown."""
    return NodeInfo(
        node=agent.node,
        url=agent.url,
        labels=dict(agent.labels),
        live=agent.live,
        capacity=agent.capacity,
        room=None if agent.capacity is None else max(0, agent.capacity - agent.live),
        away=agent.away,
        draining=agent.draining,
        accelerators=list(agent.accelerators),
    )


def _agent(registry: Registry, node: str) -> NodeAgent:
    """The node's agent.

    Raises:
        ApiError: 404.
    """
    for agent in registry.index.agents:
        if agent.node == node:
            return agent
    raise ApiError(404, f"no agent of node {node!r} is registered")
