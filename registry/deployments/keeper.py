"""The one loop that keeps deployments: lead, read, plan, write, call; each second, and at once when something happens.

What is to be done stands in the documents before anybody is called, so that the next leader goes on where this one was
killed. A registry that does not lead passes on what routers tell it, and shows what the leader says.
"""

import asyncio
import math
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

import msgspec
import structlog

from common.clock import Clock
from common.tasks import TaskScope
from common.wire.deployment import Demand
from common.wire.replica import ReplicaInfo
from common.wire.words import ReplicaStatus
from registry.core.documents import Fence
from registry.core.store import DocumentConflict, Store, StoreError
from registry.core.writer import Writer
from registry.deployments import board, fold, sight
from registry.deployments.books import Books, Shelf
from registry.deployments.hands import Hands
from registry.deployments.intake import Intake
from registry.deployments.model import (
    Action,
    Leave,
    Memory,
    Node,
    Plan,
    SeenReplica,
    Sleep,
    Start,
    StoredDeployment,
    Traffic,
    Wake,
)
from registry.deployments.planner import plan
from registry.deployments.shown import Shown
from registry.deployments.sight import node_of, seen
from registry.deployments.stored import create_body, model_of, wish_of
from registry.deployments.tally import Tally
from registry.deployments.timing import QUEUED, Timing
from registry.fleet.agents import AgentClient
from registry.fleet.index import FleetIndex

log = structlog.get_logger(__name__)
TICK_S = 1.0
SOONEST_S = 0.02
"""Between two rounds, however much happens."""
AWAY_AFTER_S = 60.0
"""A node with replicas whose agent is not registered is given up after so long."""
PASS_ON_S = 2.0
PASSED_ON_LATE_S = 2 * TICK_S
"""What another registry passes on waits for its next round, and for ours."""
HOLD_WITHIN_S = 60.0
"""A request waits for a deployment that fails if the next start is tried within this time."""
DEMAND = "demand/"
_words = msgspec.json.Decoder(dict[str, Demand]).decode


@dataclass(slots=True)
class _Reign:
    """What a leader knows; another one begins anew."""

    fence: Fence
    began_at: float
    born_at: float
    memory: Memory = field(default_factory=Memory)
    timing: Timing = field(default_factory=Timing)
    agent_seen_at: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class _Round:
    """One look at everything."""

    now: float
    shelf: Shelf
    infos: dict[str, ReplicaInfo]
    seen: dict[str, SeenReplica]
    replicas: list[SeenReplica]
    traffic: dict[str, Traffic]


class Keeper:
    """Keeps deployments.

    Args:
        store: Their documents are beside the records.
        index: Agents and replicas.
        writer: Drains records.
        agents: For calls.
        clock: Wall time.
        scope: Calls run in it.
    """

    def __init__(
        self,
        *,
        store: Store,
        index: FleetIndex,
        writer: Writer,
        agents: AgentClient,
        clock: Clock,
        scope: TaskScope,
    ) -> None:
        self.books = Books(store.documents)
        self.shown = Shown()
        self.tally = Tally()
        self.leads = False
        self._store = store
        self._index = index
        self._clock = clock
        self._intake = Intake()
        self._nudged = asyncio.Event()
        self._hands = Hands(agents, index, writer, scope, self._nudged)
        self._reign: _Reign | None = None
        self._name = uuid.uuid4().hex
        self._passed_on: tuple[dict[str, Demand], float] = ({}, 0.0)
        self._heard_versions: dict[str, int] = {}

    @property
    def now(self) -> float:
        """Seconds of wall time."""
        return self._clock.utcnow().timestamp()

    def nudge(self) -> None:
        """Look at once."""
        self._nudged.set()

    def heard(self, router: str, demand: Demand) -> None:
        """A router tells what is asked for."""
        if self._intake.heard(router, demand, self.now):
            self.nudge()

    async def run(self) -> None:
        """Round after round, for ever; what goes wrong in one is said, and the next one begins anew."""
        fails = False
        while True:
            self._nudged.clear()
            try:
                await self.round()
                fails = False
            except StoreError as error:
                self._reign, self.leads = None, False
                if not fails:
                    log.warning("deployment.store_failed", reason=str(error))
                fails = True
            except Exception:
                # A defect here must not end the registry, by which everybody finds everybody.
                self._reign, self.leads = None, False
                log.exception("deployment.round_failed")
            await asyncio.sleep(SOONEST_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._nudged.wait()

    async def round(self) -> None:
        """One round."""
        fence = await self._store.documents.lead()
        now = self.now
        if fence is None:
            if self.leads:
                log.info("deployment.leads", on=False)
            self._reign, self.leads = None, False
            await self._follow(now)
            return
        if self._reign is None or self._reign.fence != fence:
            self._reign = _Reign(fence, now, await self.books.born_at(now, fence))
            self._reign.timing.known = await self.books.starts()
            log.info("deployment.leads", on=True)
        self.leads = True
        await self._lead(self._reign, now)

    # A registry that does not lead.

    async def _follow(self, now: float) -> None:
        words = self._intake.words(now)
        before, at = self._passed_on
        if words != before or (words and now - at >= PASS_ON_S):
            await self._store.documents.say(DEMAND + self._name, msgspec.json.encode(words))
            self._passed_on = (words, now)
        stored = (await self.books.read()).stored
        self._intake.keep({model_of(name, one.spec) for name, one in stored.items()}, now)
        self.tally.show({})
        self.shown.show(stored, await self.books.statuses())

    async def _hear_others(self, now: float) -> None:
        """What routers told other registries."""
        versions = {}
        for key, document in (await self._store.documents.read(DEMAND)).items():
            versions[key] = document.version
            if key == DEMAND + self._name or self._heard_versions.get(key) == document.version:
                continue
            try:
                words = _words(document.value)
            except msgspec.MsgspecError as error:
                log.debug("deployment.demand_unreadable", key=key, reason=str(error))
                continue
            for router, demand in words.items():
                self._intake.heard(router, demand, now, late_s=PASSED_ON_LATE_S)
        self._heard_versions = versions

    # The one that leads.

    async def _lead(self, reign: _Reign, now: float) -> None:
        shelf = await self.books.read()
        if self._store.shared:
            await self._hear_others(now)
        it = self._look(reign, shelf, now)
        gone, refused = set(self._hands.gone), dict(self._hands.refused)
        after = {
            name: fold.with_seen(fold.with_outcomes(one, gone, refused, now), it.seen)
            for name, one in shelf.stored.items()
        }
        planned = self._plan(reign, it, after)
        by_name: dict[str, list[Action]] = {}
        for action in planned.actions:
            by_name.setdefault(action.deployment, []).append(action)
        after = {name: fold.with_actions(one, by_name.get(name, ()), it.seen, now) for name, one in after.items()}
        kept = await self._write(reign, shelf, after)
        unwritten = after.keys() - kept.keys()
        if not unwritten:
            self._hands.gone -= gone
            for request_id in refused:
                self._hands.refused.pop(request_id, None)
        self._count(planned, kept, it)
        self._carry_out(planned, kept, it)
        statuses = self._statuses(reign, planned, kept, it)
        for name in unwritten & shelf.stored.keys():
            kept[name] = shelf.stored[name]
        self.tally.show(statuses)
        for name in self.shown.show({name: one for name, one in kept.items() if name in after}, statuses):
            if self._store.shared:
                await self.books.tell_status(name, statuses[name])
        await self._remember_starts(reign)
        reign.memory = planned.memory
        if unwritten:
            self.nudge()

    def _look(self, reign: _Reign, shelf: Shelf, now: float) -> _Round:
        infos = list(self._index.of_deployments())
        replicas = seen(infos, shelf.stored, reign.born_at if shelf.whole else math.inf)
        nodes = {one.request_id: one.node for stored in shelf.stored.values() for one in stored.assignments}
        there = {one.request_id: one for one in replicas if nodes.get(one.request_id) == one.node}
        ids = {one.replica_id for one in there.values()}
        models = {name: model_of(name, one.spec) for name, one in shelf.stored.items()}
        self._intake.keep(set(models.values()), now)
        return _Round(
            now,
            shelf,
            {info.request_id or "": info for info in infos if info.replica_id in ids},
            there,
            replicas,
            {name: self._intake.traffic(model, now) for name, model in models.items()},
        )

    def _plan(self, reign: _Reign, it: _Round, stored: Mapping[str, StoredDeployment]) -> Plan:
        for one in stored.values():
            for assignment in one.assignments:
                info = it.infos.get(assignment.request_id)
                took_s = reign.timing.observe(one, assignment, info) if info is not None else None
                if took_s is not None:
                    self.tally.started(took_s)
                    log.info("deployment.ready", deployment=one.name, node=assignment.node, took_s=round(took_s, 1))
        return plan(
            [wish_of(one, reign.timing.usual(one)) for one in stored.values()],
            [assignment for one in stored.values() for assignment in one.assignments],
            it.replicas,
            self._nodes(reign, stored, it.now),
            traffic={name: self._since(reign, stored[name], traffic) for name, traffic in it.traffic.items()},
            setbacks=[setback for one in stored.values() for setback in one.setbacks],
            memory=reign.memory,
            now=it.now,
        )

    @staticmethod
    def _since(reign: _Reign, stored: StoredDeployment, traffic: Traffic) -> Traffic:
        """Idleness counts from when this leader began; what was put to sleep stays so."""
        if traffic.last_request_at is not None or stored.slept_at is not None:
            return traffic
        return replace(traffic, last_request_at=reign.began_at)

    def nodes(self) -> dict[str, Node]:
        """Every node whose agent is registered, by name."""
        nodes = (node_of(agent) for agent in self._index.agents)
        return {node.name: sight.sleepless(node) if self._hands.is_sleepless(node.name) else node for node in nodes}

    def _nodes(self, reign: _Reign, stored: Mapping[str, StoredDeployment], now: float) -> list[Node]:
        there = self.nodes()
        reign.agent_seen_at.update(dict.fromkeys(there, now))
        for node in sorted({one.node for it in stored.values() for one in it.assignments} - there.keys()):
            reign.agent_seen_at.setdefault(node, now)
        lost = [node for node, at in reign.agent_seen_at.items() if node not in there and now - at >= AWAY_AFTER_S]
        return [*there.values(), *(Node(node, away=True) for node in lost)]

    async def _write(
        self, reign: _Reign, shelf: Shelf, after: Mapping[str, StoredDeployment]
    ) -> dict[str, StoredDeployment]:
        """Write what changed; returns the deployments that stand as they are in `after`."""
        kept: dict[str, StoredDeployment] = {}

        async def write(name: str, one: StoredDeployment) -> None:
            over = one.deleted and not one.assignments
            if one is not shelf.stored[name] or over:
                try:
                    await self.books.write(name, None if over else one, version=shelf.versions[name], fence=reign.fence)
                except DocumentConflict:
                    return
            if not over:
                kept[name] = one
            else:
                log.info("deployment.removed", deployment=name)

        await asyncio.gather(*(write(name, one) for name, one in after.items()))
        return kept

    def _carry_out(self, planned: Plan, kept: Mapping[str, StoredDeployment], it: _Round) -> None:
        """Call for whatever stands in the documents and is not so yet."""
        for one in kept.values():
            for assignment in one.assignments:
                if assignment.leaving:
                    self._hands.remove(assignment.request_id, assignment.node)
                elif assignment.request_id not in it.seen:
                    body = create_body(one, assignment)
                    if body is None:
                        self._hands.refused[assignment.request_id] = "its revision is no longer known"
                    else:
                        self._hands.make(assignment, body)
        where = {replica.replica_id: replica.node for replica in it.replicas}
        both = (*kept.values(), *it.shelf.stored.values())
        assigned = {(one.request_id, one.node) for stored in both for one in stored.assignments}
        for action in planned.actions:
            match action:
                case Leave() if (action.request_id, action.node) not in assigned and self._hands.remove_surplus(action):
                    self._tell_leave(action)
                case Wake(replica_id=replica_id) if action.deployment in kept:
                    self._hands.rouse(replica_id, where[replica_id], "wake")
                case Sleep(replica_id=replica_id) if action.deployment in kept:
                    self._hands.rouse(replica_id, where[replica_id], "sleep")
                case _:
                    pass
        self._hands.forget(request_id for request_id, _ in assigned)

    def _count(self, planned: Plan, kept: Mapping[str, StoredDeployment], it: _Round) -> None:
        for action in planned.actions:
            if isinstance(action, Leave):
                self.tally.evictions[action.cause] += 1
                log.info(
                    "deployment.leaves", deployment=action.deployment, request=action.request_id, reason=action.reason
                )
            elif isinstance(action, Start) and action.deployment in kept:
                traffic = it.traffic[action.deployment]
                before = it.shelf.stored[action.deployment].assignments
                self.tally.cold_starts += not before and traffic.waiting > 0
        for name, traffic in it.traffic.items():
            ready = any(one.deployment == name and one.status is ReplicaStatus.READY for one in it.replicas)
            self.tally.waits(name, traffic.waiting if not ready else 0, it.now)

    def _tell_leave(self, leave: Leave) -> None:
        self.tally.evictions[leave.cause] += 1
        log.info("deployment.leaves", deployment=leave.deployment, request=leave.request_id, reason=leave.reason)

    def _statuses(
        self, reign: _Reign, planned: Plan, kept: Mapping[str, StoredDeployment], it: _Round
    ) -> dict[str, board.Status]:
        found = {}
        for name, one in kept.items():
            standing = planned.standings.get(name)
            if standing is None:
                continue
            starting = []
            for assignment in one.assignments:
                replica = it.seen.get(assignment.request_id)
                ready = replica is not None and (replica.status is ReplicaStatus.READY or replica.asleep)
                if not ready and not assignment.leaving:
                    starting.append((assignment, it.infos.get(assignment.request_id)))
            start = reign.timing.nearest(one, starting, it.now) if not standing.ready else (None, None, None)
            if start[2] is None and not standing.ready and start[0] != QUEUED:
                start = (start[0], start[1], reign.timing.usual(one))
            found[name] = board.status_of(
                one, standing, it.traffic[name], it.seen.values(), start=start, hold_within_s=HOLD_WITHIN_S, now=it.now
            )
        return found

    async def _remember_starts(self, reign: _Reign) -> None:
        for template in sorted(reign.timing.changed):
            await self.books.remember_starts(template, reign.timing.known[template], reign.fence)
            reign.timing.changed.discard(template)
