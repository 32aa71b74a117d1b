"""`GET /api/v1/templates`: what the fleet's nodes can make replicas of, from their agents' heartbeats."""

from collections.abc import Iterable

from aiohttp import web
from msgspec import UNSET
from msgspec.structs import asdict, replace

from common.wire.deployment import RELEASE_SERVER, TemplateGlance, TemplateInfo, TemplateList
from registry.fleet.placement import NodeAgent
from registry.http.context import REGISTRY, answer


async def list_templates(request: web.Request) -> web.Response:
    """`GET /api/v1/templates`: one of a name for each content that it has somewhere."""
    infos = merged(request.app[REGISTRY].index.agents)
    return answer(TemplateList(total=len(infos), templates=infos))


def merged(agents: Iterable[NodeAgent]) -> list[TemplateInfo]:
    """Every template by name, with the nodes that have it just so; those of nodes that are away are among them."""
    found: dict[tuple[str, str, str], TemplateInfo] = {}
    for agent in agents:
        for glance in (*agent.templates.values(), *agent.broken_templates.values(), RELEASE_SERVER):
            key = (glance.name, glance.digest, "" if glance.error is UNSET else glance.error)
            known = found.get(key) or _info(glance)
            found[key] = replace(known, nodes=[*known.nodes, agent.node])
    return [found[key] for key in sorted(found)]


def _info(glance: TemplateGlance) -> TemplateInfo:
    return TemplateInfo(**asdict(glance))
