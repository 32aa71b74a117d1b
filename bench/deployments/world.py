"""A model world for the planner: nodes, agents, replicas, requests and a clock that jumps. No process is started.

The shell of the model does what the keeper does: it writes an assignment, calls, and repeats. Calls take their time, heartbeats
are as old as they are, nodes are cut off and come back, starts fail.
"""

import random
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from common.wire.deployment import TemplateGlance
from common.wire.words import ReplicaStatus
from registry.deployments.model import (
    Abandon,
    Action,
    Assignment,
    Cause,
    Leave,
    Memory,
    Node,
    Plan,
    SeenReplica,
    Setback,
    Sleep,
    Slot,
    Start,
    Traffic,
    Wake,
    Wish,
)
from registry.deployments.planner import plan

LEASE_S = 10.0
HEARTBEAT_S = 2.0
RECENT_S = 300.0
PER_REPLICA = 8
MEMORY_MB = 80_000


class Broken(AssertionError):
    """An invariant does not hold."""


@dataclass(slots=True)
class Replica:
    """One replica, as it is in truth."""

    request_id: str
    deployment: str
    revision: int
    node: str
    slots: tuple[int, ...]
    made_at: float
    ready_due: float
    fails: bool = False
    shared_mb: int = 0
    """What it was promised of each of its accelerators, where it shares them."""
    status: ReplicaStatus = ReplicaStatus.STARTING
    ready_at: float | None = None
    asleep: bool = False
    draining: bool = False
    ends_due: float | None = None
    in_flight: list[float] = field(default_factory=list)
    """When each of its requests ends."""


@dataclass(slots=True)
class Machine:
    """One node. `heard` is what the registry knows of it, from its last heartbeat."""

    name: str
    count: int
    templates: dict[str, TemplateGlance]
    labels: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    draining: bool = False
    capacity: int | None = None
    replicas: dict[str, Replica] = field(default_factory=dict)
    heard_at: float = 0.0
    heard: tuple[Node, tuple[SeenReplica, ...]] | None = None

    def shared_mb(self, index: int) -> int:
        """What was promised of an accelerator."""
        return sum(one.shared_mb for one in self.replicas.values() if index in one.slots)

    def free_for(self, glance: TemplateGlance) -> list[int]:
        """Accelerators that one more of this template may have, as an agent finds them."""
        found = []
        for index in range(self.count):
            holders = [one for one in self.replicas.values() if index in one.slots]
            beside = all(one.shared_mb for one in holders) and self.shared_mb(index) + glance.memory_mb <= MEMORY_MB
            if beside if glance.shares else not holders:
                found.append(index)
        return sorted(found, key=lambda index: (-self.shared_mb(index), index))


@dataclass(slots=True)
class Figures:
    """What a run tells."""

    requests: int = 0
    served: int = 0
    lost: int = 0
    refusals: int = 0
    starts: Counter[str] = field(default_factory=Counter)
    evictions: Counter[str] = field(default_factory=Counter)
    leaves: Counter[str] = field(default_factory=Counter)
    waits_s: list[float] = field(default_factory=list)
    lives_s: list[float] = field(default_factory=list)
    """How long an evicted replica was ready before."""


@dataclass(slots=True)
class World:
    """Machines, wishes and requests; `step` is a second."""

    rng: random.Random
    machines: dict[str, Machine]
    wishes: dict[str, Wish]
    start_s: dict[str, float]
    fail_share: float = 0.0
    now: float = 1_000_000.0
    began: float = 1_000_000.0
    assignments: dict[str, Assignment] = field(default_factory=dict)
    setbacks: dict[tuple[str, str], Setback] = field(default_factory=dict)
    memory: Memory = field(default_factory=Memory)
    waiting: dict[str, deque[float]] = field(default_factory=dict)
    asked_at: dict[str, float] = field(default_factory=dict)
    recent: dict[str, float] = field(default_factory=dict)
    calls: list[tuple[float, Action, str]] = field(default_factory=list)
    made_of: dict[str, str] = field(default_factory=dict)
    """The template of each request id: that of its revision, whatever the deployment has become since."""
    serial: int = 0
    last: Plan = field(default_factory=Plan)
    figures: Figures = field(default_factory=Figures)

    def replicas(self) -> Iterator[Replica]:
        """All that there are, of all machines."""
        for machine in self.machines.values():
            yield from machine.replicas.values()

    def ask(self, name: str, count: int = 1) -> None:
        """So many requests for its model."""
        self.figures.requests += count
        self.waiting.setdefault(name, deque()).extend([self.now] * count)
        self.asked_at[name] = self.now
        self.recent[name] = self.recent.get(name, 0.0) + count / RECENT_S

    def step(self) -> Plan:
        """A second passes, then a plan is made and its calls are sent."""
        self.now += 1
        for name in self.recent:
            self.recent[name] *= 1 - 1 / RECENT_S
        self._live()
        self._deliver()
        self._dispatch()
        self._hear()
        found = self.plan()
        self._judge(found)
        self._carry_out(found)
        return found

    def plan(self) -> Plan:
        """As the registry sees it now."""
        nodes, seen = [], []
        for machine in self.machines.values():
            if machine.heard is None:
                continue
            stale = self.now - machine.heard_at > LEASE_S
            nodes.append(replace(machine.heard[0], away=stale, draining=machine.draining))
            seen += [replace(one, stale=stale) for one in machine.heard[1]]
        found = plan(
            list(self.wishes.values()),
            list(self.assignments.values()),
            seen,
            nodes,
            traffic=self.traffic(),
            setbacks=list(self.setbacks.values()),
            memory=self.memory,
            now=self.now,
        )
        self.memory, self.last = found.memory, found
        return found

    def traffic(self) -> dict[str, Traffic]:
        """The routers' word."""
        under_way: Counter[str] = Counter()
        for one in self.replicas():
            under_way[one.deployment] += len(one.in_flight)
        return {
            name: Traffic(
                under_way[name],
                len(self.waiting.get(name, ())),
                self.asked_at.get(name, self.began),
                self.recent.get(name, 0.0),
            )
            for name in self.wishes
        }

    def _live(self) -> None:
        for machine in self.machines.values():
            for one in list(machine.replicas.values()):
                self.figures.served += sum(1 for end in one.in_flight if end <= self.now)
                one.in_flight = [end for end in one.in_flight if end > self.now]
                if one.ends_due is not None and one.ends_due <= self.now:
                    del machine.replicas[one.request_id]
                elif one.draining and one.ends_due is None and not one.in_flight:
                    one.status, one.ends_due = ReplicaStatus.STOPPING, self.now + self.rng.uniform(0, 4)
                elif one.status is ReplicaStatus.STARTING and one.ready_due <= self.now:
                    one.status = ReplicaStatus.FAILED if one.fails else ReplicaStatus.READY
                    one.ready_at = None if one.fails else self.now

    def _deliver(self) -> None:
        """Calls that arrive now; one to a node that is cut off is repeated while it makes sense."""
        later = []
        for at, action, request_id in self.calls:
            if at > self.now:
                later.append((at, action, request_id))
                continue
            assignment = self.assignments.get(request_id)
            name = action.node if isinstance(action, Start | Leave) else next(
                (one.node for one in self.replicas() if f"r-{one.request_id}" == getattr(action, "replica_id", None)), None
            )  # fmt: skip
            machine = self.machines.get(name or "")
            if machine is None:
                continue
            if machine.cut:
                if assignment is not None:
                    later.append((self.now + 2, action, request_id))
                continue
            self._arrive(machine, action, request_id)
        self.calls = later

    def _arrive(self, machine: Machine, action: Action, request_id: str) -> None:
        one = machine.replicas.get(request_id)
        if isinstance(action, Start):
            assignment = self.assignments.get(request_id)
            if one is None and assignment is not None and not assignment.leaving:
                self._create(machine, action, request_id)
        elif one is not None and isinstance(action, Leave):
            one.draining = True
            if one.status is ReplicaStatus.FAILED:
                one.ends_due = self.now
        elif one is not None and isinstance(action, Sleep) and not one.in_flight and one.status is ReplicaStatus.READY:
            one.asleep = True
        elif one is not None and isinstance(action, Wake):
            one.asleep = False

    def _create(self, machine: Machine, action: Start, request_id: str) -> None:
        glance = machine.templates[self.made_of[request_id]]
        free = machine.free_for(glance)
        full = machine.capacity is not None and len(machine.replicas) >= machine.capacity
        if full or len(free) < glance.accelerators:
            self.figures.refusals += 1
            self._fell(action.deployment, machine.name, "the node is full", request_id)
            return
        took = self.start_s[action.deployment] * self.rng.lognormvariate(0, 0.2)
        fails = self.rng.random() < self.fail_share
        machine.replicas[request_id] = Replica(
            request_id,
            action.deployment,
            action.revision,
            machine.name,
            tuple(free[: glance.accelerators]),
            self.now,
            self.now + took,
            fails,
            glance.memory_mb if glance.shares else 0,
        )

    def _fell(self, deployment: str, node: str, reason: str, request_id: str) -> None:
        before = self.setbacks.get((deployment, node))
        failures = 1 + (before.failures if before else 0)
        until = self.now + min(300, 10 * 2 ** (failures - 1))
        self.setbacks[deployment, node] = Setback(deployment, node, failures, until, reason)
        self.assignments.pop(request_id, None)

    def _dispatch(self) -> None:
        """Waiting requests go to replicas that take them; those at machines that are cut off are lost."""
        for machine in self.machines.values():
            for one in machine.replicas.values():
                if machine.cut and one.in_flight:
                    self.figures.lost += len(one.in_flight)
                    one.in_flight = []
        for name, line in self.waiting.items():
            for one in self.replicas():
                serves = one.status is ReplicaStatus.READY and not (one.draining or one.asleep)
                if one.deployment != name or not serves or self.machines[one.node].cut:
                    continue
                while line and len(one.in_flight) < PER_REPLICA:
                    self.figures.waits_s.append(self.now - line.popleft())
                    one.in_flight.append(self.now + self.rng.expovariate(1 / 5))

    def _hear(self) -> None:
        for machine in self.machines.values():
            due = machine.heard is None or self.now - machine.heard_at >= HEARTBEAT_S
            if not machine.cut and due and (machine.heard is None or self.rng.random() < 0.9):
                machine.heard_at, machine.heard = self.now, self._heartbeat(machine)

    def _heartbeat(self, machine: Machine) -> tuple[Node, tuple[SeenReplica, ...]]:
        there = machine.replicas.values()
        slots = tuple(
            Slot(
                index,
                "cuda",
                MEMORY_MB,
                tuple(f"r-{one.request_id}" for one in there if index in one.slots),
                shared_mb=machine.shared_mb(index),
            )
            for index in range(machine.count)
        )
        seen = tuple(
            SeenReplica(
                f"r-{one.request_id}",
                one.request_id,
                one.deployment,
                one.revision,
                machine.name,
                one.status,
                asleep=one.asleep,
                draining=one.draining,
                in_flight=len(one.in_flight),
                ready_at=one.ready_at,
            )
            for one in there
        )
        room = None if machine.capacity is None else machine.capacity - len(there)
        return Node(machine.name, slots, machine.templates, machine.labels, room), seen

    def _judge(self, found: Plan) -> None:
        """What must hold of every plan."""
        traffic = self.traffic()
        went: Counter[str] = Counter()
        for action in found.actions:
            if isinstance(action, Leave) and self._by_itself(action):
                went[action.deployment] += 1
                self._judge_leave(action, went[action.deployment], traffic[action.deployment])
        for name, stands in found.standings.items():
            wish = self.wishes[name]
            if stands.wanted > max(wish.most, wish.scaled or 0):
                raise Broken(f"{stands.wanted} of {name} are wanted, {wish.most} are the most")

    def _by_itself(self, action: Leave) -> bool:
        """Nobody told it to go, nor did a fault or a change of revision."""
        wish = self.wishes.get(action.deployment)
        scaled = action.cause is Cause.SCALED and wish is not None and wish.scaled is None
        return scaled or action.cause in (Cause.EVICTED, Cause.IDLE)

    def _judge_leave(self, action: Leave, went: int, traffic: Traffic) -> None:
        """Nobody asked for this one to go."""
        name, wish = action.deployment, self.wishes[action.deployment]
        what = f"{name} goes ({action.cause}: {action.reason})"
        if action.cause is Cause.EVICTED and (traffic.in_flight or traffic.waiting):
            raise Broken(f"{what} with requests")
        machine = self.machines[action.node or ""]
        one = machine.replicas.get(action.request_id)
        ready_at = None if one is None or one.asleep else one.ready_at
        if ready_at is not None and ready_at <= machine.heard_at and self.now - ready_at < wish.dwell_s:
            raise Broken(f"{what} within its dwell")
        if action.cause is Cause.EVICTED and one is not None and one.ready_at is None:
            raise Broken(f"{what} before it was ready")
        alive = sum(1 for one in self.assignments.values() if one.deployment == name and not one.leaving)
        if alive - went < wish.least:
            raise Broken(f"{what} below its minimum")

    def _carry_out(self, found: Plan) -> None:
        for action in found.actions:
            if isinstance(action, Start):
                self.serial += 1
                request_id = f"dep-{action.deployment}-{self.serial}"
                if request_id in self.assignments:
                    raise Broken(f"{request_id} is given twice")
                self.assignments[request_id] = Assignment(
                    request_id, action.deployment, action.revision, action.node, self.now, needs=action.needs
                )
                self.made_of[request_id] = self.wishes[action.deployment].template or ""
                self.figures.starts[action.deployment] += 1
                self._call(action, request_id)
            elif isinstance(action, Leave):
                self._leave(action)
            elif isinstance(action, Abandon):
                self.assignments.pop(action.request_id, None)
            else:
                self._call(action, action.replica_id.removeprefix("r-"))
        self._end_those_gone()

    def _leave(self, action: Leave) -> None:
        one = self.assignments.get(action.request_id)
        if one is not None and one.node == action.node:
            self.assignments[action.request_id] = replace(one, leaving=True)
            there = self.machines[one.node].replicas.get(action.request_id)
            if there is not None and there.fails and there.status is ReplicaStatus.FAILED:
                before = self.assignments.get(action.request_id)
                self._fell(action.deployment, one.node, "it failed", "")
                if before is not None:
                    self.assignments[action.request_id] = before
            self.figures.leaves[action.cause] += 1
            if action.cause is Cause.EVICTED:
                self.figures.evictions[action.deployment] += 1
                if there is not None and there.ready_at is not None:
                    self.figures.lives_s.append(self.now - there.ready_at)
        self._call(action, action.request_id)

    def _call(self, action: Action, request_id: str) -> None:
        self.calls.append((self.now + self.rng.uniform(0, 2), action, request_id))

    def _end_those_gone(self) -> None:
        """Where a node that can be reached has no such replica, and no call is on its way: an assignment that leaves ends."""
        on_the_way = {request_id for _, _, request_id in self.calls}
        for request_id, one in list(self.assignments.items()):
            machine = self.machines[one.node]
            if machine.cut or request_id in machine.replicas or request_id in on_the_way:
                continue
            if one.leaving:
                del self.assignments[request_id]
            else:  # its node lost it, or never had it
                self._call(Start(one.deployment, one.revision, one.node, one.needs, "again"), request_id)
