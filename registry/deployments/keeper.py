"""The one loop that keeps deployments: lead, read, plan, write, call; each second, and at once when something happens.

What is to be done stands in the documents before anybody is called, so that the next leader goes on where this one was
killed. A registry that does not lead passes on what routers tell it, and shows what the leader says.
"""

import asyncio
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress

import msgspec
import structlog

from common.clock import Clock
from common.tasks import TaskScope
from common.wire.deployment import Demand
from common.wire.words import ReplicaStatus
from registry.core.documents import Fence
from registry.core.store import DocumentConflict, Store, StoreError
from registry.core.writer import Writer
from registry.deployments import fold, sight
from registry.deployments.books import Books, Shelf
from registry.deployments.fold import Reign, Round
from registry.deployments.hands import Hands
from registry.deployments.intake import Intake
from registry.deployments.model import (
    Leave,
    Node,
    Plan,
    Sleep,
    Start,
    StoredDeployment,
    Wake,
)
from registry.deployments.shown import Shown
from registry.deployments.stored import create_bodies, model_of
from registry.deployments.tally import Tally
from registry.fleet.agents import AgentClient
from registry.fleet.index import FleetIndex

log = structlog.get_logger(__name__)
TICK_S = 1.0
QUIET_TICK_S = 2.0
"""Where there is no deployment; shorter than the leader's lease."""
SOONEST_S = 0.02
"""Between two rounds, however much happens."""
THOUGHT_REST = 9
"""How many times longer than the thinking of a round the pause after it is: a thread that thinks all the time takes the interpreter
from the loop, which then has 5 ms to wait at each of its calls of the system."""
PASS_ON_S = 2.0
READ_AT_ONCE = 100
"""Reports of replicas, before others have their turn."""
DEMAND = "demand/"
_words = msgspec.json.Decoder(dict[str, Demand]).decode


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
        self._reign: Reign | None = None
        self._name = uuid.uuid4().hex
        self._passed_on: tuple[dict[str, Demand], float] = ({}, 0.0)
        self._heard_versions: dict[str, int] = {}
        self._thought_s = 0.0
        """How long the latest round's plan took."""

    @property
    def now(self) -> float:
        """Seconds of wall time."""
        return self._clock.utcnow().timestamp()

    @property
    def fence(self) -> Fence | None:
        """Proof that this registry leads, as far as it knows."""
        return self._reign.fence if self._reign is not None else None

    def take(self, *, hand_over: bool) -> None:
        """Take changed settings: whether routers move the streams of replicas that leave."""
        self._hands.hand_over = hand_over

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
            await asyncio.sleep(min(QUIET_TICK_S, max(SOONEST_S, THOUGHT_REST * self._thought_s)))
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK_S if self.shown.stored else QUIET_TICK_S):
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
            self._reign = Reign(fence, now, await self.books.born_at(now, fence))
            self._reign.timing.known = await self.books.starts()
            log.info("deployment.leads", on=True)
        self.leads = True
        await self._lead(self._reign, now)

    # A registry that does not lead.

    async def _follow(self, now: float) -> None:
        stored = (await self.books.read()).stored
        words = self._intake.words(now) if stored else {}
        before, at = self._passed_on
        if words != before or (words and now - at >= PASS_ON_S):
            await self._store.documents.say(DEMAND + self._name, msgspec.json.encode(words))
            self._passed_on = (words, now)
        self._intake.keep({model_of(name, one.spec) for name, one in stored.items()}, now)
        self.tally.show({})
        self.shown.show(stored, await self.books.statuses() if stored else {})

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
                self._intake.heard(router, demand, now)
        self._heard_versions = versions

    # The one that leads.

    async def _lead(self, reign: Reign, now: float) -> None:
        shelf = await self.books.read()
        if self._store.shared:
            await self._hear_others(now)
        it = await self._look(shelf, now)
        # In a thread, so that a thousand deployments keep no heartbeat waiting.
        began = time.monotonic()
        planned, after = await asyncio.to_thread(fold.decide, reign, it)
        self._thought_s = time.monotonic() - began
        kept = await self._write(reign, shelf, after)
        unwritten = after.keys() - kept.keys()
        if not unwritten:
            self._hands.gone -= it.gone
            for request_id in it.refused:
                self._hands.refused.pop(request_id, None)
        self._count(planned, kept, it)
        self._carry_out(planned, kept, it)
        statuses = await asyncio.to_thread(fold.statuses, reign, it, planned, kept)
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

    async def _look(self, shelf: Shelf, now: float) -> Round:
        infos = []
        for info in self._index.of_deployments():
            infos.append(info)
            if len(infos) % READ_AT_ONCE == 0:
                await asyncio.sleep(0)
        await asyncio.sleep(0)
        models = {name: model_of(name, one.spec) for name, one in shelf.stored.items()}
        self._intake.keep(set(models.values()), now)
        traffic = {name: self._intake.traffic(model, now) for name, model in models.items()}
        await asyncio.sleep(0)
        return Round(
            now,
            shelf.stored,
            shelf.whole,
            infos,
            self._index.agents,
            self._hands.is_sleepless,
            traffic,
            set(self._hands.gone),
            dict(self._hands.refused),
            self._hands.in_line,
        )

    def nodes(self) -> dict[str, Node]:
        """Every node whose agent is registered, by name."""
        return sight.nodes(self._index.agents, self._hands.is_sleepless)

    async def _write(
        self, reign: Reign, shelf: Shelf, after: Mapping[str, StoredDeployment]
    ) -> dict[str, StoredDeployment]:
        """Write what changed; returns the deployments that stand as they are in `after`."""

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

        changed = {name for name, one in after.items() if one is not shelf.stored[name] or one.deleted}
        kept = {name: one for name, one in after.items() if name not in changed}
        await asyncio.gather(*(write(name, after[name]) for name in sorted(changed)))
        return kept

    def _carry_out(self, planned: Plan, kept: Mapping[str, StoredDeployment], it: Round) -> None:
        """Call for whatever stands in the documents and is not so yet."""
        for one in kept.values():
            for assignment in one.assignments:
                if assignment.leaving:
                    self._hands.remove(assignment)
                elif it.is_unmade(assignment):
                    bodies = create_bodies(one, assignment)
                    if bodies:
                        self._hands.make(assignment, bodies)
                    else:
                        self._hands.refused[assignment.request_id] = "its revision is no longer known"
        where = {replica.replica_id: replica.node for replica in it.replicas}
        both = (*kept.values(), *it.stored.values())
        assigned = {place for stored in both for one in stored.assignments for place in one.places}
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

    def _count(self, planned: Plan, kept: Mapping[str, StoredDeployment], it: Round) -> None:
        for assignment, took_s in it.started:
            self.tally.started(took_s)
            log.info(
                "deployment.ready",
                deployment=assignment.deployment,
                node=assignment.node,
                took_s=round(took_s, 1),
            )
        for action in planned.actions:
            if isinstance(action, Leave):
                self._tell_leave(action)
            elif isinstance(action, Start) and action.deployment in kept:
                traffic = it.traffic[action.deployment]
                before = it.stored[action.deployment].assignments
                self.tally.cold_starts += not before and traffic.waiting > 0
        ready = {one.deployment for one in it.replicas if one.status is ReplicaStatus.READY}
        for name, traffic in it.traffic.items():
            self.tally.waits(name, traffic.waiting if name not in ready else 0, it.now)

    def _tell_leave(self, leave: Leave) -> None:
        self.tally.evictions[leave.cause] += 1
        log.info(
            "deployment.leaves",
            deployment=leave.deployment,
            request=leave.request_id,
            cause=leave.cause,
            reason=leave.reason,
        )

    async def _remember_starts(self, reign: Reign) -> None:
        for template in sorted(reign.timing.changed):
            await self.books.remember_starts(template, reign.timing.known[template], reign.fence)
            reign.timing.changed.discard(template)
