"""Replicas as the release server shows them (docs/contract.md 5), read from the reports that came with heartbeats. PURE."""

from collections.abc import Iterator

import msgspec
from msgspec import structs

from common.wire.base import Message
from common.wire.create import NAMESPACE, RequestGlance
from common.wire.deployment import Accelerator, AcceleratorReading, TemplateGlance
from common.wire.read import read_json_lenient
from common.wire.replica import ReplicaInfo, ReplicaMembers, ReplicaReport
from common.wire.words import RecordKind, ReplicaStatus
from registry.core.model import Instance, Report
from registry.core.report import report_text


class AgentCounts(Message, frozen=True, kw_only=True):
    """What a registry reads of a node agent's report (`common.wire.replica.AgentReport`)."""

    replicas_live: int = 0
    capacity: int | None = None
    replicas: list[msgspec.Raw] = msgspec.field(default_factory=list)
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    accelerators: list[Accelerator] = msgspec.field(default_factory=list)
    templates: list[msgspec.Raw] = msgspec.field(default_factory=list)


class AgentReadings(Message, frozen=True, kw_only=True):
    """What changes with every heartbeat of an agent, and is not written down."""

    readings: list[AcceleratorReading] = msgspec.field(default_factory=list)


def agent_node(instance: Instance) -> str | None:
    """The node whose agent a record is; None for any other record.

    The name must be the node's: a register token that is bound to other names cannot make anybody an agent, who would be
    sent requests and shown a token.
    """
    node = instance.registration.metadata.get("node")
    is_agent = instance.kind == RecordKind.AGENT and instance.name == f"agent-{node}"
    return node if is_agent and isinstance(node, str) else None


def agent_counts(instance: Instance) -> AgentCounts:
    """What a node's agent says of its node."""
    return AgentCounts() if instance.report is None else read_json_lenient(AgentCounts, instance.report.lasting)


def agent_accelerators(instance: Instance, counts: AgentCounts) -> list[Accelerator]:
    """The accelerators of an agent's node, each with what its driver told last."""
    if instance.report is None:
        return []
    readings = {one.index: one for one in read_json_lenient(AgentReadings, instance.report.passing).readings}
    return [
        structs.replace(one, used_mb=readings[one.index].used_mb, busy_percent=readings[one.index].busy_percent)
        if one.index in readings
        else one
        for one in counts.accelerators
    ]


def agent_replicas(counts: AgentCounts) -> Iterator[ReplicaInfo]:
    """The replicas that an agent speaks for, since they have no babysitter to do so, not yet or not any more."""
    for text in counts.replicas:
        try:
            yield read_json_lenient(ReplicaInfo, bytes(text))
        except msgspec.MsgspecError:  # without an id it is no replica
            continue


def agent_templates(counts: AgentCounts) -> Iterator[TemplateGlance]:
    """The templates of an agent's node."""
    for text in counts.templates:
        try:
            yield read_json_lenient(TemplateGlance, bytes(text))
        except msgspec.MsgspecError:  # without a name it is no template
            continue


def read_report(report: Report) -> ReplicaReport:
    """A babysitter's report.

    Raises:
        msgspec.MsgspecError: It names no replica.
    """
    return read_json_lenient(ReplicaReport, report_text(report))


def info_of(instance: Instance, replica: ReplicaMembers) -> ReplicaInfo:
    """A replica as it is shown, from the record that told of it and what it told."""
    registration = instance.registration
    node = registration.metadata.get("node")
    members = {name: getattr(replica, name) for name in ReplicaMembers.__struct_fields__}
    members["host"] = replica.host or registration.host
    members["metadata"] = {
        **replica.metadata,
        **({"node": node} if isinstance(node, str) else {}),
        "service": registration.name,
        "hostname": registration.hostname,
        "stale": instance.stale,
        "draining": instance.is_draining,
    }
    return ReplicaInfo(**members)


def pending_info(replica_id: str, request: RequestGlance, *, node: str, request_id: str | None) -> ReplicaInfo:
    """A replica that an agent made a moment ago, from its create request."""
    return ReplicaInfo(
        replica_id=replica_id,
        status=ReplicaStatus.PENDING,
        server_mode=request.server_mode,
        model_name=request.model_name,
        multibox=request.placement.multibox,
        namespace=request.placement.namespace or NAMESPACE,
        request_id=request_id,
        metadata={**request.metadata, "node": node, "stale": False, "draining": False},
    )
