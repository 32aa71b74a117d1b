"""Simulated replicas and nodes: their babysitter's own reporter, records and messages, over `wire`; nothing runs."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec.structs import replace as changed

from babysitter.lifecycle import ReplicaState, RestartPolicy, display_status, wire_status
from babysitter.records import LEASES, LEAST_TTL_S
from babysitter.reporter import Reporter
from babysitter.slots import Slots
from babysitter.spec import Addresses, JobRules, LogRules, Requested, Spec
from babysitter.view import View
from bench.fleet.wire import Listener, Session
from common.clock import SystemClock, iso
from common.discovery.lease import Lease
from common.discovery.registry_client import RegistryClient
from common.tasks import TaskScope
from common.wire.address import url
from common.wire.deployment import TemplateGlance
from common.wire.record import Registration
from common.wire.replica import AgentReport, ReplicaReport
from common.wire.words import RecordKind, RecordStatus

HEARTBEAT_S = 5.0
"""The default of babysitters and agents."""
CAPACITY = 20
_LOGS, _JOBS, _POLICY, _SLOTS = LogRules(Path("out"), Path("err")), JobRules(), RestartPolicy(), Slots(1)
_CLOCK = SystemClock()


class NodeFull(Exception):
    """A node has as many replicas as it takes."""


class Replica:
    """One replica as its babysitter tells of it."""

    def __init__(self, node: "Node", name: str, slot: int, model: str, requested: Requested | None = None) -> None:
        self.node, self.name, self.slot = node, name, slot
        self.state = ReplicaState.STARTING
        self.mark = 0
        """Told as `restart_count`: what lasts of a report, and so has to reach everybody."""
        self._client = RegistryClient(node.urls, node.session(), first=None)  # type: ignore[arg-type]
        marks = {"node": node.name, "serves": ["chat", "completions", "models"], **(requested or Requested()).metadata}
        port = node.port + 1 + 2 * slot
        self.spec = Spec(
            name=name,
            label="vLLM",
            addresses=Addresses("0.0.0.0", "127.0.0.1", node.host, node.host, port, port + 1),  # noqa: S104 - only told
            policy=_POLICY,
            logs=_LOGS,
            jobs=_JOBS,
            workdir=Path("/var/lib/inference-svc") / name,
            heartbeat_s=HEARTBEAT_S,
            start_interval_s=1.0,
            interval_s=5.0,
            look_timeout_s=5.0,
            grace_s=30.0,
            slots=_SLOTS,
            metadata=marks,
            requested=requested or Requested(),
        )
        self._models = [{"id": model, "object": "model", "owned_by": "vllm", "max_model_len": 32768}]
        self._incarnation = 0
        self._scope: TaskScope | None = None

    async def start(self) -> None:
        """A new life: it registers, is not ready yet, then is."""
        self._incarnation += 1
        now = iso(_CLOCK.utcnow())
        place, requested = self.spec.addresses, self.spec.requested
        self._report = ReplicaReport(
            replica_id=self.name,
            instance_id=f"00000000-0000-4000-8000-{self.name}",
            incarnation=self._incarnation,
            endpoint=url(place.endpoint, place.port),
            base_url=url(place.local, place.port),
            port=place.port,
            model_name=requested.model_name,
            request_id=requested.request_id,
            metadata=requested.metadata,
            workdir=str(self.spec.workdir),
            replica_pid=4000 + self.slot,
            models=[self._models[0]["id"]],
            compile_wsjob=[f"wsjob-c-{self.name}"],
            execute_wsjob=[f"wsjob-e-{self.name}"],
            created_at=now,
            status_since=now,
            rss_mb=81_920,
        )
        self.state = ReplicaState.STARTING
        self._scope = await TaskScope(f"replica.{self.name}").__aenter__()
        self.reporter = Reporter(
            self._client, self.view, interval_s=HEARTBEAT_S, doubted=lambda _text: None, refused=self.node.refused
        )
        self.reporter.start(self._scope)

    def view(self) -> View:
        """As it is now; its work moves as that of a busy engine."""
        now = iso(_CLOCK.utcnow())
        ready = self.state is ReplicaState.READY
        report = changed(
            self._report,
            status=wire_status(self.state),
            display_status=display_status(self.state),
            updated_at=now,
            restart_count=self.mark,
            running=random.randrange(32) if ready else 0,  # noqa: S311 - a figure of a model
            waiting=random.randrange(4) if ready else 0,  # noqa: S311
            kv_cache_usage=random.random() if ready else 0.0,  # noqa: S311
        )
        return View(spec=self.spec, state=self.state, report=report, models=self._models if ready else (), serves=ready)

    def become(self, state: ReplicaState) -> None:
        """Be in another state, and tell it at once."""
        self.state = state
        now = iso(_CLOCK.utcnow())
        self._report = changed(self._report, status_since=now, ready_at=now if state is ReplicaState.READY else None)
        self.reporter.changed()

    def tell(self, mark: int) -> None:
        """Have something new to tell, at once."""
        self.mark = mark
        self.reporter.changed()

    async def end(self, *, leave: bool) -> None:
        """Stop; `leave`: and say so."""
        if self._scope is None:
            return
        if leave:
            await self.reporter.leave()
        scope, self._scope = self._scope, None
        await scope.close()


class Node:
    """A node: an address, an agent, replicas."""

    def __init__(self, number: int, urls: list[str], port: int, took: Callable[[float], None]) -> None:
        self.name = f"node-{number:04}"
        self.host = f"127.1.{number >> 8}.{number & 255}"
        self.urls, self.port, self._took = urls, port, took
        self.replicas: dict[str, Replica] = {}
        self.alive = True
        self.refusals: list[str] = []
        self._sessions: list[Session] = []
        self._number = number

    def session(self) -> Session:
        """One of its processes' sessions."""
        self._sessions.append(Session(self.host, self._took))
        return self._sessions[-1]

    def refused(self, reason: str | None) -> None:
        """A registry does not take a record."""
        if reason is not None:
            self.refusals.append(reason)

    def free_slot(self) -> int:
        """A place for one more.

        Raises:
            NodeFull: There is none.
        """
        taken = {one.slot for one in self.replicas.values()}
        for slot in range(CAPACITY):
            if slot not in taken:
                return slot
        raise NodeFull(f"{self.name} is full")

    def start_agent(self, scope: TaskScope) -> None:
        """Its agent begins to tell of it."""
        client = RegistryClient(self.urls, self.session())  # type: ignore[arg-type]
        lease = Lease(client, self._registration, self._told, interval_s=HEARTBEAT_S, reports_at_once=True)
        self._agent = scope.spawn(f"agent.{self.name}", lease.keep())

    def _registration(self) -> Registration:
        return Registration(
            name=f"agent-{self.name}",
            host=self.host,
            hostname=self.host,
            port=self.port,
            url=url(self.host, self.port),
            status=RecordStatus.RUNNING,
            timestamp=iso(_CLOCK.utcnow()),
            instance_id=f"00000000-0000-4000-9000-{self._number:012}",
            incarnation=1,
            ttl_s=max(LEAST_TTL_S, LEASES * HEARTBEAT_S),
            metadata={"type": RecordKind.AGENT, "node": self.name, "version": "bench", "metrics_path": "/metrics"},
        )

    def _told(self) -> AgentReport:
        ready = sum(one.state is ReplicaState.READY for one in self.replicas.values())
        return AgentReport(
            instance_id=f"00000000-0000-4000-9000-{self._number:012}",
            incarnation=1,
            node=self.name,
            replicas_total=len(self.replicas),
            replicas_ready=ready,
            replicas_live=len(self.replicas),
            capacity=CAPACITY,
            templates=[TemplateGlance(name="simulated", digest="1")],
        )

    async def die(self) -> None:
        """Power off: nothing is said and nothing is answered any more."""
        self.alive = False
        Listener.kill(self.host)
        self._agent.cancel()
        for session in self._sessions:
            session.vanish()
        for replica in self.replicas.values():
            await replica.end(leave=False)


def request_of(body: dict[str, Any]) -> Requested:
    """What a create call asks for."""
    return Requested(
        model_name=body.get("model_name"), request_id=body.get("request_id"), metadata=body.get("metadata", {})
    )
