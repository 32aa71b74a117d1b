"""Asking the nodes' agents: every call bounded, every fault an answer, and what was just made remembered for a moment."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import structlog

from common.http.client import read_bounded
from common.http.errors import ApiError
from registry.placement import Agent

log = structlog.get_logger(__name__)
CALL_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 2.0
SEARCH_TIMEOUT_S = 2.5
ANSWER_LIMIT_BYTES = 32 << 20
REMEMBERED_S = 30.0
"""Long past the first heartbeat of a new replica's babysitter."""
ASKED_S = 600.0
"""A create call that is repeated within this time goes to the same node, whatever became of it (E1)."""
REMEMBERED_MOST = 10_000
STREAMS_MOST = 512


class AgentAway(Exception):
    """An agent could not be connected to: it has heard nothing of the call."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What an agent answered."""

    status: int
    body: bytes
    content_type: str


@dataclass(frozen=True, slots=True)
class Made:
    """A replica that an agent just made."""

    replica_id: str
    request_id: str | None
    node: str
    info: Mapping[str, Any]
    at: float


@dataclass(slots=True)
class Fleet:
    """The agents, as the registry asks them.

    Args:
        session: For all calls.
        token: The agents' token, or None.
        monotonic: Seconds.
    """

    session: aiohttp.ClientSession
    token: str | None = None
    monotonic: Callable[[], float] = time.monotonic
    streams: int = 0
    _made: dict[str, Made] = field(default_factory=dict)
    _asked: dict[str, tuple[str, float]] = field(default_factory=dict)

    @property
    def headers(self) -> dict[str, str]:
        """What every call carries."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    async def ask(
        self, agent: Agent, method: str, path: str, *, body: bytes | None = None, timeout_s: float = CALL_TIMEOUT_S
    ) -> Answer:
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
                return Answer(answer.status, raw, answer.headers.get("Content-Type", "application/json"))
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise AgentAway(f"the agent of node {agent.node!r} cannot be reached at {agent.url}") from error
        except TimeoutError as error:
            raise ApiError(504, f"the agent of node {agent.node!r} did not answer within {timeout_s:g} s") from error
        except aiohttp.ClientError as error:
            said = str(error) or type(error).__name__
            raise ApiError(502, f"the agent of node {agent.node!r} gave no answer of use: {said}") from error

    async def search(self, agents: list[Agent], replica_id: str) -> Agent | None:
        """The agent that knows the replica, by asking all at once; None when none that answers does."""

        async def knows(agent: Agent) -> bool:
            try:
                found = await self.ask(agent, "GET", f"/api/v1/replicas/{replica_id}", timeout_s=SEARCH_TIMEOUT_S)
            except (AgentAway, ApiError) as error:
                log.warning("fleet.search", node=agent.node, reason=str(error))
                return False
            return found.status == 200  # noqa: PLR2004 - it is there

        answers = await asyncio.gather(*(knows(agent) for agent in agents))
        return next((agent for agent, known in zip(agents, answers, strict=True) if known), None)

    def asks(self, request_id: str | None, node: str) -> None:
        """A create call is about to go to `node`, from which no answer may come."""
        if request_id is None:
            return
        now = self.monotonic()
        if len(self._asked) >= REMEMBERED_MOST:
            self._asked = {key: it for key, it in self._asked.items() if now - it[1] <= ASKED_S}
        if len(self._asked) >= REMEMBERED_MOST:
            self._asked.clear()
        self._asked[request_id] = (node, now)

    def unasked(self, request_id: str | None) -> None:
        """The call did not reach its node."""
        if request_id is not None:
            self._asked.pop(request_id, None)

    def asked_before(self, request_id: str) -> str | None:
        """The node that such a call went to."""
        node, at = self._asked.get(request_id, (None, 0.0))
        return node if self.monotonic() - at <= ASKED_S else None

    def remember(self, made: Made) -> None:
        """A replica was made: it is known from now on, whenever its babysitter will first be heard."""
        now = self.monotonic()
        for replica_id in [key for key, it in self._made.items() if now - it.at > REMEMBERED_S]:
            del self._made[replica_id]
        if len(self._made) >= REMEMBERED_MOST:
            self._made.clear()
        self._made[made.replica_id] = made

    def forget(self, replica_id: str) -> None:
        """It was stopped: it is for its agent alone to show now."""
        self._made.pop(replica_id, None)

    def made(self) -> dict[str, Made]:
        """What was made within the last seconds, by id."""
        now = self.monotonic()
        return {key: it for key, it in self._made.items() if now - it.at <= REMEMBERED_S}

    def placed(self, known: Mapping[str, Any]) -> Counter[str]:
        """How many replicas of each node were made that no heartbeat has shown yet. `known`: those that one has."""
        return Counter(it.node for it in self.made().values() if it.replica_id not in known)
