"""Carrying plans out: calls to agents, each bounded and repeated until it is done; the documents say what is to be done.

A create call has the assignment's request id, so that a repeat makes nothing twice. Before a replica is removed its records
drain, and its babysitter ends what is under way.
"""

import asyncio
import time
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TypeVar

import msgspec
import structlog

from common.http.errors import ApiError
from common.tasks import TaskScope
from common.wire.base import JsonObject
from common.wire.fault import CANNOT_SLEEP, ErrorBody
from common.wire.group import GroupMembers
from common.wire.read import read_json_lenient, read_lenient
from common.wire.replica import Created, InfoMarks, OneReplica, ReplicaList
from common.wire.words import ReplicaStatus
from registry.core.model import CommandRefused, SetDraining
from registry.core.store import StoreError
from registry.core.writer import Writer
from registry.deployments.model import Assignment, Leave
from registry.fleet.agents import AgentAnswer, AgentAway, AgentClient
from registry.fleet.index import FleetIndex
from registry.fleet.placement import NodeAgent

T = TypeVar("T")
log = structlog.get_logger(__name__)
AT_ONCE_PER_NODE = 8
CALLS_PER_S, CALLS_AHEAD = 5.0, 10
"""Of all nodes together, and how many go at once after a rest: each replica that begins or leaves is a dozen writes of a store,
and hundreds in the same seconds would keep whoever else has something to tell waiting."""
WRITE_REST, SLOWEST_S = 25.0, 1.0
"""Calls are so many times further apart than a write of the store takes now, and a second at most: a store or a registry that has
too much to do is given no more."""
ROUTERS_HEAR_S = 0.5
"""From a record's draining until no router sends it anything any more."""
LOOK_S = 0.5
STOPS_WITHIN_S = 120.0
UNSEEN_S = 30.0
"""A create call that was answered is repeated when no heartbeat tells of its replica for so long."""
HEARTBEATS_TELL_S = 3.0
"""What was done is not done again before heartbeats can tell of it."""
SLEEPLESS_S = 600.0
REFUSED_AFTER_S = 16.0
"""A create call whose retries wait for so long counts as refused, so that another node is tried."""
RETRY_FIRST_S = 1.0
RETRY_LAST_S = 30.0


@dataclass(slots=True)
class _Wait:
    until: float
    length_s: float


@dataclass(slots=True)
class Hands:
    """Calls under way and what came of them.

    Args:
        agents: The agents.
        index: Which replicas and agents there are.
        writer: Drains records.
        scope: The calls' tasks belong to it.
        done: Set whenever a call has ended, so that the keeper looks at once.
        hand_over: Routers move the streams of those that leave to others.
    """

    agents: AgentClient
    index: FleetIndex
    writer: Writer
    scope: TaskScope
    done: asyncio.Event
    hand_over: bool = False
    gone: set[str] = field(default_factory=set)
    """Request ids of those that left, until the keeper takes them."""
    refused: dict[str, str] = field(default_factory=dict)
    """Request ids that a node refused, with why, likewise."""
    _sleepless: dict[str, float] = field(default_factory=dict)
    _busy: set[str] = field(default_factory=set)
    _made: dict[str, float] = field(default_factory=dict)
    _waits: dict[str, _Wait] = field(default_factory=dict)
    _rooms: dict[str, asyncio.Semaphore] = field(default_factory=dict)
    in_line: int = 0
    """Calls that wait for their turn."""
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _turn_at: float = 0.0
    """When the latest call had its turn."""

    def make(self, assignment: Assignment, bodies: Sequence[JsonObject]) -> None:
        """See to it that the replica is made, all members of a group; call again at any time."""
        key = assignment.request_id
        if time.monotonic() - self._made.get(key, -UNSEEN_S) >= UNSEEN_S:
            self._begin(key, assignment.node, self._create(assignment, bodies))

    def remove(self, assignment: Assignment) -> None:
        """See to it that the replica leaves; call again at any time."""
        self._begin(assignment.request_id, assignment.node, self._leave_all(assignment))

    def remove_surplus(self, leave: Leave) -> bool:
        """The same for one that no assignment names; False when that is under way, or was done a short time ago."""
        key, node = f"{leave.request_id} {leave.node}", leave.node
        return node is not None and self._begin(key, node, self._leave(leave.request_id, node))

    def rouse(self, replica_id: str, node: str, verb: str) -> None:
        """`wake` or `sleep` a replica; requests may wait for it, so it does not wait for its turn."""
        self._begin(f"{verb} {replica_id}", node, self._rouse(replica_id, node, verb), in_turn=False)

    def is_sleepless(self, name: str) -> bool:
        """A node whose agent has no call that lets a replica sleep, or a replica that cannot, as was answered a short time ago."""
        return time.monotonic() - self._sleepless.get(name, -SLEEPLESS_S) < SLEEPLESS_S

    def forget(self, known: Iterable[str]) -> None:
        """Keep nothing of request ids that are no more."""
        still, now = {*known, *self._busy}, time.monotonic()
        self._made = {key: at for key, at in self._made.items() if key in still}
        self._waits = {key: wait for key, wait in self._waits.items() if key in still or wait.until > now}
        self._sleepless = {name: at for name, at in self._sleepless.items() if now - at < SLEEPLESS_S}

    # Each call in a task.

    def _begin(self, key: str, node: str, work: Coroutine[None, None, None], *, in_turn: bool = True) -> bool:
        wait = self._waits.get(key)
        if key in self._busy or (wait is not None and time.monotonic() < wait.until):
            work.close()
            return False
        self._busy.add(key)
        self.in_line += in_turn
        self.scope.spawn(f"deployments {key}", self._bounded(key, node, work, in_turn=in_turn))
        return True

    async def _bounded(self, key: str, node: str, work: Coroutine[None, None, None], *, in_turn: bool) -> None:
        room = self._rooms.setdefault(node, asyncio.Semaphore(AT_ONCE_PER_NODE))
        try:
            if in_turn:
                await self._await_turn()
            async with room:
                await work
            self._waits[key] = _Wait(time.monotonic() + HEARTBEATS_TELL_S, 0.0)
        except (AgentAway, ApiError, StoreError, msgspec.MsgspecError) as error:
            before = self._waits.get(key)
            length_s = min(RETRY_LAST_S, max(RETRY_FIRST_S, before.length_s * 2)) if before else RETRY_FIRST_S
            self._waits[key] = _Wait(time.monotonic() + length_s, length_s)
            log.warning("deployment.call_failed", call=key, node=node, reason=str(error), again_in_s=length_s)
        finally:
            work.close()  # which a stop may have met before its turn
            self._busy.discard(key)
            self.done.set()

    async def _await_turn(self) -> None:
        try:
            async with self._turn:
                apart_s = min(SLOWEST_S, max(1 / CALLS_PER_S, WRITE_REST * self.writer.write_s))
                now = time.monotonic()
                self._turn_at = max(self._turn_at + apart_s, now - CALLS_AHEAD / CALLS_PER_S)
                await asyncio.sleep(max(0.0, self._turn_at - now))
        finally:
            self.in_line -= 1

    async def _create(self, assignment: Assignment, bodies: Sequence[JsonObject]) -> None:
        """All members are reserved; those of a group begin when none was refused."""
        calls = zip(assignment.places, bodies, strict=True)
        made = await _all_of(
            self._call_for(assignment, place, "/api/v1/replicas", msgspec.json.encode(body)) for place, body in calls
        )
        if None in made:
            return
        created = [read_json_lenient(Created, raw) for raw in made if raw is not None]
        if assignment.followers:
            members = [one.member for one in created if one.member is not msgspec.UNSET]
            told = msgspec.json.encode(GroupMembers(members=members))
            paths = [f"/api/v1/replicas/{one.replica_id}/members" for one in created]
            places = zip(assignment.places, paths, strict=True)
            begun = await _all_of(self._call_for(assignment, place, path, told) for place, path in places)
            if None in begun:
                return
        self._made[assignment.request_id] = time.monotonic()
        log.info(
            "deployment.started",
            deployment=assignment.deployment,
            node=assignment.node,
            replica=created[0].replica_id,
            request=assignment.request_id,
            revision=assignment.revision,
            followers=[one.node for one in assignment.followers],
        )

    async def _call_for(self, assignment: Assignment, place: tuple[str, str], path: str, body: bytes) -> bytes | None:
        """A call that makes or begins a replica; what is answered, None when that is a refusal, which is noted."""
        request_id, node = place
        wait = self._waits.get(assignment.request_id)
        try:
            answer = await self.agents.ask(self._agent(node), "POST", path, body=body)
        except (AgentAway, ApiError) as error:
            if wait is not None and wait.length_s >= REFUSED_AFTER_S:
                self.refused[request_id] = str(error)
            raise
        if answer.status in (HTTPStatus.CREATED, HTTPStatus.OK):
            return answer.body
        reason = self.refused[request_id] = _reason(answer)
        log.warning(
            "deployment.start_refused",
            deployment=assignment.deployment,
            node=node,
            request=request_id,
            reason=reason,
        )
        return None

    async def _leave_all(self, assignment: Assignment) -> None:
        """The leader first, so that no follower is taken from requests that it finishes; the others also where it is away."""
        leader, *others = assignment.places
        try:
            await self._leave(*leader)
        finally:
            await _all_of(self._leave(*place) for place in others)
        self.gone.add(assignment.request_id)

    async def _leave(self, request_id: str, node: str) -> None:
        agent = self._agent(node)
        replicas = [
            info.replica_id
            for info in self.index.of_request(request_id)
            if read_lenient(InfoMarks, info.metadata).node == node
        ] or await self._ids_at(agent, request_id)
        for replica_id in replicas:
            if await self._drain(replica_id):
                await asyncio.sleep(ROUTERS_HEAR_S)
            await self._ask(agent, "DELETE", f"/api/v1/replicas/{replica_id}")
        for replica_id in replicas:
            await self._await_end(agent, replica_id)
        self._made.pop(request_id, None)
        log.info("deployment.left", node=node, request=request_id, replicas=len(replicas))

    async def _drain(self, replica_id: str) -> bool:
        """No router sends it anything from now on; True when one may have until now."""
        info = self.index.get(replica_id)
        for name in self.index.records_of(replica_id):
            try:
                await self.writer.submit(SetDraining(name, on=True, hand_over=self.hand_over))
            except CommandRefused as error:
                log.debug("deployment.record_gone", name=name, reason=str(error))
        return info is not None and info.status is ReplicaStatus.READY

    async def _ids_at(self, agent: NodeAgent, request_id: str) -> list[str]:
        """What the agent itself has of this request."""
        answer = await self._ask(agent, "GET", "/api/v1/replicas")
        infos = msgspec.json.decode(answer.body, type=ReplicaList, strict=False).replicas
        return [
            info.replica_id
            for info in infos
            if info.request_id == request_id and not read_lenient(InfoMarks, info.metadata).deleted
        ]

    async def _await_end(self, agent: NodeAgent, replica_id: str) -> None:
        deadline = time.monotonic() + STOPS_WITHIN_S
        while time.monotonic() < deadline:
            answer = await self._ask(agent, "GET", f"/api/v1/replicas/{replica_id}")
            if answer.status == HTTPStatus.NOT_FOUND:
                return
            if msgspec.json.decode(answer.body, type=OneReplica, strict=False).status is ReplicaStatus.STOPPED:
                return
            await asyncio.sleep(LOOK_S)
        raise AgentAway(f"replica {replica_id} has not stopped within {STOPS_WITHIN_S:g} s")

    async def _rouse(self, replica_id: str, node: str, verb: str) -> None:
        path = f"/api/v1/replicas/{replica_id}/{verb}"
        answer = await self.agents.ask(self._agent(node), "POST", path)
        if answer.status == HTTPStatus.NOT_FOUND and verb == "sleep" and self.index.get(replica_id) is not None:
            self._sleepless[node] = time.monotonic()
        elif answer.status == HTTPStatus.CONFLICT and _fault(answer).code == CANNOT_SLEEP:
            self._sleepless[replica_id] = time.monotonic()
        elif answer.status >= HTTPStatus.BAD_REQUEST:
            raise ApiError(answer.status, f"POST {path}: {_reason(answer)}")
        log.info("deployment.roused", replica=replica_id, node=node, verb=verb, status=answer.status)

    async def _ask(self, agent: NodeAgent, method: str, path: str) -> AgentAnswer:
        """A call about one replica, which may be gone.

        Raises:
            AgentAway: It cannot be reached.
            ApiError: It refuses, or does not answer.
        """
        answer = await self.agents.ask(agent, method, path)
        if answer.status >= HTTPStatus.BAD_REQUEST and answer.status != HTTPStatus.NOT_FOUND:
            raise ApiError(answer.status, f"{method} {path}: {_reason(answer)}")
        return answer

    def _agent(self, node: str) -> NodeAgent:
        for agent in self.index.agents:
            if agent.node == node:
                return agent
        raise AgentAway(f"the agent of node {node!r} is not registered")


async def _all_of(calls: Iterable[Coroutine[None, None, T]]) -> list[T]:
    """What all of them return, when the last one has ended; raises what the first one raised that failed."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    if tasks:
        try:
            await asyncio.wait(tasks)
        finally:
            for task in tasks:
                task.cancel()
    failed = [error for task in tasks if (error := task.exception()) is not None]
    if failed:
        raise failed[0]
    return [task.result() for task in tasks]


def _fault(answer: AgentAnswer) -> ErrorBody:
    """What an agent says of its refusal."""
    try:
        return read_json_lenient(ErrorBody, answer.body)
    except msgspec.MsgspecError:
        return ErrorBody(error=f"the agent answered {answer.status}")


def _reason(answer: AgentAnswer) -> str:
    return _fault(answer).error[:300]
