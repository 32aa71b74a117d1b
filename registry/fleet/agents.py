"""Asking the nodes' agents: every call bounded, every fault an answer."""

import asyncio
from dataclasses import dataclass

import aiohttp
import structlog

from common.http.client import read_bounded
from common.http.errors import ApiError
from registry.fleet.placement import NodeAgent

log = structlog.get_logger(__name__)
CALL_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 2.0
SEARCH_TIMEOUT_S = 2.5
ANSWER_LIMIT_BYTES = 32 << 20
STREAMS_MOST = 512


class AgentAway(Exception):
    """An agent could not be connected to: it has heard nothing of the call."""


@dataclass(frozen=True, slots=True)
class AgentAnswer:
    """What an agent answered."""

    status: int
    body: bytes
    content_type: str


@dataclass(slots=True)
class AgentClient:
    """The agents, as the registry asks them.

    Args:
        session: For all calls.
        token: The agents' token, or None.
    """

    session: aiohttp.ClientSession
    token: str | None = None
    streams: int = 0

    @property
    def headers(self) -> dict[str, str]:
        """What every call carries."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    async def ask(
        self, agent: NodeAgent, method: str, path: str, *, body: bytes | None = None, timeout_s: float = CALL_TIMEOUT_S
    ) -> AgentAnswer:
        """One call.

        Raises:
            AgentAway: It could not be connected to.
            ApiError: 504, it did not answer in time; 502, it refuses us or does not speak HTTP.
        """
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        headers = self.headers if body is None else {**self.headers, "Content-Type": "application/json"}
        try:
            async with self.session.request(
                method, agent.url + path, data=body, headers=headers, timeout=timeout, allow_redirects=False
            ) as answer:
                raw = await read_bounded(answer, ANSWER_LIMIT_BYTES)
                if answer.status == 401:  # noqa: PLR2004 - unauthorized
                    raise ApiError(
                        502, f"the agent of node {agent.node!r} refuses the registry; set --agent-token-file"
                    )
                return AgentAnswer(answer.status, raw, answer.headers.get("Content-Type", "application/json"))
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise AgentAway(f"the agent of node {agent.node!r} cannot be reached at {agent.url}") from error
        except TimeoutError as error:
            raise ApiError(504, f"the agent of node {agent.node!r} did not answer within {timeout_s:g} s") from error
        except aiohttp.ClientError as error:
            reason = str(error) or type(error).__name__
            raise ApiError(502, f"the agent of node {agent.node!r} gave no answer of use: {reason}") from error

    async def search(self, agents: list[NodeAgent], replica_id: str) -> NodeAgent | None:
        """The agent that knows the replica, by asking all at once; None when none that answers does."""

        async def knows(agent: NodeAgent) -> bool:
            try:
                response = await self.ask(agent, "GET", f"/api/v1/replicas/{replica_id}", timeout_s=SEARCH_TIMEOUT_S)
            except (AgentAway, ApiError) as error:
                log.warning("fleet.search", node=agent.node, reason=str(error))
                return False
            return response.status == 200  # noqa: PLR2004 - it is there

        answers = await asyncio.gather(*(knows(agent) for agent in agents))
        return next((agent for agent, is_there in zip(agents, answers, strict=True) if is_there), None)
