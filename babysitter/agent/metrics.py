"""What a scrape of an agent shows: this node's replicas by status, and the room that is left. Made when asked."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from msgspec import UNSET
from prometheus_client.core import GaugeMetricFamily, Metric

from common.http.tls_metric import tls_families
from common.wire.deployment import Accelerator, AcceleratorReading
from common.wire.replica import NodeCounts
from common.wire.words import ReplicaStatus

MIB = 1 << 20
PERCENT = 100


def families(
    node: str,
    statuses: Iterable[ReplicaStatus],
    counts: NodeCounts,
    silent: int,
    *,
    accelerators: Sequence[Accelerator] = (),
    readings: Sequence[AcceleratorReading] = (),
    expires_at: float | None = None,
) -> Iterator[Metric]:
    """The families.

    Args:
        node: This node's name.
        statuses: Of every replica.
        counts: The manager's.
        silent: Replicas whose babysitter does not run.
        accelerators: Those of the node.
        readings: What their driver tells.
        expires_at: When the agent's certificate ends.
    """
    info = GaugeMetricFamily("svc_agent_info", "1; the label says which node it is.", labels=["node"])
    info.add_metric([node], 1)
    yield info
    counted = Counter(statuses)
    replicas = GaugeMetricFamily("svc_agent_replicas", "Replicas of the node, by status.", labels=["status"])
    for status in ReplicaStatus:
        if status is not ReplicaStatus.UNKNOWN:  # which the agent shows as pending
            replicas.add_metric([status], counted[status])
    yield replicas
    yield GaugeMetricFamily("svc_agent_replicas_live", "Replicas that hold ports.", value=counts.replicas_live)
    yield GaugeMetricFamily("svc_agent_capacity", "Replicas that the node may hold at once.", value=counts.capacity)
    yield GaugeMetricFamily(
        "svc_agent_replicas_without_babysitter", "Replicas whose babysitter does not run.", value=silent
    )
    yield from tls_families(expires_at)
    yield from accelerator_families(accelerators, readings)


def accelerator_families(
    accelerators: Sequence[Accelerator], readings: Sequence[AcceleratorReading]
) -> Iterator[Metric]:
    """One series for each accelerator; none of those that tell nothing."""
    labels = ["index", "kind"]
    held = GaugeMetricFamily(
        "svc_agent_accelerator_held", "1 while a replica or a file of `accelerators.claims` has it.", labels=labels
    )
    memory = GaugeMetricFamily("svc_agent_accelerator_memory_bytes", "Its memory.", labels=labels)
    used = GaugeMetricFamily("svc_agent_accelerator_used_bytes", "Memory in use, by its driver.", labels=labels)
    busy = GaugeMetricFamily(
        "svc_agent_accelerator_busy_ratio", "Share of time it works, by its driver.", labels=labels
    )
    for one in accelerators:
        names = [str(one.index), one.kind]
        held.add_metric(names, bool(one.replicas or one.claims))
        if one.memory_mb:
            memory.add_metric(names, one.memory_mb * MIB)
        for reading in readings:
            if reading.index != one.index:
                continue
            if reading.used_mb is not UNSET:
                used.add_metric(names, reading.used_mb * MIB)
            if reading.busy_percent is not UNSET:
                busy.add_metric(names, reading.busy_percent / PERCENT)
    yield from (held, memory, used, busy)
