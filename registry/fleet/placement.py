"""Which node's agent gets a new replica, from what the agents' heartbeats say. PURE."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from common.wire.deployment import Accelerator, TemplateGlance


class NoAgent(Exception):
    """No agent can be asked; the text says why. `unknown_node` tells that the request names a node that is not there."""

    def __init__(self, message: str, *, unknown_node: bool = False) -> None:
        super().__init__(message)
        self.unknown_node = unknown_node


@dataclass(frozen=True, slots=True)
class NodeAgent:
    """One node's agent. `live` are its replicas that take room, `capacity` is how many it takes (None: it does not say).

    `away` means that nothing was heard of it for longer than its lease. Nothing is made of a broken template.
    """

    node: str
    url: str
    live: int = 0
    capacity: int | None = None
    away: bool = False
    draining: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    accelerators: Sequence[Accelerator] = ()
    templates: Mapping[str, TemplateGlance] = field(default_factory=dict)
    broken_templates: Mapping[str, TemplateGlance] = field(default_factory=dict)


def ranked(agents: Iterable[NodeAgent], *, node: str | None, placed: Mapping[str, int]) -> list[NodeAgent]:
    """The agents to ask, the best first: the one of `node`, else those with room, the least laden first.

    Args:
        agents: All of them.
        node: The node that the request names.
        placed: How many replicas each node was given since its agent last counted.

    Raises:
        NoAgent: There is none to ask.
    """
    everyone = list(agents)
    if node is not None:
        named = [agent for agent in everyone if agent.node == node]
        if not named:
            there = ", ".join(agent.node for agent in everyone) or "none"
            raise NoAgent(f"no agent of node {node!r} is registered; there are: {there}", unknown_node=True)
        return named
    if not everyone:
        raise NoAgent("no node agent is registered; start one with script/launch_agent.sh")
    present = [agent for agent in everyone if not agent.away and not agent.draining]
    if not present:
        drains = [agent.node for agent in everyone if agent.draining]
        words = f"; draining, and so getting none: {', '.join(drains)}" if drains else ""
        away = len(drains) < len(everyone)
        raise NoAgent(f"{'no node agent is heard of at the moment' if away else 'every node drains'}{words}")
    roomy = [agent for agent in present if agent.capacity is None or _load(agent, placed) < agent.capacity]
    if not roomy:
        raise NoAgent("every node is full")
    return sorted(roomy, key=lambda agent: (_load(agent, placed), agent.node))


def _load(agent: NodeAgent, placed: Mapping[str, int]) -> int:
    return agent.live + placed.get(agent.node, 0)
