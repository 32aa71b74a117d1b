"""PURE: one view of the replica, and what the babysitter answers from it at port + 1 (docs/contract.md 3 and 4)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from msgspec import UNSET, UnsetType, to_builtins

from babysitter.engine_metrics import Work
from babysitter.fitting import names
from babysitter.lifecycle import Lifecycle, ReplicaState, display_status, wire_status
from babysitter.memory import Memory
from babysitter.spec import Spec
from common.wire.address import url
from common.wire.babysitter import BabysitterHealth, BabysitterInfo, BabysitterTimeline
from common.wire.base import ModelObject
from common.wire.lora import LoraAdapter
from common.wire.models import ModelList
from common.wire.replica import InfoMarks, ReplicaReport
from common.wire.words import NOT_SERVING, ReplicaStatus

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What is so now, beside the state: neither settings, nor worth remembering.

    `port` is the server's; `need_restart` names settings whose value in the file is not yet in force, `config_refused`
    tells what is wrong with the file, `registration_error` why a registry refuses a record, `persist_failed` why the
    disk refuses the state; `ending`: its job ends soon; `work` is what the engine tells, where it does.
    """

    port: int
    updated_at: str
    replica_pid: int | None = None
    next_restart_at: str | None = None
    need_restart: Sequence[str] = ()
    config_refused: str | None = None
    registration_error: str | None = None
    persist_failed: str | None = None
    ending: bool = False
    wsjob_states: dict[str, str] = field(default_factory=dict)
    rss_mb: int = 0
    degraded: bool = False
    work: Work | None = None
    adapters: list[LoraAdapter] | UnsetType = UNSET


def make_report(spec: Spec, life: Lifecycle, memory: Memory, now: Moment) -> ReplicaReport:
    """The replica's report, of its settings, its state, what is remembered, and the moment."""
    addresses, requested, work = spec.addresses, spec.requested, now.work or Work()
    serves = life.state in (ReplicaState.READY, ReplicaState.DRAINING)
    trouble = life.error
    if trouble is None and now.registration_error is not None:
        trouble = f"not registered: {now.registration_error}"
    return ReplicaReport(
        replica_id=spec.name,
        instance_id=memory.instance_id,
        incarnation=memory.incarnation,
        status=wire_status(life.state),
        display_status=display_status(life.state),
        endpoint=url(addresses.endpoint, now.port) if serves else NOT_SERVING,
        base_url=url(addresses.local, now.port),
        port=now.port,
        server_mode=requested.server_mode,
        model_name=requested.model_name,
        multibox=requested.multibox,
        namespace=requested.namespace,
        request_id=requested.request_id,
        metadata={**requested.metadata, **to_builtins(InfoMarks(ending=now.ending or UNSET))},
        warnings=list(requested.warnings),
        workdir=str(spec.workdir),
        venv_path=spec.venv_path,
        replica_pid=now.replica_pid,
        restart_count=life.restarts,
        models=names(memory.models),
        compile_wsjob=list(memory.jobs.all("compile")),
        execute_wsjob=list(memory.jobs.all("execute")),
        wsjob_states=now.wsjob_states,
        stages=memory.stages,
        created_at=memory.created_at or now.updated_at,
        updated_at=now.updated_at,
        status_since=memory.timeline[-1].at if memory.timeline else now.updated_at,
        ready_at=memory.ready_at,
        next_restart_at=now.next_restart_at,
        error_message=trouble,
        registration_error=now.registration_error,
        stalled=life.stalled,
        late=life.late,
        need_restart=list(now.need_restart),
        config_refused=now.config_refused,
        state_persist_failed=now.persist_failed,
        diagnostics=memory.diagnostics if spec.diagnostics else None,
        rss_mb=now.rss_mb,
        degraded=now.degraded,
        running=_told(work.running),
        waiting=_told(work.waiting),
        kv_cache_usage=_told(work.kv_cache_usage),
        prefix_query_tokens=_told(work.prefix_query_tokens),
        prefix_hit_tokens=_told(work.prefix_hit_tokens),
        adapters=now.adapters,
    )


def _told(figure: T | None) -> T | UnsetType:
    return UNSET if figure is None else figure


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Everything that others may know about the replica at one moment.

    `state` is our own word, finer than the report's; `models` are the server's own model objects, `loadable`
    adapters that a request may have loaded; `serves`: its process
    lives; `settling` is true from an adoption to the first look: the last babysitter's record is then better left as it is.
    """

    spec: Spec
    state: ReplicaState
    report: ReplicaReport
    models: Sequence[ModelObject] = ()
    loadable: Sequence[str] = ()
    serves: bool = False
    settling: bool = False

    @property
    def status(self) -> ReplicaStatus:
        """The contract's word."""
        return self.report.status

    @property
    def server_port(self) -> int:
        """Where the server listens."""
        return self.report.port or self.spec.addresses.port

    @property
    def own_url(self) -> str:
        """Where others ask the babysitter."""
        addresses = self.spec.addresses
        return url(addresses.record, addresses.own_port, scheme=addresses.own_scheme)


def health(view: View, timestamp: str) -> BabysitterHealth:
    """Answer of `GET /health`. A server that serves and that no registry takes is `unregistered`: no router finds it."""
    report = view.report
    well = "healthy" if report.registration_error is None else "unregistered"
    return BabysitterHealth(
        status=well if view.state is ReplicaState.READY else view.status,
        service=view.spec.name,
        infinilm_server_running=view.serves,
        infinilm_server_port=view.server_port,
        timestamp=timestamp,
        display_status=report.display_status,
        restart_count=report.restart_count,
        error_message=report.error_message,
        registration_error=report.registration_error,
        next_restart_at=report.next_restart_at,
        stalled=report.stalled,
        late=report.late,
        need_restart=report.need_restart,
        config_refused=report.config_refused,
        state_persist_failed=report.state_persist_failed,
    )


def info(view: View, *, uptime_s: float, router_url: str | None) -> BabysitterInfo:
    """Answer of `GET /info`."""
    spec = view.spec
    return BabysitterInfo(
        service=spec.name,
        name=spec.name,
        host=spec.addresses.record,
        port=spec.addresses.own_port,
        url=view.own_url,
        service_type=spec.label,
        metadata=spec.metadata,
        router_url=router_url,
        infinilm_server_port=view.server_port,
        uptime=uptime_s,
        restart_count=view.report.restart_count,
        replica=view.report,
    )


def model_list(view: View) -> ModelList:
    """Answer of `GET /models`."""
    return ModelList(data=list(view.models))


def timeline(view: View, memory: Memory) -> BabysitterTimeline:
    """Answer of `GET /timeline`."""
    return BabysitterTimeline(
        name=view.spec.name,
        state=view.state,
        transitions=memory.timeline,
        stages=memory.stages,
        jobs=memory.jobs,
    )
